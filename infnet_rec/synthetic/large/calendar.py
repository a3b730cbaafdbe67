"""When a user's rows happen and in which scenario (tab), in logs whose rows come in pages of about ten.

A page is one answer of the server: its rows share their time and tab. A session is some sixteen pages. Which page and
session a row belongs to, and when that was, are functions of (user, index of the row) alone. So the videos can be told
when they were first shown without making any row.

N rows, P pages, U users, T tabs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints, picked
from infnet_rec.synthetic.facts import large_facts, table
from infnet_rec.synthetic.kuairand.quirks import QuirkRequest
from infnet_rec.synthetic.kuairand.schedule import (
    BEIJING_MS,
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    TWICE_LOGGED_TABS,
    Rows,
    every_other,
)
from infnet_rec.synthetic.plan import Dataset

PAGE, ODD_PAGES = 10, 0.1
PAGES_A_PAIR_OF_SESSIONS = 32
# Seconds between pages: quantiles of a lognormal. One page in ten follows within a second.
PACE_LOG_MEAN, PACE_LOG_SD, MAX_PACE_S = 4.25, 1.4, 900.0
BURST, MAX_BURST_MS = 0.1, 900.0
SESSION_TAB, TAB_SD = 0.88, 1.0
TWIN, TWIN_ELSEWHERE = 0.9, 0.006
# Sessions of the first date that began up to two hours before it.
EVE, EVE_MS = 0.002, 2 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Calendar:
    """`starts_U` is the number of rows of the users before, `late_U` who comes in the second window only."""

    dataset: Dataset
    seed: int
    starts_U: Ints
    late_U: Flags

    def days(self, row_number: Ints) -> Ints:
        """The day, from the dataset's first, of rows that are numbered through all users."""
        user = np.searchsorted(self.starts_U, row_number, side="right") - 1
        page = self.pages(user, row_number - self.starts_U[user])
        return self.local_times(user, page)[0] // DAY_MS

    def pages(self, user_N: Ints, index_N: Ints) -> Ints:
        """The number of each row's page among the user's. Two pages share twenty rows, mostly evenly."""
        block, place = np.divmod(index_N, 2 * PAGE)
        draws = Draws.at(self.seed, "page block", user_N, block)
        cut = np.where(draws.below(ODD_PAGES, "odd"), np.floor(4.0 + 13.0 * draws.uniform("cut")), PAGE)
        return 2 * block + (place >= cut)

    def local_times(self, user_P: Ints, page_P: Ints) -> tuple[Ints, Draws]:
        """Milliseconds since the first day's midnight in Beijing, never before their session's day; and the session."""
        block, place = np.divmod(page_P, PAGES_A_PAIR_OF_SESSIONS)
        pair = Draws.at(self.seed, "session block", user_P, block)
        cut = 1 + (pair.uniform("cut") * (PAGES_A_PAIR_OF_SESSIONS - 1)).astype(np.int64)
        second = place >= cut
        before = place - np.where(second, cut, 0)
        session = Draws.at(self.seed, "session", user_P, 2 * block + second)
        burst = (before > 0) & Draws.at(self.seed, "page", user_P, page_P).below(BURST, "burst")
        page = Draws.at(self.seed, "page", user_P, page_P - burst)
        pace_s = np.minimum(np.exp(PACE_LOG_MEAN + PACE_LOG_SD * session.normal("pace")), MAX_PACE_S)
        elapsed = (1_000.0 * pace_s * (before - burst + page.uniform("time"))).astype(np.int64)
        elapsed += burst * (1 + (MAX_BURST_MS * page.uniform("burst time")).astype(np.int64))
        local = self._session_starts(user_P, session) + elapsed
        # The log ends with a `date`, which runs ahead: the last hour's last minutes are already the next day's.
        end = self.dataset.num_days * DAY_MS - 16 * MINUTE_MS
        return np.where(local >= end, 2 * end - local - 1, local), session

    def _session_starts(self, user_P: Ints, session: Draws) -> Ints:
        facts = large_facts().log
        edges = np.cumsum(facts["daily"]) / np.sum(facts["daily"])
        late = edges[self.dataset.split_day - 1] * self.late_U[user_P]
        day = np.searchsorted(edges[:-1], late + (1.0 - late) * session.uniform("day"), side="right")
        hour = picked(session.uniform("hour"), table(facts["hourly"]))
        within = session.uniform("within hour")
        start = day * DAY_MS + hour * HOUR_MS + (within * HOUR_MS).astype(np.int64)
        eve = (day == 0) & session.below(EVE, "eve")
        return np.where(eve, -1 - (within * EVE_MS).astype(np.int64), start)


