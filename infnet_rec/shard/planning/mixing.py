"""Tables of one shape need not all do the same: some of them, cut finer, fill the gaps that the others leave.

Letters: R ranks, H nodes.
"""

import numpy as np
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.types import PartitionByType

from infnet_rec.shard.hardware import Cluster
from infnet_rec.shard.planning.menu import Candidate, Menu, Picks


def mixed(menu: Menu, cluster: Cluster, picks: Picks, target_ms: float) -> Picks:
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
