"""How long a step takes, by part: tables by TorchRec's estimates, the rest by a roofline.

The estimate of the rest rests on the assumptions below and on the peaks of the hardware; it is for comparing plans and
for orders of magnitude, not for promises.

Bytes that ranks send one another are those of all ranks together. An id goes to where its row is, its embedding comes
back in the forward pass and the gradient goes there again in the backward pass. What stays on its rank is not counted.
W ranks, B examples a rank.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from infnet_rec.models.precision import Precision
from infnet_rec.planner.dense_cost import DenseMemory, TowerCost
from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.plan import TablePlan, Times
from infnet_rec.planner.request import TableTraffic

# Assumptions: parts of the published peaks that small products and element-wise operators reach, and the time in which
# Python asks a GPU for one operator.
MATMUL_EFFICIENCY = 0.5
BANDWIDTH_EFFICIENCY = 0.6
LAUNCH_MS = 0.006
# Adam reads and writes parameter, gradient and two moments; other optimizers less.
OPTIMIZER_PASSES = 7


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds of one rank's step.

    Attributes:
        lookup_ms: tables read, forward, and updated, backward; rows fetched into caches.
        exchange_ms: embeddings and their gradients between ranks.
        tower_ms: everything above the embeddings, forward and backward.
        all_reduce_ms: dense gradients between ranks. DDP hides part of it behind the backward pass; here none is.
        optimizer_ms: the dense optimizer.
        tower_bound: what holds the tower up.
    """

    lookup_ms: float
    exchange_ms: float
    tower_ms: float
    all_reduce_ms: float
    optimizer_ms: float
    tower_bound: str

    @property
    def total_ms(self) -> float:
        """Reading batches and sending ids happen beside the step before, and wait for nothing."""
        return self.lookup_ms + self.exchange_ms + self.tower_ms + self.all_reduce_ms + self.optimizer_ms


def step_time(cluster: Cluster, tables: Times, tower: TowerCost, dense: DenseMemory, precision: Precision) -> StepTime:
    """Estimates a step of the rank whose tables take `tables`."""
    hardware = cluster.hardware
    on_gpu = hardware.device == "cuda"
    share = 1.0 if on_gpu else 1.0 / cluster.ranks_per_node
    gb_per_s = hardware.hbm_gb_per_s if on_gpu else hardware.host_memory_gb_per_s * share
    bytes_per_ms = BANDWIDTH_EFFICIENCY * gb_per_s * 1e6
    tflops = hardware.bf16_tflops if precision == "bf16" else hardware.fp32_tflops
    bounds = {
        "arithmetic": tower.flops / (MATMUL_EFFICIENCY * tflops * 1e9),
        "memory bandwidth": tower.moved_bytes / bytes_per_ms,
        "launches": tower.num_operators * LAUNCH_MS if on_gpu else 0.0,
    }
    bound = max(bounds, key=lambda name: bounds[name])
    return StepTime(
        lookup_ms=tables.forward_compute_ms + tables.backward_compute_ms + tables.prefetch_ms,
        exchange_ms=tables.forward_comms_ms + tables.backward_comms_ms,
        tower_ms=bounds[bound],
        all_reduce_ms=all_reduce_ms(cluster, dense.gradient_bytes),
        optimizer_ms=OPTIMIZER_PASSES * dense.parameter_bytes / bytes_per_ms,
        tower_bound=bound,
    )


def all_reduce_ms(cluster: Cluster, num_bytes: int) -> float:
    """A ring over all ranks, at the speed of its slowest link."""
    slowest = cluster.hardware.inter_node_gb_per_s if cluster.num_nodes > 1 else cluster.hardware.intra_node_gb_per_s
    return all_reduce_bytes(cluster.world_size, num_bytes) / (slowest * 1e6)


def all_reduce_bytes(world_size: int, num_bytes: int) -> float:
    """What each rank of a ring sends."""
    return 2 * (world_size - 1) / world_size * num_bytes


ID_BYTES = LENGTH_BYTES = 8
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes a step, all ranks together.

    Attributes:
        id_bytes: ids and how many of them each example has.
        embedding_bytes: forward.
        gradient_bytes: of embeddings, backward.
        dense_bytes: the all-reduce of the dense part, and of tables that every rank has.
    """

    id_bytes: float
    embedding_bytes: float
    gradient_bytes: float
    dense_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.id_bytes + self.embedding_bytes + self.gradient_bytes + self.dense_bytes

    def times(self, number: int) -> "Traffic":
        """So many groups of ranks that do the same."""
        return Traffic(*(number * getattr(self, f.name) for f in fields(self)))


def traffic_bytes(
    tables: Iterable[TablePlan],
    traffic: Mapping[str, TableTraffic],
    cluster: Cluster,
    *,
    local_batch_size: int,
    dense_gradient_bytes: int,
    value_bytes: float,
) -> Traffic:
    """Adds up a step.

    Args:
        tables: where they stand.
        traffic: how often each is read.
        cluster: all ranks.
        local_batch_size: B.
        dense_gradient_bytes: of the dense part.
        value_bytes: of a number of an embedding or its gradient as it travels.
    """
    world = cluster.world_size
    dense = world * all_reduce_bytes(world, dense_gradient_bytes)
    id_bytes = values = 0.0
    for table in tables:
        if table.sharding == "data_parallel":
            dense += world * all_reduce_bytes(world, FLOAT_BYTES * table.num_rows * table.width)
            continue
        lookups = traffic[table.name].mean_lookups
        id_bytes += _id_bytes(table, lookups, cluster, local_batch_size)
        values += _values(table, lookups, cluster, local_batch_size)
    return Traffic(id_bytes, values * value_bytes, values * value_bytes, dense)


def _id_bytes(table: TablePlan, lookups: tuple[float, ...], cluster: Cluster, local_batch_size: int) -> float:
    """Every rank asks each shard for the ids that are its own; a column shard is asked for all."""
    world = cluster.world_size
    ids, lengths = sum(lookups) * local_batch_size, len(lookups) * local_batch_size
    others = (world - 1) / world
    # Each of these sets of shards holds every row once.
    num_copies = len({shard.first_column for shard in table.shards})
    # Lengths go to every shard, whatever it holds.
    return world * others * (num_copies * ids * ID_BYTES + len(table.shards) * lengths * LENGTH_BYTES)


def _values(table: TablePlan, lookups: tuple[float, ...], cluster: Cluster, local_batch_size: int) -> float:
    """Numbers that come back in the forward pass; as many go in the backward pass."""
    world = cluster.world_size
    if table.collection == "events":
        # Each id has one row, wherever it is.
        return (world - 1) * sum(lookups) * local_batch_size * table.width
    # One pooled embedding a feature and example.
    pooled = len(lookups) * local_batch_size * table.width
    if table.sharding in ("table_wise", "column_wise", "table_column_wise"):
        return (world - 1) * pooled
    if table.sharding == "row_wise":
        # Every rank has a part of every sum.
        return world * (world - 1) * pooled
    # Sums are completed within a node, then sent to the nodes that asked.
    within = (cluster.ranks_per_node - 1) * world * pooled
    return within + world * pooled * (cluster.num_nodes - 1) / cluster.num_nodes
