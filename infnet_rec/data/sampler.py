"""Which examples make global batch k, and which slice of it a rank reads: pure functions of numbers.

A global batch depends on (seed, epoch, step) alone; the number of ranks only says who reads which part of it. So a
resumed run needs one integer to continue, on any number of ranks.

Shapes: G examples in a global batch, B on one rank.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infnet_rec.errors import UserError

BLOCK_EXAMPLES = 4_096
BUFFER_BLOCKS = 512
SORTED_EXAMPLES = 1 << 20
STRETCHES_PER_PIECE = 4


@dataclass(frozen=True, slots=True)
class ShuffledOrder:
    """Every example once an epoch, in a new order each time; a last short global batch is dropped.

    Blocks of neighbouring examples are shuffled, then examples within a buffer of blocks, so that reads stay local on
    disk and any step is found at once. With at most `block_examples * buffer_blocks` examples this is a full shuffle.
    """

    num_examples: int
    global_batch_size: int
    seed: int
    block_examples: int = BLOCK_EXAMPLES
    buffer_blocks: int = BUFFER_BLOCKS

    def __post_init__(self) -> None:
        check_fits(self.global_batch_size, self.num_examples)

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.num_examples // self.global_batch_size

    def global_batch(self, step: int) -> np.ndarray:
        """Indices of the examples of one step, counted over all epochs; int64 [G]."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.global_batch_size
        stop = start + self.global_batch_size
        _, buffer_starts = self.blocks(epoch)
        first = int(np.searchsorted(buffer_starts, start, side="right")) - 1
        last = int(np.searchsorted(buffer_starts, stop, side="left"))
        parts = []
        for b in range(first, last):
            begin = int(buffer_starts[b])
            parts.append(_shuffled_buffer(self, epoch, b)[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Block numbers in an epoch's order, and where each buffer begins (with the end as last entry)."""
        return _shuffled_blocks(self.num_examples, self.block_examples, self.buffer_blocks, self.seed, epoch)


class TimeOrder:
    """Every example once an epoch, oldest first, the same order each time; a last short global batch is dropped.

    A single pass in this order meets each example as it will be met in service: with embeddings that have learned from
    the past only. It keeps 4 bytes an example (8 beyond 4 billion) on every rank.
    """

    def __init__(self, time_N: np.ndarray, global_batch_size: int) -> None:
        """Sorts once; examples of one instant keep the store's order.

        Args:
            time_N: instants of all examples; a memory-mapped file is read piece by piece.
            global_batch_size: G.
        """
        check_fits(global_batch_size, len(time_N))
        self.num_examples = len(time_N)
        self.global_batch_size = global_batch_size
        self._sorted_N = oldest_first(time_N)

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return self.num_examples // self.global_batch_size

    def global_batch(self, step: int) -> np.ndarray:
        """Indices of the examples of one step, counted over all epochs; int64 [G]."""
        start = step % self.steps_per_epoch * self.global_batch_size
        return self._sorted_N[start : start + self.global_batch_size].astype(np.int64)


def oldest_first(time_N: np.ndarray, piece_examples: int = SORTED_EXAMPLES) -> np.ndarray:
    """What a stable argsort gives, in uint32 where that is enough, and with little more memory than the result.

    Examples go to equally long stretches of time first, then each stretch is sorted. The memory is at its smallest
    where no stretch has many times the average's examples.

    Args:
        time_N: integers.
        piece_examples: examples that are sorted at a time.
    """
    num_examples, low = len(time_N), int(time_N.min())
    order_N = np.empty(num_examples, np.uint32 if num_examples < 2**32 else np.int64)
    num_stretches = min(-(-num_examples // piece_examples) * STRETCHES_PER_PIECE, 2**16)
    width = (int(time_N.max()) - low) // num_stretches + 1
    starts = range(0, num_examples, piece_examples)

    def stretches(start: int) -> np.ndarray:
        # 16 bits: numpy sorts those by counting.
        return ((time_N[start : start + piece_examples] - low) // width).astype(np.uint16)

    counts = sum(np.bincount(stretches(start), minlength=num_stretches) for start in starts)
    ends = np.cumsum(counts)
    free = ends - counts
    for start in starts:
        stretch_P = stretches(start)
        sorted_P = np.argsort(stretch_P, kind="stable")
        mine = np.bincount(stretch_P, minlength=num_stretches)
        place_P = np.repeat(free - (np.cumsum(mine) - mine), mine) + np.arange(len(sorted_P))
        order_N[place_P] = sorted_P + start
        free += mine
    for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True):
        part = order_N[start:end]
        order_N[start:end] = part[np.argsort(time_N[part], kind="stable")]
    return order_N


@dataclass(frozen=True, slots=True)
class EvalOrder:
    """Every example once, in store order; the last global batch is filled up with example 0 at weight 0."""

    num_examples: int
    global_batch_size: int

    @property
    def num_steps(self) -> int:
        """Global batches, the padded one included."""
        return -(-self.num_examples // self.global_batch_size)

    def global_batch(self, step: int) -> np.ndarray:
        """Indices of the examples of one step, -1 where padded; int64 [G]."""
        indices = np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        return np.where(indices < self.num_examples, indices, -1)


TrainOrder = ShuffledOrder | TimeOrder
Order = TrainOrder | EvalOrder


def local_slice(global_G: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This rank's part of a global batch; all parts are equally long.

    Raises:
        UserError: the global batch does not divide by the number of ranks.
    """
    check_divides("the global batch", len(global_G), world_size)
    size = len(global_G) // world_size
    return global_G[rank * size : (rank + 1) * size]


def check_fits(global_batch_size: int, num_examples: int) -> None:
    """Refuses a global batch that the training split cannot fill once."""
    if global_batch_size > num_examples:
        raise UserError(
            f"train.global_batch_size = {global_batch_size}: is larger than the training split "
            f"({num_examples} examples); make it smaller"
        )


def check_divides(name: str, global_batch_size: int, world_size: int) -> None:
    """Refuses a global batch that the ranks cannot share equally; `name` is the setting's."""
    if global_batch_size % world_size:
        raise UserError(
            f"{name} = {global_batch_size}: does not divide by {world_size} ranks; use a multiple of {world_size}"
        )


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *key))))


@lru_cache(maxsize=2)
def _shuffled_blocks(
    num_examples: int, block_examples: int, buffer_blocks: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Block numbers in this epoch's order, and where each buffer begins (with the end as last entry)."""
    num_blocks = -(-num_examples // block_examples)
    blocks = _generator(seed, epoch, 0).permutation(num_blocks)
    sizes = np.full(num_blocks, block_examples)
    sizes[blocks == num_blocks - 1] = num_examples - (num_blocks - 1) * block_examples
    ends = np.cumsum(sizes)
    last_of_buffer = np.append(np.arange(buffer_blocks, num_blocks, buffer_blocks), num_blocks) - 1
    return blocks, np.concatenate([[0], ends[last_of_buffer]])


@lru_cache(maxsize=4)
def _shuffled_buffer(order: ShuffledOrder, epoch: int, buffer: int) -> np.ndarray:
    """Examples of one buffer in this epoch's order."""
    blocks, _ = order.blocks(epoch)
    chosen = blocks[buffer * order.buffer_blocks : (buffer + 1) * order.buffer_blocks]
    examples = (chosen[:, None] * order.block_examples + np.arange(order.block_examples)).reshape(-1)
    examples = examples[examples < order.num_examples]
    return _generator(order.seed, epoch, 1, buffer).permutation(examples)
