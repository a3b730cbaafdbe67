"""Times of several ways to do one thing, side by side.

Where other programs share the processor, wall time also says what they did; processor time does not.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

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
