"""Bytes of a rank that no table takes: dense part, inputs, activations, what a device keeps for itself.

Every part is counted from the schema and the model, but for the two that are marked as assumptions.

What the model above its tables costs is counted without doing the work. The parts that every rank has whole (token
assembly, tower, loss) go forward and backward once on torch's fake tensors, which have shapes and storages and no
numbers, under the same counter as the benchmarks. Whatever the model is, its own operators are what is counted; a real
pass over a batch of the same size counts the same, but for what is padded where examples of unlike lengths are read
together. All of it is proportional to the batch but for what is as large as the weights, so one size foretells every
other. A model that has to know its lengths goes over a few real examples.

Shapes: B examples, M bag features, F sequences, S shared features, K unpooled tokens, X distinct ids, D width.
"""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from infnet_rec.batch import Batch, Repeats
from infnet_rec.config.train import DenseOptimizer
from infnet_rec.distributed.optimizers import DENSE
from infnet_rec.models.embeddings import TokenAssembly
from infnet_rec.models.infnet.attention import standing_for_gpu
from infnet_rec.models.infnet.fused_attention import MAX_WIDTH, dry_run
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.planner.op_counter import OpCounter
from infnet_rec.planner.request import Pipeline
from infnet_rec.planner.workload import BatchShape, means_of
from infnet_rec.schema import Schema

# So large that tensors of the size of weights do not count.
TRIAL_EXAMPLES = 4096
REAL_EXAMPLES = 64
# Ratios of distinct ids to tokens are rounded up to powers of this: they hardly matter, and a trial takes a second.
RATIO_STEP = 2.0


@dataclass(frozen=True, slots=True)
class TowerCost:
    """Of one forward and backward pass over a rank's batch.

    Attributes:
        peak_bytes: the most that is allocated at any time, on top of weights, their gradients, inputs and the
            looked-up embeddings; the embeddings' gradients are in it.
        flops: of matrix products.
        moved_bytes: read and written by operators, as if nothing stayed in a cache.
        num_operators: kernels that a GPU is asked to run, at least.
    """

    peak_bytes: float
    flops: float
    moved_bytes: float
    num_operators: float

    def times(self, scale: float) -> Self:
        """The same on another number of examples: the same operators, on more or less."""
        return type(self)(scale * self.peak_bytes, scale * self.flops, scale * self.moved_bytes, self.num_operators)


def uses_kernel(model: RankingModel, width: int) -> bool:
    """Whether a GPU would read this model's sequences with the fused kernel."""
    return _form_of_attention(model.tower) in ("auto", "fused") and width <= MAX_WIDTH


def _form_of_attention(tower: nn.Module) -> str | None:
    """INFNet's setting; other models may have a part of that name."""
    form = getattr(tower, "attention", None)
    return form if isinstance(form, str) else None


def tower_cost(
    model: RankingModel,
    schema: Schema,
    shape: BatchShape,
    *,
    width: int,
    on_gpu: bool,
    known: "Known | None" = None,
) -> TowerCost:
    """Counts, for a batch that one in twenty exceeds.

    Args:
        model: on the meta device; it stays there.
        schema: of the run.
        shape: of a rank's batch.
        width: of every table.
        on_gpu: whether sequences may be read by the fused kernel.
        known: trials of this model on this kind of device that were made before; more are put there.
    """
    kernel = on_gpu and uses_kernel(model, width)
    known = {} if known is None else known
    shared = len(schema.shared_features)
    tokens, p95_tokens = shared + sum(shape.events_F), shared + sum(shape.p95_events_F)
    rows = sum(shape.p95_distinct.values()) / max(1.0, p95_tokens * shape.local_batch_size)
    steps = math.ceil(math.log(min(1.0, rows) or 1e-6, RATIO_STEP) - 1e-6)
    # The eager form reads chunks of one size, so a small batch is no small part of a large one.
    size = TRIAL_EXAMPLES if kernel else min(TRIAL_EXAMPLES, shape.local_batch_size)
    if (steps, size) not in known:
        trial = _Trial(model, schema, shape.events_F, RATIO_STEP**steps, shape.entries_per_token, width)
        known[steps, size] = trial.run(size, kernel=kernel)
    # Longer histories are more of the same.
    return known[steps, size].times(shape.local_batch_size / size * p95_tokens / max(1.0, tokens))


