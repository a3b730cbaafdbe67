"""What `bench run` measured on every rank, as one result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from infnet_rec.bench.host_parts import StepParts
from infnet_rec.bench.meter import PROFILED_STEPS
from infnet_rec.bench.spans import COMMUNICATION, PARTS, Part
from infnet_rec.bench.summary import summary
from infnet_rec.bench.verdict import Setting, judge
from infnet_rec.commands.assemble import Data
from infnet_rec.commands.towers import table_width
from infnet_rec.commands.training_plan import run_cluster
from infnet_rec.config.run import RunConfig
from infnet_rec.shard.planning.tower_cost import TowerCost
from infnet_rec.shard.world import World

# Of each looked-up row: read forward; read and written by its optimizer.
ROW_PASSES = 3

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What one rank measured.

    Attributes:
        rank: which.
        steps_s: of each untouched step.
        waited_s: of that, for data.
        parts: of the profiled steps.
        sent: the collectives of a step with the bytes that went to other ranks, in their order.
        peak_bytes: of memory.
        ids_per_step: looked up for this rank's examples.
        events_per_step: of its sequences.
        ceilings: of the machine, while all ranks measured it.
    """

    rank: int
    steps_s: list[float]
    waited_s: list[float]
    parts: StepParts
    sent: list[tuple[str, float]]
    peak_bytes: int
    ids_per_step: float
    events_per_step: float
    ceilings: JSON


@dataclass(frozen=True, slots=True)
class Measured:
    """What all of them measured, and what is known besides."""

    ranks: Sequence[RankFacts]
    tower: TowerCost
    machine: JSON
    price_per_hour: float | None


def report(config: RunConfig, data: Data, world: World, measured: Measured) -> JSON:
    """The result for scripts; `bench_run_text.lines` is the same for people.

    A part's milliseconds are its share of the profiled steps times the mean untouched step, so they add up to that.
    """
    ranks = measured.ranks
    steps_s = np.mean([facts.steps_s for facts in ranks], axis=0).tolist()
    step_s, batch_size = float(np.mean(steps_s)), config.train.global_batch_size
    parts = _parts(ranks, step_s)
    imbalance = _imbalance(ranks)
    limits = _ceilings([facts.ceilings for facts in ranks])
    cores = measured.machine["cores"] - world.local_world_size * measured.machine["threads"]
    setting = Setting(
        on_gpu=world.device.type == "cuda",
        loader_threads=config.data.loader_threads,
        communication=config.sharding.communication,
        precision=config.train.precision,
        spare_cores=max(0, cores),
    )
    spent: dict[Part, float] = {part: parts[part]["share"] for part in PARTS}
    exposed: dict[Part, float] = {part: parts[part]["exposed_ms"] / 1e3 / step_s for part in COMMUNICATION}
    profiled_s = float(np.mean([facts.parts.step_s for facts in ranks]))
    return {
        "bench": "run",
        "machine": measured.machine,
        "store": data.store.fingerprint,
        "config": config.model_dump(mode="json"),
        "num_ranks": world.world_size,
        "ranks_per_node": world.local_world_size,
        "global_batch_size": batch_size,
        "step": {**summary(steps_s), "samples_s": steps_s},
        "examples_per_s": batch_size / step_s,
        "examples_per_s_per_rank": batch_size / step_s / world.world_size,
        "waited_for_data_ms": 1e3 * float(np.mean([facts.waited_s for facts in ranks])),
        "profiled": {"num_steps": PROFILED_STEPS, "step_ms": 1e3 * profiled_s, "times_untouched": profiled_s / step_s},
        "parts": parts,
        "imbalance": imbalance,
        "ranks": [_rank(facts) for facts in ranks],
        "memory": {
            "kind": "allocated on the GPU" if setting.on_gpu else "resident",
            "peak_bytes": max(facts.peak_bytes for facts in ranks),
        },
        "ceilings": limits,
        "rates": _rates(config, data, measured, parts, limits, step_s),
        "verdict": asdict(judge(spent, exposed, imbalance["share"], setting)),
        "epoch": _epoch(config, data, world, step_s, measured.price_per_hour),
    }


def _parts(ranks: Sequence[RankFacts], step_s: float) -> dict[Part, JSON]:
    """By part, means over ranks."""
    found: dict[Part, JSON] = {}
    for part in PARTS:
        share = float(np.mean([facts.parts.spent_s[part] / facts.parts.step_s for facts in ranks]))
        found[part] = {"share": share, "ms": 1e3 * share * step_s}
        if part not in COMMUNICATION:
            continue
        of_step = {
            name: float(np.mean([getattr(facts.parts, name)[part] / facts.parts.step_s for facts in ranks]))
            for name in ("exposed_s", "in_flight_s")
        }
        exposed_ms, in_flight_ms = (1e3 * step_s * of_step[name] for name in ("exposed_s", "in_flight_s"))
        found[part] |= {
            "exposed_ms": exposed_ms,
            "in_flight_ms": in_flight_ms,
            "overlapped_ms": in_flight_ms - exposed_ms,
            "sent_bytes": _sent_bytes(ranks, part),
        }
    return found


