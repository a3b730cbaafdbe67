"""Which table goes where: `search_plan` is what to call.

No process group, no GPU, no data; the same answer for the same question. How it is fast: a shard of one shape is
estimated once, candidates that another one makes pointless go before their shards are listed, and combinations are
placed in the order of a bound on what they can reach, until no bound is better than what was found.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.types import ModuleSharder

from infnet_rec.shard.hardware import Cluster
from infnet_rec.shard.planning.demand import NO_CONTROLS, Controls, Workload
from infnet_rec.shard.planning.menu import Menu, Picks
from infnet_rec.shard.planning.mixing import mixed
from infnet_rec.shard.planning.outcome import rank_loads, refusal, table_plans
from infnet_rec.shard.planning.placement import Placed, Placer
from infnet_rec.shard.planning.planned import Planned
from infnet_rec.shard.planning.question import Question

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
        Fault: a control names a table that the model has not, or asks for what the device or the collection cannot do
            or is known to be wrong; a table has no traffic.
        DoesNotFit: no placement within the memory was found (a `Refusal`: exit code 3).
    """
    question = Question.of(model, cluster, workload, controls, sharders)
    menu = Menu(question)
    placer = Placer(question, menu)
    best, num_tried = _fastest(menu, placer)
    best = best or _roomiest(menu, placer)
    options = placer.placed(best.picks, best.ranks)
    plans = table_plans(question, options, [menu.candidates[n][pick].choice for n, pick in enumerate(best.picks)])
    loads = rank_loads(question, plans)
    if any(load.hbm_free_bytes < 0 or load.host_free_bytes < 0 for load in loads):
        raise refusal(question, plans, loads)
    plan = to_sharding_plan(options, question.topology)
    return Planned(plan=plan, cluster=cluster, tables=plans, ranks=loads, num_tried=num_tried)


def _fastest(menu: Menu, placer: Placer) -> tuple[Placed | None, int]:
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
    best: Placed, proposals: list[tuple[float, Picks]], menu: Menu, placer: Placer, num_tried: int
) -> tuple[Placed, int]:
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


def _faster(best: Placed | None, other: Placed | None) -> Placed | None:
    return other if other and (best is None or other.ms < best.ms) else best


def _roomiest(menu: Menu, placer: Placer) -> Placed:
    """Spread by memory alone; of several such placements, the one that lacks least."""
    return min((placer.by_memory(picks) for picks in menu.frugal()), key=placer.missing_bytes)
