"""The files of KuaiRand-27K and KuaiRand-1K: whole logs of some users, on millions of videos."""

from typing import Any

import numpy as np
import pyarrow as pa

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints, picked
from infnet_rec.synthetic.facts import large_facts
from infnet_rec.synthetic.kuairand.users import HEADER as USER_HEADER
from infnet_rec.synthetic.kuairand.users import NUM_TRAITS, ROWS_SCORE, user_csv, user_scores
from infnet_rec.synthetic.kuairand.videos import BASIC_HEADER, STATISTIC_HEADER, statistics_of
from infnet_rec.synthetic.kuairand.world import LOG_HEADER
from infnet_rec.synthetic.large.calendar import Calendar
from infnet_rec.synthetic.large.catalogue import LEVELS, Catalogue, videos_of
from infnet_rec.synthetic.large.world import LargeWorld, log_columns, make_world
from infnet_rec.synthetic.lines import float_text, joined_lines, log_lines, number_lines
from infnet_rec.synthetic.plan import Chunk, Dataset, Plan, chunks, random_rows, row_counts

__all__ = ["chunks", "file_headers", "make_chunk", "make_plan", "make_world", "notes"]

# Fewer would leave no room for those that are in one window, in one part or in no log.
MIN_USERS = 8
MIN_RANDOM = 64

ABOUT = (
    "Users have as many rows as in the real log, so a small log has few users. A smaller log has fewer rows a video "
    "than the real one and as large a share of videos with one row. Which video a user is shown depends on the video's "
    "popularity alone. A user's taste, which the user's history shows, decides more here than in the real log. The "
    "rows follow statistics of KuaiRand (Gao et al., CIKM 2022)."
)

# Videos of the pool with an oddity (large_catalogue.py) have it in the column named here.
NO_DATE, NO_SIZE, SMALLEST, LARGEST, LARGEST_MUSIC, NO_STATUS = 1, 2, 3, 4, 5, 6
SMALLEST_SIZE, LARGEST_SIZE = (1, 2), (12_096, 12_288)
OWN_MUSIC, MUSIC_POOL = 0.36, 0.1


def basic_lines(catalogue: Catalogue, calendar: Calendar, low: int, high: int) -> bytes:
    """The lines of the basic file for videos low..high-1, without the header."""
    facts = large_facts().videos
    video = np.arange(low, high)
    rank = catalogue.ranks_of(video)
    draws = Draws.at(catalogue.seed, "video", video)
    traits = catalogue.traits(video, rank)
    kind = catalogue.drawn(draws, "kind", [count for _, _, count, _ in facts["kinds"]], video)
    oddity = catalogue.drawn(draws, "oddity", [1], video)
    first_day = np.datetime64(calendar.dataset.first_date, "D")
    dates = (first_day + catalogue.upload_days(video, rank, calendar)).astype(str)
    status = catalogue.drawn(draws, "visible_status", facts["visible_status"], video)
    width, height = _sizes(draws, oddity)
    music_type = catalogue.drawn(draws, "music_type", list(facts["music_type"].values()), video)
    music_types = np.array([int(float(name)) for name in facts["music_type"]])
    mute = draws.below(facts["null"]["music_type"], "no music") | (video == 0)

    def null(name: str, odd: int) -> Flags:
        return draws.below(facts["null"][name], f"null {name}") | (oddity == odd)

    no_size = null("server_width", NO_SIZE)
    columns = [
        pa.array(video).cast(pa.string()),
        pa.array(traits.author_id).cast(pa.string()),
        pa.array([name for _, name, *_ in facts["kinds"]]).take(pa.array(kind)),
        pa.array(dates, mask=null("upload_dt", NO_DATE)),
        pa.array([name for name, *_ in facts["kinds"]]).take(pa.array(kind)),
        float_text(status, null("visible_status", NO_STATUS)),
        float_text(traits.duration_ms, traits.duration_ms == 0),
        float_text(width, no_size),
        float_text(height, no_size),
        pa.array(_music_ids(draws, video, catalogue, oddity == LARGEST_MUSIC, mute)).cast(pa.string()),
        float_text(music_types[music_type], mute),
        pa.array([f'"{text}"' if "," in text else text for text, _ in facts["tags"]]).take(pa.array(traits.tag)),
    ]
    return joined_lines(columns)


def _sizes(draws: Draws, oddity: Ints) -> tuple[Ints, Ints]:
    sizes = np.array(large_facts().videos["sizes"])
    size = sizes[picked(draws.uniform("size"), sizes[:, 2]), :2]
    size[oddity == SMALLEST] = SMALLEST_SIZE
    size[oddity == LARGEST] = LARGEST_SIZE
    return size[:, 0], size[:, 1]


def _music_ids(draws: Draws, video: Ints, catalogue: Catalogue, largest: Flags, mute: Flags) -> Ints:
    """Ids beyond 32 bits; some four of nine videos have one that no other has."""
    facts = large_facts().videos
    shared = (catalogue.num_videos * MUSIC_POOL * draws.uniform("which music") ** 2.0).astype(np.int64)
    own = draws.below(OWN_MUSIC, "own music")
    music = np.where(own, 2 * video, 2 * shared + 1)
    place = Draws.at(catalogue.seed, "music", music).uniform("id")
    ids = np.rint(np.interp(place, facts["music_levels"], facts["music_id"])).astype(np.int64)
    ids[largest] = facts["music_id"][-1]
    return np.where(mute, 0, ids)


