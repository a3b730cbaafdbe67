"""What a user does with an item of QB-Video: click, like, follow, share and how many times it is watched.

The rates are calibrated on a sample of the file's rows, so that a file of any size has the published ones.

N rows.
"""

from dataclasses import dataclass

import numpy as np

from infnet_rec.synthetic.draws import Floats, Ints
from infnet_rec.synthetic.kuairand.labels import sigmoid
from infnet_rec.synthetic.qb.items import Items
from infnet_rec.synthetic.qb.state import Seen

# Of all rows: 69.66 % clicked, .847 % liked, 69.83 % with any positive. So few likes are without a click.
CLICK, LIKE, LIKE_UNCLICKED = 1_701_171 / 2_442_299, 20_687 / 2_442_299, 0.0015
RARE = {"follow": 2_487 / 2_442_299, "share": 2_541 / 2_442_299}
TASTE_SD = 1.2
LIKE_USER_SD, LIKE_RUN_SD, LIKE_RUN_ROWS, LIKE_TASTE = 1.4, 3.1, 5, 0.5
# Likes without a click are mostly in the head of the file: .5 % of the rows there.
LIKE_EARLY = 1.5
RARE_USER_SD, RARE_GIVEN_LIKE, RARE_UNCLICKED = 1.2, 8.0, 0.2
# Mean number of times that a row is watched, and the rest of their distribution, which is not published.
WATCHED = {"clicked": 2.4, "liked": 2.5, "not": 0.9}
WATCHED_LEVEL = 0.7
NEVER_CLICKED, NEVER_UNCLICKED = 0.003, 0.4


@dataclass(frozen=True, slots=True)
class QbLeanings:
    """Logits without their intercepts, and how readily a user follows or shares."""

    click_N: Floats
    like_N: Floats
    early_N: Floats
    rare_N: dict[str, Floats]
    watched_N: Floats


@dataclass(frozen=True, slots=True)
class QbIntercepts:
    """What makes the leanings of a file's rows meet the published rates."""

    click: float
    like: float
    like_unclicked: float
    rare: dict[str, float]
    watched: float
    watched_liked: float


def leanings(seen: Seen, items: Items, item_N: Ints) -> QbLeanings:
    liking, early = items.liking(seen, item_N), seen.users.early_U[seen.user_N].astype(np.float64)
    like = LIKE_USER_SD * seen.users.draws.normal("like")[seen.user_N] + items.like_I[item_N] + LIKE_TASTE * liking
    like += LIKE_RUN_SD * seen.runs("like run", LIKE_RUN_ROWS).normal("like")
    rare = {name: np.exp(RARE_USER_SD * seen.users.draws.normal(name))[seen.user_N] for name in RARE}
    return QbLeanings(
        seen.level_N + items.click_I[item_N] + TASTE_SD * liking,
        like,
        early,
        rare,
        np.exp(WATCHED_LEVEL * seen.moving_N),
    )


def _intercept(logit_N: Floats, weight_N: Floats, rate: float) -> float:
    """The number that, added to the logits, makes their weighted mean chance equal to `rate` (Newton)."""
    weight_N = weight_N / weight_N.sum()
    found = float(np.log(rate / (1.0 - rate)))
    for _ in range(30):
        chance = sigmoid(logit_N + found)
        slope = float((weight_N * chance * (1.0 - chance)).sum())
        found -= float(np.clip(((weight_N * chance).sum() - rate) / max(slope, 1e-12), -1.5, 1.5))
    return found


def calibrate(sample: QbLeanings) -> QbIntercepts:
    """From rows that stand for the whole file, each as much as any other."""
    click = _intercept(sample.click_N, np.ones(len(sample.click_N)), CLICK)
    clicked = sigmoid(sample.click_N + click)
    like = _intercept(sample.like_N, clicked, (LIKE - LIKE_UNCLICKED) / CLICK)
    unclicked_logit = sample.like_N + LIKE_EARLY * sample.early_N
    like_unclicked = _intercept(unclicked_logit, 1.0 - clicked, LIKE_UNCLICKED / (1.0 - CLICK))
    likes, others = sigmoid(sample.like_N + like), sigmoid(unclicked_logit + like_unclicked)
    given = clicked * (1.0 + (RARE_GIVEN_LIKE - 1.0) * likes)
    given += RARE_UNCLICKED * (1.0 - clicked) * (1.0 + (RARE_GIVEN_LIKE - 1.0) * others)
    liked = clicked * likes + (1.0 - clicked) * others
    return QbIntercepts(
        click=click,
        like=like,
        like_unclicked=like_unclicked,
        rare={name: rate / float((given * sample.rare_N[name]).mean()) for name, rate in RARE.items()},
        watched=(WATCHED["clicked"] - 1.0) / float(np.average(sample.watched_N, weights=clicked)),
        watched_liked=(WATCHED["liked"] - 1.0) / float(np.average(sample.watched_N, weights=liked)),
    )


def label(seen: Seen, leaning: QbLeanings, found: QbIntercepts, asked: dict[str, Ints]) -> dict[str, Ints]:
    """The label columns by name. `asked` holds what replaces a drawn value, -1 for nothing."""

    def drawn(name: str, chance_N: Floats) -> Ints:
        return np.where(asked[name] >= 0, asked[name], seen.draws.below(chance_N, name).astype(np.int64))

    click = drawn("click", sigmoid(leaning.click_N + found.click))
    unclicked = sigmoid(leaning.like_N + LIKE_EARLY * leaning.early_N + found.like_unclicked)
    like = drawn("like", np.where(click == 1, sigmoid(leaning.like_N + found.like), unclicked))
    given = np.where(click == 1, 1.0, RARE_UNCLICKED) * np.where(like == 1, RARE_GIVEN_LIKE, 1.0)
    rare = {name: drawn(name, np.minimum(given * leaning.rare_N[name] * found.rare[name], 0.5)) for name in RARE}
    times = np.where(asked["watching_times"] >= 0, asked["watching_times"], _times(seen, leaning, found, click, like))
    return {"click": click, "like": like, "watching_times": times} | rare


def _times(seen: Seen, leaning: QbLeanings, found: QbIntercepts, click_N: Ints, like_N: Ints) -> Ints:
    """How many times the item is watched in all, also after this row: it tells much of the click."""
    liked, positive = like_N == 1, (click_N == 1) | (like_N == 1)
    again = np.where(liked, found.watched_liked, found.watched) * leaning.watched_N
    again = np.where(positive, again, WATCHED["not"] / (1.0 - NEVER_UNCLICKED) - 1.0)
    uniform = np.maximum(seen.draws.uniform("watched again"), 1e-12)
    times = 1 + (np.log(uniform) / np.log(again / (1.0 + again))).astype(np.int64)
    never = seen.draws.below(np.where(positive, NEVER_CLICKED, NEVER_UNCLICKED), "never watched")
    return np.where(never, 0, times)
