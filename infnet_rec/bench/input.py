"""The loader alone: how fast batches come when nobody computes, and where one thread's time goes."""

import cProfile
import time
from collections.abc import Callable, Iterator
from pstats import Stats
from typing import Any

import numpy as np

from infnet_rec.batch import Batch
from infnet_rec.data.distinct import UnpooledTokens
from infnet_rec.data.gather import ExampleRows, FeatureIds, Histories
from infnet_rec.data.loader import BatchReader

STAGES: dict[str, tuple[Callable[..., Any], ...]] = {
    "rows of users and items": (ExampleRows.read,),
    "ids of features": (FeatureIds.jagged, FeatureIds.single, FeatureIds.rarity),
    "events of histories": (Histories.read,),
    "distinct ids of the batch": (UnpooledTokens.read,),
}
ORDER, REST = "order of the examples", "labels, tensors and the rest"


def time_batches(batches: Iterator[Batch], *, warm_up: int, num_batches: int) -> list[float]:
    """Seconds until each next batch was there, the first ones apart: they were read ahead, and files were cold."""
    for _ in range(warm_up):
        next(batches)
    samples_s = []
    for _ in range(num_batches):
        started_at = time.perf_counter()
        next(batches)
        samples_s.append(time.perf_counter() - started_at)
    return samples_s


def stages(
    reader: BatchReader, examples_of: Callable[[int], np.ndarray], *, first_step: int, num_batches: int
) -> dict[str, float]:
    """Reads batches in this thread; seconds a batch by stage, which add up to the whole.

    Args:
        reader: the split.
        examples_of: this rank's examples of a step.
        first_step: where to begin.
        num_batches: how many.
    """
    profiler = cProfile.Profile()
    order_s = read_s = 0.0
    for step in range(first_step, first_step + num_batches):
        started_at = time.perf_counter()
        examples = examples_of(step)
        order_s += time.perf_counter() - started_at
        started_at = time.perf_counter()
        profiler.runcall(reader.read, examples)
        read_s += time.perf_counter() - started_at
    # By file, line and name: its callers with, fourth, the seconds from call to return.
    found: dict[Any, Any] = Stats(profiler).stats  # pyright: ignore[reportAttributeAccessIssue]
    taken = {ORDER: order_s}
    for stage, functions in STAGES.items():
        codes = [function.__code__ for function in functions]
        keys = [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes]
        # One of them may call another, whose seconds are in its own.
        callers = [found[key][4].items() for key in keys if key in found]
        taken[stage] = sum(times[3] for of in callers for caller, times in of if caller not in keys)
    taken[REST] = max(0.0, order_s + read_s - sum(taken.values()))
    return {stage: s / num_batches for stage, s in taken.items()}
