"""What a user is in the mood for: a hidden state that moves over days and that nothing in the files states.

It has two parts: tastes, a vector that is compared with the vector of a video's tag and author, and a level, how
readily the user clicks at all. Both are a lasting part plus slow waves. A user's past positives reveal the state, so a
model that reads them beats one that does not; that is what generated data is for. The real log has the same effect,
weaker.

The state is a function of (user, time) and not of earlier rows, so rows need no order to be made.

N rows, U users, K taste dimensions, W waves.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints
from infnet_rec.synthetic.kuairand.users import CLICK_SCORE, LIKE_SCORE, NUM_TRAITS, user_scores

DIMENSIONS = 4
WAVES = 2
MIN_PERIOD_DAYS, MAX_PERIOD_DAYS = 12.0, 48.0
LASTING_SHARE = 0.75
LEVEL_LASTING_SD, LEVEL_MOVING_SD = 0.7, 0.4
AUTHOR_SHARE = 0.1
DAY_MS = 86_400_000


def video_vectors(seed: int, tag: Ints, author_id: Ints) -> Floats:
    """A unit vector for each video, mostly its tag's: videos of a tag or an author please the same users."""
    return blended(seed, tag_vectors(seed, tag), author_id)


def tag_vectors(seed: int, tag: Ints) -> Floats:
    tags = Draws.at(seed, "tag", tag).normals("vector", DIMENSIONS)
    return tags / np.linalg.norm(tags, axis=1, keepdims=True)


def blended(seed: int, tags: Floats, author_id: Ints) -> Floats:
    """The unit vectors of videos from those of their tags."""
    authors = Draws.at(seed, "author vector", author_id).normals("vector", DIMENSIONS)
    authors /= np.linalg.norm(authors, axis=1, keepdims=True)
    mixed = np.sqrt(1.0 - AUTHOR_SHARE) * tags + np.sqrt(AUTHOR_SHARE) * authors
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True)
class Moods:
    """The hidden state of some users at any time."""

    lasting_UK: Floats
    click_U: Floats
    like_U: Floats
    phase_UKW: Floats
    period_ms_UKW: Floats

    @classmethod
    def of(cls, seed: int, users: Ints) -> Self:
        draws = Draws.at(seed, "user", users)
        scores = user_scores(draws, NUM_TRAITS)
        shape = (len(users), DIMENSIONS + 1, WAVES)
        width = (DIMENSIONS + 1) * WAVES
        phase = np.stack([draws.uniform("phase", lane) for lane in range(width)], axis=-1)
        period = np.stack([draws.uniform("period", lane) for lane in range(width)], axis=-1)
        period = MIN_PERIOD_DAYS * (MAX_PERIOD_DAYS / MIN_PERIOD_DAYS) ** period * DAY_MS
        return cls(
            draws.normals("taste", DIMENSIONS),
            scores[:, CLICK_SCORE],
            scores[:, LIKE_SCORE],
            2.0 * np.pi * phase.reshape(shape),
            period.reshape(shape),
        )

    def at(self, user: Ints, time_ms: Ints) -> tuple[Floats, Floats]:
        """The tastes (N, K) and the level (N,) of users (positions in this group) at these times."""
        angle = 2.0 * np.pi * time_ms[:, None, None] / self.period_ms_UKW[user] + self.phase_UKW[user]
        moving = np.cos(angle).sum(axis=2) * np.sqrt(2.0 / WAVES)
        tastes = np.sqrt(LASTING_SHARE) * self.lasting_UK[user]
        tastes += np.sqrt(1.0 - LASTING_SHARE) * moving[:, :DIMENSIONS]
        level = LEVEL_LASTING_SD * self.click_U[user] + LEVEL_MOVING_SD * moving[:, DIMENSIONS]
        return tastes, level
