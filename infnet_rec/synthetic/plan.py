"""What is to be generated, decided before any row is made: how many users, videos and rows, and whose rows.

Pure: numbers in, numbers out. The arrays have one entry a user; nothing here grows with the number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from heapq import merge
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from infnet_rec.synthetic.draws import Draws, Flags, Floats, Ints
from infnet_rec.synthetic.facts import kuairand_facts
from infnet_rec.synthetic.kuairand.users import row_weights

MIN_VIDEOS, MAX_VIDEOS = 50, 100_000_000
# Small enough that a worker's arrays stay near its caches and that progress is seen, large enough for numpy.
ROWS_A_CHUNK = 16_384
USERS_A_CHUNK = 4_096
VIDEOS_A_CHUNK = 4_096

ChunkKind = Literal["users", "videos"]
Chunk = tuple[ChunkKind, int, int]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One public dataset: the sizes of the real one, and how a smaller or larger one is scaled from it.

    `random_fraction` is the size of the random log beside the standard logs. For Pure it is far below the real ratio
    (0.83), because training does not read that log. `log_parts` and `statistic_parts` are the numbers of files that
    share the rows of one log and the videos of the statistics.
    """

    name: str
    suffix: str
    num_examples: int
    num_users: int
    num_videos: int
    random_fraction: float
    first_date: date
    split_date: date = date(2022, 4, 22)
    last_date: date = date(2022, 5, 8)
    log_parts: int = 1
    statistic_parts: int = 1

    @property
    def num_days(self) -> int:
        return (self.last_date - self.first_date).days + 1

    @property
    def split_day(self) -> int:
        return (self.split_date - self.first_date).days


PURE = Dataset("kuairand-pure", "pure", 1_436_609, 27_285, 7_583, 0.05, date(2022, 4, 9))
VIDEO_GROWTH = 0.42
LARGE = Dataset(
    name="kuairand-27k",
    suffix="27k",
    num_examples=322_278_385,
    num_users=27_285,
    num_videos=32_038_725,
    random_fraction=0.00368,
    first_date=date(2022, 4, 8),
    log_parts=2,
    statistic_parts=3,
)
ONE_K = Dataset("kuairand-1k", "1k", 11_713_045, 1_000, 4_369_953, 0.00367, date(2022, 4, 8))


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of one generated dataset and, for each user, the number of rows in the standard and random logs."""

    dataset: Dataset
    seed: int
    num_examples: int
    num_users: int
    num_videos: int
    standard_counts: Ints
    random_counts: Ints

    @property
    def num_items(self) -> int:
        return self.num_videos

    @property
    def num_random(self) -> int:
        return int(self.random_counts.sum())

    def numbers(self) -> dict[str, Any]:
        """What it takes to make the same files again."""
        return {
            "generated": True,
            "dataset": self.dataset.name,
            "seed": self.seed,
            "num_examples": self.num_examples,
            "num_random_log_rows": self.num_random,
            "num_users": self.num_users,
            "num_items": self.num_videos,
        }


def chunks(plan: Plan) -> list[Chunk]:
    """Ranges of videos and ranges of users of about ROWS_A_CHUNK rows. They depend on the plan alone.

    The two kinds take turns, so that the number of written examples tells how much of all the work is done.
    """
    rows = np.cumsum(plan.standard_counts + plan.random_counts)
    edges = np.flatnonzero(np.diff(rows // ROWS_A_CHUNK, prepend=0)) + 1
    edges = np.union1d(edges, np.arange(0, plan.num_users + USERS_A_CHUNK, USERS_A_CHUNK))
    users = [*(int(e) for e in edges if e < plan.num_users), plan.num_users]
    videos = [*range(0, plan.num_videos, VIDEOS_A_CHUNK), plan.num_videos]
    return [chunk for _, chunk in merge(_evenly("videos", videos), _evenly("users", users))]


def _evenly(kind: ChunkKind, edges: Sequence[int]) -> list[tuple[float, Chunk]]:
    """Chunks between the edges, each with where its end is among all of its kind, from 0 to 1."""
    return [(high / edges[-1], (kind, low, high)) for low, high in pairwise(edges)]


def spread(total: int, weights: Floats) -> Ints:
    """Splits `total` into whole numbers in proportion to the weights, exactly, each off by less than one."""
    edges = np.cumsum(weights)
    edges = np.floor(edges * (total / edges[-1]) + 0.5)
    return np.diff(edges, prepend=0.0).astype(np.int64)


def make_plan(dataset: Dataset, num_examples: int, num_users: int | None, num_videos: int | None, seed: int) -> Plan:
    """Pure's: fills in the sizes that were left open and gives every user a number of rows; they add up exactly."""
    if num_users is None:
        num_users = max(4, round(dataset.num_users * (num_examples / dataset.num_examples)))
    draws = Draws.at(seed, "user", np.arange(num_users))
    absent = draws.below(kuairand_facts().users["never_in_log"], "absent")
    absent[num_users // 2] = True
    counts = row_counts(num_examples, row_weights(draws), absent)
    if num_videos is None:
        scale = min(1.0, num_examples / dataset.num_examples)
        num_videos = max(MIN_VIDEOS, round(dataset.num_videos * scale**VIDEO_GROWTH))
    random = random_rows(max(8, round(num_examples * dataset.random_fraction)), draws)
    return Plan(dataset, seed, num_examples, num_users, num_videos, counts, random)


def row_counts(num_examples: int, weights: Floats, absent: Flags) -> Ints:
    """The rows of each user in the standard log, in proportion to the weights, one at least if they suffice."""
    weights = np.where(absent, 0.0, weights)
    present = int((~absent).sum())
    if num_examples < present:
        return spread(num_examples, (~absent).astype(np.float64))
    standard = (~absent).astype(np.int64)
    return standard + spread(num_examples - present, np.maximum(weights - 0.5, 0.0))


def random_rows(num_random: int, draws: Draws) -> Ints:
    """The rows of each user in the random log."""
    return spread(num_random, 0.5 + draws.uniform("random rows"))
