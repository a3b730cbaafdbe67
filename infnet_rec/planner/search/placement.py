"""Shards to ranks, by TorchRec's greedy partitioner; and by memory alone, where that finds no room."""

from dataclasses import dataclass

from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner, SortBy
from torchrec.distributed.planner.perf_models import NoopPerfModel
from torchrec.distributed.planner.types import PartitionByType, PlannerError, Shard, ShardingOption

from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.search.candidates import ShardingChoice, layout
from infnet_rec.planner.search.choice import Candidate, CandidateSet, Picks
from infnet_rec.planner.search.problem import PlanningProblem

# Combinations to place in a stage of the search: fewer where there is more to place.
MOST_PLACED, LEAST_PLACED, SHARDS_PLACED = 24, 4, 1_500_000


@dataclass(frozen=True, slots=True)
class Placement:
    """A combination with a rank for each shard of each table, and the slowest rank's milliseconds."""

    picks: Picks
    ranks: list[list[int]]
    ms: float


class Partitioner:
    """Places combinations; shards are listed when a combination first needs them."""

    def __init__(self, question: PlanningProblem, menu: CandidateSet) -> None:
        self._question = question
        self._menu = menu
        self._rate = NoopPerfModel(question.topology)
        self._options: dict[tuple[int, ShardingChoice], ShardingOption] = {}

    @property
    def cluster(self) -> Cluster:
        return self._question.cluster

    def options(self, picks: Picks) -> list[ShardingOption]:
        """One option a table, its shards estimated and not placed."""
        return [self._option(n, self._menu.candidates[n][pick]) for n, pick in enumerate(picks)]

    def placed(self, picks: Picks, ranks: list[list[int]]) -> list[ShardingOption]:
        """The options of a placement, with its ranks."""
        options = self.options(picks)
        for option, row in zip(options, ranks, strict=True):
            for shard, rank in zip(option.shards, row, strict=True):
                shard.rank = rank
        return options

    def budget(self, picks: Picks) -> int:
        """How many combinations like this one may be placed."""
        num_shards = sum(self._menu.candidates[n][pick].num_shards for n, pick in enumerate(picks))
        world_size = self.cluster.world_size
        return min(MOST_PLACED, max(LEAST_PLACED, SHARDS_PLACED // (num_shards + world_size)))

    def missing_bytes(self, placed: Placement) -> int:
        """Overrun of the fullest rank; 0 where everything fits."""
        room, world_size = self._question.room, self.cluster.world_size
        hbm, host = [0] * world_size, [0] * world_size
        for option in self.placed(placed.picks, placed.ranks):
            for shard in option.shards:
                assert shard.rank is not None
                assert shard.storage is not None
                hbm[shard.rank] += shard.storage.hbm
                host[shard.rank] += shard.storage.ddr
        return max(0, max(hbm) - room.hbm, max(host) - room.ddr)

    def by_time(self, picks: Picks) -> Placement | None:
        """By TorchRec's partitioner; None where it finds no room."""
        for order in (SortBy.PERF, SortBy.STORAGE):
            options = self.options(picks)
            try:
                placed = GreedyPerfPartitioner(order).partition(options, self._question.topology)
            except PlannerError:
                continue
            return Placement(picks, [_ranks(option) for option in placed], self._rate.rate(placed))
        return None

    def by_memory(self, picks: Picks) -> Placement:
        """Fills the emptiest rank, largest shards first, and minds no limit."""
        options = self.options(picks)
        used = [0] * self._question.topology.world_size
        order = sorted(options, key=lambda option: (-_first_bytes(option), option.name))
        for option in [o for o in order if _uniform(o)] + [o for o in order if not _uniform(o)]:
            if _uniform(option):
                for rank, shard in enumerate(option.shards):
                    _put(shard, rank, used)
            elif option.partition_by == PartitionByType.DEVICE.value:
                for shard in option.shards:
                    _put(shard, _emptiest(used), used)
            else:
                self._put_on_nodes(option, used)
        return Placement(picks, [_ranks(option) for option in options], self._rate.rate(options))

    def _put_on_nodes(self, option: ShardingOption, used: list[int]) -> None:
        """Row-wise within a node: a shard a rank. By columns within a node: wherever there is room on it."""
        size = self.cluster.ranks_per_node
        in_order = option.partition_by == PartitionByType.MULTI_HOST.value or option.sharding_type == "table_row_wise"
        step = size if in_order else len(option.shards)
        for start in range(0, len(option.shards), step):
            nodes = [sum(used[node * size : (node + 1) * size]) for node in range(self.cluster.num_nodes)]
            first = _emptiest(nodes) * size
            for i, shard in enumerate(option.shards[start : start + step]):
                rank = first + i if in_order else first + _emptiest(used[first : first + size])
                _put(shard, rank, used)

    def _option(self, n: int, candidate: Candidate) -> ShardingOption:
        key = n, candidate.choice
        if key not in self._options:
            table, choice = self._question.tables[n], candidate.choice
            sizes, offsets = layout(table, choice, self._question.cluster)
            distinct = {(rows, columns) for rows, columns in sizes}
            self._question.estimates.learn((table, choice, size) for size in sorted(distinct))
            known = {size: self._question.estimates.of(table, choice, size) for size in distinct}
            # Shards of one size share what is known of them: nothing changes it.
            storage = {size: estimate.storage for size, estimate in known.items()}
            perf = {size: estimate.perf for size, estimate in known.items()}
            self._options[key] = self._question.estimates.option(
                table,
                choice,
                [
                    Shard(size=size, offset=offset, storage=storage[size[0], size[1]], perf=perf[size[0], size[1]])
                    for size, offset in zip(sizes, offsets, strict=True)
                ],
            )
        option = self._options[key]
        for shard in option.shards:
            shard.rank = None
        return option


def _uniform(option: ShardingOption) -> bool:
    return option.partition_by == PartitionByType.UNIFORM.value


def _first_bytes(option: ShardingOption) -> int:
    return _bytes(option.shards[0])


def _bytes(shard: Shard) -> int:
    assert shard.storage is not None
    return shard.storage.hbm + shard.storage.ddr


def _emptiest(used: list[int]) -> int:
    return min(range(len(used)), key=lambda i: (used[i], i))


def _put(shard: Shard, rank: int, used: list[int]) -> None:
    shard.rank = rank
    used[rank] += _bytes(shard)


def _ranks(option: ShardingOption) -> list[int]:
    ranks = []
    for shard in option.shards:
        assert shard.rank is not None
        ranks.append(shard.rank)
    return ranks
