"""All that the rows of any user of KuaiRand-27K or -1K are made from, and the making of them.

Its memory grows with the users alone: whatever is to be known of a video is worked out when a row shows it.

N rows, U users, T tabs, K taste dimensions.
"""

from dataclasses import dataclass, replace

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints
from infnet_rec.synthetic.facts import large_facts
from infnet_rec.synthetic.kuairand.labels import (
    RARE_USER_SD,
    Intercepts,
    Kind,
    Shown,
    calibrate,
    label,
    leanings,
    rare_habit,
    rates_of,
)
from infnet_rec.synthetic.kuairand.quirks import QuirkRequest, Quirks, large_quirks, place_quirks, random_quirks
from infnet_rec.synthetic.kuairand.schedule import Habits, Rows, random_habits, schedule
from infnet_rec.synthetic.kuairand.tastes import Moods
from infnet_rec.synthetic.kuairand.users import NUM_TRAITS, ROWS_SCORE, user_scores
from infnet_rec.synthetic.kuairand.world import LOG_HEADER, shown_columns
from infnet_rec.synthetic.large.calendar import Calendar, Paged, UserTabs, paged_rows, tab_scale
from infnet_rec.synthetic.large.catalogue import Catalogue
from infnet_rec.synthetic.plan import Plan

CALIBRATION_USERS, CALIBRATION_ROWS = 8_192, 65_536
# Users with many rows click less: how much of a user's lasting level is so explained, and how much is not.
BUSY_SLOPE, CLICK_SLOPE = -0.7, 1.5
ONE_PART = 0.0005
# Rows whose play time is -5 or -8, one in a hundred thousand.
MINUS_PLAY = 1e-5


@dataclass(frozen=True, slots=True)
class LargeWorld:
    """One generated dataset before its rows. `one_part_U` is the only part of each log with the user's rows, or -1."""

    plan: Plan
    calendar: Calendar
    catalogue: Catalogue
    tab_scale_T: Floats
    one_part_U: Ints
    quirks: dict[Kind, Quirks]
    habits: Habits
    intercepts: dict[Kind, Intercepts]


def make_world(plan: Plan) -> LargeWorld:
    counts_U, users = plan.standard_counts, np.arange(plan.num_users)
    draws = Draws.at(plan.seed, "user", users)
    late_U = draws.below(large_facts().users["late"], "late")
    one_part_U = np.where(draws.below(ONE_PART, "one part"), draws.bits("which part") % plan.dataset.log_parts, -1)
    hosts_U = counts_U.copy()
    present = np.flatnonzero(counts_U)
    if len(present) >= 4:
        # The two users with the fewest rows: in one part only, and in the second window only.
        quiet = present[np.argsort(counts_U[present], kind="stable")[:2]]
        one_part_U[quiet[0]], late_U[quiet[1]] = 0, True
        hosts_U[quiet] = 0
    calendar = Calendar(plan.dataset, plan.seed, np.cumsum(counts_U) - counts_U, late_U)
    catalogue = Catalogue.of(plan)
    special = [catalogue.first_without_duration(), catalogue.num_pool - 1]
    quirks: dict[Kind, Quirks] = {
        "standard": place_quirks(large_quirks(plan.dataset.num_days), hosts_U, special),
        "random": place_quirks(random_quirks(), plan.random_counts, special),
    }
    some = _sampled_users(plan)
    scale_T = tab_scale(plan.seed, some, counts_U[some].astype(np.float64))
    habits = random_habits(plan.dataset)
    world = LargeWorld(plan, calendar, catalogue, scale_T, one_part_U.astype(np.int64), quirks, habits, {})
    world.intercepts["standard"] = _standard_intercepts(world)
    world.intercepts["random"] = _random_intercepts(world)
    return world


