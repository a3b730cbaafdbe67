"""The items of QB-Video, and which of them a user is shown: runs of one category, by popularity and taste.

Two thirds of the real items have fewer than five rows, so every item has one row in the file for certain (its debut)
and the rest by popularity. A user hardly meets an item twice: the draws of a user are not independent but spread
evenly over the shelf, as multiples of an irrational number are.

N rows, I items, K taste dimensions.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints
from infnet_rec.synthetic.qb.layout import normal_scores
from infnet_rec.synthetic.qb.state import DIMENSIONS, Seen

# Rows of an item against its normal score, after a 5-core: median 12, mean 54.6, at most 9,378.
ROWS_AT = np.array([-4.5, -0.3, 0.452, 0.984, 2.0, 3.0, 4.47])
ROWS = np.array([1.0, 1.0, 4.0, 9.7, 117.0, 1200.0, 7700.0])
TOP_SHARE = 0.0045
# Not published: how many items are of category 1. Published: 1.3 % have none, `\N`.
CATEGORY_1 = 0.4
ONE_NULL_IN, NULL_PLACE = 77, 38
CATEGORIES = ("0", "1", "\\N")
TOPICS, CATEGORY_SHARE = 32, 0.65
# What is rarely shown is rarely clicked: the rows that a 5-core removes are clicked far less than the others.
CLICK_POPULARITY, CLICK_SD, LIKE_SD = 0.38, 0.55, 0.8
CANDIDATES, TASTE_PULL = 3, 0.4
RUN_ROWS, RUN_KEPT, CATEGORY_PULL = 8, 0.9, 1.2
TOP_BITS = np.uint64(0xFF << 56)


def _steps() -> Ints:
    """Irrational steps as fractions of 2**64, each ending like the golden ratio: their multiples keep well apart."""
    golden = (1.0 + 5.0**0.5) / 2.0
    shape = [(a, b, c) for a in range(1, 5) for b in range(1, 5) for c in range(1, 5)]
    return np.array([int(2**64 / (a + 1.0 / (b + 1.0 / (c + 1.0 / golden)))) for a, b, c in shape], dtype=np.uint64)


STEPS = _steps()


@dataclass(frozen=True, slots=True)
class Items:
    """Traits of all items. `category_I` counts in CATEGORIES; `kind_I` is the category that the null ones hide."""

    category_I: Ints
    kind_I: Ints
    click_I: Floats
    like_I: Floats
    vector_KI: Floats
    shelf: Ints
    edges: Floats
    kind_ends: Floats
    debut: Ints
    most_popular: int

    @classmethod
    def of(cls, seed: int, num_items: int) -> Self:
        draws = Draws.at(seed, "qb item", np.arange(num_items))
        score = normal_scores(draws.uniform("popularity"))
        rank = np.empty(num_items, dtype=np.int64)
        rank[np.argsort(-score)] = np.arange(num_items)
        null = rank % ONE_NULL_IN == NULL_PLACE
        kind = draws.below(CATEGORY_1, "category").astype(np.int64)
        weights = _weights(score)
        shelf = np.argsort(kind, kind="stable")
        edges = np.cumsum(weights[shelf])
        first_of_1 = int((kind == 0).sum())
        # The debuts are in random order, but one that shows the null category is among them however few they are.
        debut = np.argsort(np.where(rank == NULL_PLACE, 0.0, 1.0 + draws.uniform("debut")))
        return cls(
            category_I=np.where(null, 2, kind),
            kind_I=kind,
            click_I=CLICK_POPULARITY * score + CLICK_SD * draws.normal("click"),
            like_I=LIKE_SD * draws.normal("like"),
            vector_KI=_vectors(seed, kind, (draws.uniform("topic") * TOPICS).astype(np.int64)),
            shelf=shelf,
            edges=edges,
            kind_ends=np.array([0.0, edges[first_of_1 - 1] if first_of_1 else 0.0, edges[-1]]),
            debut=debut,
            most_popular=int(np.argmax(score)),
        )

    def debuts(self, row_N: Ints, num_examples: int) -> tuple[Flags, Ints]:
        """Whether rows of the file are kept for an item's debut, and for which item's; half of the rows at most."""
        num = min(len(self.debut), num_examples // 2)
        turn = row_N * num // num_examples
        return row_N == (2 * turn + 1) * num_examples // (2 * num), self.debut[turn]

    def shown(self, seen: Seen) -> Ints:
        """The item of each row: one of a few drawn by popularity, with odds of exp(TASTE_PULL x liking)."""
        wanted = self._wanted_kind(seen)
        low, high = self.kind_ends[wanted], self.kind_ends[wanted + 1]
        best = np.zeros(len(wanted), dtype=np.int64)
        best_score = np.full(len(wanted), -np.inf)
        habits = seen.users.draws
        start, step = habits.bits("shelf start"), STEPS[habits.bits("shelf step") % np.uint64(len(STEPS))]
        mask = habits.bits("shelf mask") & TOP_BITS
        start, step, mask = start[seen.user_N], step[seen.user_N], mask[seen.user_N]
        for candidate in range(CANDIDATES):
            count = (seen.index_N * CANDIDATES + candidate).astype(np.uint64)
            place = ((start + count * step) ^ mask) >> np.uint64(11)
            edge = low + place.astype(np.float64) * 2.0**-53 * (high - low)
            item = self.shelf[np.minimum(np.searchsorted(self.edges, edge, side="right"), len(self.shelf) - 1)]
            gumbel = -np.log(-np.log(np.maximum(seen.draws.uniform("choice", candidate), 1e-12)))
            score = TASTE_PULL * self.liking(seen, item) + gumbel
            better = score > best_score
            best, best_score = np.where(better, item, best), np.where(better, score, best_score)
        return best

    def liking(self, seen: Seen, item_N: Ints) -> Floats:
        """How well items agree with the tastes of the users at that row, about standard normal."""
        found = np.zeros(len(item_N))
        for taste_N, vector_I in zip(seen.tastes_KN, self.vector_KI, strict=True):
            found += taste_N * vector_I[item_N]
        return found

    def _wanted_kind(self, seen: Seen) -> Ints:
        """Category 0 or 1, mostly the same for RUN_ROWS rows of a user."""
        run = seen.runs("category run", RUN_ROWS)
        mass = self.kind_ends[1] / self.kind_ends[2]
        if mass in (0.0, 1.0):
            return np.full(len(seen.user_N), int(mass == 0.0))
        logit = np.log(1.0 / mass - 1.0) + CATEGORY_PULL * seen.tastes_KN[0]
        level = np.where(
            seen.draws.below(RUN_KEPT, "run kept"), run.uniform("category"), seen.draws.uniform("category")
        )
        return (level < 1.0 / (1.0 + np.exp(-logit))).astype(np.int64)


def _weights(score_I: Floats) -> Floats:
    """Items by popularity. Fewer items are more alike, or all users of a small file would see the same ones."""
    rows = np.maximum(np.exp(np.interp(score_I, ROWS_AT, np.log(ROWS))) - 1.0, 0.02)
    power = next((p for p in np.arange(1.0, 0.2, -0.04) if (rows**p).max() <= TOP_SHARE * (rows**p).sum()), 0.2)
    return rows**power


def _vectors(seed: int, kind_I: Ints, topic_I: Ints) -> Floats:
    """A unit vector for each item: the first dimension tells its category, the others a topic that the file hides."""
    topics = Draws.at(seed, "qb topic", np.arange(TOPICS)).normals("vector", DIMENSIONS - 1).T
    topics /= np.sqrt((topics**2).sum(axis=0))
    own = np.sqrt(1.0 - CATEGORY_SHARE) * topics[:, topic_I]
    return np.concatenate([np.sqrt(CATEGORY_SHARE) * (2.0 * kind_I[None] - 1.0), own])
