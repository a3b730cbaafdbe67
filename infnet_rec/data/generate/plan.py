"""What is to be generated, decided before any row is made: how many users, videos and rows, and whose rows.

Pure: numbers in, numbers out. The arrays have one entry a user; nothing here grows with the number of rows.
"""

from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np

from infnet_rec.data.generate.draws import Draws, Floats, Ints
from infnet_rec.data.generate.facts import kuairand_facts
from infnet_rec.data.generate.users import row_weights
from infnet_rec.faults import Fault, did_you_mean

MIN_EXAMPLES = 100
MIN_VIDEOS = 50
MAX_VIDEOS = 100_000_000
MAX_WORKERS = 256
# Small enough that a worker's arrays stay near its caches and that progress is seen, large enough for numpy.
ROWS_A_CHUNK = 16_384
USERS_A_CHUNK = 4_096


@dataclass(frozen=True, slots=True)
class Dataset:
    """One public dataset: the sizes of the real one, and how a smaller or larger one is scaled from it.

    `random_fraction` is the size of the random log beside the standard logs. It is far below the real ratio (0.83 for
    Pure), because training does not read that log.
    """

    name: str
    suffix: str
    num_examples: int
    num_users: int
    num_videos: int
    video_growth: float
    random_fraction: float
    first_date: date
    split_date: date
    last_date: date

    @property
    def num_days(self) -> int:
        return (self.last_date - self.first_date).days + 1


DATASETS = {
    "kuairand-pure": Dataset(
        name="kuairand-pure",
        suffix="pure",
        num_examples=1_436_609,
        num_users=27_285,
        num_videos=7_583,
        video_growth=0.42,
        random_fraction=0.05,
        first_date=date(2022, 4, 9),
        split_date=date(2022, 4, 22),
        last_date=date(2022, 5, 8),
    ),
}


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
    def num_random(self) -> int:
        return int(self.random_counts.sum())

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of users of about ROWS_A_CHUNK rows. They depend on the counts alone, never on the workers."""
        rows = np.cumsum(self.standard_counts + self.random_counts)
        edges = np.flatnonzero(np.diff(rows // ROWS_A_CHUNK, prepend=0)) + 1
        edges = np.union1d(edges, np.arange(0, self.num_users + USERS_A_CHUNK, USERS_A_CHUNK))
        edges = [*(int(e) for e in edges if e < self.num_users), self.num_users]
        return list(pairwise(edges))


def spread(total: int, weights: Floats) -> Ints:
    """Splits `total` into whole numbers in proportion to the weights, exactly, each off by less than one."""
    edges = np.cumsum(weights)
    edges = np.floor(edges * (total / edges[-1]) + 0.5)
    return np.diff(edges, prepend=0.0).astype(np.int64)


def check(dataset: str, sizes: dict[str, Any]) -> None:
    """Raises one Fault that names every number that cannot be used. A size of None is one to be derived."""
    faults: list[str] = []
    if dataset not in DATASETS:
        known = ", ".join(DATASETS)
        faults.append(f"dataset = {dataset!r} is not known{did_you_mean(str(dataset), DATASETS)}; choose from {known}")
    top = sizes["num_examples"] if isinstance(sizes["num_examples"], int) else MAX_VIDEOS
    limits = {
        "num_examples": (MIN_EXAMPLES, 10**10, "rows of the standard logs"),
        "num_users": (2, max(2, top), "no more users than examples"),
        "num_items": (MIN_VIDEOS, MAX_VIDEOS, "videos"),
        "seed": (0, 2**63 - 1, "any whole number from 0"),
        "num_workers": (1, MAX_WORKERS, "processes, at most one a core is useful"),
    }
    for name, (low, high, meaning) in limits.items():
        value = sizes[name]
        if value is None and name in ("num_users", "num_items"):
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            faults.append(f"{name} = {value!r} is not a whole number ({meaning}); give one from {low:,} to {high:,}")
        elif not low <= value <= high:
            faults.append(f"{name} = {value:,} is out of range ({meaning}); give one from {low:,} to {high:,}")
    if faults:
        raise Fault("cannot generate: " + "\n  ".join(faults))


def make_plan(dataset: Dataset, num_examples: int, num_users: int | None, num_videos: int | None, seed: int) -> Plan:
    """Fills in the sizes that were left open and gives every user a number of rows; they add up exactly."""
    scale = num_examples / dataset.num_examples
    if num_users is None:
        num_users = max(4, round(dataset.num_users * scale))
    if num_videos is None:
        num_videos = max(MIN_VIDEOS, round(dataset.num_videos * min(1.0, scale) ** dataset.video_growth))
    facts = kuairand_facts().users
    draws = Draws.at(seed, "user", np.arange(num_users))
    weights = row_weights(draws)
    absent = draws.below(facts["never_in_log"], "absent")
    absent[num_users // 2] = True
    weights[absent] = 0.0
    present = int((~absent).sum())
    standard = np.zeros(num_users, dtype=np.int64)
    if num_examples >= present:
        standard[~absent] = 1
        standard += spread(num_examples - present, np.maximum(weights - 0.5, 0.0))
    else:
        standard += spread(num_examples, (~absent).astype(np.float64))
    num_random = max(8, round(num_examples * dataset.random_fraction))
    random = spread(num_random, 0.5 + draws.uniform("random rows"))
    return Plan(dataset, seed, num_examples, num_users, num_videos, standard, random)
