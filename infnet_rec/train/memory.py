"""How much memory this process holds."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30
STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one rank.

    Attributes:
        rss_bytes: in the host's memory; 0 where the system does not say.
        mapped_bytes: of these, files such as the store's and what is shared with other processes; most of it goes
            without harm when memory is short.
        gpu_peak_bytes: the most that tensors held at a time on the GPU; None without one.
    """

    rss_bytes: int
    mapped_bytes: int
    gpu_peak_bytes: int | None

    def __str__(self) -> str:
        """For people."""
        gpu = "" if self.gpu_peak_bytes is None else f", GPU {_gib(self.gpu_peak_bytes)}"
        return f"{_gib(self.rss_bytes)}{gpu} GiB"


def _gib(num_bytes: int) -> str:
    gib = num_bytes / GIB
    return f"{gib:.1f}" if gib < 10 else f"{gib:.0f}"


def memory_now() -> Memory:
    """Reads counters that the system and torch's allocator keep anyway; waits for no device."""
    try:
        resident, shared = (
            int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in STATM.read_text(encoding="utf-8").split()[1:3]
        )
    except (OSError, ValueError):
        resident = shared = 0
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    return Memory(resident, shared, gpu)
