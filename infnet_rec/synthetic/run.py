"""From a few numbers to a folder of raw files: plan, share out the work among processes, write in order."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infnet_rec.synthetic.families import FAMILIES, AnyPlan, check_plan
from infnet_rec.synthetic.files import fresh_folder, write_notes

Dataset = Literal["kuairand-pure", "kuairand-1k", "kuairand-27k"]
# Lines by file, and the number of examples among them.
Made = tuple[dict[str, bytes], int]


@dataclass(frozen=True, slots=True)
class GeneratedReport:
    """What was written; `files` are relative to `folder`. `num_random` counts rows of a random log, where one is."""

    dataset: str
    folder: Path
    files: tuple[str, ...]
    seed: int
    num_examples: int
    num_random: int
    num_users: int
    num_items: int


def generate(
    dataset: Dataset,
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

    Memory grows with the users (and for KuaiRand-Pure with the videos) by some bytes each, not with the examples.

    Args:
        dataset: whose format and rates.
        out: a folder that does not exist or is empty; it appears when everything is written, or not at all.
        num_examples: rows of the standard logs together.
        num_users: by default as many as give a user the real mean number of rows.
        num_items: videos; by default fewer for a small log, so that a video keeps some rows.
        seed: any whole number from 0.
        num_workers: processes. They change the speed and not the bytes.
        progress: called after each chunk with examples, with the number of examples written so far.

    Raises:
        UserError: a number is out of range, or `out` is in use.
    """
    sizes = {"num_examples": num_examples, "num_users": num_users, "num_items": num_items}
    check_plan(dataset, sizes | {"seed": seed, "num_workers": num_workers})
    family = FAMILIES[dataset]
    plan = family.make_plan(num_examples, num_users, num_items, seed)
    headers, notes = family.file_headers(plan), family.notes(plan)
    out = Path(out)
    with fresh_folder(out) as folder:
        write_notes(folder, notes)
        with ExitStack() as stack:
            for name in headers:
                (folder / name).parent.mkdir(exist_ok=True)
            files = {name: stack.enter_context((folder / name).open("wb")) for name in headers}
            for name, header in headers.items():
                files[name].write(header.encode() + b"\n")
            done = 0
            for parts, num_made in stack.enter_context(closing(_made(dataset, plan, num_workers))):
                for name, part in parts.items():
                    files[name].write(part)
                done += num_made
                if num_made and progress is not None:
                    progress(done)
    return GeneratedReport(
        dataset=dataset,
        folder=out,
        files=(*headers, "generated.json", "README.md"),
        seed=seed,
        num_examples=num_examples,
        num_random=notes.get("num_random_log_rows", 0),
        num_users=plan.num_users,
        num_items=plan.num_items,
    )


def _made(dataset: str, plan: AnyPlan, num_workers: int) -> Generator[Made]:
    """All chunks in order, made in this process or in others; only a few of them are in memory at a time."""
    family = FAMILIES[dataset]
    chunks = family.chunks(plan)
    num_workers = min(num_workers, len(chunks))
    if num_workers == 1:
        world = family.make_world(plan)
        yield from (family.make_chunk(world, chunk) for chunk in chunks)
        return
    # Spawned, because a forked child inherits locks of pyarrow's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(dataset, plan))
    waiting: deque[Future[Made]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_make_chunk_here, chunk))
            if len(waiting) >= 3 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_make_chunk: Callable[[Any], Made]  # of this worker process


def _start_worker(dataset: str, plan: AnyPlan) -> None:
    global _make_chunk
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    family = FAMILIES[dataset]
    world = family.make_world(plan)
    _make_chunk = lambda chunk: family.make_chunk(world, chunk)  # noqa: E731


def _make_chunk_here(chunk: Any) -> Made:
    return _make_chunk(chunk)
