"""Times of several ways to do one thing, side by side."""

import time
from collections.abc import Callable, Mapping

import torch

MIN_ROUND_S = 0.1
BUDGET_S = 60.0
MIN_ROUNDS = 3


def alternate(
    runs: Mapping[str, Callable[[], object]], device: torch.device, *, num_rounds: int
) -> dict[str, list[float]]:
    """Runs everything in turn, round after round, so that a busy moment of the machine hits all alike.

    Args:
        runs: what to time, by name; each should have run once before.
        device: what to wait for.
        num_rounds: of all runs. A short run is repeated within its round; after a minute no further round begins, but
            for the first three.

    Returns:
        Seconds of one run, a value a round.
    """
    repeats = {name: max(1, round(MIN_ROUND_S / max(1e-6, timed(run, device)))) for name, run in runs.items()}
    taken_s: dict[str, list[float]] = {name: [] for name in runs}
    started_at = time.perf_counter()
    for round_number in range(num_rounds):
        if round_number >= MIN_ROUNDS and time.perf_counter() - started_at > BUDGET_S:
            break
        for name, run in runs.items():
            taken_s[name].append(timed(run, device, repeats[name]))
    return taken_s


def alternate_together(
    runs: Mapping[str, Callable[[], object]], device: torch.device, *, num_rounds: int, repeats: int
) -> dict[str, list[float]]:
    """The same for runs that hold collectives: every rank runs everything equally often, whatever its clock says."""
    taken_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            taken_s[name].append(timed(run, device, repeats))
    return taken_s


def timed(run: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Mean seconds of a run, until the device has done it."""
    wait(device)
    started_at = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - started_at) / repeats


def wait(device: torch.device) -> None:
    """Waits until a GPU has done what it was told: a clock read earlier would measure the telling."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
