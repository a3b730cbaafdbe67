"""What is asked of a plan: how often tables are read, and what each may do. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from infnet_rec.config.sharding import ShardingType as Sharding
from infnet_rec.config.sharding import TableKernel
from infnet_rec.config.sharding import TablePrecision as Precision

Collection = Literal["bags", "events", "managed"]
# "dense" is what a data-parallel table runs, and nothing else.
Kernel = Literal[TableKernel, "dense"]
# How the training pipeline holds inputs: two batches ahead, or three with the rows of the next one prefetched.
Pipeline = Literal["sparse_dist", "prefetch_sparse_dist"]


@dataclass(frozen=True, slots=True)
class TableTraffic:
    """How often one table is read.

    Attributes:
        name: of the table; unique over both collections.
        collection: that holds it.
        num_rows: of the table.
        width: columns of the table.
        mean_lookups: ids that an example sends to the table, for each of its features; what a batch names once only
            (see `Batch.sequences`) counts once. Times are estimated with it.
        p95_lookups: the same at the 95th percentile of batches. Input and output buffers are sized with it.
        distinct_fraction: distinct ids of a global batch over all its ids; what a cache has to fetch at most.
    """

    name: str
    collection: Collection
    num_rows: int
    width: int
    mean_lookups: tuple[float, ...] = (1.0,)
    p95_lookups: tuple[float, ...] = (1.0,)
    distinct_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What a rank does in a step, apart from where tables stand.

    Attributes:
        local_batch_size: examples a rank and step.
        traffic: by table; every table of the model must be there.
        reserved_hbm_bytes: of a rank, for all that is no table: dense part, activations, allocator, library.
        reserved_host_bytes: of a rank's share of the node's memory, likewise.
        pipeline: how many batches wait on the device.
    """

    local_batch_size: int
    traffic: Mapping[str, TableTraffic]
    reserved_hbm_bytes: int = 0
    reserved_host_bytes: int = 0
    pipeline: Pipeline = "sparse_dist"


@dataclass(frozen=True, slots=True)
class TableControl:
    """What one table may do; None leaves it to the planner.

    Attributes:
        sharding_types: allowed for it. The planner by itself takes only those that train exactly like an unsharded
            table: by table, by row, and by row within a node. Column-wise sharding with a row-wise optimizer (one value
            a row and column shard) and data-parallel tables (the dense optimizer's) differ by design, so both are
            taken only when named here.
        kernels: allowed for it; by itself the planner takes "fused" (everything in HBM, or in host memory on a CPU).
            Data-parallel tables always run "dense".
        cache_load_factor: part of the rows that "fused_uvm_caching" keeps in HBM.
        cache_precision: of that cache.
        precision: of the weights; None takes what the model's table has. Planning with another one answers "what if".
        min_columns: the narrowest column shard; a multiple of 4.
    """

    sharding_types: tuple[Sharding, ...] | None = None
    kernels: tuple[Kernel, ...] | None = None
    cache_load_factor: float | None = None
    cache_precision: Precision | None = None
    precision: Precision | None = None
    min_columns: int | None = None


# For tables that no control names.
FREE = TableControl()
Controls = Mapping[str, TableControl]
NO_CONTROLS: Controls = {}