def _sampled_users(plan: Plan) -> Ints:
    users = np.arange(0, plan.num_users, -(-plan.num_users // CALIBRATION_USERS))
    return users[plan.standard_counts[users] > 0]


def _standard_intercepts(world: LargeWorld) -> Intercepts:
    """From rows evenly spaced among those of users all over the plan; in each tab, as many as the users have there."""
    plan = world.plan
    users = _sampled_users(plan)
    counts = plan.standard_counts[users]
    taken = np.minimum(counts, max(8, CALIBRATION_ROWS // len(users)))
    user = np.repeat(np.arange(len(users)), taken)
    number = np.arange(len(user)) - (np.cumsum(taken) - taken)[user]
    index = (number * counts[user]) // taken[user]
    shown, _ = standard_rows(world, users, user, index, nothing_asked(len(user)))
    tabs = UserTabs.of(plan.seed, users, world.tab_scale_T)
    weights_TN = (counts / taken)[user] * tabs.share_UT[user].T
    # A tab that no user is in may be asked for all the same.
    weights_TN[weights_TN.sum(axis=1) == 0.0] = (counts / taken)[user]
    found = calibrate(leanings(shown, plan.seed), shown.user_like_N, weights_TN, rates_of(large_facts(), "standard"))
    user_keys = Draws.at(plan.seed, "user", users)
    habits = {name: float(np.average(rare_habit(user_keys, name), weights=counts)) for name in RARE_USER_SD}
    return replace(found, rare_habit=habits)


def _random_intercepts(world: LargeWorld) -> Intercepts:
    plan = world.plan
    users = np.arange(0, plan.num_users, -(-plan.num_users // CALIBRATION_USERS))
    taken = np.minimum(plan.random_counts[users], max(8, CALIBRATION_ROWS // len(users)))
    shown, _ = random_rows(world, users, taken, world.quirks["random"].within(0, 0))
    weights = np.repeat(plan.random_counts[users] / np.maximum(taken, 1), taken)
    return calibrate(leanings(shown, plan.seed), shown.user_like_N, weights, rates_of(large_facts(), "random"))


def nothing_asked(num_rows: int) -> QuirkRequest:
    nothing = place_quirks([], np.zeros(1, dtype=np.int64), [])
    return nothing.asked(np.full(num_rows, -1))


def moods_of(world: LargeWorld, users: Ints) -> Moods:
    moods = Moods.of(world.plan.seed, users)
    rows_U = user_scores(Draws.at(world.plan.seed, "user", users), NUM_TRAITS)[:, ROWS_SCORE]
    return replace(moods, click_U=CLICK_SLOPE * moods.click_U + BUSY_SLOPE * rows_U)


def standard_rows(world: LargeWorld, users: Ints, user: Ints, index: Ints, asked: QuirkRequest) -> tuple[Shown, Ints]:
    """Rows of the standard logs with what their labels depend on, and the videos they show."""
    plan, catalogue = world.plan, world.catalogue
    tabs = UserTabs.of(plan.seed, users, world.tab_scale_T)
    paged: Paged = paged_rows(world.calendar, users, user, index, tabs, asked)
    rank = catalogue.shown_in(world.calendar.starts_U[users[user]] + index)
    video = catalogue.ids(rank)
    odd = np.flatnonzero(asked.place >= 0)
    if len(odd):
        video, rank = _asked_videos(world, paged.rows, video, rank, odd)
    moods = moods_of(world, users)
    tastes_PK, level_P = moods.at(paged.user_P, paged.time_ms_P)
    return _shown(world, "standard", users, paged.rows, (video, rank), (tastes_PK, level_P), paged.page_N, moods), video


def _asked_videos(world: LargeWorld, rows: Rows, video: Ints, rank: Ints, odd: Ints) -> tuple[Ints, Ints]:
    """What quirks ask for: certain videos, the same one again; and none that is uploaded only later."""
    video, rank = video.copy(), rank.copy()
    asked = rows.asked["video"][odd]
    video[odd] = np.where(asked >= 0, asked, video[odd])
    rank[odd] = world.catalogue.ranks_of(video[odd])
    later = odd[world.catalogue.upload_days(video[odd], rank[odd], world.calendar) > rows.day[odd]]
    rank[later] = 0
    video[later] = world.catalogue.ids(rank[later])
    again = odd[rows.asked["repeat"][odd] == 1]
    video[again], rank[again] = video[again - 1], rank[again - 1]
    return video, rank


def random_rows(world: LargeWorld, users: Ints, counts: Ints, quirks: Quirks) -> tuple[Shown, Ints]:
    """The same for rows of the random log, where every video of the pool is as likely as any other."""
    plan, catalogue = world.plan, world.catalogue
    rows = schedule(plan.dataset, plan.seed, users, counts, world.habits, quirks)
    video = rows.asked.over("video", (rows.draws.uniform("video") * catalogue.num_pool).astype(np.int64))
    moods = moods_of(world, users)
    state = moods.at(rows.user, rows.time_ms)
    every = np.arange(len(video))
    return _shown(world, "random", users, rows, (video, catalogue.ranks_of(video)), state, every, moods), video


def _shown(
    world: LargeWorld,
    kind: Kind,
    users: Ints,
    rows: Rows,
    videos: tuple[Ints, Ints],
    state: tuple[Floats, Floats],
    state_N: Ints,
    moods: Moods,
) -> Shown:
    """Gathers what labels depend on; `state` is the tastes and levels, and `state_N` which of them is each row's."""
    traits = world.catalogue.traits(*videos)
    return Shown(
        kind=kind,
        facts=large_facts(),
        rows=rows,
        user_keys=Draws.at(world.plan.seed, "user", users).take(rows.user),
        tastes_NK=state[0][state_N],
        level_N=state[1][state_N],
        user_like_N=moods.like_U[rows.user],
        vector_NK=traits.vector_NK,
        video_click_N=traits.click,
        video_like_N=traits.like,
        author_N=traits.author_id,
        duration_ms_N=traits.duration_ms,
    )


def log_columns(world: LargeWorld, low: int, high: int, kind: Kind) -> tuple[dict[str, Ints], Ints]:
    """The log of users low..high-1 by user and time, as columns in the order of the file, and the part of each row."""
    plan = world.plan
    users = np.arange(low, high)
    quirks = world.quirks[kind].within(low, high)
    if kind == "random":
        shown, video = random_rows(world, users, plan.random_counts[low:high], quirks)
    else:
        counts = plan.standard_counts[low:high]
        user = np.repeat(np.arange(len(users)), counts)
        starts = np.cumsum(counts) - counts
        place = np.full(len(user), -1)
        place[starts[quirks.user - low] + quirks.index] = np.arange(len(quirks.user))
        shown, video = standard_rows(world, users, user, np.arange(len(user)) - starts[user], quirks.asked(place))
    rows = shown.rows
    columns = label(shown, leanings(shown, plan.seed), world.intercepts[kind])
    columns["play_time_ms"] = _with_minus(rows, columns)
    columns |= shown_columns(shown, users, video, kind, plan.dataset)
    by_time = np.lexsort((rows.time_ms[rows.source], rows.user))
    order = rows.source[by_time]
    one_part = world.one_part_U[users[rows.user]]
    coin = (rows.draws.uniform("part") * plan.dataset.log_parts).astype(np.int64)
    part = np.where(one_part >= 0, one_part, coin)[by_time]
    return {name: columns[name][order] for name in LOG_HEADER.split(",")}, part


def _with_minus(rows: Rows, columns: dict[str, Ints]) -> Ints:
    """Play times, of which a few that led to nothing are -5 or -8."""
    nothing = (columns["is_click"] == 0) & (columns["long_view"] == 0)
    drawn = np.where(nothing & rows.draws.below(MINUS_PLAY, "minus"), 5 + 3 * rows.draws.below(0.5, "which minus"), -1)
    minus = rows.asked.over("minus_play", drawn)
    return np.where(minus > 0, -minus, columns["play_time_ms"])
