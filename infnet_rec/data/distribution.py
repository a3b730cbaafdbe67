"""How often each number occurs: what quantiles, shares and curves are read from, exactly and without the numbers.

K distinct values.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

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
        """Their sum."""
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