def _sent_bytes(ranks: Sequence[RankFacts], part: Part) -> float | None:
    """What a mean rank sends in a step; None where the counted step had other collectives than the profiled one."""
    found = []
    for facts in ranks:
        calls = facts.parts.collectives
        if [kind for kind, _ in calls] != [_kind(name) for name, _ in facts.sent]:
            return None
        found.append(sum(size for (_, of), (_, size) in zip(calls, facts.sent, strict=True) if of == part))
    return float(np.mean(found))


def _kind(operator: str) -> str:
    """As `infnet_rec.bench.host_parts.kind_of` calls it."""
    return operator.replace("_", "").removesuffix("base")


def _imbalance(ranks: Sequence[RankFacts]) -> JSON:
    """Who has most to do, and what would be saved if all had the same."""
    busy = [facts.parts.step_s - sum(facts.parts.exposed_s.values()) for facts in ranks]
    step_s = float(np.mean([facts.parts.step_s for facts in ranks]))
    share = (max(busy) - float(np.mean(busy))) / step_s
    return {"slowest_rank": int(np.argmax(busy)), "share": share, "busiest_over_mean": max(busy) / float(np.mean(busy))}


def _rank(facts: RankFacts) -> JSON:
    parts = facts.parts
    return {
        "rank": facts.rank,
        "step_ms": summary(facts.steps_s),
        "waited_for_data_ms": 1e3 * float(np.mean(facts.waited_s)),
        "profiled_step_ms": 1e3 * parts.step_s,
        "busy_ms": 1e3 * (parts.step_s - sum(parts.exposed_s.values())),
        "spent_ms": {part: 1e3 * s for part, s in parts.spent_s.items()},
        "exposed_ms": {part: 1e3 * s for part, s in parts.exposed_s.items()},
        "in_flight_ms": {part: 1e3 * s for part, s in parts.in_flight_s.items()},
        "peak_bytes": facts.peak_bytes,
        "ids_per_step": facts.ids_per_step,
        "events_per_step": facts.events_per_step,
    }


def _ceilings(of_ranks: Sequence[JSON]) -> JSON:
    """What a mean rank may expect while the others are at work too."""
    rates = [limits["matmul_flops_per_s"] for limits in of_ranks]
    return {
        "copy_bytes_per_s": float(np.mean([limits["copy_bytes_per_s"] for limits in of_ranks])),
        "matmul_flops_per_s": {dtype: float(np.mean([rate[dtype] for rate in rates])) for dtype in rates[0]},
    }


def _rates(
    config: RunConfig, data: Data, measured: Measured, parts: Mapping[Part, JSON], limits: JSON, step_s: float
) -> JSON:
    """A rank's arithmetic and traffic, against the machine's.

    The tower's FLOPs and bytes are those of its operators, forward and backward; what lookups must move is each row
    read once, and read and written by its optimizer.
    """
    rates = limits["matmul_flops_per_s"]
    # Some processors multiply bfloat16 slower, and nobody has to.
    matmul = max(rates.values()) if config.train.precision == "bf16" else rates["float32"]
    copy = limits["copy_bytes_per_s"]
    tower_s = (parts["tower_forward"]["ms"] + parts["tower_backward"]["ms"]) / 1e3
    table_s = (parts["lookup"]["ms"] + parts["table_update"]["ms"]) / 1e3
    ids = float(np.mean([facts.ids_per_step for facts in measured.ranks]))
    row_bytes = ROW_PASSES * 4 * table_width(config, data.schema) * ids
    tower = measured.tower
    return {
        "tower_flops_per_step": tower.flops,
        "tower_moved_bytes_per_step": tower.moved_bytes,
        "table_bytes_per_step": row_bytes,
        "model_flops_utilisation": tower.flops / step_s / matmul,
        "tower_fraction_of_matmul": tower.flops / max(tower_s, 1e-9) / matmul,
        "tower_fraction_of_copy": tower.moved_bytes / max(tower_s, 1e-9) / copy,
        "table_fraction_of_copy": row_bytes / max(table_s, 1e-9) / copy,
        "bytes_per_s": {
            part: parts[part]["sent_bytes"] / (parts[part]["in_flight_ms"] / 1e3)
            for part in COMMUNICATION
            if parts[part]["sent_bytes"] and parts[part]["in_flight_ms"]
        },
    }


def _epoch(config: RunConfig, data: Data, world: World, step_s: float, price_per_hour: float | None) -> JSON:
    """What an epoch takes; evaluation and saving aside."""
    steps = data.store.num_examples("train") // config.train.global_batch_size
    rank_hours = steps * step_s * world.world_size / 3600
    cluster, currency = run_cluster(config, world), None
    if price_per_hour is None and cluster.price_per_hour is not None:
        price_per_hour = cluster.price_per_hour / cluster.world_size
        currency = cluster.hardware.currency
    return {
        "num_steps": steps,
        "seconds": steps * step_s,
        "rank_hours": rank_hours,
        "price_per_rank_hour": price_per_hour,
        "currency": currency,
        "price": None if price_per_hour is None else price_per_hour * rank_hours,
    }
