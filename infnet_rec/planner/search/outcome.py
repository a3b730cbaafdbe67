"""What a placement means: the plan's numbers, or what is missing."""

from collections.abc import Sequence

from torchrec.distributed.planner.types import ShardingOption

from infnet_rec.planner.hardware import GIB
from infnet_rec.planner.plan import DoesNotFit, PlannedShard, RankLoad, TablePlan, sum_memory, sum_times
from infnet_rec.planner.search.candidates import ShardingChoice
from infnet_rec.planner.search.problem import PlanningProblem


def table_plans(
    question: PlanningProblem, options: Sequence[ShardingOption], chosen: Sequence[ShardingChoice]
) -> tuple[TablePlan, ...]:
    """Every table's shards with their rank and estimates."""
    plans = []
    for table, choice, option in zip(question.tables, chosen, options, strict=True):
        shards = []
        for shard in option.shards:
            rows, columns = shard.size
            first_row, first_column = shard.offset
            known = question.estimates.of(table, choice, (rows, columns))
            assert shard.rank is not None
            shards.append(
                PlannedShard(shard.rank, first_row, first_column, rows, columns, known.hbm, known.host, known.times)
            )
        plans.append(
            TablePlan(
                table.name,
                table.collection,
                table.num_rows,
                table.width,
                choice.sharding,
                choice.kernel,
                tuple(shards),
            )
        )
    return tuple(plans)


def rank_loads(question: PlanningProblem, plans: Sequence[TablePlan]) -> tuple[RankLoad, ...]:
    """Sums of the shards, rank by rank."""
    shards: list[list[PlannedShard]] = [[] for _ in range(question.cluster.world_size)]
    for plan in plans:
        for shard in plan.shards:
            shards[shard.rank].append(shard)
    loads = []
    for rank, mine in enumerate(shards):
        hbm, host = sum_memory(shard.hbm for shard in mine), sum_memory(shard.host for shard in mine)
        loads.append(
            RankLoad(
                rank=rank,
                num_shards=len(mine),
                hbm=hbm,
                host=host,
                times=sum_times(shard.times for shard in mine),
                hbm_free_bytes=question.room.hbm - hbm.total_bytes,
                host_free_bytes=question.room.ddr - host.total_bytes,
            )
        )
    return tuple(loads)


def refusal(question: PlanningProblem, plans: Sequence[TablePlan], loads: Sequence[RankLoad]) -> DoesNotFit:
    """Says what lacks where, after tables were spread by memory alone.

    Args:
        question: that has no better answer.
        plans: of all tables, in the candidates that take least.
        loads: of all ranks, some with less than nothing free.
    """
    cluster, workload = question.cluster, question.workload
    hbm = {load.rank: -load.hbm_free_bytes / GIB for load in loads if load.hbm_free_bytes < 0}
    host = {load.rank: -load.host_free_bytes / GIB for load in loads if load.host_free_bytes < 0}
    missing, kind = (hbm, "HBM") if hbm else (host, "host memory")
    worst = max(missing, key=lambda rank: (missing[rank], -rank))
    sizes = {
        plan.name: sum((shard.hbm if hbm else shard.host).total_bytes for shard in plan.shards if shard.rank == worst)
        for plan in plans
    }
    # Tables whose absence would make room, the largest first.
    blame, found = [], 0.0
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        if found >= missing[worst] or not sizes[name]:
            break
        blame.append(name)
        found += sizes[name] / GIB
    has = (cluster.hbm_bytes if hbm else cluster.host_memory_bytes) / GIB
    reserved = (workload.reserved_hbm_bytes if hbm else workload.reserved_host_bytes) / GIB
    others = len(missing) - 1
    also = f", {others} other rank{'s' * (others > 1)} up to as much" if others else ""
    shown = ", ".join(f"{name} ({sizes[name] / GIB:.2f})" for name in blame[:5])
    more = f" and {len(blame) - 5} more" if len(blame) > 5 else ""
    return DoesNotFit(
        f"does not fit on {cluster.name} of {cluster.hardware.name}: rank {worst} lacks {missing[worst]:.2f} GiB of "
        f"{kind}{also}; of its {has:.2f} GiB, {reserved:.2f} are reserved for what is no table, and tables there need "
        f"{sum(sizes.values()) / GIB:.2f}; to blame: {shown}{more}",
        missing_hbm_gib=hbm,
        missing_host_gib=host,
        blame=tuple(blame),
    )
