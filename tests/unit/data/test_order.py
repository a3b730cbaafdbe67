"""The order of examples: properties that hold for any numbers.

Shapes: G examples in a global batch, N examples in an epoch.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infnet_rec.data import sampler as order_module
from infnet_rec.data.sampler import (
    EvalOrder,
    ShuffledOrder,
    TimeOrder,
    TrainOrder,
    check_divides,
    local_slice,
    oldest_first,
)
from infnet_rec.errors import UserError
from properties import num_examples

WORLD_SIZES = (1, 2, 4, 8)

seeds = st.integers(0, 2**40)
# The machine may be busy, so there is no deadline; every run tries the same numbers.
steady = settings(deadline=None, max_examples=num_examples(80), derandomize=True)


@st.composite
def shuffled_orders(draw: st.DrawFn, min_examples: int = 1, multiple_of: int = 1) -> ShuffledOrder:
    """Orders of a few hundred examples, with blocks and buffers of any size."""
    num_examples = draw(st.integers(max(min_examples, multiple_of), 400))
    batch_size = multiple_of * draw(st.integers(1, num_examples // multiple_of))
    return ShuffledOrder(
        num_examples, batch_size, draw(seeds), draw(st.integers(1, 80)), buffer_blocks=draw(st.integers(1, 6))
    )


def epoch_of(order: TrainOrder, epoch: int) -> np.ndarray:
    """All examples of an epoch, one batch after the other."""
    first = epoch * order.steps_per_epoch
    batches = [order.global_batch(step) for step in range(first, first + order.steps_per_epoch)]
    assert all(batch.shape == (order.global_batch_size,) and batch.dtype == np.int64 for batch in batches)
    return np.concatenate(batches)


def forget() -> None:
    """As if the process had just begun."""
    order_module._shuffled_blocks.cache_clear()
    order_module._shuffled_buffer.cache_clear()


@steady
@given(shuffled_orders(), st.integers(0, 1000))
def test_every_example_at_most_once_an_epoch(order: ShuffledOrder, epoch: int) -> None:
    """And all of them but the last short batch, whatever the sizes of blocks and buffers."""
    examples_N = epoch_of(order, epoch)
    assert len(examples_N) == order.num_examples // order.global_batch_size * order.global_batch_size
    assert len(np.unique(examples_N)) == len(examples_N)
    assert examples_N.min() >= 0 and examples_N.max() < order.num_examples


@steady
@given(st.integers(1, 300), seeds, st.integers(1, 80), st.integers(1, 6))
def test_blocks_and_buffers_never_change_what_is_covered(
    num_examples: int, seed: int, block_examples: int, buffer_blocks: int
) -> None:
    one_by_one = ShuffledOrder(num_examples, 1, seed, block_examples, buffer_blocks)
    assert sorted(epoch_of(one_by_one, 3)) == list(range(num_examples))


@steady
@given(shuffled_orders(min_examples=40), st.integers(0, 50))
def test_epochs_and_seeds_differ(order: ShuffledOrder, epoch: int) -> None:
    one_batch = ShuffledOrder(
        order.num_examples, order.num_examples, order.seed, order.block_examples, order.buffer_blocks
    )
    other_seed = ShuffledOrder(
        order.num_examples, order.num_examples, order.seed + 1, order.block_examples, order.buffer_blocks
    )
    examples_N = epoch_of(one_batch, epoch)
    assert not np.array_equal(examples_N, epoch_of(one_batch, epoch + 1))
    assert not np.array_equal(examples_N, epoch_of(other_seed, epoch))
    assert not np.array_equal(examples_N, np.arange(order.num_examples))


@steady
@given(shuffled_orders(multiple_of=8), st.integers(0, 500))
def test_the_same_global_batches_for_any_number_of_ranks(order: ShuffledOrder, step: int) -> None:
    """Ranks read equal, disjoint parts which make up the global batch."""
    global_G = order.global_batch(step)
    for world_size in WORLD_SIZES:
        parts = [local_slice(order.global_batch(step), rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {order.global_batch_size // world_size}
        assert np.array_equal(np.concatenate(parts), global_G)
        assert len(set(np.concatenate(parts).tolist())) == order.global_batch_size


@steady
@given(shuffled_orders(), st.data())
def test_a_step_of_a_later_epoch_is_found_at_once(order: ShuffledOrder, data: st.DataObject) -> None:
    """A run that is resumed at any step meets what the uninterrupted run met there."""
    in_turn = [order.global_batch(step) for step in range(3 * order.steps_per_epoch)]
    step = data.draw(st.integers(0, len(in_turn) - 1))
    forget()
    assert np.array_equal(order.global_batch(step), in_turn[step])
    backwards = [order.global_batch(step) for step in reversed(range(len(in_turn)))]
    assert all(np.array_equal(a, b) for a, b in zip(in_turn, reversed(backwards), strict=True))


@steady
@given(shuffled_orders(), st.integers(0, 10**12))
def test_a_far_step_costs_what_a_near_one_does(order: ShuffledOrder, step: int) -> None:
    """A new process shuffles the blocks of one epoch and the buffers that the batch overlaps, whatever the step."""
    drawn: list[tuple[int, ...]] = []

    def noted(seed: int, *key: int) -> np.random.Generator:
        drawn.append(key)
        return generator(seed, *key)

    generator = order_module._generator
    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "_generator", noted)
        order.global_batch(step)
    epoch, smallest_buffer = step // order.steps_per_epoch, order.block_examples * (order.buffer_blocks - 1) + 1
    assert drawn[0] == (epoch, 0) and {key[:2] for key in drawn[1:]} == {(epoch, 1)}
    assert len(drawn) <= 1 + 2 + (order.global_batch_size - 1) // smallest_buffer


@steady
@given(shuffled_orders(), st.integers(0, 20))
def test_a_batch_may_be_written_over(order: ShuffledOrder, step: int) -> None:
    before = order.global_batch(step).copy()
    order.global_batch(step)[:] = -7
    assert np.array_equal(order.global_batch(step), before)


@steady
@given(shuffled_orders(), st.integers(0, 100))
def test_reads_stay_local(order: ShuffledOrder, step: int) -> None:
    """A batch touches the blocks of the buffers that it overlaps, and no more."""
    smallest_buffer = order.block_examples * (order.buffer_blocks - 1) + 1
    most_buffers = 2 + (order.global_batch_size - 1) // smallest_buffer
    blocks = np.unique(order.global_batch(step) // order.block_examples)
    assert len(blocks) <= most_buffers * order.buffer_blocks


def test_one_buffer_is_a_full_shuffle() -> None:
    """Where an example comes says nothing about where it lies: of 4,000, rank correlation 0 +- 0.016."""
    examples_N = epoch_of(ShuffledOrder(4_000, 1_000, 5, block_examples=100), 0)
    assert abs(np.corrcoef(examples_N, np.arange(len(examples_N)))[0, 1]) < 0.08
    neighbours = np.abs(np.diff(examples_N)) < 100  # of one block, or nearly: 1 in 20 by chance
    assert 0.03 < neighbours.mean() < 0.07


@steady
@given(st.lists(st.integers(0, 30), min_size=1, max_size=100), st.data())
def test_time_order_is_oldest_first_and_the_same_each_epoch(times: list[int], data: st.DataObject) -> None:
    time_N = np.array(times)
    order = TimeOrder(time_N, data.draw(st.integers(1, len(times))))
    examples_N = epoch_of(order, 0)
    assert examples_N.tolist() == sorted(range(len(times)), key=lambda n: times[n])[: len(examples_N)]
    assert len(examples_N) == len(times) // order.global_batch_size * order.global_batch_size
    assert np.array_equal(examples_N, epoch_of(order, 4))


@steady
@given(
    st.lists(st.one_of(st.integers(-3, 3), st.integers(-(2**61), 2**61)), min_size=1, max_size=200), st.integers(1, 50)
)
def test_sorting_by_pieces_is_sorting(times: list[int], piece_examples: int) -> None:
    """Twins keep their places, however the instants lie and wherever the pieces are cut."""
    order_N = oldest_first(np.array(times), piece_examples)
    assert order_N.dtype == np.uint32
    assert order_N.tolist() == sorted(range(len(times)), key=lambda n: times[n])


@steady
@given(st.integers(0, 500), st.integers(1, 60))
def test_eval_order_covers_all_and_pads_the_end_only(num_examples: int, batch_size: int) -> None:
    order = EvalOrder(num_examples, batch_size)
    batches = [order.global_batch(step) for step in range(order.num_steps)]
    assert all(batch.shape == (batch_size,) for batch in batches)
    indices = [int(index) for batch in batches for index in batch]
    assert indices[:num_examples] == list(range(num_examples))
    assert set(indices[num_examples:]) <= {-1} and len(indices) - num_examples < batch_size


def test_a_batch_larger_than_the_split_is_refused() -> None:
    for make in (lambda: ShuffledOrder(99, 100, 0), lambda: TimeOrder(np.arange(99), 100)):
        with pytest.raises(UserError, match=r"train\.global_batch_size = 100: .*\(99 examples\)"):
            make()
    assert ShuffledOrder(100, 100, 0).steps_per_epoch == TimeOrder(np.arange(100), 100).steps_per_epoch == 1


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="global batch = 10: does not divide by 4 ranks; use a multiple of 4"):
        local_slice(np.arange(10), 0, 4)
    check_divides("batch", 12, 4)
