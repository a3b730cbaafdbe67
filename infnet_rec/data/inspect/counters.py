"""Counts over a whole store in bounded memory: chunks of the memory-mapped columns, 12 bytes a user and an item.

What a feature holds is counted by rows of its side, each weighted with its examples: nothing is gathered per example.

N examples of a chunk, R rows of a side, W values of a feature, S splits.

How often each number occurs is what quantiles, shares and curves are read from, exactly and without the numbers.

Shapes: K distinct values.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from infnet_rec.data.parsing.instants import ticks_per_second
from infnet_rec.data.store import SPLITS, Examples, Store
from infnet_rec.schema import NULL_ID, UNSEEN_ID

CHUNK_EXAMPLES = 1 << 21
# A chunk of a side is turned over, so that each feature is contiguous; larger ones would leave the CPU's cache.
CHUNK_SIDE_ROWS = 1 << 14
NUM_POSITION_PERIODS = 100
MAX_PERIODS = 4_000  # of days: eleven years; in a longer log a period has several
DAY_S, HOUR_S = 86_400, 3_600


@dataclass(frozen=True, slots=True)
class Periods:
    """The log's time in equal parts: one or more local days, or, in a log without time, spans of its rows."""

    origin: int
    ticks: int
    num: int

    def of(self, time_N: np.ndarray) -> np.ndarray:
        """Each instant's period, from 0."""
        # Without the difference of two instants, which 64 bits may not hold.
        whole, rest = divmod(self.origin, self.ticks)
        whole_N, rest_N = np.divmod(time_N, self.ticks)
        return whole_N - whole - (rest_N < rest)

    @property
    def starts(self) -> list[int]:
        """The first tick of each period."""
        return [self.origin + k * self.ticks for k in range(self.num)]


@dataclass(slots=True)
class LookUps:
    """How the examples of each split look a feature up: arrays over S, weighted with examples."""

    null_S: np.ndarray
    unseen_S: np.ndarray
    values_S: np.ndarray


@dataclass(slots=True)
class SplitCounts:
    """What the examples of one split add up to.

    `seen` has per behaviour an array whose entry n is the number of examples with n earlier events.
    """

    user_counts: np.ndarray
    item_counts: np.ndarray
    examples_per_period: np.ndarray
    positives_per_period: dict[str, np.ndarray]
    num_examples: int = 0
    seen: dict[str, np.ndarray] = field(default_factory=dict)


def rows_to_read(store: Store) -> int:
    """What `progress` adds up to: examples, users and items."""
    examples = sum(store.num_examples(split) for split in SPLITS)
    return examples + store.manifest["num_users"] + store.manifest["num_items"]


