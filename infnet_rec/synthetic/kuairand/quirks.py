"""Rows that a loader must survive, put into every log of 1,000 rows or more however rare they are in the real one.

Each quirk has a place (a user and the index of one of the user's rows), spread evenly over the users, and a few
settings that replace what would have been drawn there. A log too short for all of them holds the first ones.
"""

from dataclasses import dataclass

import numpy as np

from infnet_rec.synthetic.draws import Ints
from infnet_rec.synthetic.plan import Plan

# What a quirk can set; -1 leaves the drawn value. `video` is a position in the list given to `place_quirks`.
SETTINGS = (
    *("tab", "day", "hour", "minute", "tie", "twin", "video", "repeat", "click", "long_view", "is_like"),
    *("is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter", "profile_stay", "long_play"),
    *("eve", "minus_play"),
)
NULL_DURATION_VIDEO, ONLY_RANDOM_VIDEO = 0, 1
LAST_MINUTES_OF_A_DAY = {"hour": 23, "minute": 57, "day": 6}


@dataclass(frozen=True, slots=True)
class Quirks:
    """The quirks of one log, sorted by (user, index)."""

    user: Ints
    index: Ints
    settings: dict[str, Ints]

    def asked(self, place: Ints) -> "QuirkRequest":
        return QuirkRequest({name: np.append(values, -1) for name, values in self.settings.items()}, place)

    def within(self, low: int, high: int) -> "Quirks":
        """Those of users low..high-1."""
        chosen = slice(*np.searchsorted(self.user, [low, high]))
        return Quirks(self.user[chosen], self.index[chosen], {k: v[chosen] for k, v in self.settings.items()})


@dataclass(frozen=True, slots=True)
class QuirkRequest:
    """What the quirks ask of some rows; `place` is the position of a row's quirk among the quirks, or -1."""

    settings: dict[str, Ints]
    place: Ints

    def __getitem__(self, name: str) -> Ints:
        """The setting of each row, -1 where nothing is asked."""
        return self.settings[name][self.place]

    def over(self, name: str, drawn: Ints) -> Ints:
        """The drawn values, replaced where something is asked."""
        asked = self[name]
        return np.where(asked >= 0, asked, drawn)


def standard_quirks(num_days: int) -> list[dict[str, int]]:
    """Scenario 14 has 31 rows of 1.4 million, the last days have one row in a hundred: here they are for certain."""
    liked = {"click": 1, "is_like": 1, "tab": 1}
    return [
        *({"tab": tab} for tab in range(15)),
        {"video": NULL_DURATION_VIDEO, "day": 8, "tab": 1},
        LAST_MINUTES_OF_A_DAY,
        {"twin": 1},
        {"tie": 1},
        # The same video again, with the other label; the row before is given click 0 by place_quirks.
        {"repeat": 1, "click": 1, "tab": 1},
        {"click": 0, "long_view": 1, "tab": 1},
        {"click": 1, "long_view": 1, "tab": 1, "long_play": 1},
        liked | {"is_follow": 1},
        liked | {"is_comment": 1},
        liked | {"is_forward": 1},
        {"click": 0, "is_hate": 1, "tab": 1},
        {"click": 1, "is_profile_enter": 1, "profile_stay": 1, "tab": 1},
        *({"day": day} for day in range(num_days)),
    ]


def random_quirks() -> list[dict[str, int]]:
    return [{"video": ONLY_RANDOM_VIDEO}, {"twin": 1}, {"tab": 1}, {"tab": 2}, {"tab": 11}, {"tab": 14}]


def place_quirks(wanted: list[dict[str, int]], counts: Ints, videos: list[int]) -> Quirks:
    """Gives each quirk a row that is not its user's first and not beside another quirk's.

    Args:
        wanted: settings of each quirk.
        counts: number of rows of each user in this log.
        videos: the videos that the setting `video` means.
    """
    rooms = counts // 2
    places: list[tuple[int, int]] = []
    turn = 0
    while len(places) < len(wanted) and turn < rooms.max():
        open_hosts = np.flatnonzero(rooms > turn)
        num_new = min(len(wanted) - len(places), len(open_hosts))
        chosen = open_hosts[(np.arange(num_new) * len(open_hosts)) // num_new]
        places += [(int(user), 1 + 2 * turn) for user in chosen]
        turn += 1
    found: list[tuple[int, int, dict[str, int]]] = []
    for (user, index), quirk in zip(places, wanted, strict=False):
        if "video" in quirk:
            quirk = quirk | {"video": videos[quirk["video"]]}
        found.append((user, index, quirk))
        if "repeat" in quirk:
            found.append((user, index - 1, {"click": 0, "tab": 1}))
    found.sort(key=lambda place: place[:2])
    settings: dict[str, Ints] = {
        name: np.array([quirk.get(name, -1) for *_, quirk in found], dtype=np.int64) for name in SETTINGS
    }
    users = np.array([user for user, *_ in found], dtype=np.int64)
    return Quirks(users, np.array([index for _, index, _ in found], dtype=np.int64), settings)


def quirks_of(plan: Plan, kind: str, videos: list[int]) -> Quirks:
    if kind == "random":
        return place_quirks(random_quirks(), plan.random_counts, videos)
    return place_quirks(standard_quirks(plan.dataset.num_days), plan.standard_counts, videos)


def large_quirks(num_days: int) -> list[dict[str, int]]:
    """What KuaiRand-27K has and Pure has not: rows before the first date, and play times below zero."""
    repeat_last = [quirk | {"day": num_days - 1} if "repeat" in quirk else quirk for quirk in standard_quirks(num_days)]
    skipped = {"click": 0, "long_view": 0, "tab": 1}
    return [*repeat_last, {"eve": 1}, skipped | {"minus_play": 5}, skipped | {"minus_play": 8}]
