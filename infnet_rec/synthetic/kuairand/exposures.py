"""Which video a user is shown: one of a few drawn by popularity, likely to the user's taste, rarely seen before.

In the random log every video is as likely as any other.

N rows, C candidates, K taste dimensions.
"""

import numpy as np

from infnet_rec.synthetic.draws import Floats, Ints
from infnet_rec.synthetic.kuairand.schedule import Rows
from infnet_rec.synthetic.kuairand.videos import Videos

CANDIDATES = 3
TASTE_PULL = 0.4
REPEAT_KEPT = 0.45
REPEAT_ROUNDS = 3


class ExposureShelf:
    """The videos in the order of their upload, so that those uploaded by a day are a prefix to draw from."""

    def __init__(self, videos: Videos) -> None:
        weights = np.where(videos.only_random, 0.0, np.exp(videos.popularity))
        self.video = np.argsort(videos.upload_day, kind="stable")
        self.edges = np.cumsum(weights[self.video])
        by_day = np.searchsorted(videos.upload_day[self.video], np.arange(videos.upload_day.max() + 1), side="right")
        self.reach = self.edges[by_day - 1]

    def draw(self, uniform: Floats, day: Ints) -> Ints:
        reach = self.reach[np.minimum(day, len(self.reach) - 1)]
        return self.video[np.searchsorted(self.edges, uniform * reach, side="right")]


def standard_videos(rows: Rows, shelf: ExposureShelf, vectors: Floats, tastes_NK: Floats) -> Ints:
    every = np.arange(len(rows.user))
    video = _choice(rows, every, shelf, vectors, tastes_NK, 0)
    for round_ in range(1, REPEAT_ROUNDS + 1):
        again = _seen_before(rows.user, video, len(vectors))
        again = again[~rows.draws.take(again).below(REPEAT_KEPT, "repeat kept")]
        video[again] = _choice(rows, again, shelf, vectors, tastes_NK, round_)
    return _quirky(rows, video)


def random_videos(rows: Rows, num_videos: int) -> Ints:
    return _quirky(rows, (rows.draws.uniform("video") * num_videos).astype(np.int64))


def _choice(rows: Rows, chosen: Ints, shelf: ExposureShelf, vectors: Floats, tastes_NK: Floats, round_: int) -> Ints:
    """One of the candidates for each chosen row, with odds of exp(TASTE_PULL x liking)."""
    draws, day, tastes_NK = rows.draws.take(chosen), rows.day[chosen], tastes_NK[chosen]
    best = np.zeros(len(chosen), dtype=np.int64)
    best_score = np.full(len(chosen), -np.inf)
    for candidate in range(CANDIDATES):
        lane = round_ * CANDIDATES + candidate
        video = shelf.draw(draws.uniform("video", lane), day)
        gumbel = -np.log(-np.log(np.maximum(draws.uniform("choice", lane), 1e-12)))
        score = TASTE_PULL * np.einsum("nk,nk->n", tastes_NK, vectors[video]) + gumbel
        better = score > best_score
        best[better], best_score[better] = video[better], score[better]
    return best


def _seen_before(user: Ints, video: Ints, num_videos: int) -> Ints:
    """Rows whose user has an earlier row (in drawing order) with the same video."""
    keys = user * num_videos + video
    order = np.argsort(keys, kind="stable")
    return order[1:][keys[order][1:] == keys[order][:-1]]


def _quirky(rows: Rows, video: Ints) -> Ints:
    video = rows.asked.over("video", video)
    again = np.flatnonzero(rows.asked["repeat"] == 1)
    video[again] = video[again - 1]
    return video
