"""Users: the 31 columns of the user file, and the traits behind them that drive the log.

Columns and traits are drawn jointly: one row of correlated normal scores a user, and each column is a quantile of its
score. The first scores are the traits (how readily the user clicks and likes, how many rows the log has), so a static
model finds in the columns about as much as in the real file.
"""

from typing import Any

import numpy as np

from infnet_rec.synthetic.draws import Draws, Floats, Ints, correlated
from infnet_rec.synthetic.facts import cholesky, cuts, from_scores, kuairand_facts, normal_levels
from infnet_rec.synthetic.lines import csv_lines

CLICK_SCORE, LIKE_SCORE, ROWS_SCORE = 0, 1, 2
NUM_TRAITS = 3

HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
NULLABLE = ("onehot_feat4", *(f"onehot_feat{i}" for i in range(12, 18)))

# Lower bounds and names of the ranges: each range column is an exact function of the number beside it.
RANGES: dict[str, tuple[list[int], list[str]]] = {
    "follow_user_num": (
        [0, 1, 11, 51, 101, 151, 251, 501],
        ["0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+"],
    ),
    "fans_user_num": (
        [0, 1, 10, 100, 1000, 5000, 10_000, 100_000, 1_000_000],
        ["0", "[1,10)", "[10,100)", "[100,1k)", "[1k,5k)", "[5k,1w)", "[1w,10w)", "[10w,100w)", "[100w,1000w)"],
    ),
    "friend_user_num": (
        [0, 1, 5, 30, 60, 120, 250],
        ["0", "[1,5)", "[5,30)", "[30,60)", "[60,120)", "[120,250)", "250+"],
    ),
    "register_days": (
        [0, 15, 31, 61, 91, 181, 366, 731],
        ["8-14", "15-30", "31-60", "61-90", "91-180", "181-365", "366-730", "730+"],
    ),
}

# Values that a loader must survive, each given to some user of every dataset that has users enough.
FORCED: dict[str, list[Any]] = {
    "user_active_degree": [
        *("UNKNOWN", "day_new", "30day_retention", "single_low_active", "low_active", "2_14_day_new"),
        *("middle_active", "high_active", "full_active"),
    ],
    "is_live_streamer": [-124, 1],
    "is_video_author": [0, 1],
    "follow_user_num": [0, 400],
    "fans_user_num": [1_104_329, 116_545, 45_000, 7_000, 0, 500],
    "friend_user_num": [0, 40],
    "register_days": [14, 20, 45, 75],
}


def user_scores(draws: Draws, width: int) -> Floats:
    """The first `width` correlated scores of each user; a user's first scores do not depend on how many are asked."""
    factor = cholesky(kuairand_facts().users["cholesky"])[:width, :width]
    return correlated(draws.normals("user score", width), factor)


def row_weights(draws: Draws) -> Floats:
    """How many rows each user would have in a log of the real size."""
    facts = kuairand_facts().users["rows"]
    scores = user_scores(draws, NUM_TRAITS)[:, ROWS_SCORE]
    return from_scores(scores, normal_levels(facts["levels"]), facts["values"])


def user_csv(seed: int, low: int, high: int, num_users: int) -> bytes:
    """The lines of the user file for users low..high-1, without the header."""
    return csv_lines(zip(*_columns(seed, np.arange(low, high), num_users).values(), strict=True))


def _columns(seed: int, users: Ints, num_users: int) -> dict[str, list[Any]]:
    draws = Draws.at(seed, "user", users)
    scores = user_scores(draws, len(kuairand_facts().users["names"]))
    columns: dict[str, list[Any]] = {"user_id": users.tolist()}
    for name in HEADER.split(",")[1:]:
        if name == "is_lowactive_period":
            columns[name] = [0] * len(users)
        elif name.endswith("_range"):
            source = name.removesuffix("_range")
            bounds, labels = RANGES[source]
            columns[name] = [labels[i] for i in np.searchsorted(bounds, columns[source], side="right") - 1]
        else:
            columns[name] = _forced(name, _drawn(name, scores), users, num_users)
    _set_nulls(columns, draws, users, num_users)
    return columns


def _drawn(name: str, scores: Floats) -> list[Any]:
    facts = kuairand_facts().users
    score = scores[:, facts["names"].index(name)]
    if name in facts["numeric"]:
        return np.rint(from_scores(score, normal_levels(facts["levels"]), facts["numeric"][name])).astype(int).tolist()
    classes = facts["categorical"][name]
    return [classes["values"][i] for i in np.searchsorted(cuts(classes["counts"]), score, side="right")]


def _forced(name: str, values: list[Any], users: Ints, num_users: int) -> list[Any]:
    """Gives the column's rare values to users at evenly spaced places."""
    rare = FORCED.get(name, [])
    stride = max(1, num_users // (len(rare) + 1))
    low = int(users[0])
    for place, value in enumerate(rare, start=1):
        if low <= place * stride < low + len(users):
            values[place * stride - low] = value
    return values


def _set_nulls(columns: dict[str, list[Any]], draws: Draws, users: Ints, num_users: int) -> None:
    """Nullable columns are floats in the file ("1.0"); features 12 to 17 are null for the same users."""
    chances: dict[str, float] = kuairand_facts().users["null"]
    alone = draws.below(chances["onehot_feat4"], "null alone") | (users == num_users // 3)
    together = draws.below(chances["onehot_feat12"], "null together") | (users == num_users - 1)
    for name in NULLABLE:
        null = alone if name == "onehot_feat4" else together
        columns[name] = [None if missing else float(x) for x, missing in zip(columns[name], null, strict=True)]
