"""From a few numbers to a folder of raw files: plan, share out the work among processes, write in order."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from infnet_rec.data.generate.files import fresh_folder, write_notes
from infnet_rec.data.generate.labels import Intercepts
from infnet_rec.data.generate.lines import log_lines
from infnet_rec.data.generate.plan import DATASETS, Plan, check, make_plan
from infnet_rec.data.generate.users import HEADER as USER_HEADER
from infnet_rec.data.generate.users import user_csv
from infnet_rec.data.generate.videos import BASIC_HEADER, STATISTIC_HEADER, basic_csv, statistic_csv
from infnet_rec.data.generate.world import LOG_HEADER, Kind, World, log_columns, make_world

VIDEOS_A_CHUNK = 4_096

Chunk = tuple[Literal["users", "videos"], int, int]


@dataclass(frozen=True, slots=True)
class GeneratedReport:
    """What was written; `files` are relative to `folder`."""

    dataset: str
    folder: Path
    files: tuple[str, ...]
    seed: int
    num_examples: int
    num_random: int
    num_users: int
    num_items: int


def generate(
    dataset: Literal["kuairand-pure"],
    out: Path,
    *,
    num_examples: int,
    num_users: int | None = None,
    num_items: int | None = None,
    seed: int = 0,
    num_workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> GeneratedReport:
    """Writes raw files of made-up rows in a dataset's public format, the same bytes for the same numbers.

    Memory grows with the users and the videos (some bytes each), not with the examples.

    Args:
        dataset: whose format and rates.
        out: a folder that does not exist or is empty; it appears when everything is written, or not at all.
        num_examples: rows of the standard logs together.
        num_users: by default as many as give a user the real mean number of rows.
        num_items: videos; by default fewer for a small log, so that a video keeps some rows.
        seed: any whole number from 0.
        num_workers: processes. They change the speed and not the bytes.
        progress: called after each chunk with the number of examples written so far.

    Raises:
        Fault: a number is out of range, or `out` is in use.
    """
    sizes = {"num_examples": num_examples, "num_users": num_users, "num_items": num_items}
    check(dataset, sizes | {"seed": seed, "num_workers": num_workers})
    plan = make_plan(DATASETS[dataset], num_examples, num_users, num_items, seed)
    headers = file_headers(plan)
    out = Path(out)
    with fresh_folder(out) as folder:
        write_notes(folder, plan)
        (folder / "data").mkdir()
        with ExitStack() as stack:
            files = {name: stack.enter_context((folder / name).open("wb")) for name in headers}
            for name, header in headers.items():
                files[name].write(header.encode() + b"\n")
            done = 0
            made = stack.enter_context(closing(_made(plan, num_workers)))
            for (kind, low, high), parts in made:
                for name, part in parts.items():
                    files[name].write(part)
                if kind == "users" and progress is not None:
                    done += int(plan.standard_counts[low:high].sum())
                    progress(done)
    return GeneratedReport(
        dataset=dataset,
        folder=out,
        files=(*headers, "generated.json", "README.md"),
        seed=seed,
        num_examples=num_examples,
        num_random=plan.num_random,
        num_users=plan.num_users,
        num_items=plan.num_videos,
    )


def file_headers(plan: Plan) -> dict[str, str]:
    """Path of each CSV file -> its header line."""
    names = file_names(plan)
    return {
        names["early"]: LOG_HEADER,
        names["late"]: LOG_HEADER,
        names["random"]: LOG_HEADER,
        names["users"]: USER_HEADER,
        names["basic"]: BASIC_HEADER,
        names["statistic"]: STATISTIC_HEADER,
    }


def file_names(plan: Plan) -> dict[str, str]:
    end = f"{plan.dataset.suffix}.csv"
    return {
        "early": f"data/log_standard_4_08_to_4_21_{end}",
        "late": f"data/log_standard_4_22_to_5_08_{end}",
        "random": f"data/log_random_4_22_to_5_08_{end}",
        "users": f"data/user_features_{end}",
        "basic": f"data/video_features_basic_{end}",
        "statistic": f"data/video_features_statistic_{end}",
    }


def make_chunk(world: World, chunk: Chunk) -> dict[str, bytes]:
    """The lines that one chunk of users or videos adds to each file."""
    kind, low, high = chunk
    plan, names = world.plan, file_names(world.plan)
    if kind == "videos":
        return {
            names["basic"]: basic_csv(plan.seed, low, high, plan.num_videos),
            names["statistic"]: statistic_csv(plan.seed, low, high),
        }
    standard, random = log_columns(world, low, high, "standard"), log_columns(world, low, high, "random")
    early = standard["date"] < int(plan.dataset.split_date.strftime("%Y%m%d"))
    return {
        names["early"]: log_lines(standard, early),
        names["late"]: log_lines(standard, ~early),
        names["random"]: log_lines(random, np.ones(len(random["date"]), dtype=bool)),
        names["users"]: user_csv(plan.seed, low, high, plan.num_users),
    }


def _made(plan: Plan, num_workers: int) -> Generator[tuple[Chunk, dict[str, bytes]]]:
    """All chunks in order, made in this process or in others; only a few of them are in memory at a time."""
    edges = [*range(0, plan.num_videos, VIDEOS_A_CHUNK), plan.num_videos]
    chunks: list[Chunk] = [("videos", low, high) for low, high in pairwise(edges)]
    chunks.extend(("users", low, high) for low, high in plan.chunks())
    num_workers = min(num_workers, len(chunks))
    if num_workers == 1:
        world = make_world(plan)
        yield from ((chunk, make_chunk(world, chunk)) for chunk in chunks)
        return
    intercepts = make_world(plan).intercepts
    # Spawned, because a forked child inherits locks of pyarrow's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(plan, intercepts))
    waiting: deque[tuple[Chunk, Future[dict[str, bytes]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_make_chunk_here, chunk)))
            if len(waiting) >= 3 * num_workers:
                first, made = waiting.popleft()
                yield first, made.result()
        while waiting:
            first, made = waiting.popleft()
            yield first, made.result()
    finally:
        pool.shutdown(cancel_futures=True)


_world: World  # of this worker process


def _start_worker(plan: Plan, intercepts: dict[Kind, Intercepts]) -> None:
    global _world
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _world = make_world(plan, intercepts)


def _make_chunk_here(chunk: Chunk) -> dict[str, bytes]:
    return make_chunk(_world, chunk)
