"""How far apart the ranks' clocks are and how fast they exchange: a few small collectives, in a fraction of a second.

Every rank only looks at its own clock; rank 0 works out from all readings what they mean. The number of collectives
does not depend on the number of ranks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from infnet_rec.distributed.process_group import World

CLOCK_ROUNDS = 10
FLOAT_BYTES = 4

# When this rank came to a meeting of all ranks and when it went, in seconds by its own clock.
Meeting = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ExchangeTimes:
    """One size of all-to-all on one rank.

    Attributes:
        rank_bytes: what every rank sends, the part that it sends to itself included.
        seconds: of each trial.
    """

    rank_bytes: int
    seconds: tuple[float, ...]


def meetings(world: World, num_rounds: int = CLOCK_ROUNDS) -> list[Meeting]:
    """Meets all ranks some times; nobody goes before everybody has come."""
    word, readings = torch.zeros(1, device=world.device), []
    for _ in range(num_rounds):
        came_at = time.time()
        # Collective: the meeting. Its result depends on every rank, and a device is waited for.
        dist.all_reduce(word)
        _wait(word)
        readings.append((came_at, time.time()))
    return readings


def offset_s(first: Sequence[Meeting], other: Sequence[Meeting]) -> tuple[float, float]:
    """The least and the most by which the other's clock can be ahead of the first's, if clocks keep their pace.

    In every meeting there is an instant at which both have come and neither has gone.
    """
    pairs = list(zip(first, other, strict=True))
    least = max(theirs[0] - ours[1] for ours, theirs in pairs)
    most = min(theirs[1] - ours[0] for ours, theirs in pairs)
    return least, most


def exchanges(world: World, sizes_bytes: Sequence[int], num_trials: int) -> list[ExchangeTimes]:
    """Times an all-to-all of equal parts, for each size in turn; the first of each size is not counted.

    Args:
        world: all ranks.
        sizes_bytes: what a rank sends, as near as whole numbers of every rank allow.
        num_trials: of each size; every one begins when all ranks are there.
    """
    timed = []
    for size_bytes in sizes_bytes:
        part = max(1, size_bytes // (FLOAT_BYTES * world.world_size))
        source = torch.zeros(part * world.world_size, device=world.device)
        target = torch.empty_like(source)
        seconds = [_exchange_s(source, target) for _ in range(num_trials + 1)]
        timed.append(ExchangeTimes(source.nbytes, tuple(seconds[1:])))
    return timed


def _exchange_s(source: Tensor, target: Tensor) -> float:
    word = torch.zeros(1, device=source.device)
    # Collective: all ranks begin together.
    dist.all_reduce(word)
    _wait(word)
    started_at = time.perf_counter()
    # Collective: what is timed.
    dist.all_to_all_single(target, source)
    _wait(target)
    return time.perf_counter() - started_at


def _wait(tensor: Tensor) -> None:
    """A collective on a GPU was only asked for when it returns."""
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
