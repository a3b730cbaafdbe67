"""All that the rows of any user are made from, and the making of them.

A process needs one World; it is the same in every process. Its memory grows with the number of videos alone.
"""

from dataclasses import dataclass

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints
from infnet_rec.synthetic.facts import kuairand_facts
from infnet_rec.synthetic.kuairand.exposures import ExposureShelf, random_videos, standard_videos
from infnet_rec.synthetic.kuairand.labels import Intercepts, Kind, Shown, calibrate, label, leanings, rates_of
from infnet_rec.synthetic.kuairand.quirks import Quirks, quirks_of
from infnet_rec.synthetic.kuairand.schedule import Habits, Rows, random_habits, schedule, shown_clock, standard_habits
from infnet_rec.synthetic.kuairand.tastes import Moods, video_vectors
from infnet_rec.synthetic.kuairand.videos import Videos, make_videos
from infnet_rec.synthetic.plan import Plan

CALIBRATION_USERS, CALIBRATION_ROWS = 8_192, 8

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)


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
    date, hourmin = shown_clock(rows, plan.dataset)
    columns = labels | {
        "user_id": users[rows.user],
        "video_id": video,
        "date": date,
        "hourmin": hourmin,
        "time_ms": rows.time_ms,
        "duration_ms": shown.duration_ms_N,
        "is_rand": np.full(len(video), int(kind == "random")),
        "tab": rows.tab,
    }
    order = rows.source[np.lexsort((rows.time_ms[rows.source], rows.user))]
    return {name: columns[name][order] for name in LOG_HEADER.split(",")}
