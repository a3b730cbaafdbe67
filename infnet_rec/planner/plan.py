"""A plan as numbers: what stands where, how many bytes it takes and how long it is expected to take."""

from collections.abc import Iterable
from dataclasses import dataclass

from torchrec.distributed.types import ShardingPlan

from infnet_rec.errors import Refusal
from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.request import Collection, Kernel, Sharding


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes in one kind of memory.

    Attributes:
        weight_bytes: of tables that live here.
        optimizer_bytes: their optimizer state.
        cache_bytes: in HBM, the cached rows of tables that live in host memory, their state and the cache's index.
        buffer_bytes: ids that wait for their step, as many batches as the pipeline holds.
    """

    weight_bytes: int = 0
    optimizer_bytes: int = 0
    cache_bytes: int = 0
    buffer_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.optimizer_bytes + self.cache_bytes + self.buffer_bytes


@dataclass(frozen=True, slots=True)
class Times:
    """Estimated milliseconds a step, by TorchRec's estimator, corrected where it is known to be wrong.

    It counts an exchange where there is one rank only, and shares the work of a table with few rows among ranks that
    get no row of it.

    `input_ms` (sending ids to where their rows are) overlaps with the step before and is in no total, as in TorchRec.
    """

    forward_compute_ms: float = 0.0
    forward_comms_ms: float = 0.0
    backward_compute_ms: float = 0.0
    backward_comms_ms: float = 0.0
    prefetch_ms: float = 0.0
    input_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return (
            self.forward_compute_ms
            + self.forward_comms_ms
            + self.backward_compute_ms
            + self.backward_comms_ms
            + self.prefetch_ms
        )


def sum_memory(parts: Iterable[RankMemory]) -> RankMemory:
    """Part by part."""
    listed = list(parts)
    return RankMemory(
        weight_bytes=sum(part.weight_bytes for part in listed),
        optimizer_bytes=sum(part.optimizer_bytes for part in listed),
        cache_bytes=sum(part.cache_bytes for part in listed),
        buffer_bytes=sum(part.buffer_bytes for part in listed),
    )


def sum_times(parts: Iterable[Times]) -> Times:
    """Part by part."""
    listed = list(parts)
    return Times(
        forward_compute_ms=sum(part.forward_compute_ms for part in listed),
        forward_comms_ms=sum(part.forward_comms_ms for part in listed),
        backward_compute_ms=sum(part.backward_compute_ms for part in listed),
        backward_comms_ms=sum(part.backward_comms_ms for part in listed),
        prefetch_ms=sum(part.prefetch_ms for part in listed),
        input_ms=sum(part.input_ms for part in listed),
    )


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Part of one table on one rank."""

    rank: int
    first_row: int
    first_column: int
    num_rows: int
    num_columns: int
    hbm: RankMemory
    host: RankMemory
    times: Times


@dataclass(frozen=True, slots=True)
class TablePlan:
    """Where one table stands.

    Attributes:
        name: of the table.
        collection: that holds it.
        num_rows: of the whole table.
        width: columns of the whole table.
        sharding: how it is cut.
        kernel: that looks it up.
        shards: its parts; a data-parallel table has a whole one on every rank.
    """

    name: str
    collection: Collection
    num_rows: int
    width: int
    sharding: Sharding
    kernel: Kernel
    shards: tuple[PlannedShard, ...]

    @property
    def hbm_bytes(self) -> int:
        """On all ranks together."""
        return sum(shard.hbm.total_bytes for shard in self.shards)

    @property
    def host_bytes(self) -> int:
        """On all ranks together."""
        return sum(shard.host.total_bytes for shard in self.shards)

    @property
    def max_ms(self) -> float:
        """The slowest shard's."""
        return max(shard.times.total_ms for shard in self.shards)


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What all tables together ask of one rank.

    Attributes:
        rank: whose.
        num_shards: parts of tables on it.
        hbm: of tables.
        host: of tables, in its share of the node's memory.
        times: summed over its shards.
        hbm_free_bytes: what tables and reservation leave.
        host_free_bytes: likewise.
    """

    rank: int
    num_shards: int
    hbm: RankMemory
    host: RankMemory
    times: Times
    hbm_free_bytes: int
    host_free_bytes: int


def critical_rank(ranks: Iterable[RankLoad]) -> RankLoad:
    """The slowest, which the others wait for; of several the first."""
    return max(ranks, key=lambda load: (load.times.total_ms, -load.rank))


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan that fits.

    Attributes:
        plan: what `DistributedModelParallel` takes.
        cluster: it was made for.
        tables: in the model's order, bags first.
        ranks: in order.
        num_tried: complete placements that were compared.
    """

    plan: ShardingPlan
    cluster: Cluster
    tables: tuple[TablePlan, ...]
    ranks: tuple[RankLoad, ...]
    num_tried: int

    @property
    def critical(self) -> RankLoad:
        """The rank that the others wait for."""
        return critical_rank(self.ranks)

    @property
    def critical_ms(self) -> float:
        """Estimated milliseconds of the tables' part of a step."""
        return self.critical.times.total_ms

    @property
    def imbalance(self) -> float:
        """The critical rank's time over the mean of all ranks; 1 is perfectly even."""
        mean_ms = sum(load.times.total_ms for load in self.ranks) / len(self.ranks)
        return self.critical_ms / mean_ms if mean_ms else 1.0


class DoesNotFit(Refusal):
    """No placement within the memory was found.

    Attributes:
        missing_hbm_gib: by rank that lacks some; where a single table is too large for any rank, what it lacks there.
        missing_host_gib: likewise, in the rank's share of host memory.
        blame: tables that take most of what lacks, largest first.
    """

    def __init__(
        self,
        message: str,
        *,
        missing_hbm_gib: dict[int, float],
        missing_host_gib: dict[int, float],
        blame: tuple[str, ...],
    ) -> None:
        super().__init__(message)
        self.missing_hbm_gib = missing_hbm_gib
        self.missing_host_gib = missing_host_gib
        self.blame = blame