def statistic_table(catalogue: Catalogue, low: int, high: int) -> Floats:
    """The statistics file for videos low..high-1, as columns in the order of the file."""
    facts = large_facts().videos
    video = np.arange(low, high)
    draws = Draws.at(catalogue.seed, "video", video)
    scores = catalogue.scores(draws, catalogue.ranks_of(video), len(facts["names"]))
    columns = statistics_of(scores, LEVELS, facts)
    return np.stack([video.astype(np.float64), *columns.values()], axis=1)


def statistic_lines(catalogue: Catalogue, low: int, high: int, num_parts: int) -> list[bytes]:
    """The lines of each part of the statistics file for videos low..high-1, without the header."""
    table = statistic_table(catalogue, low, high)
    part = Draws.at(catalogue.seed, "video", np.arange(low, high)).uniform("statistic part") * num_parts
    return [number_lines(table[part.astype(np.int64) == number], 2) for number in range(num_parts)]


def make_plan(dataset: Dataset, num_examples: int, num_users: int | None, num_videos: int | None, seed: int) -> Plan:
    """Fills in the sizes that were left open and gives every user a number of rows; they add up exactly."""
    if num_users is None:
        num_users = max(MIN_USERS, round(dataset.num_users * (num_examples / dataset.num_examples)))
    draws = Draws.at(seed, "user", np.arange(num_users))
    absent = np.arange(num_users) == num_users // 2
    counts = row_counts(num_examples, _row_weights(draws), absent)
    num_videos = num_videos or videos_of(dataset, num_examples, num_users)
    num_random = max(MIN_RANDOM, round(num_examples * dataset.random_fraction))
    # Of many users with few rows, not all are in the random log, so that some are there more than once.
    random = np.zeros(num_users, dtype=np.int64)
    some = np.arange(0, num_users, -(-4 * num_users // num_random))
    random[some] = random_rows(num_random, draws.take(some))
    return Plan(dataset, seed, num_examples, num_users, num_videos, counts, random)


def _row_weights(draws: Draws) -> Floats:
    """Evenly spaced quantiles of the real numbers of rows, in the order of the users' scores; exact for any number."""
    facts = large_facts().users["rows"]
    scores = user_scores(draws, NUM_TRAITS)[:, ROWS_SCORE]
    place = np.empty(len(scores))
    place[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) + 0.5) / len(scores)
    return np.interp(place, facts["levels"], facts["values"])


def file_headers(plan: Plan) -> dict[str, str]:
    """Path of each CSV file -> its header line."""
    end = f"{plan.dataset.suffix}.csv"
    return {
        **dict.fromkeys((*_logs(plan, "4_08_to_4_21"), *_logs(plan, "4_22_to_5_08")), LOG_HEADER),
        f"data/log_random_4_22_to_5_08_{end}": LOG_HEADER,
        f"data/user_features_{end}": USER_HEADER,
        f"data/video_features_basic_{end}": BASIC_HEADER,
        **dict.fromkeys(_statistics(plan), STATISTIC_HEADER),
    }


def _logs(plan: Plan, window: str) -> list[str]:
    return _parts(f"data/log_standard_{window}_{plan.dataset.suffix}", plan.dataset.log_parts)


def _statistics(plan: Plan) -> list[str]:
    return _parts(f"data/video_features_statistic_{plan.dataset.suffix}", plan.dataset.statistic_parts)


def _parts(stem: str, num_parts: int) -> list[str]:
    return [f"{stem}.csv"] if num_parts == 1 else [f"{stem}_part{number}.csv" for number in range(1, num_parts + 1)]


def make_chunk(world: LargeWorld, chunk: Chunk) -> tuple[dict[str, bytes], int]:
    """The lines that one chunk of users or videos adds to each file, and the number of rows of the standard log."""
    kind, low, high = chunk
    plan, end = world.plan, f"{world.plan.dataset.suffix}.csv"
    if kind == "videos":
        parts = statistic_lines(world.catalogue, low, high, plan.dataset.statistic_parts)
        basic = basic_lines(world.catalogue, world.calendar, low, high)
        return {f"data/video_features_basic_{end}": basic} | dict(zip(_statistics(plan), parts, strict=True)), 0
    standard, part = log_columns(world, low, high, "standard")
    random, _ = log_columns(world, low, high, "random")
    early = standard["date"] < int(plan.dataset.split_date.strftime("%Y%m%d"))
    found = {
        f"data/log_random_4_22_to_5_08_{end}": log_lines(random, np.ones(len(random["date"]), dtype=bool)),
        f"data/user_features_{end}": user_csv(plan.seed, low, high, plan.num_users),
    }
    for window, chosen in (("4_08_to_4_21", early), ("4_22_to_5_08", ~early)):
        for number, name in enumerate(_logs(plan, window)):
            found[name] = log_lines(standard, chosen & (part == number))
    return found, len(early)


def notes(plan: Plan) -> dict[str, Any]:
    facts = large_facts()
    return plan.numbers() | {
        "statistics_from": facts.provenance,
        "statistics_licence": facts.licence,
        "about": ABOUT,
    }
