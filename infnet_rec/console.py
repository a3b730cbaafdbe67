"""Text for people: lines and progress bars on stderr, of which no line tears a bar, and the columns of tables."""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

# An evaluation that is done by then needs no bar.
BAR_AFTER_S = 1.0
DRAW_EVERY_S = 0.2
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
STEPS = "step {n_fmt}/{total_fmt} {percentage:3.0f}%|{bar}| {desc}"


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Lines of a table whose columns are two spaces apart.

    Args:
        rows: cells, as many in each row; a header among them, if there is one.
        left: the columns that are flush left; all others are flush right.
    """
    # Not above: ranks print no tables, and where they run the package may be missing.
    from tabulate import tabulate

    sides = ["left" if column in left else "right" for column in range(len(rows[0]))]
    text = tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True, preserve_whitespace=True)
    return [line.rstrip() for line in text.split("\n")]


def format_bytes(num_bytes: float) -> str:
    """A number of bytes in the unit that reads best, three digits of it."""
    unit = 0
    while num_bytes >= 1000 and unit < len(BYTE_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.3g} {BYTE_UNITS[unit]}"


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


def amount_bar(total: int | None, unit: str, **look: Any) -> Any:
    """A bar of an amount of work, with its rate and the time left; nothing where no person watches.

    Args:
        total: all of it; None where that is not known yet.
        unit: such as " rows", or "B" for bytes.
        look: further options of tqdm.
    """
    return tqdm(total=total, unit=unit, file=sys.stderr, disable=None, leave=False, **{"unit_scale": True, **look})


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
