"""`plan --check`: builds the sharded model for real, trains some steps, and compares with what was predicted.

Predictions come from the plan that the run trains under and from the report's own accounting; measurements from the
tensors that stand on each rank afterwards.

What a sharded model really takes is read from the tensors that stand there. TorchRec keeps lookups out of `modules()`,
so they are reached through its private attributes, as they are named in the versions that pyproject.toml allows.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch, Repeats
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.console import aligned
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.data.run_schema import refuse_managed
from infnet_rec.distributed.optimizers import TABLES, Optimizers
from infnet_rec.distributed.process_group import (
    World,
    gather_to_rank0,
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import Refusal
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.planner.dense_cost import BATCHES_ON_DEVICE
from infnet_rec.planner.plan import sum_memory
from infnet_rec.planner.plan_file import PlanFile
from infnet_rec.planner.run_plan import PlanRequest, check_run, plan_request, run_cluster
from infnet_rec.trainer.build import Sharded, shard_model, train_loader

SHARDED = (ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)
# The batch that is trained on, and the next, whose ids were sent already.
BATCHES_OF_IDS = 2
KERNEL_PLACES = ("dev", "host", "uvm")
# fbgemm's cache of rows that stand in host memory, and its index.
CACHE = ("lxu_cache_weights", "lxu_cache_state", "lxu_state", "lxu_cache_locking_counter", "cache_index_table_map")


@dataclass(slots=True)
class TableBytes:
    """What this rank has of one table."""

    weight_bytes: int = 0
    optimizer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DenseBytes:
    """What this rank has of everything but the tables; gradients are those of the last step."""

    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int


@dataclass(frozen=True, slots=True)
class KernelBytes:
    """Whole allocations of fbgemm's kernels: what tables take, rounding up included."""

    weight_bytes: int
    optimizer_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class PartTimes:
    """Milliseconds of a step that does one thing after the other; ids are sent before it begins."""

    lookup_ms: float
    exchange_ms: float
    tower_and_backward_ms: float
    optimizer_ms: float


def table_bytes(model: DistributedModelParallel, optimizers: Optimizers) -> dict[str, TableBytes]:
    """By table, for those that have a part here."""
    found: dict[str, TableBytes] = defaultdict(TableBytes)
    for kernel in _kernels(model):
        states = getattr(kernel.emb_module, "split_optimizer_states", list)()
        for position, table in enumerate(kernel._config.embedding_tables):
            found[table.name].weight_bytes += kernel.emb_module.split_embedding_weights()[position].nbytes
            if states:
                found[table.name].optimizer_bytes += sum(state.nbytes for state in states[position])
    for name, values in optimizers.combined.state_dict()["state"].items():
        if name.startswith("copied."):
            # The last part is "weight".
            table = name.split(".")[-2]
            found[table].optimizer_bytes += sum(v.nbytes for v in values.values() if isinstance(v, Tensor))
    return dict(found)


def kernel_bytes(model: DistributedModelParallel) -> KernelBytes:
    """Of all kernels here."""
    weights, states, caches = [], [], []
    for kernel in _kernels(model):
        tbe: nn.Module = kernel.emb_module
        # A kernel of data-parallel tables has one parameter; what is of whole numbers is fbgemm's placeholder.
        weights += [getattr(tbe, f"weights_{place}", None) for place in KERNEL_PLACES] + [getattr(tbe, "weights", None)]
        states += [getattr(tbe, f"momentum{n}_{place}", None) for n in (1, 2) for place in KERNEL_PLACES]
        if any(getattr(tbe, "lxu_cache_weights", torch.empty(0)).shape):
            caches += [getattr(tbe, name, None) for name in CACHE]
    whole = [[t for t in kind if isinstance(t, Tensor) and t.is_floating_point()] for kind in (weights, states)]
    cached = storage_bytes(t for t in caches if isinstance(t, Tensor))
    return KernelBytes(storage_bytes(whole[0]), storage_bytes(whole[1]), cached)


def dense_bytes(model: DistributedModelParallel, optimizers: Optimizers) -> DenseBytes:
    """Of the tower and the loss, after a step."""
    named = in_backward_optimizer_filter(model.named_parameters())
    params = [p for name, p in named if not name.startswith(TABLES)]
    state = optimizers.combined.state_dict()["state"]
    kept = [v for name, values in state.items() if name.startswith("dense.") for v in values.values()]
    return DenseBytes(
        storage_bytes(params),
        storage_bytes(p.grad for p in params if p.grad is not None),
        storage_bytes(v for v in kept if isinstance(v, Tensor)),
    )


def batch_bytes(batch: Batch) -> int:
    """Of one batch, with the offsets that TorchRec has derived by the time it is used."""
    tensors: list[Tensor] = []
    for field in batch.__dataclass_fields__:
        match value := getattr(batch, field):
            case KeyedJaggedTensor():
                tensors += _of_ids(value)
            case Repeats():
                tensors += value.tensors()
            case Tensor():
                tensors.append(value)
    return storage_bytes(tensors)


def buffer_bytes(model: DistributedModelParallel, batch: Batch) -> int:
    """Ids of other ranks' examples, of as many batches as `TrainPipelineSparseDist` holds; gradients of copied tables.

    Collective: all ranks exchange their ids.
    """
    waiting = 0
    for collection, ids in _inputs(model, batch):
        received = collection.input_dist(collection.create_context(), ids).wait().wait()
        waiting += storage_bytes(t for part in received for t in _of_ids(part))
    copied = (p.grad for name, p in in_backward_optimizer_filter(model.named_parameters()) if name.startswith(TABLES))
    return BATCHES_OF_IDS * waiting + storage_bytes(grad for grad in copied if grad is not None)


