"""What every rank says of itself and its host before training, and what that means: a check each.

The checks are functions of what all ranks said, so that every one of them can be tried without ranks.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infnet_rec.config.toml import StrictModel
from infnet_rec.diagnostics.agreement import Place, ranks_in_words
from infnet_rec.diagnostics.doctor import MIN_SHARED_MEMORY_GIB, Check
from infnet_rec.diagnostics.exchange import ExchangeTimes, Meeting, offset_s
from infnet_rec.diagnostics.memory import Space, check_memory, size_in_words
from infnet_rec.distributed import host
from infnet_rec.distributed.process_group import World
from infnet_rec.planner.hardware import GIB
from infnet_rec.planner.plan import RankMemory
from infnet_rec.planner.plan_file import PlanFile

# A connection to every other rank, for a process group more than there is, and what a run opens besides.
SPARE_FILES = 128
MAX_CLOCK_OFFSET_S = 1.0


class RankFacts(StrictModel):
    """Of one rank.

    Attributes:
        host_key: the same for ranks that share a host's memory.
        gpu_free_bytes: 0 on a CPU.
        max_files: None is without limit, as is `locked_bytes`.
        shared_memory_bytes: free in /dev/shm; None where there is none.
        network: backend, interface and InfiniBand cards, in words.
        meetings: with all ranks.
        sent: all-to-all with all ranks.
    """

    rank: int
    host: str
    host_key: str
    gpu: str | None
    host_free_bytes: int
    gpu_free_bytes: int
    num_files: int
    max_files: int | None
    locked_bytes: int | None
    shared_memory_bytes: int | None
    network: str
    infiniband: bool
    meetings: tuple[Meeting, ...] = ()
    sent: tuple[ExchangeTimes, ...] = ()

    @property
    def place(self) -> Place:
        return Place(self.rank, self.host)


def rank_facts(world: World, hostname: str, meetings: Sequence[Meeting], sent: Sequence[ExchangeTimes]) -> RankFacts:
    """This rank's, as things are now."""
    on_gpu = world.device.type == "cuda"
    num_files, max_files = host.open_files()
    backend, cards = "nccl" if on_gpu else "gloo", host.infiniband() if on_gpu else []
    cards = [] if os.environ.get("NCCL_IB_DISABLE", "0") != "0" else cards
    over = f" and InfiniBand {', '.join(cards)}" if cards else ""
    return RankFacts(
        rank=world.rank,
        host=hostname,
        host_key=host.host_key(),
        gpu=torch.cuda.get_device_name(world.device) if on_gpu else None,
        host_free_bytes=host.free_memory_bytes(),
        gpu_free_bytes=torch.cuda.mem_get_info(world.device)[0] if on_gpu else 0,
        num_files=num_files,
        max_files=max_files,
        locked_bytes=host.locked_memory_bytes(),
        shared_memory_bytes=host.shared_memory_bytes(),
        network=f"{backend} over {host.interface(backend)}{over}",
        infiniband=bool(cards),
        meetings=tuple(meetings),
        sent=tuple(sent),
    )


def check_all(ranks: Sequence[RankFacts], plan: PlanFile | None) -> list[Check]:
    """Everything, in the order in which it is shown.

    Args:
        ranks: in their order.
        plan: what they are to allocate; None leaves it at what is free.
    """
    several = [check_exchange(ranks), check_clocks(ranks)] if len(ranks) > 1 else []
    memory = check_memory(spaces_of(ranks, plan), planned=plan is not None)
    limits = [check_files(ranks), check_locked_memory(ranks), check_shared_memory(ranks)]
    return [*several, memory, *limits, *([check_gpus_alike(ranks)] if ranks[0].gpu else [])]


def check_exchange(ranks: Sequence[RankFacts]) -> Check:
    """The network in use, and what was measured on it: the slowest rank's time in the best trial."""
    over = " and ".join(dict.fromkeys(rank.network for rank in ranks))
    parts = []
    for kind in reversed(times_of(ranks)):
        rate = f"{kind.rate_in_words}, " if kind.rank_bytes >= 1 << 20 else ""
        parts.append(f"{rate}{seconds_in_words(kind.best_s)} at {size_in_words(kind.rank_bytes)}")
    return Check("all-to-all", f"{over}: {'; '.join(parts)}; measured")


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One size of all-to-all, of all ranks: what each sent to others, of how much, and how long the slowest took."""

    rank_bytes: int
    sent_bytes: float
    best_s: float

    @property
    def rate_in_words(self) -> str:
        """The best rate of a rank, for people."""
        gb_per_s = self.sent_bytes / self.best_s / 1e9
        return f"{gb_per_s:.{1 if gb_per_s >= 1 else 2}f} GB/s a rank"


def times_of(ranks: Sequence[RankFacts]) -> list[Exchanged]:
    """By size, in the order of the measurement."""
    kinds = []
    for position, kind in enumerate(ranks[0].sent):
        trials = zip(*(rank.sent[position].seconds for rank in ranks), strict=True)
        best_s = min(max(seconds) for seconds in trials)
        kinds.append(Exchanged(kind.rank_bytes, kind.rank_bytes * (1 - 1 / len(ranks)), best_s))
    return kinds


def check_clocks(ranks: Sequence[RankFacts]) -> Check:
    """How far the clocks are apart at most; lines of several hosts' logs are put in order by them."""
    bounds = [offset_s(ranks[0].meetings, rank.meetings) for rank in ranks]
    off = [position for position, (least, most) in enumerate(bounds) if max(least, -most) > MAX_CLOCK_OFFSET_S]
    if off:
        least, most = bounds[off[0]]
        way = "ahead of" if least > 0 else "behind"
        words = f"{ranks_in_words([ranks[p].place for p in off])}: {abs(least + most) / 2:,.1f} s {way} rank 0"
        return Check("clocks", words, "start a time service there, such as chrony", "warning")
    return Check("clocks", f"within {seconds_in_words(clock_bound_s(ranks))}")