@dataclass(frozen=True, slots=True)
class UserTabs:
    """How often each user is in each tab. Some tabs are for a few users alone, who use them a lot."""

    share_UT: Floats

    @classmethod
    def of(cls, seed: int, users: Ints, scale_T: Floats) -> "UserTabs":
        facts = large_facts().log
        draws = Draws.at(seed, "user tabs", users)
        share = table(facts["tab_share"]) / np.sum(facts["tab_share"]) / table(facts["tab_users"])
        weight_UT = np.empty((len(users), len(share)))
        for tab in range(len(share)):
            open_U = draws.below(facts["tab_users"][tab], "open", tab)
            weight_UT[:, tab] = scale_T[tab] * open_U * share[tab] * np.exp(TAB_SD * draws.normal("liked", tab))
        weight_UT[weight_UT.sum(axis=1) == 0.0, 1] = 1.0
        return cls(weight_UT / weight_UT.sum(axis=1, keepdims=True))

    def drawn(self, user_P: Ints, uniform_P: Floats) -> Ints:
        edges_UT = np.cumsum(self.share_UT, axis=1)
        return np.minimum((uniform_P[:, None] >= edges_UT[user_P]).sum(axis=1), self.share_UT.shape[1] - 1)


def tab_scale(seed: int, users: Ints, weights_U: Floats) -> Floats:
    """What to scale the tabs' weights by so that rows of these users have the real share of each tab used by any."""
    wanted_T = table(large_facts().log["tab_share"])
    wanted_T /= wanted_T.sum()
    own_UT = UserTabs.of(seed, users, np.ones(len(wanted_T))).share_UT
    scale_T = np.ones(len(wanted_T))
    for _ in range(60):
        share_UT = own_UT * scale_T
        share_UT /= share_UT.sum(axis=1, keepdims=True)
        found_T = np.einsum("u,ut->t", weights_U / weights_U.sum(), share_UT, optimize=False)
        scale_T *= np.where(found_T > 0.0, wanted_T / np.maximum(found_T, 1e-12), 1.0)
    return scale_T


@dataclass(frozen=True, slots=True)
class Paged:
    """Rows, and the page of each; `user_P` counts within the group of users."""

    rows: Rows
    page_N: Ints
    user_P: Ints
    time_ms_P: Ints


def paged_rows(calendar: Calendar, users: Ints, user: Ints, index: Ints, tabs: UserTabs, asked: QuirkRequest) -> Paged:
    """Rows in the order (user, index).

    Args:
        calendar: the dataset's.
        users: a group of users.
        user: the user of each row, counted within the group.
        index: which of the user's rows it is.
        tabs: of the users of the group.
        asked: what quirks ask of the rows.
    """
    page = calendar.pages(users[user], index)
    opens = np.ones(len(user), dtype=bool)
    opens[1:] = (np.diff(user) != 0) | (np.diff(page) != 0)
    page_N, first_P = np.cumsum(opens) - 1, np.flatnonzero(opens)
    user_P, page_P = user[first_P], page[first_P]
    local_P, session = calendar.local_times(users[user_P], page_P)
    draws_P = Draws.at(calendar.seed, "page", users[user_P], page_P)
    stays = draws_P.below(SESSION_TAB, "session tab")
    tab_P = tabs.drawn(user_P, np.where(stays, session.uniform("tab"), draws_P.uniform("tab")))

    draws = Draws.at(calendar.seed, "standard row", users[user], index)
    local = _asked_times(local_P[page_N], draws, asked)
    tab = asked.over("tab", tab_P[page_N])
    twice = np.where(np.isin(np.roll(tab, 1), TWICE_LOGGED_TABS), TWIN, TWIN_ELSEWHERE)
    twin = every_other((index > 0) & (asked.place < 0) & draws.below(twice, "twin")) | (asked["twin"] == 1)
    source = np.arange(len(user)) - twin
    first_ms = int(np.datetime64(calendar.dataset.first_date, "ms").astype(np.int64)) - BEIJING_MS
    rows = Rows(user, draws, asked, local // DAY_MS, local + first_ms, tab, source[source])
    return Paged(rows, page_N, user_P, local_P + first_ms)


def _asked_times(local: Ints, draws: Draws, asked: QuirkRequest) -> Ints:
    """The times of rows, but for those whose day, hour or minute is asked for."""
    chosen = np.flatnonzero((asked["day"] >= 0) | (asked["hour"] >= 0) | (asked["eve"] >= 0))
    if len(chosen) == 0:
        return local
    some, within = draws.take(chosen), draws.take(chosen).uniform("within hour")
    settings: dict[str, Any] = {name: asked[name][chosen] for name in ("day", "hour", "minute", "eve")}
    day = np.where(settings["day"] >= 0, settings["day"], np.maximum(local[chosen] // DAY_MS, 0))
    hour = np.where(settings["hour"] >= 0, settings["hour"], picked(some.uniform("hour"), large_facts().log["hourly"]))
    minute_ms = np.where(settings["minute"] >= 0, settings["minute"] * MINUTE_MS, (within * HOUR_MS * 0.7).astype(int))
    local = local.copy()
    local[chosen] = day * DAY_MS + hour * HOUR_MS + minute_ms
    eve = chosen[settings["eve"] == 1]
    local[eve] = -1 - (draws.take(eve).uniform("within hour") * EVE_MS).astype(np.int64)
    return local
