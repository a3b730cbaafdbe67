"""What samples of a time say: percentiles, how well their mean is known, and the ratio of two.

Where other programs share the processor, wall time also says what they did; processor time does not.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Neighbouring steps are alike: they share a busy moment of the machine. Blocks of them are drawn together.
BLOCK = 5
DRAWS = 2_000


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that this share of the samples does not exceed, between neighbours in a line."""
    return float(np.quantile(np.asarray(samples), share))


def bootstrap_means(samples: Sequence[float], *, seed: int) -> Array:
    """Means of samples drawn again, in blocks of neighbours."""
    values = np.asarray(samples, np.float64)
    block = min(BLOCK, len(values))
    num_blocks = math.ceil(len(values) / block)
    starts = np.random.default_rng(seed).integers(0, len(values), (DRAWS, num_blocks))
    # Blocks go on at the beginning, so that every sample is drawn as often as another.
    taken = (starts[:, :, None] + np.arange(block)) % len(values)
    return values[taken.reshape(DRAWS, -1)[:, : len(values)]].mean(axis=1)


def half_width(samples: Sequence[float]) -> float:
    """Half of the interval in which the mean lies with 95 % confidence."""
    low, high = np.quantile(bootstrap_means(samples, seed=0), [0.025, 0.975])
    return float(high - low) / 2


def summary(samples_s: Sequence[float]) -> dict[str, float | int]:
    """Of seconds, in milliseconds."""
    return {
        "num_samples": len(samples_s),
        "mean_ms": 1e3 * float(np.mean(samples_s)),
        "mean_ms_half_width": 1e3 * half_width(samples_s),
        "p50_ms": 1e3 * percentile(samples_s, 0.5),
        "p95_ms": 1e3 * percentile(samples_s, 0.95),
    }


def ratio(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """How many times faster the second is by the mean, and between what with 95 % confidence."""
    drawn = bootstrap_means(before, seed=1) / bootstrap_means(after, seed=2)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": float(np.mean(before) / np.mean(after)), "low": float(low), "high": float(high)}


MIN_ROUND_S = 0.1
BUDGET_S = 60.0
MIN_ROUNDS = 3


class Taken(NamedTuple):
    """Of one run: seconds on the clock, and seconds of processor time over all threads of this process."""

    wall_s: float
    processor_s: float


def alternate(
    runs: Mapping[str, Callable[[], object]], device: torch.device, *, num_rounds: int
) -> dict[str, list[Taken]]:
    """Runs everything in turn, round after round, so that a busy moment of the machine hits all alike.

    Args:
        runs: what to time, by name; each should have run once before.
        device: what to wait for.
        num_rounds: of all runs. A short run is repeated within its round; after a minute no further round begins, but
            for the first three.

    Returns:
        The mean run of each round.
    """
    repeats = {name: max(1, round(MIN_ROUND_S / max(1e-6, timed(run, device).wall_s))) for name, run in runs.items()}
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    started_at = time.perf_counter()
    for round_number in range(num_rounds):
        if round_number >= MIN_ROUNDS and time.perf_counter() - started_at > BUDGET_S:
            break
        for name, run in runs.items():
            taken[name].append(timed(run, device, repeats[name]))
    return taken


def alternate_together(
    runs: Mapping[str, Callable[[], object]], device: torch.device, *, num_rounds: int, repeats: int
) -> dict[str, list[Taken]]:
    """The same for runs that hold collectives: every rank runs everything equally often, whatever its clock says."""
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            taken[name].append(timed(run, device, repeats))
    return taken


def timed(run: Callable[[], object], device: torch.device, repeats: int = 1) -> Taken:
    """The mean run, until the device has done it."""
    wait(device)
    started_at, processor_started_s = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    wait(device)
    return Taken((time.perf_counter() - started_at) / repeats, (time.process_time() - processor_started_s) / repeats)


def middle(taken: Sequence[Taken]) -> Taken:
    """The median of each clock."""
    return Taken(median(t.wall_s for t in taken), median(t.processor_s for t in taken))


def wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was told: a clock read earlier would measure the telling."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