def row_chunks(num_rows: int, chunk_rows: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_rows` rows."""
    return (slice(start, min(start + chunk_rows, num_rows)) for start in range(0, num_rows, chunk_rows))


def has_time(store: Store) -> bool:
    """Whether the log knows instants; else `time` is a row's number in the log."""
    return store.manifest.get("order", "time") == "time"


def ticks_and_offset(store: Store) -> tuple[int, int]:
    """Ticks a second, and how many ticks the recipe's clock is ahead of UTC."""
    log = store.manifest["recipe"]["log"]
    ticks = ticks_per_second(log["time_unit"])
    return ticks, log["utc_offset_hours"] * HOUR_S * ticks


def time_span(examples: Examples) -> tuple[int, int]:
    """The first and the last instant of a split."""
    return int(examples.time_N.min()), int(examples.time_N.max())


def periods_of(store: Store, first: int, last: int) -> Periods:
    """Periods that hold all instants from `first` to `last`; their number does not grow with the span."""
    if has_time(store):
        per_second, ahead = ticks_and_offset(store)
        ticks = DAY_S * per_second
        num_days = (last + ahead) // ticks - (first + ahead) // ticks + 1
        ticks *= -(-num_days // MAX_PERIODS)
        origin = (first + ahead) // ticks * ticks - ahead
    else:
        ticks = -(-(last - first + 1) // NUM_POSITION_PERIODS)
        origin = first
    return Periods(origin, ticks, (last - origin) // ticks + 1)


def count_split(
    store: Store, split: str, periods: Periods, progress: Callable[[int], None]
) -> tuple[SplitCounts, dict[str, LookUps]]:
    """Reads one split; also how it looks up the context features (S = 1).

    Args:
        store: the dataset.
        split: train, valid or test.
        periods: parts of the log's time.
        progress: called with the number of examples just read.
    """
    examples, tasks = store.examples(split), [task.name for task in store.schema.tasks]
    counted = SplitCounts(
        np.zeros(store.manifest["num_users"], np.uint32),
        np.zeros(store.manifest["num_items"], np.uint32),
        np.zeros(periods.num, np.int64),
        {name: np.zeros(periods.num, np.int64) for name in tasks},
        len(examples),
        {name: np.zeros(1, np.int64) for name in examples.seen},
    )
    context = {name: no_look_ups(1) for name in examples.context}
    for rows in row_chunks(len(examples), CHUNK_EXAMPLES):
        # A typed 1: with a plain one numpy leaves its fast path and takes thirty times as long.
        np.add.at(counted.user_counts, examples.user_N[rows], np.uint32(1))
        np.add.at(counted.item_counts, examples.item_N[rows], np.uint32(1))
        period_N = periods.of(examples.time_N[rows])
        counted.examples_per_period += np.bincount(period_N, minlength=periods.num)
        for name in tasks:
            positive_N = examples.labels[name][rows] == 1
            counted.positives_per_period[name] += np.bincount(period_N[positive_N], minlength=periods.num)
        for name, seen_N in examples.seen.items():
            counted.seen[name] = _sum(counted.seen[name], np.bincount(seen_N[rows]))
        weights_SN = np.ones((1, rows.stop - rows.start))
        for name, ids in examples.context.items():
            add_look_ups(context[name], ids[rows].reshape(weights_SN.shape[1], -1).T, weights_SN)
        progress(weights_SN.shape[1])
    return counted, context


def count_side(
    store: Store, side: str, counts: list[np.ndarray], progress: Callable[[int], None]
) -> dict[str, LookUps]:
    """How examples look up the features of users or items.

    Args:
        store: the dataset.
        side: user or item.
        counts: examples of each user or item, one array a split.
        progress: called with the number of rows just read.
    """
    ids_RC = store.user_ids if side == "user" else store.item_ids
    columns = store.columns_of(side)
    places = {name: [c for c, column in enumerate(columns) if column == name] for name in columns}
    found = {name: no_look_ups(len(counts)) for name in places}
    for rows in row_chunks(len(ids_RC), CHUNK_SIDE_ROWS):
        ids_CR = np.ascontiguousarray(ids_RC[rows].T)
        weights_SR = np.stack([count[rows] for count in counts]).astype(np.float64)
        for name, mine in places.items():
            add_look_ups(found[name], ids_CR[mine[0] : mine[-1] + 1], weights_SR)
        progress(rows.stop - rows.start)
    return found


def no_look_ups(num_splits: int) -> LookUps:
    """Counts of zero, to add to."""
    return LookUps(*(np.zeros(num_splits) for _ in range(3)))


def add_look_ups(found: LookUps, ids_WR: np.ndarray, weights_SR: np.ndarray) -> None:
    """Adds rows of one feature; doubles hold the counts exactly up to 2**53.

    A feature of several values fills its places from the first on and leaves -1 in the rest: null stands in the first
    place (or nothing anywhere), and a row is never seen when none of its values was.

    Args:
        found: what was counted so far.
        ids_WR: ids of the feature, one row a place.
        weights_SR: examples of each row of the side.
    """
    if len(ids_WR) == 1:
        null_R, unseen_R = ids_WR[0] == NULL_ID, ids_WR[0] == UNSEEN_ID
        found.values_S += weights_SR.sum(1)
    else:
        num_filled_R = (ids_WR >= 0).sum(0)
        null_R = (ids_WR[0] == NULL_ID) | (num_filled_R == 0)
        unseen_R = (num_filled_R > 0) & (ids_WR.max(0) == UNSEEN_ID)
        found.values_S += weights_SR @ num_filled_R
    found.null_S += weights_SR @ null_R
    found.unseen_S += weights_SR @ unseen_R


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two arrays of counts, of which one may be longer."""
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    total = long.astype(np.int64)
    total[: len(short)] += short
    return total


PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Whole numbers from 0 on by their frequency; at least one number.

    `values_K` ascends, `counts_K` is positive, both int64.
    """

    values_K: np.ndarray
    counts_K: np.ndarray

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> Self:
        """From an array whose entry v says how often the number v occurs."""
        values_K = np.flatnonzero(counts)
        return cls(values_K, counts[values_K].astype(np.int64))

    @classmethod
    def of(cls, parts: Iterable[np.ndarray]) -> Self:
        """From the numbers themselves, an array at a time."""
        found = [np.unique(part, return_counts=True) for part in parts]
        values_K, place = np.unique(np.concatenate([values for values, _ in found]), return_inverse=True)
        counts_K = np.zeros(len(values_K), np.int64)
        np.add.at(counts_K, place, np.concatenate([counts for _, counts in found]))
        return cls(values_K.astype(np.int64), counts_K)

    @property
    def num(self) -> int:
        """How many numbers there are."""
        return int(self.counts_K.sum())

    @property
    def sum(self) -> int:
        """The sum of all numbers."""
        return int(self.values_K @ self.counts_K)

    @property
    def num_zero(self) -> int:
        """How many of the numbers are 0."""
        return int(self.counts_K[self.values_K == 0].sum())

    def without_zero(self) -> Self:
        """The same without its zeros."""
        return type(self)(self.values_K[self.values_K > 0], self.counts_K[self.values_K > 0])

    def quantile(self, percent: int) -> int:
        """The smallest number that at least `percent` of all numbers do not exceed; one that does occur."""
        wanted = -(-percent * self.num // 100)
        return int(self.values_K[np.searchsorted(np.cumsum(self.counts_K), wanted)])

    def truncated_mean(self, limit: int) -> float:
        """The mean when numbers beyond `limit` count as `limit`."""
        return int(np.minimum(self.values_K, limit) @ self.counts_K) / self.num

    def top_share(self, percent: int) -> float:
        """The part of the sum that the largest `percent` of the numbers hold."""
        left, held = -(-percent * self.num // 100), 0
        for value, count in zip(self.values_K[::-1].tolist(), self.counts_K[::-1].tolist(), strict=True):
            taken = min(left, count)
            held, left = held + taken * value, left - taken
            if not left:
                break
        return held / max(1, self.sum)

    def summary(self) -> dict[str, float]:
        """Mean, percentiles and maximum."""
        percentiles = {f"p{percent}": self.quantile(percent) for percent in PERCENTILES}
        return {"mean": self.sum / self.num, **percentiles, "max": int(self.values_K[-1])}

    def tail(self, max_points: int) -> list[tuple[int, float]]:
        """Points (value, share of the numbers that are at least this large), values about evenly spaced in the log."""
        at_least_K = np.cumsum(self.counts_K[::-1])[::-1] / self.num
        kept = _log_spaced(self.values_K, max_points)
        return list(zip(self.values_K[kept].tolist(), at_least_K[kept].tolist(), strict=True))

    def by_rank(self, max_points: int) -> list[tuple[int, int]]:
        """Points (rank from 1, number of that rank from the largest down), ranks about evenly spaced in the log."""
        ranks = np.unique(np.geomspace(1, self.num, max_points).round().astype(np.int64))
        at = np.searchsorted(np.cumsum(self.counts_K[::-1]), ranks)
        return list(zip(ranks.tolist(), self.values_K[::-1][at].tolist(), strict=True))


def _log_spaced(values_K: np.ndarray, max_points: int) -> np.ndarray:
    """Places of at most `max_points` of the ascending values, the first and the last among them."""
    if len(values_K) <= max_points:
        return np.arange(len(values_K))
    wanted = np.geomspace(1, values_K[-1] - values_K[0] + 1, max_points) - 1 + values_K[0]
    return np.unique(np.searchsorted(values_K, wanted).clip(max=len(values_K) - 1))
