"""Bytes that ranks send one another in a step, all ranks together, by what they are.

W ranks, B examples a rank. An id goes to where its row is, its embedding comes back in the forward pass and the
gradient goes there again in the backward pass. What stays on its rank is not counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from infnet_rec.shard.hardware import Cluster
from infnet_rec.shard.planning.demand import TableTraffic
from infnet_rec.shard.planning.planned import TablePlan
from infnet_rec.shard.planning.step_time import all_reduce_bytes

ID_BYTES = LENGTH_BYTES = 8
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sent:
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

    def times(self, number: int) -> "Sent":
        """So many groups of ranks that do the same."""
        return Sent(*(number * getattr(self, f.name) for f in fields(self)))


def sent_bytes(
    tables: Iterable[TablePlan],
    traffic: Mapping[str, TableTraffic],
    cluster: Cluster,
    *,
    local_batch_size: int,
    dense_gradient_bytes: int,
    value_bytes: float,
) -> Sent:
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
    return Sent(id_bytes, values * value_bytes, values * value_bytes, dense)


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
