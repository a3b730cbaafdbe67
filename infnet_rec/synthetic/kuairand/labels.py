"""What a user does with a video: the twelve feedback columns, given who, what, when and where.

Click, long view and like are drawn from a logit: an intercept of the tab, the user's hidden state (tastes.py), the
video, its duration. The intercepts are calibrated so that the log has the measured rate of every tab. The rarer labels
depend on click and like. Play time is drawn last so that it agrees with the labels as often as it does in reality.

N rows, T tabs.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints
from infnet_rec.synthetic.facts import Facts, bucket_of, table
from infnet_rec.synthetic.kuairand.schedule import Rows

NUM_TABS = 15
BINS = 512
TASTE_SD, AUTHOR_SD, LIKE_USER_SD = 1.7, 0.25, 2.1
LONG_VIEW_SHARE, LIKE_TASTE = 0.6, 0.6
# In Pure, rows of the first days are clicked more than those of the last two weeks, whose rates are the measured ones.
EARLY_DAYS = 16
RARE_USER_SD = {"is_comment": 1.3, "is_follow": 1.6, "is_forward": 1.4, "is_hate": 1.9}
NO_LONGER_MS, WATCHED_MS = 7_000, 18_000
MAX_STAY_MS = 300_000

Kind = Literal["standard", "random"]


@dataclass(frozen=True, slots=True)
class Leanings:
    """The logits of rows without the tab's intercept."""

    click_N: Floats
    long_view_N: Floats
    like_N: Floats


@dataclass(frozen=True, slots=True)
class Intercepts:
    """One logit a tab; long view and like are given a click. `habit_T` is the mean habit of liking without.

    `rare_habit` is the mean habit, over the users, of a rare label, where that is known; few users are far from 1.
    """

    click_T: Floats
    long_view_T: Floats
    like_T: Floats
    habit_T: Floats
    rare_habit: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Shown:
    """What the labels of rows depend on: the state of the user then, and the traits of the video."""

    kind: Kind
    facts: Facts
    rows: Rows
    user_keys: Draws
    tastes_NK: Floats
    level_N: Floats
    user_like_N: Floats
    vector_NK: Floats
    video_click_N: Floats
    video_like_N: Floats
    author_N: Ints
    duration_ms_N: Ints


def sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def rates_of(facts: Facts, kind: Kind) -> dict[str, Any]:
    """The tables of rates of one kind of log."""
    return facts.log if kind == "standard" else facts.log["random"]


def leanings(shown: Shown, seed: int) -> Leanings:
    facts = shown.facts.log
    bucket = bucket_of(shown.duration_ms_N, facts["duration_edges_ms"])
    taste = TASTE_SD * np.einsum("nk,nk->n", shown.tastes_NK, shown.vector_NK)
    bond = AUTHOR_SD * Draws.at(seed, "bond", shown.user_keys.keys, shown.author_N).normal("author")
    likes_it = shown.level_N + shown.video_click_N + taste + bond
    like = LIKE_USER_SD * shown.user_like_N + shown.video_like_N + LIKE_TASTE * (taste + bond)
    return Leanings(
        likes_it + table(facts["click_by_duration"])[bucket],
        LONG_VIEW_SHARE * likes_it + table(facts["long_view_by_duration"])[bucket],
        like + table(facts["like_by_duration"])[bucket],
    )


@dataclass(frozen=True, slots=True)
class _Spread:
    """A sample of logits, counted in narrow bins, so that it is read fast once for every tab."""

    bin_N: Ints
    centers: Floats

    @classmethod
    def of(cls, logits: Floats) -> Self:
        edges = np.linspace(logits.min(), logits.max() + 1e-9, BINS + 1)
        return cls(np.searchsorted(edges, logits, side="right") - 1, (edges[:-1] + edges[1:]) / 2.0)

    def intercept(self, weights_N: Floats, rate: float) -> float:
        """The number that, added to the logits, makes their weighted mean chance equal to `rate` (Newton)."""
        weights = np.bincount(self.bin_N, weights_N, BINS)
        weights /= weights.sum()
        rate = min(max(rate, 1e-4), 1.0 - 1e-4)
        found = float(np.log(rate / (1.0 - rate)))
        for _ in range(20):
            chance = sigmoid(self.centers + found)
            slope = float(weights @ (chance * (1.0 - chance)))
            found -= float(np.clip((weights @ chance - rate) / max(slope, 1e-9), -1.5, 1.5))
        return found


