"""What a table may do on a device: the candidates of the search, few and sensible."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.types import PartitionByType
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets

from infnet_rec.errors import UserError
from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.request import Collection, Kernel, Sharding
from infnet_rec.planner.tables import ModelTable

# What works, tried on TorchRec 1.8. Row-wise bags on a CPU need a plan that is not TorchRec's own planner's, such as
# ours. On a CPU a data-parallel table of sequences gives wrong shapes or corrupts memory.
POSSIBLE: Mapping[tuple[str, Collection], tuple[Sharding, ...]] = {
    ("cuda", "bags"): (
        "table_wise",
        "row_wise",
        "column_wise",
        "table_row_wise",
        "table_column_wise",
        "grid_shard",
        "data_parallel",
    ),
    ("cuda", "events"): ("table_wise", "row_wise", "column_wise", "data_parallel"),
    ("cpu", "bags"): ("table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard", "data_parallel"),
    ("cpu", "events"): ("table_wise", "row_wise", "column_wise"),
}
# What the planner takes when nothing is said: they train exactly like an unsharded table, whatever the optimizer.
BY_DEFAULT: Mapping[tuple[str, Collection], tuple[Sharding, ...]] = {
    ("cuda", "bags"): ("table_wise", "row_wise", "table_row_wise"),
    ("cuda", "events"): ("table_wise", "row_wise"),
    ("cpu", "bags"): ("table_wise",),
    ("cpu", "events"): ("table_wise", "row_wise"),
}
BY_COLUMN: tuple[Sharding, ...] = ("column_wise", "table_column_wise", "grid_shard")
BY_ROW: tuple[Sharding, ...] = ("row_wise", "table_row_wise", "grid_shard")
# FBGEMM reads four values at a time.
COLUMN_STEP = 4


@dataclass(frozen=True, slots=True)
class ShardingChoice:
    """One way to keep a table: how it is cut, what looks it up, and the width of a column shard (0: all columns)."""

    sharding: Sharding
    kernel: Kernel
    columns: int = 0

    @property
    def uniform(self) -> bool:
        """Whether every rank has an equal part."""
        return get_partition_by_type(self.sharding) == PartitionByType.UNIFORM.value


def choices(table: ModelTable, cluster: Cluster) -> Iterator[ShardingChoice]:
    """Candidates of one table, before anything is estimated.

    Raises:
        UserError: its control asks for what cannot be or is known to be wrong.
    """
    check_control(table, cluster)
    control = table.control
    wanted = control.sharding_types or _sensible(table, cluster)
    fused: tuple[Kernel, ...] = control.kernels or ("fused",)
    fused = tuple(kernel for kernel in fused if kernel != "dense")
    dense: tuple[Kernel, ...] = ("dense",)
    for sharding in wanted:
        for kernel in dense if sharding == "data_parallel" else fused:
            for columns in _column_widths(table) if sharding in BY_COLUMN else (0,):
                yield ShardingChoice(sharding, kernel, columns)


def layout(table: ModelTable, choice: ShardingChoice, cluster: Cluster) -> tuple[list[list[int]], list[list[int]]]:
    """Sizes and offsets (rows, columns) of all shards, the largest first."""
    return calculate_shard_sizes_and_offsets(
        table.weight,
        world_size=cluster.world_size,
        local_world_size=cluster.ranks_per_node,
        sharding_type=choice.sharding,
        col_wise_shard_dim=choice.columns or None,
    )


def first_shard(table: ModelTable, choice: ShardingChoice, cluster: Cluster) -> tuple[tuple[int, int], int]:
    """Size of the largest shard, and how many there are, without listing the thousands of a large cluster."""
    if choice.sharding == "row_wise":
        return (math.ceil(table.num_rows / cluster.world_size), table.width), cluster.world_size
    if choice.sharding == "data_parallel":
        return (table.num_rows, table.width), cluster.world_size
    sizes, _ = layout(table, choice, cluster)
    return (sizes[0][0], sizes[0][1]), len(sizes)


def _sensible(table: ModelTable, cluster: Cluster) -> tuple[Sharding, ...]:
    """Leaves out what cannot win: cutting a table for one rank, or into parts without rows."""
    if table.managed:
        return ("row_wise",)
    if cluster.world_size == 1:
        return ("table_wise",)
    pointless: set[Sharding] = set()
    # FBGEMM's kernels for CPUs cannot look up a group of tables none of which has a row on this rank.
    on_cpu = cluster.hardware.device == "cpu"
    if on_cpu and crowding(table, ShardingChoice("row_wise", "fused"), cluster) > 1:
        pointless.add("row_wise")
    if cluster.num_nodes == 1:
        # There it is the same as row_wise.
        pointless.add("table_row_wise")
    return tuple(kind for kind in BY_DEFAULT[cluster.hardware.device, table.collection] if kind not in pointless)


def crowding(table: ModelTable, choice: ShardingChoice, cluster: Cluster) -> float:
    """How much more work a rank has than TorchRec's estimate says, which shares it among all that a table is cut for.

    TorchRec cuts blocks of equal size, so the last ranks may get no row: 10 rows on 8 ranks are 5 blocks of 2. Where
    rows are many this is 1.
    """
    if choice.sharding not in BY_ROW:
        return 1.0
    num_ranks = cluster.world_size if choice.sharding == "row_wise" else cluster.ranks_per_node
    num_blocks = math.ceil(table.num_rows / math.ceil(table.num_rows / num_ranks))
    return num_ranks / num_blocks


def check_control(table: ModelTable, cluster: Cluster) -> None:
    """Refuses a control that TorchRec would ignore, stumble over or get silently wrong.

    Raises:
        UserError: the first thing found, with what can be asked for instead.
    """
    device, control = cluster.hardware.device, table.control
    if table.managed and (table.num_rows % cluster.world_size or table.num_rows < 2 * cluster.world_size):
        raise UserError(
            f"table {table.name!r}: is managed and has {table.num_rows} rows for {cluster.world_size} ranks; every "
            "rank manages an equal part of at least two rows (the last is for ids that have none), so take a larger "
            "multiple of the number of ranks"
        )
    possible = ("row_wise",) if table.managed else POSSIBLE[device, table.collection]
    what = "a managed table" if table.managed else f"a table of {table.collection}"
    for sharding in control.sharding_types or ():
        if sharding not in possible:
            raise UserError(
                f"table {table.name!r}: {sharding} cannot shard {what} on {device}; it can be {', '.join(possible)}"
            )
        if sharding == "grid_shard" and table.averages:
            raise UserError(
                f"table {table.name!r}: grid_shard returns sums where rows are averaged; use table_row_wise or row_wise"
            )
    kernels = control.kernels or ()
    if device == "cpu" and any(kernel.startswith("fused_uvm") for kernel in kernels):
        raise UserError(f'table {table.name!r}: {", ".join(kernels)} needs a GPU; on a CPU use "fused"')
    only_copies = control.sharding_types == ("data_parallel",)
    if kernels and only_copies != (kernels == ("dense",)):
        raise UserError(
            f"table {table.name!r}: kernel dense is what a data_parallel table runs, and nothing else runs it; "
            f"asked for {', '.join(control.sharding_types or ('any sharding',))} with {', '.join(kernels)}"
        )
    factor = control.cache_load_factor
    if factor is not None and not 0 < factor <= 1:
        raise UserError(
            f"table {table.name!r}: cache_load_factor = {factor:g}: is a part of the rows, above 0 and up to 1"
        )
    least = control.min_columns
    if least is not None and (least < COLUMN_STEP or least % COLUMN_STEP):
        raise UserError(f"table {table.name!r}: min_columns = {least}: must be a positive multiple of {COLUMN_STEP}")
    if set(control.sharding_types or ()) & set(BY_COLUMN) and not _column_widths(table):
        raise UserError(
            f"table {table.name!r}: its {table.width} columns cannot be cut into equal parts of at least "
            f"{least or COLUMN_STEP}, each a multiple of {COLUMN_STEP}; lower min_columns or take another sharding"
        )


def _column_widths(table: ModelTable) -> list[int]:
    """Halves, quarters and so on, as far as they stay equal and wide enough."""
    least = table.control.min_columns or COLUMN_STEP
    widths, width = [], table.width
    while width % 2 == 0 and width // 2 >= least and (width // 2) % COLUMN_STEP == 0:
        width //= 2
        widths.append(width)
    return widths
