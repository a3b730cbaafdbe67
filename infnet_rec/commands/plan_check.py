"""`plan --check`: builds the sharded model for real, trains some steps, and compares with what was predicted.

Predictions come from the plan that the run trains under and from the report's own accounting; measurements from the
tensors that stand on each rank afterwards (`infnet_rec.shard.allocated`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from infnet_rec.batch import Batch
from infnet_rec.commands.assemble import Data, Sharded, check_run, open_data, shard_model, train_loader
from infnet_rec.commands.managed_tables import refuse_managed
from infnet_rec.commands.plan_case import Case, open_source
from infnet_rec.commands.stats import aligned
from infnet_rec.commands.train import quieten, use_threads
from infnet_rec.commands.training_plan import run_cluster
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.faults import Refusal
from infnet_rec.shard.allocated import (
    batch_bytes,
    buffer_bytes,
    dense_bytes,
    kernel_bytes,
    now_ms,
    part_times,
    table_bytes,
)
from infnet_rec.shard.planning.dense import BATCHES_ON_DEVICE
from infnet_rec.shard.planning.plan_file import PlanFile
from infnet_rec.shard.planning.planned import sum_memory
from infnet_rec.shard.world import World, gathered, joined, place

NUM_STEPS = 8
WARM_STEPS = 3
# On a GPU the whole peak must be as close as this to what was predicted.
PEAK_TOLERANCE = 0.1
# These are counted, not estimated: one byte off is a fault of the planner.
EXACT = (
    "weights",
    "optimizer",
    "all weights",
    "all optimizer",
    "dense parameters",
    "dense gradients",
    "dense optimizer",
)

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """One number that was predicted and measured.

    Attributes:
        rank: where.
        part: what.
        table: whose, or "".
        unit: bytes or ms.
        predicted: before anything was built.
        measured: on the rank.
    """

    rank: int
    part: str
    table: str
    unit: Literal["bytes", "ms"]
    predicted: float
    measured: float

    @property
    def ratio(self) -> float | None:
        """Predicted over measured; None where there is nothing."""
        return self.predicted / self.measured if self.measured else None

    @property
    def is_wrong(self) -> bool:
        """Whether it had to agree and does not."""
        if self.part == "peak allocated":
            return abs(self.predicted - self.measured) > PEAK_TOLERANCE * self.measured
        return self.part in EXACT and self.predicted != self.measured


def check_plan(config_path: Path, overrides: Sequence[str], hardware: str | None) -> JSON | None:
    """Checks the plan of a run; under torchrun, as one of its ranks.

    Args:
        config_path: a run's TOML file.
        overrides: laid on it, see `load_config`.
        hardware: what was planned for; None takes what the configuration names, or this machine.

    Returns:
        All numbers of all ranks, on rank 0.

    Raises:
        Fault: anything a person can mend, before any process group is made.
        Refusal: the tables do not fit.
    """
    named = [f"sharding.hardware='{hardware}'"] if hardware else []
    config = load_config(config_path, [*overrides, *named])
    world, data = place(), open_data(config)
    check_run(config, data, world)
    refuse_managed(data.schema, "plan --check")
    quieten()
    use_threads(config.train.num_threads, world)
    with joined(world):
        rows = compare(config, data, world)
    return result_of(rows) if world.is_first else None


def compare(config: RunConfig, data: Data, world: World) -> list[Compared]:
    """Builds, trains and compares; the process group is open. Collective.

    Returns:
        The rows of all ranks, on rank 0; elsewhere none.
    """
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    sharded = shard_model(config, data, world)
    case = Case(config, open_source(config), run_cluster(config, world))
    step_ms = _train(config, data, world, sharded)
    # Before anything is measured in ways that allocate.
    peaks = list(_peaks(sharded.plan, case, world)) if on_gpu else []
    # It had taken over how the collections send their ids.
    sharded.pipeline.detach()
    batches = [batch.to(world.device) for batch in train_loader(config, data, world).batches(0, NUM_STEPS)]
    rows = [*peaks, *_tables(sharded, world.rank), *_dense(sharded, case, batches, world.rank)]
    if on_gpu:
        rows += [*_times(sharded, case, batches[-1], step_ms, world.rank)]
    return [row for rank_rows in gathered(world, rows) for row in rank_rows]


def result_of(rows: Sequence[Compared]) -> JSON:
    """The numbers, and which of them are wrong."""
    return {
        "check": "plan",
        "num_ranks": len({row.rank for row in rows}),
        "num_wrong": sum(row.is_wrong for row in rows),
        "rows": [asdict(row) | {"ratio": row.ratio, "wrong": row.is_wrong} for row in rows],
    }


def lines(result: JSON) -> list[str]:
    """The table for people: wrong rows first, then the sums of each rank; single tables that agree are counted only."""
    rows = sorted(result["rows"], key=lambda row: (not row["wrong"], row["rank"]))
    shown = [row for row in rows if row["wrong"] or not row["table"]]
    cells = [["rank", "part", "table", "predicted", "measured", "ratio", ""]]
    for row in shown:
        numbers = [f"{row[key]:,.{0 if row['unit'] == 'bytes' else 2}f}" for key in ("predicted", "measured")]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.4f}"
        cells.append([str(row["rank"]), row["part"], row["table"], *numbers, ratio, "WRONG" if row["wrong"] else ""])
    tables = [row for row in rows if row["table"]]
    agreeing = sum(not row["wrong"] for row in tables)
    return [*aligned(cells), "", f"{agreeing} of {len(tables)} numbers of single tables agree to the byte"]


def require_right(result: JSON) -> None:
    """Turns wrong numbers into the answer no.

    Raises:
        Refusal: some number had to agree and does not.
    """
    if result["num_wrong"]:
        raise Refusal("\n".join([f"{result['num_wrong']} numbers of the plan are wrong", *lines(result)]))


def _train(config: RunConfig, data: Data, world: World, sharded: Sharded) -> float:
    """Some steps, so that all that comes into being in a step is there; returns ms a step."""
    feed = train_loader(config, data, world).batches(0, NUM_STEPS)
    sharded.model.train()
    started_ms = 0.0
    for step in range(NUM_STEPS):
        if step == WARM_STEPS:
            started_ms = now_ms(world.device)
        sharded.optimizers.set_lr(sparse=config.train.sparse.lr, dense=config.train.dense.lr)
        sharded.pipeline.progress(feed)
    return (now_ms(world.device) - started_ms) / (NUM_STEPS - WARM_STEPS)


def _tables(sharded: Sharded, rank: int) -> Iterator[Compared]:
    """Each table, their sums, and the kernels' whole allocations."""
    measured = table_bytes(sharded.model, sharded.optimizers)
    weights = optimizer = 0
    for table in sharded.plan.tables:
        here = [memory for shard in table.shards if shard.rank == rank for memory in (shard.hbm, shard.host)]
        predicted = sum_memory(here)
        weights, optimizer = weights + predicted.weight_bytes, optimizer + predicted.optimizer_bytes
        found = measured.get(table.name)
        if not here and found is None:
            continue
        yield _bytes(rank, "weights", predicted.weight_bytes, found.weight_bytes if found else 0, table.name)
        yield _bytes(rank, "optimizer", predicted.optimizer_bytes, found.optimizer_bytes if found else 0, table.name)
    kernels = kernel_bytes(sharded.model)
    copied = sum(
        found.optimizer_bytes
        for table in sharded.plan.tables
        if table.sharding == "data_parallel" and (found := measured.get(table.name))
    )
    yield _bytes(rank, "all weights", weights, kernels.weight_bytes)
    yield _bytes(rank, "all optimizer", optimizer, kernels.optimizer_bytes + copied)
    caches = sum(shard.hbm.cache_bytes for table in sharded.plan.tables for shard in table.shards if shard.rank == rank)
    if caches or kernels.cache_bytes:
        yield _bytes(rank, "all caches", caches, kernels.cache_bytes)


