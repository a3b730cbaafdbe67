"""Candidates of every table with their estimates, and which combinations of them deserve to be placed.

A combination is bounded from below before any shard is placed: the slowest rank has at least what every rank has
(tables cut evenly over all), plus the mean of the rest or the largest single shard of it.
Letters: N tables, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infnet_rec.planner.search.candidates import ShardingChoice, choices, first_shard
from infnet_rec.planner.search.problem import PlanningProblem

# For each table, the index of its candidate.
Picks = tuple[int, ...]
# Enough steps of the largest shard that is allowed; between two of them hardly a table changes.
MAX_CEILINGS = 512


@dataclass(frozen=True, slots=True)
class Candidate:
    """A choice, described by its largest shard.

    Attributes:
        choice: what it is.
        num_shards: of that size or smaller.
        ms: of a shard.
        hbm_bytes: of a shard.
        host_bytes: of a shard.
    """

    choice: ShardingChoice
    num_shards: int
    ms: float
    hbm_bytes: int
    host_bytes: int

    @property
    def num_bytes(self) -> int:
        """Of a shard, wherever."""
        return self.hbm_bytes + self.host_bytes

    def no_worse(self, other: "Candidate") -> bool:
        """Whether it takes no more of anything, on the rank it loads most and in all."""
        mine, theirs = (self.ms, self.hbm_bytes, self.host_bytes), (other.ms, other.hbm_bytes, other.host_bytes)
        return all(a <= b and a * self.num_shards <= b * other.num_shards for a, b in zip(mine, theirs, strict=True))


def make_candidates(question: PlanningProblem) -> list[list[Candidate]]:
    """Every table's candidates that no other of them makes pointless.

    Raises:
        UserError: a control asks for what cannot be.
    """
    tables, cluster, estimates = question.tables, question.cluster, question.estimates
    asked = [[(choice, *first_shard(table, choice, cluster)) for choice in choices(table, cluster)] for table in tables]
    estimates.learn((table, choice, size) for table, row in zip(tables, asked, strict=True) for choice, size, _ in row)
    menu = []
    for table, row in zip(tables, asked, strict=True):
        candidates = []
        for choice, size, num_shards in row:
            estimate = estimates.of(table, choice, size)
            candidates.append(
                Candidate(
                    choice,
                    num_shards,
                    estimate.times.total_ms,
                    estimate.hbm.total_bytes,
                    estimate.host.total_bytes,
                )
            )
        menu.append(_undominated(candidates))
    return menu


def _undominated(candidates: list[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        if not any(other.no_worse(candidate) for other in kept):
            kept = [other for other in kept if not candidate.no_worse(other)] + [candidate]
    return kept


class CandidateSet:
    """The candidates as arrays."""

    def __init__(self, question: PlanningProblem) -> None:
        """Estimates all candidates.

        Raises:
            UserError: a control asks for what cannot be.
        """
        self.candidates = candidates = make_candidates(question)
        room = question.room
        self._limits = (("hbm", room.hbm), ("host", room.ddr))
        shape = (len(candidates), max(len(row) for row in candidates))
        # What is not there takes for ever.
        self._ms_NC = np.full(shape, np.inf)
        self._area_ms_NC = np.full(shape, np.inf)
        self._uniform_NC = np.zeros(shape, dtype=bool)
        self._bytes_NC = {"hbm": np.zeros(shape), "host": np.zeros(shape)}
        self._area_bytes_NC = {"hbm": np.zeros(shape), "host": np.zeros(shape)}
        for n, row in enumerate(candidates):
            for c, candidate in enumerate(row):
                share = candidate.num_shards / question.cluster.world_size
                self._ms_NC[n, c] = candidate.ms
                self._area_ms_NC[n, c] = candidate.ms * share
                self._uniform_NC[n, c] = candidate.choice.uniform
                for kind, num_bytes in (("hbm", candidate.hbm_bytes), ("host", candidate.host_bytes)):
                    self._bytes_NC[kind][n, c] = num_bytes
                    self._area_bytes_NC[kind][n, c] = num_bytes * share

    def bound_ms(self, picks: Picks) -> float:
        """No placement of these is faster; infinite where none can fit."""
        rows_N, picks_N = np.arange(len(self.candidates)), np.asarray(picks)
        uniform_N = self._uniform_NC[rows_N, picks_N]
        for kind, limit in self._limits:
            area_N, bytes_N = self._area_bytes_NC[kind][rows_N, picks_N], self._bytes_NC[kind][rows_N, picks_N]
            if max(area_N.sum(), _least_peak(area_N, bytes_N, uniform_N)) > limit * (1 + 1e-9) + len(picks):
                return float("inf")
        return _least_peak(self._area_ms_NC[rows_N, picks_N], self._ms_NC[rows_N, picks_N], uniform_N)

    def proposals(self, *, bytes_weight: float, shard_share: float) -> list[tuple[float, Picks]]:
        """Combinations that can fit, the most promising first.

        For a ceiling on the time of a single shard, every table takes the candidate under it that costs all ranks
        together least; the ceilings are the shards' own times.

        Args:
            bytes_weight: what filling a rank's memory counts for, in multiples of the fastest combination's time.
            shard_share: the part of a rank's memory that one shard may take.
        """
        cost_NC = self._area_ms_NC.copy()
        fastest_ms = float(np.min(cost_NC, axis=1).sum())
        for kind, limit in self._limits:
            cost_NC += bytes_weight * fastest_ms * self._area_bytes_NC[kind] / max(limit, 1)
            too_large_NC = self._bytes_NC[kind] > limit * shard_share
            # Where every candidate is too large, the smallest is what is left.
            smallest_NC = self._bytes_NC[kind] <= np.where(np.isfinite(self._ms_NC), self._bytes_NC[kind], np.inf).min(
                axis=1, keepdims=True
            )
            cost_NC[too_large_NC & ~smallest_NC] = np.inf
        found: dict[Picks, float] = {}
        for ceiling_ms in self._ceilings():
            allowed_NC = self._uniform_NC | (self._ms_NC <= ceiling_ms)
            cost_under_NC = np.where(allowed_NC, cost_NC, np.inf)
            picks_N = np.where(
                np.isfinite(cost_under_NC).any(axis=1),
                np.argmin(cost_under_NC, axis=1),
                np.argmin(np.where(np.isfinite(cost_NC), self._ms_NC, np.inf), axis=1),
            )
            picks = tuple(int(pick) for pick in picks_N)
            if picks not in found:
                found[picks] = self.bound_ms(picks)
        return sorted((bound_ms, picks) for picks, bound_ms in found.items() if np.isfinite(bound_ms))

    def frugal(self) -> list[Picks]:
        """Combinations for when only memory counts: the smallest shards; the least in all with few shards, or many."""

        def pick(key: Callable[[Candidate], tuple[float, ...]]) -> Picks:
            return tuple(min(range(len(row)), key=lambda c: key(row[c])) for row in self.candidates)

        # In all: in MiB, so that a few ids more or less do not decide it.
        return [
            pick(lambda c: (c.num_bytes, c.ms)),
            pick(lambda c: (c.num_bytes * c.num_shards >> 20, c.num_shards, c.ms)),
            pick(lambda c: (c.num_bytes * c.num_shards >> 20, -c.num_shards, c.ms)),
        ]

    def _ceilings(self) -> list[float]:
        ms = np.unique(self._ms_NC[np.isfinite(self._ms_NC) & ~self._uniform_NC])
        if len(ms) > MAX_CEILINGS:
            ms = ms[np.linspace(0, len(ms) - 1, MAX_CEILINGS).astype(int)]
        return [*ms.tolist(), float("inf")]


def _least_peak(area_N: np.ndarray, single_N: np.ndarray, uniform_N: np.ndarray) -> float:
    """A lower bound of the fullest rank."""
    rest_N = ~uniform_N
    largest = float(single_N[rest_N].max()) if rest_N.any() else 0.0
    return float(area_N[uniform_N].sum() + max(float(area_N[rest_N].sum()), largest))
