"""Shuffles without a list (one to one, undone by the inverse, neighbours dealt far apart), and numbers as text."""

import numpy as np
import pytest

from infnet_rec.synthetic.lines import number_lines
from infnet_rec.synthetic.permutation import Curve, Deal, Permutation, scrambles


@pytest.mark.parametrize("size", [1, 2, 3, 50, 9_991])
def test_a_permutation_goes_both_ways(size: int) -> None:
    numbers, shuffle = np.arange(size), Permutation(size, 3, "test")
    found = shuffle.forward(numbers)
    assert sorted(found) == list(numbers) and (shuffle.backward(found) == numbers).all()
    if size > 3:
        assert (found != Permutation(size, 4, "test").forward(numbers)).any()
        assert abs(np.corrcoef(numbers, found)[0, 1]) < 0.5


@pytest.mark.parametrize("size", [100, 101, 33_333])
def test_slots_are_dealt_one_to_one_and_far_apart(size: int) -> None:
    numbers, deal = np.arange(size), Deal(size, 5)
    slots = deal.slots_of(numbers)
    assert sorted(slots) == list(numbers) and (deal.rows_of(slots) == numbers).all()
    side_by_side = deal.rows_of(numbers[: deal.num_strata])
    assert sorted(side_by_side // (size // deal.num_strata)) == list(range(deal.num_strata))


def test_any_eighth_of_a_round_is_spread_evenly() -> None:
    orders, inverses = scrambles(64)
    assert len({tuple(order) for order in orders}) == len(orders)
    for order, inverse in zip(orders, inverses, strict=True):
        assert (order[inverse] == np.arange(64)).all()
        assert all(sorted(order[low : low + 8] // 8) == list(range(8)) for low in range(0, 64, 8))


def test_a_curve_tells_the_rank_of_a_slot_and_the_slots_of_a_rank() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        ranks = rng.uniform(0.2, 20.0, rng.integers(1, 30))
        curve = Curve.of(ranks, ranks * rng.uniform(0.5, 9.0, len(ranks)))
        found = curve.rank_of(np.arange(curve.slot_K[-1]))
        counts = np.bincount(found, minlength=curve.rank_K[-1])
        low, high = curve.slots_of(np.arange(curve.rank_K[-1]))
        assert (np.diff(found) >= 0).all() and (high - low == counts).all()
        assert (found[low[counts > 0]] == np.flatnonzero(counts)).all()


def test_numbers_are_written_as_python_writes_them() -> None:
    values = np.array([[7, 2579.686274509804, 230992904724.6111, 2e9, 0.0], [4_000_000_000, 1 / 3, 1e-3, 9.5e-7, 5.0]])
    lines = number_lines(values, 1).decode()
    assert lines == "7,2579.686274509804,230992904724.6111,2000000000.0,0.0\n" + (
        "4000000000,0.3333333333333333,0.001,9.5e-07,5.0\n"
    )