def _dense(sharded: Sharded, case: Case, batches: Sequence[Batch], rank: int) -> Iterator[Compared]:
    """The dense part, and what waits for its step."""
    measured, predicted = dense_bytes(sharded.model, sharded.optimizers), case.dense
    yield _bytes(rank, "dense parameters", predicted.parameter_bytes, measured.parameter_bytes)
    yield _bytes(rank, "dense gradients", predicted.gradient_bytes, measured.gradient_bytes)
    yield _bytes(rank, "dense optimizer", predicted.optimizer_bytes, measured.optimizer_bytes)
    largest = max(batch_bytes(batch) for batch in batches) * BATCHES_ON_DEVICE["sparse_dist"]
    yield _bytes(rank, "batches", predicted.input_bytes, largest)
    waiting = sum(
        shard.hbm.buffer_bytes + shard.host.buffer_bytes
        for table in sharded.plan.tables
        for shard in table.shards
        if shard.rank == rank
    )
    yield _bytes(rank, "ids that wait", waiting, max(buffer_bytes(sharded.model, batch) for batch in batches))


def _peaks(plan: PlanFile, case: Case, world: World) -> Iterator[Compared]:
    """What torch's allocator has seen; the library's own memory is not among it."""
    tables = sum_memory(load.hbm for load in plan.ranks if load.rank == world.rank).total_bytes
    dense = case.dense
    allocated = tables + dense.total_bytes - dense.library_bytes - dense.allocator_bytes
    yield _bytes(world.rank, "peak allocated", allocated, torch.cuda.max_memory_allocated(world.device))
    reserved = allocated + dense.allocator_bytes
    yield _bytes(world.rank, "peak reserved", reserved, torch.cuda.max_memory_reserved(world.device))


def _times(sharded: Sharded, case: Case, batch: Batch, step_ms: float, rank: int) -> Iterator[Compared]:
    """A whole step as it is trained, and its parts one after the other."""
    tables, step = sharded.plan.ranks[rank].times, case.step
    found = [part_times(sharded.model, sharded.optimizers, batch) for _ in range(WARM_STEPS)][-1]
    backward = tables.backward_compute_ms + tables.backward_comms_ms
    for part, predicted, measured in (
        ("step", step.total_ms, step_ms),
        ("look-ups", tables.forward_compute_ms + tables.prefetch_ms, found.lookup_ms),
        ("exchange", tables.forward_comms_ms, found.exchange_ms),
        ("tower and backward", step.tower_ms + step.all_reduce_ms + backward, found.tower_and_backward_ms),
        ("dense optimizer step", step.optimizer_ms, found.optimizer_ms),
    ):
        yield Compared(rank, part, "", "ms", predicted, measured)


def _bytes(rank: int, part: str, predicted: int, measured: int, table: str = "") -> Compared:
    return Compared(rank, part, table, "bytes", predicted, measured)
