"""Lines and progress bars for people, on stderr: a bar is drawn on a terminal only, and no line tears it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# An evaluation that is done by then needs no bar.
BAR_AFTER_S = 1.0
DRAW_EVERY_S = 0.2
STEPS = "step {n_fmt}/{total_fmt} {percentage:3.0f}%|{bar}| {desc}"


def log_line(line: str) -> None:
    """One line; a bar that is being drawn makes room for it, also where a signal handler or a thread speaks."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def steps_bar(done: int, total: int, beside: str, *, speaks: bool) -> Iterator[Any]:
    """A bar of training steps for as long as the block runs; nothing where no person watches.

    Args:
        done: steps of the run when the block begins.
        total: steps of the whole run.
        beside: what stands beside it, until its `set_description_str` is told otherwise; tqdm's own guess of the time
            left would leave out evaluations.
        speaks: whether this rank draws; one does.

    Yields:
        What counts steps with `update()`.
    """
    with tqdm(
        desc=beside,
        total=total,
        initial=done,
        bar_format=STEPS,
        mininterval=DRAW_EVERY_S,
        file=sys.stderr,
        disable=None if speaks else True,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        yield bar


def no_bar() -> Any:
    """What is told of steps where nobody watches."""
    return tqdm(disable=True)


def batches_bar(num_batches: int, title: str | None) -> Any:
    """The numbers of an evaluation's batches, with a bar where it takes long; silent where it has no title."""
    return tqdm(
        range(num_batches),
        desc=title,
        unit=" batches",
        delay=BAR_AFTER_S,
        mininterval=DRAW_EVERY_S,
        file=sys.stderr,
        disable=True if title is None else None,
        leave=False,
        dynamic_ncols=True,
    )
