"""When a user's rows happen and in which scenario (tab): sessions, ties, rows logged twice, and the lagging clock.

A row either opens a session or continues one; a session keeps its tab, mostly, and a user keeps a home tab. Tabs 5 and
6 log most rows twice. The columns `date` and `hourmin` run some minutes ahead of `time_ms`, as in the real log.

N rows, in the order (user, index of the row); sorting by time comes last of all.
"""

from dataclasses import dataclass

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints, picked
from infnet_rec.synthetic.facts import kuairand_facts, table
from infnet_rec.synthetic.kuairand.quirks import QuirkRequest, Quirks
from infnet_rec.synthetic.plan import Dataset

DAY_MS, HOUR_MS, MINUTE_MS = 86_400_000, 3_600_000, 60_000
BEIJING_MS = 8 * HOUR_MS
MAX_GAP_S = 1_799.0
HOME_TAB, SESSION_TAB = 0.58, 0.88
TWICE_LOGGED_TABS = (5, 6)


@dataclass(frozen=True, slots=True)
class Habits:
    """How one kind of log is filled. Chances are per row; `days` counts from the dataset's first day."""

    kind: str
    new_session: float
    tie: float
    twin: float
    first_day: int
    daily: Floats
    tab_share: Floats


def standard_habits() -> Habits:
    facts = kuairand_facts().log
    share = table(facts["tab_share"])
    # A twin row is one of its tab too, so fewer are drawn there.
    share[list(TWICE_LOGGED_TABS)] /= 1.4
    return Habits("standard", 0.86, 0.0185, 0.9, 0, table(facts["daily"]), share / share.sum())


def random_habits(dataset: Dataset) -> Habits:
    first = (dataset.split_date - dataset.first_date).days
    share = table(kuairand_facts().log["random"]["tab_share"])
    return Habits("random", 1.0, 0.0, 0.0, first, np.ones(dataset.num_days - first), share / share.sum())


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a group of users before their videos and labels: whose, when, where.

    `user` counts within the group; `day` from the dataset's first. `source` is the row itself, or for a row logged
    twice the row before it: in the end every column is copied from there.
    """

    user: Ints
    draws: Draws
    asked: QuirkRequest
    day: Ints
    time_ms: Ints
    tab: Ints
    source: Ints


def schedule(dataset: Dataset, seed: int, users: Ints, counts: Ints, habits: Habits, quirks: Quirks) -> Rows:
    """The rows of `users` (consecutive numbers), `counts` rows each."""
    user = np.repeat(np.arange(len(users)), counts)
    starts = np.cumsum(counts) - counts
    index = np.arange(len(user)) - starts[user]
    draws = Draws.at(seed, f"{habits.kind} row", users[user], index)
    place = np.full(len(user), -1)
    place[starts[quirks.user - users[0]] + quirks.index] = np.arange(len(quirks.user))
    asked = quirks.asked(place)

    tie = (asked["tie"] == 1) | draws.below(habits.tie, "tie")
    opens = draws.below(habits.new_session, "session") & ~tie
    opens |= (index == 0) | (asked["day"] >= 0) | (asked["hour"] >= 0) | (asked["repeat"] >= 0)
    tie &= ~opens
    opening = np.maximum.accumulate(np.where(opens, np.arange(len(user)), 0))
    local_ms = _local_times(dataset, draws, asked, habits, opening, tie)

    home = picked(Draws.at(seed, "home", users).uniform("tab"), habits.tab_share)[user]
    own = np.where(draws.below(HOME_TAB, "home tab"), home, picked(draws.uniform("tab"), habits.tab_share))
    tab = asked.over("tab", np.where(draws.below(SESSION_TAB, "session tab") | tie, own[opening], own))
    twin = (asked["twin"] == 1) | _twins(tab, draws, habits, index) & (place < 0)
    source = np.arange(len(user)) - twin
    first_ms = int(np.datetime64(dataset.first_date, "ms").astype(np.int64))
    return Rows(user, draws, asked, local_ms // DAY_MS, local_ms + first_ms - BEIJING_MS, tab, source[source])


def _local_times(
    dataset: Dataset, draws: Draws, asked: QuirkRequest, habits: Habits, opening: Ints, tie: Flags
) -> Ints:
    """Milliseconds since the first day's midnight in Beijing."""
    day = asked.over("day", picked(draws.uniform("day"), habits.daily) + habits.first_day)
    hour = asked.over("hour", picked(draws.uniform("hour"), table(kuairand_facts().log["hourly"])))
    within = (draws.uniform("within hour") * HOUR_MS).astype(np.int64)
    within = np.where(asked["minute"] >= 0, asked["minute"] * MINUTE_MS, within)
    start = day * DAY_MS + hour * HOUR_MS + within
    gap_s = np.minimum(np.exp(6.0 + 1.4 * draws.normal("gap")), MAX_GAP_S)
    elapsed = np.cumsum(np.where(tie, 0, (gap_s * 1000.0).astype(np.int64) + 1))
    local = start[opening] + elapsed - elapsed[opening]
    # The log ends with a `date`, which runs ahead: the last hour's last minutes are already the next day's.
    end = dataset.num_days * DAY_MS - 16 * MINUTE_MS
    return np.where(local >= end, 2 * end - local - 1, local)


def _twins(tab: Ints, draws: Draws, habits: Habits, index: Ints) -> Flags:
    """Rows that repeat the row before: never the first of a user, never the twin of a twin."""
    before = np.roll(tab, 1)
    return every_other((index > 0) & np.isin(before, TWICE_LOGGED_TABS) & draws.below(habits.twin, "twin"))


def every_other(wanted: Flags) -> Flags:
    """The first, third, fifth... of each run of wanted rows."""
    position = np.arange(len(wanted))
    run_start = np.maximum.accumulate(np.where(wanted, 0, position + 1))
    return wanted & ((position - run_start) % 2 == 0)


def shown_clock(rows: Rows, dataset: Dataset) -> tuple[Ints, Ints]:
    """The columns `date` (YYYYMMDD) and `hourmin` (hour x 100) of rows: the next hour's for late minutes."""
    local = rows.time_ms + BEIJING_MS
    chance = table(kuairand_facts().log["next_hour_by_minute"])[local % HOUR_MS // MINUTE_MS]
    shown = local // HOUR_MS + rows.draws.below(chance, "next hour")
    day = shown // 24
    first_day, last_day = (np.datetime64(d).astype(np.int64) for d in (dataset.first_date, dataset.last_date))
    hour = np.where(day > last_day, 23, shown % 24)
    # KuaiRand-27K holds rows of the evening before the first date, under that date.
    day = np.clip(day, first_day, last_day)
    dates = day.astype("datetime64[D]")
    months = dates.astype("datetime64[M]")
    years = dates.astype("datetime64[Y]").astype(np.int64) + 1970
    date = years * 10_000 + (months.astype(np.int64) % 12 + 1) * 100 + (dates - months).astype(np.int64) + 1
    return date, hour * 100
