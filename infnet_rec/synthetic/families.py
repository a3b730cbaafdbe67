"""Which datasets can be generated, and what a dataset's module has to offer for it.

To add one, write the functions of a `Family` and name them in `FAMILIES`. Everything else (processes, order of writing,
the folder, the notes) is in `run.py` and knows nothing of any dataset.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.synthetic.kuairand import pure
from infnet_rec.synthetic.large import generate
from infnet_rec.synthetic.plan import LARGE, MAX_VIDEOS, MIN_VIDEOS, ONE_K, PURE
from infnet_rec.synthetic.qb import generate as qb_video

MIN_EXAMPLES = 100
MAX_WORKERS = 256


class AnyPlan(Protocol):
    """What is to be generated, decided before any row is made. It is sent to other processes, so it can be pickled."""

    @property
    def seed(self) -> int: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def num_users(self) -> int: ...

    @property
    def num_items(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Family:
    """Functions that make one dataset's files. They hand each other a plan, a world and chunks of their own kinds.

    - `make_plan(num_examples, num_users, num_items, seed)`; a size of None is one to be derived.
    - `file_headers(plan)`: path of each file -> its header line.
    - `chunks(plan)`: what can be made apart from the rest, in the order of writing; never depends on the processes.
    - `make_world(plan)`: all that chunks are made from, once in each process, the same in all of them.
    - `make_chunk(world, chunk)`: path -> the lines that the chunk adds to the file, and how many examples these hold.
    - `notes(plan)`: what generated.json holds.
    """

    make_plan: Callable[[int, int | None, int | None, int], AnyPlan]
    file_headers: Callable[[Any], dict[str, str]]
    chunks: Callable[[Any], Sequence[Any]]
    make_world: Callable[[Any], Any]
    make_chunk: Callable[[Any, Any], tuple[dict[str, bytes], int]]
    notes: Callable[[Any], dict[str, Any]]


FAMILIES = {
    "kuairand-pure": Family(
        partial(pure.make_plan, PURE),
        pure.file_headers,
        pure.chunks,
        pure.make_world,
        pure.make_chunk,
        pure.notes,
    ),
    **{
        dataset.name: Family(
            partial(generate.make_plan, dataset),
            generate.file_headers,
            generate.chunks,
            generate.make_world,
            generate.make_chunk,
            generate.notes,
        )
        for dataset in (LARGE, ONE_K)
    },
    "qb-video": Family(
        qb_video.make_qb_plan,
        qb_video.file_headers,
        qb_video.chunks,
        qb_video.make_world,
        qb_video.make_chunk,
        qb_video.notes,
    ),
}


def check_plan(dataset: str, sizes: dict[str, Any]) -> None:
    """Raises one UserError that names every number that cannot be used. A size of None is one to be derived."""
    faults: list[str] = []
    if dataset not in FAMILIES:
        known = ", ".join(FAMILIES)
        faults.append(f"dataset = {dataset!r} is not known{did_you_mean(str(dataset), FAMILIES)}; choose from {known}")
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
        raise UserError("cannot generate: " + "\n  ".join(faults))
