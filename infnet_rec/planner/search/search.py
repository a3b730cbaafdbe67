"""Which table goes where: `search_plan` is what to call.

No process group, no GPU, no data; the same answer for the same question. How it is fast: a shard of one shape is
estimated once, candidates that another one makes pointless go before their shards are listed, and combinations are
placed in the order of a bound on what they can reach, until no bound is better than what was found.

Tables of one shape need not all do the same: some of them, cut finer, fill the gaps that the others leave.

Letters: R ranks, H nodes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.types import PartitionByType
from torchrec.distributed.types import ModuleSharder

from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.plan import Planned
from infnet_rec.planner.request import NO_CONTROLS, Controls, Workload
from infnet_rec.planner.search.choice import Candidate, CandidateSet, Picks
from infnet_rec.planner.search.outcome import rank_loads, refusal, table_plans
from infnet_rec.planner.search.placement import Partitioner, Placement
from infnet_rec.planner.search.problem import PlanningProblem


def mixed(menu: CandidateSet, cluster: Cluster, picks: Picks, target_ms: float) -> Picks:
    """Another combination, tried on for size: the slowest rank should come out at `target_ms`.

    What is cut evenly over all ranks in `picks` stays so. Of the rest, largest first, every table takes the candidate
    that costs all ranks together least among those that still end below the target where there is most time left.
    Memory is not looked at; whoever places the combination does that.
    """
    loads_R = np.zeros(cluster.world_size)
    free: list[int] = []
    for n, pick in enumerate(picks):
        candidate = menu.candidates[n][pick]
        if candidate.choice.uniform:
            loads_R += candidate.ms
        else:
            free.append(n)
    chosen = list(picks)
    free.sort(key=lambda n: (-menu.candidates[n][picks[n]].ms * menu.candidates[n][picks[n]].num_shards, n))
    for n in free:
        row = menu.candidates[n]
        best: tuple[float, int, np.ndarray] | None = None
        for c in sorted(range(len(row)), key=lambda c: (row[c].ms * row[c].num_shards, c)):
            ranks = _ranks_for(row[c], loads_R, cluster)
            peak_ms = float(loads_R[ranks].max()) + row[c].ms
            if best is None or peak_ms < best[0]:
                best = peak_ms, c, ranks
            if peak_ms <= target_ms:
                break
        assert best is not None
        _, chosen[n], ranks = best
        loads_R[ranks] += row[chosen[n]].ms
    return tuple(chosen)


def _ranks_for(candidate: Candidate, loads_R: np.ndarray, cluster: Cluster) -> np.ndarray:
    """Where its shards would do least harm."""
    match get_partition_by_type(candidate.choice.sharding):
        case PartitionByType.UNIFORM.value:
            return np.arange(len(loads_R))
        case PartitionByType.DEVICE.value:
            if candidate.num_shards == 1:
                return np.array([loads_R.argmin()])
            return np.argsort(loads_R, kind="stable")[: candidate.num_shards]
        case _:
            size = cluster.ranks_per_node
            num_nodes = min(cluster.num_nodes, -(-candidate.num_shards // size))
            peaks_H = loads_R.reshape(cluster.num_nodes, size).max(axis=1)
            nodes = np.argsort(peaks_H, kind="stable")[:num_nodes]
            return (nodes[:, None] * size + np.arange(size)).ravel()[: candidate.num_shards]


# How much memory counts beside time, and how much of a rank one shard may fill. A later stage is entered only where
# nothing of the ones before it found room.
STAGES = ((0.0, 1.0), (0.0, 0.5), (0.1, 0.5), (1.0, 0.25), (10.0, 0.125), (1e6, 0.0))
# Good enough: this much above the least bound.
CLOSE = 1.002
# Combinations to mix others from.
MIXED = 3


def search_plan(
    model: nn.Module,
    cluster: Cluster,
    workload: Workload,
    controls: Controls = NO_CONTROLS,
    *,
    sharders: Sequence[ModuleSharder[Any]] = (),
) -> Planned:
    """Plans the tables of a model.

    Args:
        model: on the meta device, with its fused optimizers attached (`fuse_sparse`) so that their state is counted;
            any module that holds one EmbeddingBagCollection, one EmbeddingCollection, or both.
        cluster: to plan for.
        workload: what a step does.
        controls: what tables may do, by name.
        sharders: that will shard the model; what they say about quantised communication enters the estimates. None
            given means plain ones.

    Returns:
        The plan with the least estimated time on its slowest rank that was found.

    Raises:
        UserError: a control names a table that the model has not, or asks for what the device or the collection cannot
            do or is known to be wrong; a table has no traffic.
        DoesNotFit: no placement within the memory was found (a `Refusal`: exit code 3).
    """
    question = PlanningProblem.of(model, cluster, workload, controls, sharders)
    menu = CandidateSet(question)
    placer = Partitioner(question, menu)
    best, num_tried = _fastest(menu, placer)
    best = best or _roomiest(menu, placer)
    options = placer.placed(best.picks, best.ranks)
    plans = table_plans(question, options, [menu.candidates[n][pick].choice for n, pick in enumerate(best.picks)])
    loads = rank_loads(question, plans)
    if any(load.hbm_free_bytes < 0 or load.host_free_bytes < 0 for load in loads):
        raise refusal(question, plans, loads)
    plan = to_sharding_plan(options, question.topology)
    return Planned(plan=plan, cluster=cluster, tables=plans, ranks=loads, num_tried=num_tried)


def _fastest(menu: CandidateSet, placer: Partitioner) -> tuple[Placement | None, int]:
    """The best of those combinations that TorchRec's partitioner finds room for, and how many were placed."""
    num_tried = 0
    for bytes_weight, shard_share in STAGES:
        proposals = menu.proposals(bytes_weight=bytes_weight, shard_share=shard_share)
        best = None
        for bound_ms, picks in proposals[: placer.budget(proposals[0][1]) if proposals else 0]:
            if best and (bound_ms >= best.ms or best.ms <= CLOSE * proposals[0][0]):
                break
            num_tried += 1
            best = _faster(best, placer.by_time(picks))
        if best:
            return _mix(best, proposals, menu, placer, num_tried)
    return None, num_tried


def _mix(
    best: Placement, proposals: list[tuple[float, Picks]], menu: CandidateSet, placer: Partitioner, num_tried: int
) -> tuple[Placement, int]:
    """Bisects between what could be and what was found, for the most promising combinations."""
    seen = {best.picks}
    for bound_ms, picks in proposals[:MIXED]:
        low_ms, high_ms = bound_ms, best.ms
        while high_ms > CLOSE * low_ms:
            target_ms = (low_ms + high_ms) / 2
            other = mixed(menu, placer.cluster, picks, target_ms)
            placed = None
            if other not in seen and menu.bound_ms(other) < best.ms:
                seen.add(other)
                num_tried += 1
                placed = placer.by_time(other)
            if placed and placed.ms < best.ms:
                best, high_ms = placed, min(target_ms, placed.ms)
            else:
                low_ms = target_ms
    return best, num_tried


def _faster(best: Placement | None, other: Placement | None) -> Placement | None:
    return other if other and (best is None or other.ms < best.ms) else best


def _roomiest(menu: CandidateSet, placer: Partitioner) -> Placement:
    """Spread by memory alone; of several such placements, the one that lacks least."""
    return min((placer.by_memory(picks) for picks in menu.frugal()), key=placer.missing_bytes)