def calibrate(sample: Leanings, user_like_N: Floats, weights: Floats, rates: dict[str, Any]) -> Intercepts:
    """Intercepts for each tab from a sample of rows.

    Args:
        sample: the logits of the rows.
        user_like_N: how readily their users like.
        weights: how many rows of the log each row stands for: (N,), or (T, N) if that depends on the tab.
        rates: the rates to be met.
    """
    weights_TN = np.broadcast_to(weights, (NUM_TABS, len(user_like_N)))
    given = {name: np.broadcast_to(table(rates[name]["click"]), NUM_TABS) for name in ("long_view", "like")}
    click, long_view, like = (_Spread.of(x) for x in (sample.click_N, sample.long_view_N, sample.like_N))
    click_T, long_view_T, like_T, habit_T = (np.zeros(NUM_TABS) for _ in range(4))
    for tab, weights in enumerate(weights_TN):
        click_T[tab] = click.intercept(weights, rates["click"][tab])
        clicked = weights * sigmoid(sample.click_N + click_T[tab])
        long_view_T[tab] = long_view.intercept(clicked, given["long_view"][tab])
        like_T[tab] = like.intercept(clicked, given["like"][tab])
        habit_T[tab] = np.average(_habit(user_like_N), weights=weights - clicked)
    return Intercepts(click_T, long_view_T, like_T, habit_T)


def _habit(user_like_N: Floats) -> Floats:
    return np.exp(LIKE_USER_SD * user_like_N - LIKE_USER_SD**2 / 2)


def label(shown: Shown, leaning: Leanings, intercepts: Intercepts) -> dict[str, Ints]:
    """The feedback columns of the rows, by name."""
    rates = rates_of(shown.facts, shown.kind)
    tab, draws, asked = shown.rows.tab, shown.rows.draws, shown.rows.asked
    early = (shown.rows.day < EARLY_DAYS) & (shown.kind == "standard")

    def chance(name: str, logit_N: Floats, intercept_T: Floats) -> Floats:
        return sigmoid(logit_N + intercept_T[tab] + shown.facts.log["early_lift"][name] * early)

    def unclicked(name: str) -> Floats:
        return np.broadcast_to(table(rates[name]["no_click"]), NUM_TABS)[tab]

    def drawn(name: str, chance_N: Floats) -> Ints:
        return asked.over(name, draws.below(chance_N, name).astype(np.int64))

    click = drawn("click", chance("click", leaning.click_N, intercepts.click_T)) == 1
    viewing = chance("long_view", leaning.long_view_N, intercepts.long_view_T)
    long_view = drawn("long_view", np.where(click, viewing, unclicked("long_view"))) == 1
    liking = chance("like", leaning.like_N, intercepts.like_T)
    habit = np.minimum(unclicked("like") * _habit(shown.user_like_N) / intercepts.habit_T[tab], 0.5)
    columns = {
        "is_click": click.astype(np.int64),
        "is_like": drawn("is_like", np.where(click, liking, habit)),
        "long_view": long_view.astype(np.int64),
    }
    columns |= _rare(shown, columns, intercepts)
    columns["play_time_ms"] = _play_time(shown, click, long_view)
    return columns | _stays(shown, columns)


