"""All that the rows of any user are made from, and the making of them.

A process needs one World; it is the same in every process. Its memory grows with the number of videos alone.
"""

from dataclasses import dataclass

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints
from infnet_rec.synthetic.facts import kuairand_facts
from infnet_rec.synthetic.kuairand.labels import Intercepts, Kind, Shown, calibrate, label, leanings, rates_of
from infnet_rec.synthetic.kuairand.quirks import Quirks, quirks_of
from infnet_rec.synthetic.kuairand.schedule import Habits, Rows, random_habits, schedule, shown_clock, standard_habits
from infnet_rec.synthetic.kuairand.tastes import Moods, video_vectors
from infnet_rec.synthetic.kuairand.videos import Videos, make_videos
from infnet_rec.synthetic.plan import Dataset, Plan

CALIBRATION_USERS, CALIBRATION_ROWS = 8_192, 8

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)

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


@dataclass(frozen=True, slots=True)
class SmallWorld:
    """One generated dataset before its rows."""

    plan: Plan
    videos: Videos
    vectors: Floats
    shelf: ExposureShelf
    habits: dict[Kind, Habits]
    quirks: dict[Kind, Quirks]
    intercepts: dict[Kind, Intercepts]


def make_world(plan: Plan) -> SmallWorld:
    videos = make_videos(plan.seed, plan.num_videos)
    shown = np.flatnonzero(~videos.only_random)
    null_duration = shown[np.argmax(videos.duration_ms[shown] == 0)]
    special = [int(null_duration), int(np.argmax(videos.only_random))]
    vectors = video_vectors(plan.seed, videos.tag, videos.author_id)
    habits: dict[Kind, Habits] = {"standard": standard_habits(), "random": random_habits(plan.dataset)}
    quirks: dict[Kind, Quirks] = {kind: quirks_of(plan, kind, special) for kind in habits}
    world = SmallWorld(plan, videos, vectors, ExposureShelf(videos), habits, quirks, {})
    world.intercepts.update({kind: _calibrated(world, kind) for kind in habits})
    return world


def _calibrated(world: SmallWorld, kind: Kind) -> Intercepts:
    """From some rows of users all over the plan, weighted so that they stand for all its rows."""
    plan = world.plan
    counts = plan.standard_counts if kind == "standard" else plan.random_counts
    users = np.arange(0, plan.num_users, -(-plan.num_users // CALIBRATION_USERS))
    taken = np.minimum(counts[users], CALIBRATION_ROWS)
    shown, _ = _shown(world, users, taken, kind, world.quirks[kind].within(0, 0))
    weights = np.repeat(counts[users] / np.maximum(taken, 1), taken)
    rates = rates_of(kuairand_facts(), kind)
    return calibrate(leanings(shown, plan.seed), shown.user_like_N, weights, rates)


def _shown(world: SmallWorld, users: Ints, counts: Ints, kind: Kind, quirks: Quirks) -> tuple[Shown, Ints]:
    """The rows of the users with the videos they are shown, and these videos."""
    plan, videos = world.plan, world.videos
    rows: Rows = schedule(plan.dataset, plan.seed, users, counts, world.habits[kind], quirks)
    moods = Moods.of(plan.seed, users)
    tastes, level = moods.at(rows.user, rows.time_ms)
    if kind == "standard":
        video = standard_videos(rows, world.shelf, world.vectors, tastes)
    else:
        video = random_videos(rows, plan.num_videos)
    shown = Shown(
        kind=kind,
        facts=kuairand_facts(),
        rows=rows,
        user_keys=Draws.at(plan.seed, "user", users).take(rows.user),
        tastes_NK=tastes,
        level_N=level,
        user_like_N=moods.like_U[rows.user],
        vector_NK=world.vectors[video],
        video_click_N=videos.click[video],
        video_like_N=videos.like[video],
        author_N=videos.author_id[video],
        duration_ms_N=videos.duration_ms[video],
    )
    return shown, video


def log_columns(world: SmallWorld, low: int, high: int, kind: Kind) -> dict[str, Ints]:
    """The log of users low..high-1, as columns in the order of the file, sorted by user and time."""
    plan = world.plan
    users = np.arange(low, high)
    counts = (plan.standard_counts if kind == "standard" else plan.random_counts)[low:high]
    shown, video = _shown(world, users, counts, kind, world.quirks[kind].within(low, high))
    rows = shown.rows
    labels = label(shown, leanings(shown, plan.seed), world.intercepts[kind])
    columns = labels | shown_columns(shown, users, video, kind, plan.dataset)
    order = rows.source[np.lexsort((rows.time_ms[rows.source], rows.user))]
    return {name: columns[name][order] for name in LOG_HEADER.split(",")}


def shown_columns(shown: Shown, users: Ints, video: Ints, kind: Kind, dataset: Dataset) -> dict[str, Ints]:
    """The columns of a log that say who was shown which video, when and where; labels are not among them."""
    rows = shown.rows
    date, hourmin = shown_clock(rows, dataset)
    return {
        "user_id": users[rows.user],
        "video_id": video,
        "date": date,
        "hourmin": hourmin,
        "time_ms": rows.time_ms,
        "duration_ms": shown.duration_ms_N,
        "is_rand": np.full(len(video), int(kind == "random")),
        "tab": rows.tab,
    }
