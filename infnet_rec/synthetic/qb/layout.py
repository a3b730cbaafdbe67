"""Where each row of a QB-Video file stands: whose it is, and which of the user's rows.

A user's rows are in time order but not together: some users come again further down, as a "resumed block". The head of
the file belongs to users with long histories, who click less.

Users are numbered by their first appearance in the file; the ids in the file say nothing of that.

N rows, U users, B blocks.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints
from infnet_rec.synthetic.facts import normal_levels
from infnet_rec.synthetic.plan import spread

# Rows of a user against the user's normal score. From the published facts: 4,474 of 34,240 users have 128 rows or
# more, 470 have 512 or more, the longest history that survives a 5-core has 8,876 rows, and the median there is 34.
ROWS_AT = np.array([-4.5, -1.353, 0.05, 1.1229, 2.2057, 3.0, 4.18])
ROWS = np.array([0.3, 4.7, 34.0, 128.0, 512.0, 1800.0, 8876.0])
# How much the order of first appearance has to do with the number of rows: 3,120 users in the first 500,000 rows.
HEAD_PULL = 0.53
RESUMED_BLOCKS_A_USER = 16_706 / 34_240
# A resumed block has 0.7 of this unit on average: most of a user's rows stay together.
FIRST_BLOCK = 4.0


def normal_scores(scores: Floats) -> Floats:
    """Evenly spaced normal scores in the order of `scores`, so that quantiles are met at any size."""
    found = np.empty(len(scores))
    found[np.argsort(scores, kind="stable")] = _even_scores(len(scores))
    return found


def _even_scores(count: int) -> Floats:
    """Interpolated beyond a few thousand: the inverse of the normal distribution is slow, and smooth in this scale."""
    grid = np.linspace(-8.0, 8.0, 4_001)
    levels = 0.5 * (1.0 + np.tanh(grid))
    table = normal_levels([float(level) for level in levels])
    at = np.arctanh(2.0 * (np.arange(count) + 0.5) / count - 1.0)
    return np.interp(at, grid, table)


def place_of(user: Ints, num_users: int) -> Floats:
    """Where the users first appear, from 0 (the head of the file) to 1."""
    return (user + 0.5) / num_users


def rows_of_users(seed: int, num_examples: int, num_users: int) -> Ints:
    """The number of rows of each user, at least one; they add up exactly. One user has a single row for certain."""
    users = np.arange(num_users)
    early = -_even_scores(num_users)
    own = Draws.at(seed, "qb user", users).normal("rows")
    scores = normal_scores(HEAD_PULL * early + np.sqrt(1.0 - HEAD_PULL**2) * own)
    weights = np.maximum(np.exp(np.interp(scores, ROWS_AT, np.log(ROWS))) - 1.0, 0.0)
    if num_users > 2:
        weights[num_users // 2] = 0.0
    weights += 1e-9 * (weights.sum() == 0.0)
    return 1 + spread(num_examples - num_users, weights)


@dataclass(frozen=True, slots=True)
class QbLayout:
    """The blocks in the order of the file: whose, from which of the user's rows on, from which row of the file on."""

    user_B: Ints
    first_index_B: Ints
    first_row_B: Ints

    @classmethod
    def of(cls, seed: int, rows_U: Ints) -> Self:
        num_users = len(rows_U)
        resumed_U = _resumed(rows_U)
        pieces_U = resumed_U + 1
        user_B = np.repeat(np.arange(num_users), pieces_U)
        piece_B = np.arange(len(user_B)) - (np.cumsum(pieces_U) - pieces_U)[user_B]
        draws = Draws.at(seed, "qb block", user_B, piece_B)
        first_index_B, size_B = _cut(rows_U, pieces_U, user_B, piece_B, draws)
        # A resumed block stands behind the first block of a later user, another one for each block of a user: so no
        # two blocks of a user touch.
        room_B, parts_B = num_users - 1 - user_B, np.maximum(resumed_U[user_B], 1)
        low, high = (piece_B - 1) * room_B // parts_B, piece_B * room_B // parts_B
        behind = user_B + 1 + low + (draws.uniform("behind") * (high - low)).astype(np.int64)
        first = piece_B == 0
        order = np.lexsort((np.where(first, 0.0, 1.0 + draws.uniform("order")), np.where(first, user_B, behind)))
        size_B = size_B[order]
        return cls(user_B[order], first_index_B[order], np.cumsum(size_B) - size_B)

    def at(self, row_N: Ints) -> tuple[Ints, Ints]:
        """User, and index among the user's rows, of rows of the file."""
        block = np.searchsorted(self.first_row_B, row_N, side="right") - 1
        return self.user_B[block], self.first_index_B[block] + row_N - self.first_row_B[block]


def _resumed(rows_U: Ints) -> Ints:
    """How often each user comes again: more often with more rows, never without a later user to come between."""
    num_users = len(rows_U)
    room_U = np.minimum(rows_U - 1, num_users - 1 - np.arange(num_users))
    weights = np.minimum(np.sqrt(rows_U - 1.0), room_U)
    if not weights.any():
        return np.zeros(num_users, dtype=np.int64)
    return np.minimum(spread(max(1, round(num_users * RESUMED_BLOCKS_A_USER)), weights), room_U)


def _cut(rows_U: Ints, pieces_U: Ints, user_B: Ints, piece_B: Ints, draws: Draws) -> tuple[Ints, Ints]:
    """Cuts the rows of every user into pieces of one row or more: the first index and the size of each."""
    reach = np.cumsum(np.where(piece_B == 0, FIRST_BLOCK, 0.2 + draws.uniform("size")))
    last_U = np.cumsum(pieces_U) - 1
    before_U = np.append(0.0, reach[last_U[:-1]])
    share = (reach - before_U[user_B]) / (reach[last_U] - before_U)[user_B]
    end = np.floor(share * (rows_U - pieces_U)[user_B] + 0.5).astype(np.int64) + piece_B + 1
    start = np.where(piece_B == 0, 0, np.roll(end, 1))
    return start, end - start
