"""What a sharded model really takes on this rank: bytes of the tensors that stand there, times of a step's parts.

TorchRec keeps lookups out of `modules()`, so they are reached through its private attributes, as they are named in the
versions that pyproject.toml allows.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch
from infnet_rec.model.ranking import RankingModel
from infnet_rec.shard.optim import TABLES, Optimizers

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
        value = getattr(batch, field)
        tensors += _of_ids(value) if isinstance(value, KeyedJaggedTensor) else [] if value is None else [value]
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
    means = batch.mean_row_Q, batch.mean_start_P
    tokens = module.assembly(bags, events, batch.spread_K, batch.lengths_FB, None, *means)
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
