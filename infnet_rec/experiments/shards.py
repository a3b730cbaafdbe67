"""An experiment made by several processes, on one host or on many that share its folder: each makes a part.

A part is every N-th variant with all its seeds, so that one process alone searches for a variant and trains what it
found. It writes a file of cells of its own; all are read together, so that the next time there may be more parts or
fewer. What is being made is locked, variant by variant.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from infnet_rec.config.experiment import Experiment, Variant, key_of
from infnet_rec.errors import UserError
from infnet_rec.experiments.results import CELLS

LOCKS = ".locks"


@dataclass(frozen=True, slots=True)
class ExperimentShard:
    """The K-th of N parts; by default the whole."""

    number: int = 1
    of: int = 1

    @property
    def cells_file(self) -> str:
        """Where it writes; nobody else does meanwhile."""
        return CELLS if self.of == 1 else f"cells-{self.number}-of-{self.of}.jsonl"

    @property
    def words(self) -> str:
        """As the command line has it."""
        return f"{self.number}/{self.of}"


WHOLE = ExperimentShard()


def parse_shard(text: str) -> ExperimentShard:
    """Reads K/N.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--part {text}: must be K/N with K from 1 to N, such as 1/4 for the first of four parts")
    return ExperimentShard(int(found[1]), int(found[2]))


def cells_of_shard(experiment: Experiment, part: ExperimentShard) -> Experiment:
    """The experiment with the variants of a part only; it may have none.

    Variants of one setting, which are trained once, are in one part.
    """
    kinds = list(dict.fromkeys(_kind(variant) for variant in experiment.variants))
    mine = set(kinds[part.number - 1 :: part.of])
    return replace(experiment, variants=tuple(v for v in experiment.variants if _kind(v) in mine))


def _kind(variant: Variant) -> tuple[str, str]:
    return key_of(variant.config), repr(sorted(variant.space.items()))


@contextmanager
def held(out: Path, experiment: Experiment, part: ExperimentShard) -> Iterator[None]:
    """Keeps other processes from these variants and from the part's file of cells.

    Args:
        out: the folder; it is there.
        experiment: with the part's variants.
        part: who writes.

    Raises:
        UserError: another process has one of them.
    """
    (out / LOCKS).mkdir(exist_ok=True)
    with ExitStack() as stack:
        # Where there are more parts or fewer, a variant is in another part, and still has this lock.
        for name in (part.cells_file, *(f"variant.{variant.folder}" for variant in experiment.variants)):
            try:
                stack.enter_context(FileLock(out / LOCKS / name, blocking=False))
            except Timeout as error:
                raise UserError(
                    f"--out {out}: another process works on it ({name}); wait for it, make another --part of the same "
                    "number of parts, or name another folder"
                ) from error
            except OSError as error:
                raise UserError(
                    f"--out {out}: its file system keeps no locks ({error.strerror}); name another"
                ) from error
        yield
