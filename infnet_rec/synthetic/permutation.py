"""Shuffles of whole numbers that need no memory, and an uneven sharing out of slots among ranks.

With them, the rows of a log of any size are spread over any number of videos with a wanted histogram of exposures, and
it can be told of each row which video it shows, and of each video which rows show it, without a list of either.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints

ROUNDS = 4
MAX_STRATA, STRATUM_ROWS, NUM_SCRAMBLES = 1_024, 16, 128


@dataclass(frozen=True, slots=True)
class Permutation:
    """A keyed one-to-one map of 0..size-1 onto itself.

    A Feistel network on (left, right) with left x width + right a little beyond `size`; what falls beyond is mapped
    again until it falls within (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """

    size: int
    seed: int
    name: str

    @property
    def _width(self) -> int:
        return isqrt(self.size - 1) + 1

    @property
    def _height(self) -> int:
        return -(-self.size // self._width)

    def forward(self, numbers: Ints, key: Ints | None = None) -> Ints:
        """Where the numbers go; with keys, one for each number, there is another map for each key."""
        return self._walk(numbers, key, range(ROUNDS), 1)

    def backward(self, numbers: Ints, key: Ints | None = None) -> Ints:
        """The inverse of `forward`."""
        return self._walk(numbers, key, range(ROUNDS - 1, -1, -1), -1)

    def _walk(self, numbers: Ints, key: Ints | None, rounds: range, sign: int) -> Ints:
        found = self._mapped(numbers, key, rounds, sign)
        while len(beyond := np.flatnonzero(found >= self.size)):
            found[beyond] = self._mapped(found[beyond], None if key is None else key[beyond], rounds, sign)
        return found

    def _mapped(self, numbers: Ints, key: Ints | None, rounds: range, sign: int) -> Ints:
        left, right = np.divmod(numbers, self._width)
        for number in rounds:
            if number % 2 == 0:
                left = (left + sign * self._noise(right, key, number, self._height)) % self._height
            else:
                right = (right + sign * self._noise(left, key, number, self._width)) % self._width
        return left * self._width + right

    def _noise(self, half: Ints, key: Ints | None, number: int, limit: int) -> Ints:
        # The key is whole beside a half, so that no two pairs are one number.
        keyed = half if key is None else half + (key << 40)
        bits = Draws.at(self.seed, f"{self.name}/{number}", keyed).keys
        return ((bits >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Deal:
    """Deals slots out to rows one to one, so that slots beside each other go to rows far apart.

    Rows are numbered through all users, so a video, whose slots are side by side, is hardly shown to a user twice
    before it was shown to all. The rows are cut into strata; a round of slots gives each stratum one, in an order in
    which any few of them are spread evenly (scrambled halving of the strata).
    """

    num_rows: int
    seed: int

    @property
    def num_strata(self) -> int:
        return min(MAX_STRATA, 1 << max(0, (self.num_rows // STRATUM_ROWS).bit_length() - 1))

    @property
    def _within(self) -> Permutation:
        return Permutation(self.num_rows // self.num_strata, self.seed, "deal")

    def slots_of(self, row: Ints) -> Ints:
        strata, depth = self.num_strata, self._within.size
        rest = row >= strata * depth
        stratum, place = np.divmod(np.where(rest, 0, row), depth)
        turn = self._within.backward(place, stratum)
        slot = strata * turn + scrambles(strata)[1][self._scramble(turn), stratum]
        return np.where(rest, row, slot)

    def rows_of(self, slot: Ints) -> Ints:
        """The inverse of `slots_of`."""
        strata, depth = self.num_strata, self._within.size
        rest = slot >= strata * depth
        turn, place = np.divmod(np.where(rest, 0, slot), strata)
        stratum = scrambles(strata)[0][self._scramble(turn), place]
        return np.where(rest, slot, depth * stratum + self._within.forward(turn, stratum))

    def _scramble(self, turn: Ints) -> Ints:
        return (Draws.at(self.seed, "scramble", turn).keys >> np.uint64(57)).astype(np.int64) % NUM_SCRAMBLES


@lru_cache(maxsize=2)
def scrambles(size: int) -> tuple[Ints, Ints]:
    """Permutations of 0..size-1 (a power of two), one a row, and their inverses.

    Each is a van der Corput sequence with Owen's nested scrambling: of any aligned 2**k numbers in a row, one goes to
    each of 2**k equal ranges.
    """
    which, number = np.divmod(np.arange(NUM_SCRAMBLES * size), size)
    found = np.zeros_like(number)
    for level in range(size.bit_length() - 1):
        flips = Draws.at(level, "flip", which, number & ((1 << level) - 1)).keys & np.uint64(1)
        found = 2 * found + ((number >> level & 1) ^ flips.astype(np.int64))
    table = found.reshape(NUM_SCRAMBLES, size)
    return table, np.argsort(table, axis=1)


@dataclass(frozen=True, slots=True)
class Curve:
    """How many slots each rank has, as steps: in step k, ranks from `rank_K[k]` on share the slots from `slot_K[k]` on.

    Ranks of a step have slots as equal in number as whole numbers allow. All arithmetic is of whole numbers, so that
    the two directions agree.
    """

    rank_K: Ints
    slot_K: Ints

    @classmethod
    def of(cls, num_ranks: Floats, num_slots: Floats) -> Self:
        """From the ranks and slots of each step; fractions are rounded so that the totals are right."""
        edges = [np.concatenate([[0], np.floor(np.cumsum(x) + 0.5)]).astype(np.int64) for x in (num_ranks, num_slots)]
        kept = np.append(True, (np.diff(edges[0]) > 0) & (np.diff(edges[1]) > 0))
        # A step that was rounded away leaves its ranks and slots to the step before.
        starts, ends = np.flatnonzero(kept[1:]), (edges[0][-1], edges[1][-1])
        rank, slot = edges[0][starts], edges[1][starts]
        rank[0] = slot[0] = 0
        return cls(np.append(rank, ends[0]), np.append(slot, ends[1]))

    def rank_of(self, slot: Ints) -> Ints:
        step = np.searchsorted(self.slot_K, slot, side="right") - 1
        ranks, slots = np.diff(self.rank_K)[step], np.diff(self.slot_K)[step]
        return self.rank_K[step] + (2 * (slot - self.slot_K[step]) + 1) * ranks // (2 * slots)

    def slots_of(self, rank: Ints) -> tuple[Ints, Ints]:
        """The first slot of each rank and the one after its last."""
        step = np.searchsorted(self.rank_K, rank, side="right") - 1
        ranks, slots = np.diff(self.rank_K)[step], np.diff(self.slot_K)[step]
        within = rank - self.rank_K[step]

        def first(rank_within: Ints) -> Ints:
            return np.maximum(-((ranks - 2 * slots * rank_within) // (2 * ranks)), 0)

        low = self.slot_K[step] + first(within)
        return low, np.minimum(self.slot_K[step] + first(within + 1), self.slot_K[step + 1])
