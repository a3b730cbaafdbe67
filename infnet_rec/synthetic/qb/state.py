"""The users of QB-Video, and their hidden state: what they are in the mood for, moving slowly from row to row.

As in tastes.py there are tastes, to be compared with an item's vector, and a level, how readily the user clicks; each a
lasting part and slow waves. The file has no clock, so the waves run over a user's rows. Past positives reveal them:
which categories and items were clicked, and how often they were watched.

N rows, U users, K taste dimensions, W waves.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints, picked
from infnet_rec.synthetic.qb.layout import place_of

DIMENSIONS, WAVES = 3, 2
MIN_PERIOD_ROWS, MAX_PERIOD_ROWS = 30.0, 240.0
LASTING_SHARE = 0.4
# Users are of two sorts, those who skip and those who watch; most of the skippers stand in the head of the file.
HEAD_END = 3_120 / 34_240
SKIPPERS_AT = np.array([0.0, HEAD_END, 0.12, 1.0])
SKIPPERS = np.array([0.97, 0.97, 0.5, 0.82])
SKIP_LEVEL = np.array([-4.0, -4.0, -2.3, -2.5])
WATCH_LEVEL, LEVEL_SD, LEVEL_MOVING_SD = 3.4, 0.6, 0.9
# Not published: how many users there are of each gender and age.
GENDER_SHARE = np.array([0.03, 0.52, 0.45])
AGE_SHARE = np.array([0.04, 0.09, 0.22, 0.24, 0.17, 0.12, 0.08, 0.04])
GENDER_TASTE = np.array([0.0, -0.25, 0.25])
AGE_LEVEL = np.array([0.0, -0.3, -0.2, -0.05, 0.05, 0.15, 0.25, 0.3])


@dataclass(frozen=True, slots=True)
class Users:
    """Traits of some users and their waves."""

    draws: Draws
    early_U: Flags
    gender_U: Ints
    age_U: Ints
    level_U: Floats
    lasting_KU: Floats
    phase_XU: Floats
    rows_a_wave_XU: Floats

    @classmethod
    def of(cls, seed: int, users: Ints, num_users: int) -> Self:
        draws = Draws.at(seed, "qb user", users)
        gender, age = picked(draws.uniform("gender"), GENDER_SHARE), picked(draws.uniform("age"), AGE_SHARE)
        # The values of both columns are all there, however few the users.
        forced = users * 11 // num_users
        forced = np.where(users == -(-forced * num_users // 11), forced, -1)
        gender, age = np.where(forced >= 8, forced - 8, gender), np.where((forced >= 0) & (forced < 8), forced, age)
        place = place_of(users, num_users)
        skips = draws.below(np.interp(place, SKIPPERS_AT, SKIPPERS), "skips")
        level = (
            np.where(skips, np.interp(place, SKIPPERS_AT, SKIP_LEVEL), WATCH_LEVEL)
            + LEVEL_SD * draws.normal("level")
            + AGE_LEVEL[age]
        )
        lasting = draws.normals("taste", DIMENSIONS).T
        lasting[0] += GENDER_TASTE[gender]
        lanes = range((DIMENSIONS + 1) * WAVES)
        phase = np.stack([draws.uniform("phase", lane) for lane in lanes])
        period = np.stack([draws.uniform("period", lane) for lane in lanes])
        period = MIN_PERIOD_ROWS * (MAX_PERIOD_ROWS / MIN_PERIOD_ROWS) ** period
        return cls(draws, place < HEAD_END, gender, age, level, lasting, phase, period)

    def wave(self, part: int, user_N: Ints, index_N: Ints) -> Floats:
        """The moving part of dimension `part` (the last one is the level's), of variance 1."""
        found = np.zeros(len(user_N))
        for lane in range(part * WAVES, (part + 1) * WAVES):
            turns = index_N / self.rows_a_wave_XU[lane][user_N] + self.phase_XU[lane][user_N]
            found += np.cos(2.0 * np.pi * turns)
        return found * np.sqrt(2.0 / WAVES)


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows before their items and labels: whose, which of the user's, and the user's state then.

    `user_N` counts in `users`; `moving_N` is the moving part of the level.
    """

    seed: int
    users: Users
    user_N: Ints
    number_N: Ints
    index_N: Ints
    draws: Draws
    tastes_KN: Floats
    moving_N: Floats

    @classmethod
    def of(cls, seed: int, number_N: Ints, index_N: Ints, num_users: int) -> Self:
        """The rows of users `number_N`, `index_N` among each user's."""
        numbers, user_N = np.unique(number_N, return_inverse=True)
        users = Users.of(seed, numbers, num_users)
        tastes = np.sqrt(LASTING_SHARE) * users.lasting_KU[:, user_N]
        for part in range(DIMENSIONS):
            tastes[part] += np.sqrt(1.0 - LASTING_SHARE) * users.wave(part, user_N, index_N)
        draws = Draws.at(seed, "qb row", number_N, index_N)
        moving = users.wave(DIMENSIONS, user_N, index_N)
        return cls(seed, users, user_N, number_N, index_N, draws, tastes, moving)

    @property
    def level_N(self) -> Floats:
        return self.users.level_U[self.user_N] + LEVEL_MOVING_SD * self.moving_N

    def runs(self, name: str, num_rows: int) -> Draws:
        """For each row the stream of the run it is in: the user's rows cut into runs of `num_rows`."""
        shift = (self.users.draws.uniform(name) * num_rows).astype(np.int64)[self.user_N]
        return Draws.at(self.seed, name, self.number_N, (self.index_N + shift) // num_rows)
