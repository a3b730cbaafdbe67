"""Videos: the basic and the statistics file, and the traits behind them that drive the log.

As with users, one row of correlated scores a video gives its traits (popularity, how readily it is clicked and liked,
duration) and its 51 statistics, so the statistics tell about as much of the traits as in the real file.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints, correlated, picked
from infnet_rec.synthetic.facts import cholesky, from_scores, kuairand_facts, normal_levels
from infnet_rec.synthetic.lines import csv_lines

BASIC_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
STATISTIC_HEADER = "video_id," + ",".join(kuairand_facts().videos["statistics"])

NUM_TRAITS = 4
CLICK_SD = 0.72
LIKE_SD = 1.15
# The log of the weight of the rarest: nearly all are shown at least once in a log of the real size.
MIN_POPULARITY = -2.9
# One video in five is of an author with several; the others are their author's only one.
SHARED_AUTHORS = 0.2
VIDEOS_A_SHARED_AUTHOR = 4


@dataclass(frozen=True, slots=True)
class Videos:
    """What the log needs to know of every video; arrays with one entry a video."""

    duration_ms: Ints
    tag: Ints
    author_id: Ints
    upload_day: Ints
    only_random: Flags
    popularity: Floats
    click: Floats
    like: Floats


def _scores(draws: Draws, width: int) -> Floats:
    factor = cholesky(kuairand_facts().videos["cholesky"])[:width, :width]
    return correlated(draws.normals("video score", width), factor)


def _classes(draws: Draws, name: str, weights: list[int], videos: Ints, forced: dict[int, int]) -> Ints:
    """A class for each video, drawn by weight, except that `forced` maps a video to its class."""
    drawn = picked(draws.uniform(name), np.array(weights))
    for video, value in forced.items():
        drawn[videos == video] = value
    return drawn


def _places(values: list[int], num_videos: int, shift: int) -> dict[int, int]:
    """Evenly spaced videos for rare values, video -> value; not more than one in eight. Shifts keep columns apart."""
    values = values[: max(1, num_videos // 8)]
    stride = num_videos // (len(values) + 1)
    return {place * stride + shift: value for place, value in enumerate(values, start=1)}


@dataclass(frozen=True, slots=True)
class _Basics:
    kind: Ints
    day: Ints
    tags: Ints
    null_duration: Flags
    duration_ms: Ints
    author_id: Ints


def _basics(draws: Draws, videos: Ints, num_videos: int, duration_score: Floats) -> _Basics:
    facts = kuairand_facts().videos
    null_chance = np.array([chance for *_, chance in facts["kinds"]])
    kinds = _places([int(k) for k in np.argsort(-null_chance, kind="stable")], num_videos, 0)
    kind = _classes(draws, "kind", [count for _, _, count, _ in facts["kinds"]], videos, kinds)
    lengths = [len(text.split(",")) if text else 0 for text, _ in facts["tags"]]
    tags = _places([lengths.index(length) for length in (0, 2, 3)], num_videos, 1)
    tag = _classes(draws, "tag", [count for _, count in facts["tags"]], videos, tags)
    days = list(facts["upload_dt"].values())
    day = _classes(draws, "upload day", days, videos, _places(list(range(len(days))), num_videos, 2))
    null = draws.below(null_chance[kind], "null duration")
    levels = normal_levels(facts["stat_levels"])
    duration = np.rint(from_scores(duration_score, levels, facts["duration"])).astype(np.int64)
    duration[null] = 0
    return _Basics(kind, day, tag, null, duration, _author_ids(draws, videos, num_videos))


def _author_ids(draws: Draws, videos: Ints, num_videos: int) -> Ints:
    facts = kuairand_facts().videos
    num_shared = max(1, int(num_videos * SHARED_AUTHORS / VIDEOS_A_SHARED_AUTHOR))
    shared = (num_shared * draws.uniform("shared author") ** 1.4).astype(np.int64)
    author = np.where(draws.below(SHARED_AUTHORS, "author"), shared, num_shared + videos)
    place = Draws.at(0, "author", author).uniform("id")
    return np.rint(np.interp(place, facts["levels"], facts["author_id"])).astype(np.int64)


def first_tags() -> list[str]:
    """The first tag id of each tag string; "" where a video has none."""
    return [text.split(",")[0] for text, _ in kuairand_facts().videos["tags"]]


def make_videos(seed: int, num_videos: int) -> Videos:
    """The traits of all videos. The weight of a video in the standard log is exp(popularity)."""
    facts = kuairand_facts().videos
    videos = np.arange(num_videos)
    draws = Draws.at(seed, "video", videos)
    scores = _scores(draws, NUM_TRAITS)
    basics = _basics(draws, videos, num_videos, scores[:, 3])
    names = first_tags()
    popularity = np.array([facts["tag_popularity"][t] for t in names])
    click = np.array([facts["tag_click"][t] for t in names])
    weight = facts["popularity_sd"] * scores[:, 0] + popularity[basics.tags]
    weight += 2.0 * facts["null_duration_popularity"] * basics.null_duration
    only_random = draws.below(facts["only_random"], "only random")
    only_random[num_videos // 2] = True
    distinct = sorted(set(names))
    return Videos(
        duration_ms=basics.duration_ms,
        tag=np.array([distinct.index(t) for t in names])[basics.tags],
        author_id=basics.author_id,
        upload_day=basics.day,
        only_random=only_random,
        popularity=np.maximum(weight, MIN_POPULARITY),
        click=CLICK_SD * scores[:, 1] + click[basics.tags],
        like=LIKE_SD * scores[:, 2],
    )


def basic_csv(seed: int, low: int, high: int, num_videos: int) -> bytes:
    """The lines of the basic file for videos low..high-1, without the header."""
    facts = kuairand_facts().videos
    videos = np.arange(low, high)
    draws = Draws.at(seed, "video", videos)
    basics = _basics(draws, videos, num_videos, _scores(draws, NUM_TRAITS)[:, 3])
    sizes = np.array(facts["sizes"])
    width, height = sizes[picked(draws.uniform("size"), sizes[:, 2]), :2].T.astype(float)
    music_types = [float(t) for t in facts["music_type"]]
    counts = list(facts["music_type"].values())
    music_type = _classes(draws, "music type", counts, videos, _places(list(range(len(counts))), num_videos, 3))
    mute = draws.below(facts["no_music"], "no music")
    mute[videos == 0] = True
    reused = np.where(draws.below(0.04, "reused music"), videos % max(1, num_videos // 40), videos)
    place = Draws.at(seed, "music", reused).uniform("id")
    music_id = np.where(mute, 0, np.rint(np.interp(place, facts["levels"], facts["music_id"]))).astype(np.int64)
    dates = list(facts["upload_dt"])
    rows = zip(
        videos.tolist(),
        basics.author_id.tolist(),
        [facts["kinds"][k][1] for k in basics.kind],
        [dates[d] for d in basics.day],
        [facts["kinds"][k][0] for k in basics.kind],
        [0.0] * len(videos),
        [None if null else float(ms) for ms, null in zip(basics.duration_ms, basics.null_duration, strict=True)],
        width.tolist(),
        height.tolist(),
        music_id.tolist(),
        [None if m else music_types[t] for t, m in zip(music_type, mute, strict=True)],
        [facts["tags"][t][0] for t in basics.tags],
        strict=True,
    )
    return csv_lines(rows)


def statistics_of(scores: Floats, levels: Floats, facts: dict[str, Any]) -> dict[str, Floats]:
    """The statistics of videos, by name in the order of the file, from a row of correlated scores each.

    A statistic is a mean over `counts` cells (day and scenario), hence a multiple of 1 / counts.
    """
    names: list[str] = facts["names"]
    columns: dict[str, Floats] = {}
    for name, quantiles in facts["statistics"].items():
        values = from_scores(scores[:, names.index(name)], levels, quantiles)
        if name == "counts":
            columns[name] = np.rint(values)
        elif name == "play_progress":
            columns[name] = values
        else:
            columns[name] = np.rint(values * columns["counts"]) / columns["counts"]
    for name in columns:
        events = name.removesuffix("_user_num") + "_cnt"
        if name.endswith("_user_num") and events in columns:
            columns[name] = np.minimum(columns[name], columns[events])
    return columns


def statistic_csv(seed: int, low: int, high: int) -> bytes:
    """The lines of the statistics file for videos low..high-1, without the header."""
    facts = kuairand_facts().videos
    videos = np.arange(low, high)
    scores = _scores(Draws.at(seed, "video", videos), len(facts["names"]))
    columns: dict[str, Any] = {**statistics_of(scores, normal_levels(facts["stat_levels"]), facts)}
    columns["counts"] = columns["counts"].astype(np.int64)
    return csv_lines(zip(videos.tolist(), *(c.tolist() for c in columns.values()), strict=True))