def _rare(shown: Shown, columns: dict[str, Ints], intercepts: Intercepts) -> dict[str, Ints]:
    """Comment, follow, forward and hate: rare, mostly after a click or a like, and of few users each."""
    facts = shown.facts.log
    draws, asked = shown.rows.draws, shown.rows.asked
    two_column = np.isin(shown.rows.tab, facts["two_column_tabs"])
    found: dict[str, Ints] = {}
    for name, rates in facts["rare"].items():
        # What is not opened in a two-column tab cannot be commented on; it can be hated.
        unopened = np.where(two_column & (name != "is_hate"), 0.0, rates["no_click"])
        chance = np.where(columns["is_click"] == 1, rates["click"], unopened)
        chance = np.where((columns["is_like"] == 1) & (columns["is_click"] == 1), rates["like"], chance)
        if shown.kind == "random":
            chance *= facts["random"]["rare_scale"][name]
        habit = rare_habit(shown.user_keys, name) / intercepts.rare_habit.get(name, 1.0)
        found[name] = asked.over(name, draws.below(np.minimum(chance * habit, 0.5), name).astype(np.int64))
    return found


def rare_habit(user_keys: Draws, name: str) -> Floats:
    """How much more than others users are given to a rare label; 1 on average over many users."""
    sd = RARE_USER_SD[name]
    return np.exp(sd * user_keys.normal(name) - sd**2 / 2)


def _play_time(shown: Shown, click: Flags, long_view: Flags) -> Ints:
    """Milliseconds played: zero by the tab's chance, else on the side of the rules' limits that the labels tell.

    The rules: a video is clicked (in one-column tabs) when played over min(duration, 7 s), long-viewed from
    min(duration, 18 s) on. Some clicked rows are cut short all the same, and disagree with the rule, as in reality.
    """
    facts = shown.facts.log
    play, draws, tab = facts["play"], shown.rows.draws, shown.rows.tab
    duration = shown.duration_ms_N
    short = np.where(duration > 0, np.minimum(duration, NO_LONGER_MS), NO_LONGER_MS)
    enough = np.where(duration > 0, np.minimum(duration, WATCHED_MS), WATCHED_MS)
    u = np.where(shown.rows.asked["long_play"] == 1, 1.0, draws.uniform("play time"))
    skipped = np.ceil(short * np.interp(u, play["levels"], play["skipped"]))
    cut = np.ceil((short - 1) * np.interp(u, play["levels"], play["cut_short"]))
    watched = short + np.ceil(np.maximum(enough - short - 1, 0) * np.interp(u, play["levels"], play["watched"]))
    longest = table(play["long"])
    bucket = bucket_of(duration, facts["duration_edges_ms"])
    long = np.zeros(len(u))
    for b in range(len(longest)):
        chosen = bucket == b
        long[chosen] = np.ceil(enough[chosen] * np.exp(np.interp(u[chosen], play["levels"], np.log(longest[b]))))
    cuts_short = draws.below(table(facts["play_cut_short"])[tab], "cut short") | (enough <= short)
    played = np.where(long_view, long, np.where(~click, skipped, np.where(cuts_short, cut, watched)))
    zero = draws.below(table(facts["play_zero"])[tab, 2 * click + long_view], "no play")
    return np.where(zero, 0, played).astype(np.int64)


def _stays(shown: Shown, columns: dict[str, Ints]) -> dict[str, Ints]:
    """Time in the comments, for all who comment and some who do not, and visits to the author's profile."""
    facts = shown.facts.log
    draws, tab, click = shown.rows.draws, shown.rows.tab, columns["is_click"] == 1
    stay = facts["comment_stay"]
    reads = (columns["is_comment"] == 1) | draws.below(np.where(click, stay["click"], stay["no_click"]), "reads")
    stay_ms = np.exp(np.interp(draws.uniform("comment stay"), stay["levels"], np.log(stay["values"])))
    visit = facts["profile_enter"]
    chance = np.where(click, table(visit["click"])[tab], table(visit["no_click"])[tab])
    enters = shown.rows.asked.over("is_profile_enter", draws.below(chance, "enters").astype(np.int64)) == 1
    lingers = enters & (draws.below(0.004, "lingers") | (shown.rows.asked["profile_stay"] == 1))
    linger_ms = np.minimum(np.exp(8.3 + 1.6 * draws.normal("profile stay")), MAX_STAY_MS)
    return {
        "profile_stay_time": np.where(lingers, linger_ms, 0).astype(np.int64),
        "comment_stay_time": np.where(reads, stay_ms, 0).astype(np.int64),
        "is_profile_enter": enters.astype(np.int64),
    }
