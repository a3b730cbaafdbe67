"""Whether what a plan puts into each memory of a run fits into what is free there now."""

from collections.abc import Sequence
from dataclasses import dataclass

from infnet_rec.diagnostics.agreement import Place, ranks_in_words
from infnet_rec.diagnostics.doctor import Check

TIGHT = 0.85  # of what is free


@dataclass(frozen=True, slots=True)
class Space:
    """One memory: a GPU's, or that of a host, which its ranks share.

    Attributes:
        what: "GPU" or "host".
        places: who use it.
        free_bytes: now.
        table_bytes: weights, optimizer state and caches by the plan.
        buffer_bytes: ids that wait for their step.
    """

    what: str
    places: tuple[Place, ...]
    free_bytes: int
    table_bytes: int = 0
    buffer_bytes: int = 0

    @property
    def share(self) -> float:
        """Of what is free, what the plan takes."""
        return (self.table_bytes + self.buffer_bytes) / max(1, self.free_bytes)


def check_memory(spaces: Sequence[Space], *, planned: bool) -> Check:
    """The plan's tables fit into what is free now. What is no table is estimated roughly, so it only warns.

    Args:
        spaces: every memory of the run.
        planned: whether there is a plan; without one this says what is free.
    """
    tightest = max(spaces, key=lambda space: (space.share, -space.free_bytes))
    free = f"{size_in_words(tightest.free_bytes)} of {tightest.what} memory free on {ranks_in_words(tightest.places)}"
    if not planned:
        return Check("memory", f"{free}, the tightest" if len(spaces) > 1 else free)
    tables = f"{size_in_words(tightest.table_bytes)} of tables by the plan"
    remedy = "end what else takes memory there, use more ranks or hosts, or make tables smaller (see 'infnet-rec plan')"
    if tightest.table_bytes > tightest.free_bytes:
        return Check("memory", f"{tables}, {free}", remedy)
    if tightest.share > TIGHT:
        buffers = f"{size_in_words(tightest.buffer_bytes)} of waiting ids, which leaves little for all else"
        return Check("memory", f"{tables}, {free}; with {buffers}", remedy, "warning")
    return Check("memory", f"{tables}, {free}{', the tightest' if len(spaces) > 1 else ''}")


def size_in_words(num_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1000:
            return (
                f"{num_bytes:.0f} {unit}"
                if num_bytes >= 10 or num_bytes == int(num_bytes)
                else f"{num_bytes:.1f} {unit}"
            )
        num_bytes /= 1024
    return f"{num_bytes:,.1f} GiB"