# Of trials, by the power of `RATIO_STEP` and the number of examples.
Known = dict[tuple[int, int], TowerCost]


@dataclass(frozen=True, slots=True)
class _Trial:
    model: RankingModel
    schema: Schema
    events_F: tuple[float, ...]
    ratio: float
    entries_per_token: float
    width: int

    def run(self, num_examples: int, *, kernel: bool) -> TowerCost:
        """Counts; what happens inside the fused kernel comes from its own book."""
        attention = "fused" if kernel else "eager"
        with dry_run() as work, standing_for_gpu() if kernel else nullcontext():
            try:
                ledger, scale = self._count(attention, num_examples, FakeTensorMode()), 1.0
            except DataDependentOutputException:
                real = min(REAL_EXAMPLES, num_examples)
                ledger, scale = self._count(attention, real, None), num_examples / real
        return TowerCost(
            ledger.peak_bytes,
            ledger.flops + sum(one.flops for one in work),
            ledger.moved_bytes + sum(one.moved_bytes for one in work),
            ledger.num_operators + len(work),
        ).times(scale)

    def _count(self, attention: Literal["eager", "fused"], num_examples: int, fake: FakeTensorMode | None) -> OpCounter:
        model, lengths_FB = self.model, self._lengths(num_examples)
        num_tokens = int(lengths_FB.sum())
        tower, criterion = copy.deepcopy(model.tower), copy.deepcopy(model.criterion)
        if _form_of_attention(tower) is not None:
            vars(tower)["attention"] = attention
        # A device that is always there: what runs on a GPU is told by the form of attention alone.
        with fake or nullcontext(), torch.device("cpu"):
            for module in (*tower.train().modules(), *criterion.train().modules()):
                _materialise(module)
            # Not the model's own, which a comparison may have replaced by one that reads otherwise.
            assembly = TokenAssembly(self.schema, self.width)
            batch = self._batch(fake.from_tensor(lengths_FB) if fake else lengths_FB, num_tokens)
            bags, distinct = self._lookups(batch)
            counted = batch.mean_row_Q, batch.mean_start_P, batch.repeats
            # What the first batch finds out is known in all others.
            assembly(bags, distinct, batch.spread_K, batch.lengths_FB, None, *counted)
            with OpCounter() as ledger:
                tokens = assembly(bags, distinct, batch.spread_K, batch.lengths_FB, None, *counted)
                loss, _ = criterion(tower(tokens), tokens, batch)
                loss.backward()
        return ledger

    def _lengths(self, num_examples: int) -> Tensor:
        """Whole numbers of events with the batch's means, spread evenly over the examples."""
        example_B = torch.arange(num_examples + 1, dtype=torch.float64)
        return torch.stack([(example_B * events).round().long().diff() for events in self.events_F])

    def _batch(self, lengths_FB: Tensor, num_tokens: int) -> Batch:
        num_examples, num_shared = lengths_FB.shape[1], len(self.schema.shared_features)
        whole = torch.int64
        num_unpooled = num_shared * num_examples + num_tokens
        row_Q, start_P = self._means(lengths_FB)
        num_rows = self._num_distinct(num_unpooled) + (0 if start_P is None else len(start_P))
        empty = KeyedJaggedTensor(keys=[], values=torch.empty(0), lengths=torch.empty(0, dtype=whole))
        return Batch(
            categorical=empty,
            sequences=empty,
            spread_K=torch.zeros(num_unpooled, dtype=whole),
            lengths_FB=lengths_FB,
            labels_BT=torch.zeros(num_examples, len(self.schema.tasks)),
            user_B=torch.zeros(num_examples, dtype=whole),
            rarity_BM=torch.zeros(num_examples, len(self.schema.features)),
            weight_B=torch.ones(num_examples),
            mean_row_Q=row_Q,
            mean_start_P=start_P,
            repeats=self._repeats(num_examples, num_tokens, num_rows),
        )

    def _repeats(self, num_examples: int, num_tokens: int, num_rows: int) -> Repeats:
        """Entries spread evenly over the examples; all tokens are of the first row."""
        num_entries = round(self.entries_per_token * num_tokens)
        start_Y = torch.arange(num_examples + 1) * num_entries // num_examples
        row_start_X = torch.full((num_rows,), num_tokens, dtype=torch.int32)
        row_start_X[0] = 0
        return Repeats(
            row_U=torch.zeros(num_entries, dtype=torch.int32),
            count_U=torch.ones(num_entries, dtype=torch.int32),
            start_Y=start_Y.int(),
            by_row_L=torch.arange(num_tokens, dtype=torch.int32),
            row_start_X=row_start_X,
        )

    def _num_distinct(self, num_tokens: int) -> int:
        return max(1, round(self.ratio * num_tokens))

    def _means(self, lengths_FB: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """`Batch.mean_row_Q` and `mean_start_P`; each mean has as many rows as there may be."""
        if not self.schema.averages_tokens:
            return None, None
        found = means_of(self.schema, self.events_F, lengths_FB.shape[1], self.ratio)
        num_means, num_rows = (math.ceil(number) for number in found)
        return torch.zeros(num_rows, dtype=torch.int64), torch.arange(num_means) * num_rows // max(1, num_means)

    def _lookups(self, batch: Batch) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """What the collections would return; features in another order than the model's, as sharding leaves them."""
        names = [feature.name for feature in self.schema.bag_features][::-1]
        bag_BX = torch.zeros(len(batch.weight_B), len(names) * self.width, requires_grad=True)
        bags = KeyedTensor(names, [self.width] * len(names), bag_BX)
        # Tables do not matter: their rows are joined before they are read.
        first, *others = (table.name for table in self.schema.sequence_tables)
        num_rows = {first: self._num_distinct(batch.spread_K.numel()), **dict.fromkeys(others, 0)}
        distinct = {}
        for name, number in num_rows.items():
            rows_XD = torch.zeros(number, self.width, requires_grad=True)
            distinct[name] = JaggedTensor(rows_XD, lengths=torch.empty(1, dtype=torch.int64))
        return bags, distinct


def _materialise(module: nn.Module) -> None:
    """Gives a module of the meta device parameters with gradients, which are a part of their own in a plan."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            there = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype))
            there.grad = torch.zeros_like(there)
            module._parameters[name] = there
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


GIB = 2**30
ID_BYTES, FLOAT_BYTES, COUNT_BYTES = 8, 4, 4

# Assumptions. A CUDA context with the kernels of torch, FBGEMM and Triton, cuBLAS's work space, and NCCL's buffers.
LIBRARY_BYTES = int(1.5 * GIB)
# Of what comes and goes: blocks that the allocator holds and nobody uses. Tables are allocated once and leave no gaps.
ALLOCATOR_FRACTION = 0.1
# A Python process with torch and TorchRec.
PROCESS_BYTES = int(0.8 * GIB)

# TrainPipelineSparseDist trains on one batch, sends the ids of the next and copies the one after that; prefetching
# holds one more.
BATCHES_ON_DEVICE: dict[Pipeline, int] = {"sparse_dist": 3, "prefetch_sparse_dist": 4}


@dataclass(frozen=True, slots=True)
class DenseMemory:
    """Bytes of one rank.

    Attributes:
        parameter_bytes: of the tower and the loss.
        gradient_bytes: theirs; DDP's buckets are these gradients.
        optimizer_bytes: the dense optimizer's state.
        input_bytes: batches that are on the device at the same time.
        lookup_bytes: embeddings as they come from their ranks, and the copy in the order of the batch.
        exchange_bytes: embeddings of all ranks' examples that this rank looks up and sends, when its share is even.
        activation_bytes: the most that a forward and backward pass holds, gradients of the embeddings among it.
        allocator_bytes: an assumption, see `ALLOCATOR_FRACTION`.
        library_bytes: an assumption, see `LIBRARY_BYTES` and `PROCESS_BYTES`.
    """

    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    input_bytes: int
    lookup_bytes: int
    exchange_bytes: int
    activation_bytes: int
    allocator_bytes: int
    library_bytes: int

    @property
    def dense_bytes(self) -> int:
        """Parameters, gradients and optimizer state."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def working_bytes(self) -> int:
        """What comes and goes with a batch."""
        return self.input_bytes + self.lookup_bytes + self.exchange_bytes + self.activation_bytes

    @property
    def total_bytes(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def dense_memory(
    model: RankingModel,
    schema: Schema,
    shape: BatchShape,
    tower: TowerCost,
    *,
    width: int,
    optimizer: DenseOptimizer,
    on_gpu: bool,
    pipeline: Pipeline = "sparse_dist",
) -> DenseMemory:
    """Counts a rank's bytes.

    Args:
        model: on the meta device.
        schema: of the run.
        shape: of a rank's batch.
        tower: from `tower_cost`, for the same shape.
        width: of every table.
        optimizer: of the dense part.
        on_gpu: whether the device has its own library and allocator.
        pipeline: how many batches wait on the device.
    """
    parameters = [*model.tower.parameters(), *model.criterion.parameters(), *model.assembly.parameters()]
    parameter_bytes = sum(p.numel() * p.element_size() for p in parameters)
    bag_bytes = FLOAT_BYTES * width * shape.local_batch_size * len(schema.bag_features)
    distinct_bytes = int(FLOAT_BYTES * width * sum(shape.p95_distinct.values()))
    input_bytes = BATCHES_ON_DEVICE[pipeline] * planned_batch_bytes(
        schema, shape, with_rarity=has_rarity(model.criterion)
    )
    lookup_bytes, exchange_bytes = bag_bytes + 2 * distinct_bytes, bag_bytes + distinct_bytes
    activation_bytes = int(tower.peak_bytes)
    working_bytes = input_bytes + lookup_bytes + exchange_bytes + activation_bytes
    return DenseMemory(
        parameter_bytes=parameter_bytes,
        gradient_bytes=parameter_bytes,
        # A number of steps a parameter comes on top.
        optimizer_bytes=DENSE[optimizer].num_states * parameter_bytes + FLOAT_BYTES * len(parameters),
        input_bytes=input_bytes,
        lookup_bytes=lookup_bytes,
        exchange_bytes=exchange_bytes,
        activation_bytes=activation_bytes,
        allocator_bytes=int(ALLOCATOR_FRACTION * working_bytes),
        library_bytes=LIBRARY_BYTES if on_gpu else PROCESS_BYTES,
    )


def has_rarity(criterion: nn.Module) -> bool:
    """Whether batches of this loss carry `Batch.rarity_BM`."""
    return bool(getattr(criterion, "_embedding_l2", 0.0))


def planned_batch_bytes(schema: Schema, shape: BatchShape, *, with_rarity: bool) -> int:
    """One `Batch` of a rank, with the offsets that TorchRec derives from lengths."""
    num_examples, num_bags = shape.local_batch_size, len(schema.bag_features)
    num_tables, num_tokens = len(schema.sequence_tables), len(schema.shared_features) * num_examples
    num_tokens += num_examples * sum(shape.p95_events_F)
    ids = num_examples * sum(shape.ids_M) + sum(shape.p95_distinct.values()) + num_tokens
    lengths = num_examples * (2 * num_bags + 2 * num_tables + len(schema.sequences))
    ids += shape.means + shape.mean_rows
    # `Repeats`: rows and counts of entries, tokens in the order of their rows, and where examples and rows begin.
    num_sequence_tokens = num_examples * sum(shape.p95_events_F)
    num_rows = sum(shape.p95_distinct.values()) + shape.means
    counts = (2 * shape.entries_per_token + 1) * num_sequence_tokens + num_examples + 1 + num_rows
    floats = num_examples * (len(schema.tasks) + 1 + shape.weighs + with_rarity * len(schema.features))
    return int(ID_BYTES * (ids + lengths + num_examples) + COUNT_BYTES * counts + FLOAT_BYTES * floats)


def host_bytes(schema: Schema, shape: BatchShape, *, on_gpu: bool, read_ahead: int, num_threads: int) -> int:
    """What a rank takes of the host's memory beside tables and, on a CPU, beside its `DenseMemory`.

    Batches read ahead, the scratch in which distinct ids are found (four bytes for each row of a table that sequences
    read, a thread), and the process where the device is a GPU. The store is mapped, so its pages are the system's to
    keep or drop.
    """
    waiting = (read_ahead + num_threads) * planned_batch_bytes(schema, shape, with_rarity=False)
    scratch = num_threads * 4 * sum(table.num_rows for table in schema.sequence_tables)
    return waiting + scratch + (PROCESS_BYTES if on_gpu else 0)
