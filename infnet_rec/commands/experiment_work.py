"""What an experiment is about to do and has done, and how people are told."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from infnet_rec.commands.experiment_parts import WHOLE, Part
from infnet_rec.config.experiment import Experiment, Variant
from infnet_rec.train.report import clock, number

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """How the cells are made.

    Attributes:
        num_ranks: processes of a cell.
        num_jobs: cells at the same time.
        retry_failed: whether cells that failed are tried again.
        part: what this process makes.
    """

    num_ranks: int = 1
    num_jobs: int = 1
    retry_failed: bool = False
    part: Part = WHOLE


@dataclass(slots=True)
class Work:
    """What the jobs share; `free_gpus` has an entry for each job that could begin now."""

    experiment: Experiment
    out: Path
    dataset: JSON
    asked: Asked
    wants_stop: Callable[[], bool]
    cells: dict[tuple[str, int], JSON]
    free_gpus: SimpleQueue[tuple[str, ...]] = field(default_factory=SimpleQueue)
    is_broken: bool = False
    running: set[tuple[str, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def state(work: Work, variant: Variant, seed: int) -> str:
    """done, failed, running or missing."""
    if (variant.name, seed) in work.running:
        return "running"
    cell = work.cells.get((variant.name, seed))
    return "missing" if cell is None else cell["status"]


def is_due(work: Work, variant: Variant, seed: int) -> bool:
    return state(work, variant, seed) in (("missing", "failed") if work.asked.retry_failed else ("missing",))


def summary(cell: JSON) -> str:
    """A cell in a line."""
    if cell["status"] == "failed":
        return f"failed: {cell['reason']}; log: {cell['log']}"
    tasks = (f"{t} {number(m['auc'])}/{number(m['gauc'])}" for t, m in cell["metrics"]["test"].items())
    return f"test AUC/gAUC {', '.join(tasks)}; {clock(cell['wall_s'])}"


def table(work: Work) -> str:
    """Where the experiment stands: a line a variant, a column a seed."""
    seeds = work.experiment.config.seeds
    width = max(len(variant.name) for variant in work.experiment.variants) + 2
    lines = [f"{'variant':<{width}}" + "".join(f"{f'seed {seed}':>10}" for seed in seeds)]
    for variant in work.experiment.variants:
        lines.append(f"{variant.name:<{width}}" + "".join(f"{state(work, variant, seed):>10}" for seed in seeds))
    return "\n".join(lines)


def say(text: str) -> None:
    """To people, who watch stderr."""
    print(text, file=sys.stderr, flush=True)
