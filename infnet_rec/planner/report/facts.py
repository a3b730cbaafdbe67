"""A run and its plan as one JSON object: what `infnet-rec plan --json` prints, and all that text and picture read."""

from dataclasses import asdict, fields
from typing import Any

from infnet_rec.planner.dense_cost import DenseMemory
from infnet_rec.planner.plan import RankLoad, RankMemory, TablePlan
from infnet_rec.planner.run_plan import PlannedRun, PlanRequest, PlanSource

# How the parts of a rank's memory are named, in the order in which they are shown; "free" comes after them.
PARTS = ("weights", "optimizer", "cache", "inputs", "activations", "dense", "reserve")
STEP_PARTS = ("lookup_ms", "exchange_ms", "tower_ms", "all_reduce_ms", "optimizer_ms")

JSON = dict[str, Any]


def plan_report(run: PlannedRun, source: PlanSource) -> JSON:
    """Everything about a plan that was found."""
    planned = run.planned
    return {
        "verdict": "fits",
        **question(run.request, source),
        "num_placements_compared": planned.num_tried,
        "ranks": [_rank(run.request, load) for load in planned.ranks],
        "tables": [_table(table) for table in planned.tables],
        "step": _step(run),
        "sent_bytes_per_step": {**asdict(run.sent), "total_bytes": run.sent.total_bytes},
        "epoch": epoch(run),
    }


def question(request: PlanRequest, source: PlanSource) -> JSON:
    """What was asked; there whether it fits or not."""
    cluster, shape, schema = request.cluster, request.shape, request.data.schema
    tables = [*schema.bag_tables, *schema.sequence_tables]
    tokens, distinct = sum(shape.tokens.values()), sum(shape.distinct.values())
    return {
        "cluster": {
            "name": cluster.name,
            "world_size": cluster.world_size,
            "replica_groups": request.config.sharding.replica_groups,
            "hardware": cluster.hardware.model_dump(mode="json"),
            "hbm_bytes_per_rank": cluster.hbm_bytes,
            "host_bytes_per_rank": cluster.host_memory_bytes,
        },
        "manifest": {"path": source.path, "name": source.store.manifest.get("name"), "is_store": source.is_store},
        "model": {
            "num_tables": len(tables),
            "num_rows": sum(table.num_rows for table in tables),
            "width": request.width,
            "sparse_optimizer": request.config.train.sparse.optimizer,
            "precision": request.config.train.precision,
            "num_dense_parameters": request.dense.parameter_bytes // 4,
        },
        "batch": {
            "global_batch_size": request.config.train.global_batch_size,
            "local_batch_size": request.local_batch_size,
            "sequence_length": request.config.data.sequence_length,
            "events_per_example": sum(shape.events_F),
            "p95_events_per_example": sum(shape.p95_events_F),
            "sequence_tokens": tokens,
            "distinct_ids": distinct,
            "tokens_per_distinct_id": tokens / max(1.0, distinct),
            "repeats_are_measured": shape.repeats_are_measured,
            # Without naming ids once, every token would be looked up, exchanged and updated on its own.
            "exchange_bytes_saved": (tokens - distinct) * request.width * 4,
        },
        "dense": {**asdict(request.dense), "total_bytes": request.dense.total_bytes},
    }


def epoch(run: PlannedRun) -> JSON:
    """One pass over the training split at the estimated time a step."""
    hours, cluster = run.rank_hours_per_epoch, run.request.cluster
    return {
        "num_steps": run.request.steps_per_epoch,
        "hours": hours / cluster.world_size,
        "rank_hours": hours,
        "price": run.price_per_epoch,
        "currency": cluster.hardware.currency,
    }


def _rank(request: PlanRequest, load: RankLoad) -> JSON:
    """The memory that holds the tables' weights gets the dense part; on a CPU that is the host's."""
    dense = _reserved(request.dense)
    hbm, host = _parts(load.hbm), _parts(load.host)
    device = hbm if request.on_gpu else host
    for part in PARTS:
        device[part] += dense[part]
    host["reserve"] += request.host_bytes
    return {
        "rank": load.rank,
        "num_shards": load.num_shards,
        "hbm": {**hbm, "free": load.hbm_free_bytes} if request.on_gpu else None,
        "host": {**host, "free": load.host_free_bytes},
        "tables_ms": load.times.total_ms,
        "times": asdict(load.times),
    }


def _parts(memory: RankMemory) -> dict[str, int]:
    return {
        **dict.fromkeys(PARTS, 0),
        "weights": memory.weight_bytes,
        "optimizer": memory.optimizer_bytes,
        "cache": memory.cache_bytes,
        "inputs": memory.buffer_bytes,
    }


def _reserved(dense: DenseMemory) -> dict[str, int]:
    parts = {
        **dict.fromkeys(PARTS, 0),
        "inputs": dense.input_bytes,
        "activations": dense.activation_bytes + dense.lookup_bytes + dense.exchange_bytes,
        "dense": dense.dense_bytes,
        "reserve": dense.allocator_bytes + dense.library_bytes,
    }
    assert sum(parts.values()) == dense.total_bytes, [f.name for f in fields(dense)]
    return parts


def _table(table: TablePlan) -> JSON:
    return {
        "table": table.name,
        "collection": table.collection,
        "num_rows": table.num_rows,
        "width": table.width,
        "sharding": table.sharding,
        "kernel": table.kernel,
        "num_shards": len(table.shards),
        "ranks": sorted({shard.rank for shard in table.shards}),
        "weight_bytes": sum(s.hbm.weight_bytes + s.host.weight_bytes for s in table.shards),
        "hbm_bytes": table.hbm_bytes,
        "host_bytes": table.host_bytes,
        "slowest_shard_ms": table.max_ms,
    }


def _step(run: PlannedRun) -> JSON:
    step = run.step
    return {
        "critical_rank": run.planned.critical.rank,
        "input_wait_ms": 0.0,
        **{part: getattr(step, part) for part in STEP_PARTS},
        "total_ms": step.total_ms,
        "tower_bound": step.tower_bound,
        "imbalance": run.planned.imbalance,
        "examples_per_s": run.request.config.train.global_batch_size / (step.total_ms / 1e3),
    }