def part_times(model: DistributedModelParallel, optimizers: Optimizers, batch: Batch) -> PartTimes:
    """Does a step and times its parts. Collective: it is a step of all ranks."""
    module, device = _ranking(model), batch.labels_BT.device
    optimizers.combined.zero_grad()
    waiting = []
    for collection, ids in _inputs(model, batch):
        context = collection.create_context()
        waiting.append((collection, context, collection.input_dist(context, ids).wait().wait()))
    marks = [now_ms(device)]
    rows = [(collection, context, collection.compute(context, ids)) for collection, context, ids in waiting]
    marks.append(now_ms(device))
    bags, events = (collection.output_dist(context, found).wait() for collection, context, found in rows)
    marks.append(now_ms(device))
    counted = batch.mean_row_Q, batch.mean_start_P, batch.repeats
    tokens = module.assembly(bags, events, batch.spread_K, batch.lengths_FB, None, *counted)
    loss, _ = module.criterion(module.tower(tokens), tokens, batch)
    loss.backward()
    marks.append(now_ms(device))
    optimizers.combined.step()
    marks.append(now_ms(device))
    return PartTimes(*(after - before for before, after in pairwise(marks)))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the allocations behind them, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def now_ms(device: torch.device) -> float:
    """A clock that has waited for the device."""
    if device.type == "cuda":
        # The device is waited for, so that what was asked of it counts to the part that asked.
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3


def _of_ids(ids: KeyedJaggedTensor) -> list[Tensor]:
    return [ids.values(), ids.lengths(), ids.offsets()]


def _ranking(model: DistributedModelParallel) -> RankingModel:
    module = model.module
    assert isinstance(module, RankingModel)
    return module


def _inputs(model: DistributedModelParallel, batch: Batch) -> Iterator[tuple[Any, KeyedJaggedTensor]]:
    """The sharded collections and what they look up."""
    module = _ranking(model)
    for collection, ids in ((module.bags, batch.categorical), (module.events, batch.sequences)):
        assert isinstance(collection, SHARDED)
        yield collection, ids


def _kernels(model: nn.Module) -> Iterator[Any]:
    """Each holds tables of one kind in one fbgemm module, `emb_module`."""
    for module in model.modules():
        if isinstance(module, SHARDED):
            for lookup in module._lookups:
                inner: Any = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
                yield from inner._emb_modules


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
        UserError: anything a person can mend, before any process group is made.
        Refusal: the tables do not fit.
    """
    named = [f"sharding.hardware='{hardware}'"] if hardware else []
    config = load_config(config_path, [*overrides, *named])
    world, data = world_from_env(), open_data(config)
    check_run(config, data, world)
    refuse_managed(data.schema, "plan --check")
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    with process_group(world):
        rows = compare_plan(config, data, world)
    return result_of(rows) if world.is_first else None


def compare_plan(config: RunConfig, data: RunData, world: World) -> list[Compared]:
    """Builds, trains and compares; the process group is open. Collective.

    Returns:
        The rows of all ranks, on rank 0; elsewhere none.
    """
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    sharded = shard_model(config, data, world)
    # What the plan that the run trains under was made of; that plan itself is rank 0's.
    request = plan_request(config, data, run_cluster(config, world))
    step_ms = _train(config, data, world, sharded)
    # Before anything is measured in ways that allocate.
    peaks = list(_peaks(sharded.plan, request, world)) if on_gpu else []
    # It had taken over how the collections send their ids.
    sharded.pipeline.detach()
    batches = [batch.to(world.device) for batch in train_loader(config, data, world).batches(0, NUM_STEPS)]
    rows = [*peaks, *_tables(sharded, world.rank), *_dense(sharded, request, batches, world.rank)]
    if on_gpu:
        rows += [*_times(sharded, request, batches[-1], step_ms, world.rank)]
    return [row for rank_rows in gather_to_rank0(world, rows) for row in rank_rows]


def result_of(rows: Sequence[Compared]) -> JSON:
    """The numbers, and which of them are wrong."""
    return {
        "check": "plan",
        "num_ranks": len({row.rank for row in rows}),
        "num_wrong": sum(row.is_wrong for row in rows),
        "rows": [asdict(row) | {"ratio": row.ratio, "wrong": row.is_wrong} for row in rows],
    }


def plan_check_lines(result: JSON) -> list[str]:
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
        raise Refusal("\n".join([f"{result['num_wrong']} numbers of the plan are wrong", *plan_check_lines(result)]))


def _train(config: RunConfig, data: RunData, world: World, sharded: Sharded) -> float:
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


def _dense(sharded: Sharded, request: PlanRequest, batches: Sequence[Batch], rank: int) -> Iterator[Compared]:
    """The dense part, and what waits for its step."""
    measured, predicted = dense_bytes(sharded.model, sharded.optimizers), request.dense
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


def _peaks(plan: PlanFile, request: PlanRequest, world: World) -> Iterator[Compared]:
    """What torch's allocator has seen; the library's own memory is not among it."""
    tables = sum_memory(load.hbm for load in plan.ranks if load.rank == world.rank).total_bytes
    dense = request.dense
    allocated = tables + dense.total_bytes - dense.library_bytes - dense.allocator_bytes
    yield _bytes(world.rank, "peak allocated", allocated, torch.cuda.max_memory_allocated(world.device))
    reserved = allocated + dense.allocator_bytes
    yield _bytes(world.rank, "peak reserved", reserved, torch.cuda.max_memory_reserved(world.device))


def _times(sharded: Sharded, request: PlanRequest, batch: Batch, step_ms: float, rank: int) -> Iterator[Compared]:
    """A whole step as it is trained, and its parts one after the other."""
    tables, step = sharded.plan.ranks[rank].times, request.step_of(sharded.plan.critical.times)
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
