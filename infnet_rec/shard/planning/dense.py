"""Bytes of a rank that no table takes: dense part, inputs, activations, what a device keeps for itself.

Every part is counted from the schema and the model, but for the two that are marked as assumptions.
"""

from dataclasses import dataclass, fields

from torch import nn

from infnet_rec.model.ranking import RankingModel
from infnet_rec.schema import Schema
from infnet_rec.shard.optim import DenseName
from infnet_rec.shard.planning.demand import Pipeline
from infnet_rec.shard.planning.tower_cost import TowerCost
from infnet_rec.shard.planning.workload import BatchShape

GIB = 2**30
ID_BYTES, FLOAT_BYTES = 8, 4

# Assumptions. A CUDA context with the kernels of torch, FBGEMM and Triton, cuBLAS's work space, and NCCL's buffers.
LIBRARY_BYTES = int(1.5 * GIB)
# Of what comes and goes: blocks that the allocator holds and nobody uses. Tables are allocated once and leave no gaps.
ALLOCATOR_FRACTION = 0.1
# A Python process with torch and TorchRec.
PROCESS_BYTES = int(0.8 * GIB)

# TrainPipelineSparseDist trains on one batch, sends the ids of the next and copies the one after that; prefetching
# holds one more.
BATCHES_ON_DEVICE: dict[Pipeline, int] = {"sparse_dist": 3, "prefetch_sparse_dist": 4}
# State of the dense optimizers, in copies of the parameters. A number of steps a parameter comes on top.
OPTIMIZER_COPIES: dict[DenseName, int] = {"adam": 2, "adamw": 2, "adagrad": 1}


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
    optimizer: DenseName,
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
    input_bytes = BATCHES_ON_DEVICE[pipeline] * batch_bytes(schema, shape, with_rarity=has_rarity(model.criterion))
    lookup_bytes, exchange_bytes = bag_bytes + 2 * distinct_bytes, bag_bytes + distinct_bytes
    activation_bytes = int(tower.peak_bytes)
    working_bytes = input_bytes + lookup_bytes + exchange_bytes + activation_bytes
    return DenseMemory(
        parameter_bytes=parameter_bytes,
        gradient_bytes=parameter_bytes,
        optimizer_bytes=OPTIMIZER_COPIES[optimizer] * parameter_bytes + FLOAT_BYTES * len(parameters),
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


def batch_bytes(schema: Schema, shape: BatchShape, *, with_rarity: bool) -> int:
    """One `Batch` of a rank, with the offsets that TorchRec derives from lengths."""
    num_examples, num_bags = shape.local_batch_size, len(schema.bag_features)
    num_tables, num_tokens = len(schema.sequence_tables), len(schema.shared_features) * num_examples
    num_tokens += num_examples * sum(shape.p95_events_F)
    ids = num_examples * sum(shape.ids_M) + sum(shape.p95_distinct.values()) + num_tokens
    lengths = num_examples * (2 * num_bags + 2 * num_tables + len(schema.sequences))
    ids += shape.means + shape.mean_rows
    floats = num_examples * (len(schema.tasks) + 1 + shape.weighs + with_rarity * len(schema.features))
    return int(ID_BYTES * (ids + lengths + num_examples) + FLOAT_BYTES * floats)


def host_bytes(schema: Schema, shape: BatchShape, *, on_gpu: bool, read_ahead: int, num_threads: int) -> int:
    """What a rank takes of the host's memory beside tables and, on a CPU, beside its `DenseMemory`.

    Batches read ahead, the scratch in which distinct ids are found (four bytes for each row of a table that sequences
    read, a thread), and the process where the device is a GPU. The store is mapped, so its pages are the system's to
    keep or drop.
    """
    waiting = (read_ahead + num_threads) * batch_bytes(schema, shape, with_rarity=False)
    scratch = num_threads * 4 * sum(table.num_rows for table in schema.sequence_tables)
    return waiting + scratch + (PROCESS_BYTES if on_gpu else 0)
