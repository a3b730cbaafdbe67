"""What the model above its tables costs a rank: memory, arithmetic and traffic, counted on a handful of examples.

The parts that every rank has whole (token assembly, tower, loss) run forward and backward on the CPU with two tiny
batches of made-up numbers, under the same ledger as the benchmarks. All they do is proportional to the batch but for
their own weights, so two sizes foretell every other one. Whatever the model is, its own operators are what is counted.

Shapes: B examples, M bag features, F sequences, S shared features, K unpooled tokens, X distinct ids, D width.
"""

import copy
from dataclasses import dataclass, fields

from typing import Self

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from infnet_rec.batch import Batch
from infnet_rec.ledger import Ledger
from infnet_rec.model.fused import MAX_WIDTH, dry_run
from infnet_rec.model.ranking import RankingModel
from infnet_rec.schema import Schema
from infnet_rec.shard.planning.workload import BatchShape

# Enough for rare events to be there in their proportion, few enough for a tenth of a second.
TRIAL_EXAMPLES = (16, 32)


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

    def at(self, other: Self, scale: float) -> Self:
        """Here plus `scale` times the way to `other`."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return type(self)(*(here + scale * (there - here) for here, there in pairs))


def uses_kernel(model: RankingModel, width: int) -> bool:
    """Whether a GPU would read this model's sequences with the fused kernel."""
    return getattr(model.tower, "attention", "eager") != "eager" and width <= MAX_WIDTH


def tower_cost(model: RankingModel, schema: Schema, shape: BatchShape, *, width: int, on_gpu: bool) -> TowerCost:
    """Counts.

    Args:
        model: on the meta device; it stays there.
        schema: of the run.
        shape: of a rank's batch; sequences are taken at their p95.
        width: of every table.
        on_gpu: whether sequences may be read by the fused kernel.
    """
    parts = nn.ModuleDict({"tower": model.tower, "criterion": model.criterion})
    parts = copy.deepcopy(parts).to_empty(device="cpu").train()
    for parameter in parts.parameters():
        nn.init.normal_(parameter, std=0.1)
        # What is there before does not count: gradients are a part of their own in a plan.
        parameter.grad = torch.zeros_like(parameter)
    kernel = on_gpu and uses_kernel(model, width)
    trial = _Trial(model.assembly, parts["tower"], parts["criterion"], schema, shape, width)
    small, large = (trial.run(size, kernel=kernel) for size in TRIAL_EXAMPLES)
    low, high = TRIAL_EXAMPLES
    return small.at(large, (shape.local_batch_size - low) / (high - low))


@dataclass(frozen=True, slots=True)
class _Trial:
    assembly: nn.Module
    tower: nn.Module
    criterion: nn.Module
    schema: Schema
    shape: BatchShape
    width: int

    def run(self, num_examples: int, *, kernel: bool) -> TowerCost:
        """Counts one size. Inside the fused kernel no product is seen; the eager form's are the same."""
        if not hasattr(self.tower, "attention"):
            return self._count(num_examples)
        self.tower.attention = "eager"  # pyright: ignore[reportAttributeAccessIssue]
        eager = self._count(num_examples)
        if not kernel:
            return eager
        self.tower.attention = "fused"  # pyright: ignore[reportAttributeAccessIssue]
        with dry_run() as kernel_bytes:
            fused = self._count(num_examples)
        return TowerCost(
            fused.peak_bytes,
            eager.flops,
            fused.moved_bytes + sum(kernel_bytes),
            fused.num_operators + len(kernel_bytes),
        )

    def _count(self, num_examples: int) -> TowerCost:
        batch = self._batch(num_examples)
        bags, distinct = self._lookups(num_examples)
        with Ledger() as ledger:
            tokens = self.assembly(bags, distinct, batch.spread_K, batch.lengths_FB)
            loss, _ = self.criterion(self.tower(tokens), tokens, batch)
            loss.backward()
        return TowerCost(ledger.peak_bytes, ledger.flops, ledger.moved_bytes, ledger.num_operators)

    def _lengths(self, num_examples: int) -> Tensor:
        """Whole numbers of events whose sums are those of the p95 batch, spread evenly over the examples."""
        example_B = torch.arange(num_examples + 1, dtype=torch.float64)
        return torch.stack([(example_B * events).round().long().diff() for events in self.shape.p95_events_F])

    def _batch(self, num_examples: int) -> Batch:
        lengths_FB = self._lengths(num_examples)
        num_tokens = len(self.schema.shared_features) * num_examples + int(lengths_FB.sum())
        empty = KeyedJaggedTensor(keys=[], values=torch.empty(0), lengths=torch.empty(0, dtype=torch.int64))
        return Batch(
            categorical=empty,
            sequences=empty,
            spread_K=torch.zeros(num_tokens, dtype=torch.int64),
            lengths_FB=lengths_FB,
            labels_BT=torch.zeros(num_examples, len(self.schema.tasks)),
            user_B=torch.zeros(num_examples, dtype=torch.int64),
            rarity_BM=torch.zeros(num_examples, len(self.schema.features)),
            weight_B=torch.ones(num_examples),
        )

    def _lookups(self, num_examples: int) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """What the collections would return; features in another order than the model's, as sharding leaves them."""
        names = [feature.name for feature in self.schema.bag_features][::-1]
        bag_BX = torch.zeros(num_examples, len(names) * self.width, requires_grad=True)
        bags = KeyedTensor(names, [self.width] * len(names), bag_BX)
        share = num_examples / self.shape.local_batch_size
        distinct = {}
        for table in self.schema.sequence_tables:
            num_rows = max(1, round(self.shape.p95_distinct[table.name] * share))
            rows_XD = torch.zeros(num_rows, self.width, requires_grad=True)
            distinct[table.name] = JaggedTensor(rows_XD, lengths=torch.tensor([num_rows]))
        return bags, distinct