def clock_bound_s(ranks: Sequence[RankFacts]) -> float:
    """No rank's clock is further from rank 0's; where it is small, that is how long a meeting takes."""
    return max(max(map(abs, offset_s(ranks[0].meetings, rank.meetings))) for rank in ranks[1:])


def spaces_of(ranks: Sequence[RankFacts], plan: PlanFile | None) -> list[Space]:
    """Every memory, with what the plan puts there."""
    hosts: dict[str, list[RankFacts]] = defaultdict(list)
    for rank in ranks:
        hosts[rank.host_key].append(rank)
    host_load, gpu_load = {}, {}
    for rank in ranks:
        # A plan with replica groups is that of one group; a node's ranks are dealt out to the groups in turn.
        load = None if plan is None else plan.ranks[rank.rank // plan.fingerprint.world.replica_groups]
        host_load[rank.rank], gpu_load[rank.rank] = (load.host, load.hbm) if load else (RankMemory(), RankMemory())
    spaces = []
    for those in hosts.values():
        loads = [host_load[rank.rank] for rank in those]
        free_bytes = min(rank.host_free_bytes for rank in those)
        spaces.append(_space("host", [rank.place for rank in those], free_bytes, loads))
    on_gpu = [rank for rank in ranks if rank.gpu]
    return spaces + [_space("GPU", [rank.place], rank.gpu_free_bytes, [gpu_load[rank.rank]]) for rank in on_gpu]


def _space(what: str, places: Sequence[Place], free_bytes: int, loads: Sequence[RankMemory]) -> Space:
    buffer_bytes = sum(load.buffer_bytes for load in loads)
    total_bytes = sum(load.total_bytes for load in loads)
    return Space(what, tuple(places), free_bytes, total_bytes - buffer_bytes, buffer_bytes)


def check_files(ranks: Sequence[RankFacts]) -> Check:
    """Every rank may open connections to all others once more; a process group has one to each."""
    limited = [rank for rank in ranks if rank.max_files is not None]
    needed = {rank.rank: rank.num_files + len(ranks) - 1 + SPARE_FILES for rank in limited}
    short = [rank for rank in limited if (rank.max_files or 0) < needed[rank.rank]]
    if short:
        most, limit = max(needed[rank.rank] for rank in short), min(rank.max_files or 0 for rank in short)
        found = f"{ranks_in_words([rank.place for rank in short])}: {limit:,} allowed, and {len(ranks):,} ranks need"
        return Check("open files", f"{found} {most:,}", f"ulimit -n {max(65_536, 2 * most)}  # before the launcher")
    least = min((rank.max_files or 0 for rank in limited), default=None)
    return Check("open files", "no limit" if least is None else f"{least:,} allowed")


def check_shared_memory(ranks: Sequence[RankFacts]) -> Check:
    """NCCL's ranks of one host exchange through /dev/shm; gloo's do not."""
    known = [rank for rank in ranks if rank.shared_memory_bytes is not None]
    if not known:
        return Check("shared memory", "none on this system")
    least = min(known, key=lambda rank: rank.shared_memory_bytes or 0)
    found = f"{size_in_words(least.shared_memory_bytes or 0)} free"
    if least.gpu and (least.shared_memory_bytes or 0) < MIN_SHARED_MEMORY_GIB * GIB and len(ranks) > 1:
        found = f"{ranks_in_words([least.place])}: {found}"
        return Check("shared memory", found, "docker run --shm-size=2g  # or mount a larger one", "warning")
    return Check("shared memory", found)


def check_gpus_alike(ranks: Sequence[RankFacts]) -> Check:
    """A step takes as long as the slowest GPU."""
    kinds: dict[str, list[Place]] = defaultdict(list)
    for rank in ranks:
        kinds[rank.gpu or "none"].append(rank.place)
    if len(kinds) == 1:
        return Check("GPUs", f"{len(ranks)} x {next(iter(kinds))}")
    found = "; ".join(f"{name} on {ranks_in_words(places)}" for name, places in kinds.items())
    return Check("GPUs", found, "the slowest sets the pace: use one kind", "warning")


def check_locked_memory(ranks: Sequence[RankFacts]) -> Check:
    """An InfiniBand card reads memory that is pinned."""
    short = [rank for rank in ranks if rank.infiniband and rank.locked_bytes is not None]
    if short:
        least = min(rank.locked_bytes or 0 for rank in short)
        found = f"{ranks_in_words([rank.place for rank in short])}: {size_in_words(least)} allowed"
        remedy = "ulimit -l unlimited  # before the launcher; InfiniBand needs it"
        return Check("locked memory", found, remedy, "warning")
    least = min((rank.locked_bytes for rank in ranks if rank.locked_bytes is not None), default=None)
    return Check(
        "locked memory", "no limit" if least is None else f"{size_in_words(least)} allowed; no InfiniBand needs more"
    )


def seconds_in_words(seconds: float) -> str:
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 1e-2 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds:,.1f} s"
