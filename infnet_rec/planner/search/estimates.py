"""TorchRec's estimates of shards: each distinct one asked for once."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchrec.optim
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    Perf,
    Shard,
    ShardingOption,
    Storage,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import CacheAlgorithm, CacheParams, CacheStatistics, PipelineType
from torchrec.modules.embedding_configs import DataType

from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.plan import RankMemory, Times
from infnet_rec.planner.request import Workload
from infnet_rec.planner.search.candidates import ShardingChoice, crowding
from infnet_rec.planner.tables import DTYPES, ModelTable

Size = tuple[int, int]  # rows, columns
PIPELINES = {
    "sparse_dist": PipelineType.TRAIN_SPARSE_DIST,
    "prefetch_sparse_dist": PipelineType.TRAIN_PREFETCH_SPARSE_DIST,
}
CACHE_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
# FBGEMM keeps optimizer state in fp32, whatever the precision of the weights.
STATE_BYTES = 4
# What FBGEMM's cache keeps beside rows: an entry a row of the table, and two a row of the cache.
INDEX_BYTES_PER_ROW, STATE_BYTES_PER_SLOT = 4, 16
# A managed row's id, its place, how often and when it was seen; "lfu" and "lru" keep one of the last two.
MANAGED_BYTES_PER_ROW = 32


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one shard takes."""

    hbm: RankMemory
    host: RankMemory
    times: Times

    @property
    def storage(self) -> Storage:
        return Storage(hbm=self.hbm.total_bytes, ddr=self.host.total_bytes)

    @property
    def perf(self) -> Perf:
        t = self.times
        return Perf(
            fwd_compute=t.forward_compute_ms,
            fwd_comms=t.forward_comms_ms,
            bwd_compute=t.backward_compute_ms,
            bwd_comms=t.backward_comms_ms,
            input_dist_comms=t.input_ms,
            prefetch_compute=t.prefetch_ms,
        )


class EvenReads(CacheStatistics):
    """A cache whose rows are read equally often, the worst that can happen to it."""

    def __init__(self, distinct_ids: float) -> None:
        self._distinct_ids = distinct_ids

    @property
    def expected_lookups(self) -> float:
        return self._distinct_ids

    def expected_miss_rate(self, clf: float) -> float:
        return 1.0 - clf

    @property
    def cacheability(self) -> float:
        return 0.5


class Estimates:
    """Remembers what was estimated; tables of one shape and traffic share it."""

    def __init__(self, cluster: Cluster, topology: Topology, workload: Workload, sharders: dict[str, Any]) -> None:
        self._cluster = cluster
        self._topology = topology
        self._workload = workload
        self._sharders = sharders
        self._times = EmbeddingPerfEstimator(topology=topology)
        self._storage = EmbeddingStorageEstimator(topology=topology, pipeline_type=PIPELINES[workload.pipeline])
        self._known: dict[Any, Estimate] = {}

    def learn(self, wanted: Iterable[tuple[ModelTable, ShardingChoice, Size]]) -> None:
        """Estimates what is not known yet, in one go."""
        new: dict[Any, tuple[ModelTable, ShardingChoice, Size]] = {}
        for table, choice, size in wanted:
            key = self._key(table, choice, size)
            if key not in self._known:
                new.setdefault(key, (table, choice, size))
        asked = [(key, *what, self._option(*what)) for key, what in new.items()]
        options = [option for *_, option in asked]
        for _, table, _, _, option in asked:
            option.input_lengths = list(table.traffic.mean_lookups)
        self._times.estimate(options, self._sharders)
        for _, table, _, _, option in asked:
            option.input_lengths = list(table.traffic.p95_lookups)
        self._storage.estimate(options, self._sharders)
        for key, table, choice, size, option in asked:
            self._known[key] = self._read(table, choice, size, option.shards[0])

    def of(self, table: ModelTable, choice: ShardingChoice, size: Size) -> Estimate:
        """What `learn` found."""
        return self._known[self._key(table, choice, size)]

    def option(self, table: ModelTable, choice: ShardingChoice, shards: list[Shard]) -> ShardingOption:
        """The choice in TorchRec's terms."""
        control = table.control
        cache = None
        if choice.kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value:
            cache = CacheParams(
                algorithm=CacheAlgorithm.LRU,
                load_factor=control.cache_load_factor or UVM_CACHING_RATIO,
                precision=CACHE_TYPES[control.cache_precision] if control.cache_precision else None,
            )
        return ShardingOption(
            name=table.name,
            tensor=table.weight,
            module=(table.path, table.module),
            input_lengths=list(table.traffic.mean_lookups),
            batch_size=self._workload.local_batch_size,
            sharding_type=choice.sharding,
            partition_by=get_partition_by_type(choice.sharding),
            compute_kernel=choice.kernel,
            shards=shards,
            cache_params=cache,
            is_pooled=table.collection != "events",
            output_dtype=DataType.FP32,
        )

    def _option(self, table: ModelTable, choice: ShardingChoice, size: Size) -> ShardingOption:
        """One shard of the choice, for the estimators only."""
        option = self.option(table, choice, [Shard(size=list(size), offset=[0, 0])])
        if option.cache_params and self._workload.pipeline == "prefetch_sparse_dist":
            # Then the look-up itself runs at the speed of HBM, and what misses is fetched before, which takes its time.
            ids = sum(table.traffic.mean_lookups) * self._workload.local_batch_size * self._topology.world_size
            stats = EvenReads(min(ids * table.traffic.distinct_fraction, table.num_rows))
            option.cache_params = replace(option.cache_params, prefetch_pipeline=True, stats=stats)
        return option

    def _key(self, table: ModelTable, choice: ShardingChoice, size: Size) -> Any:
        traffic, control = table.traffic, table.control
        return (
            table.collection,
            table.path,
            tuple(table.weight.shape),
            table.weight.dtype,
            table.optimizer,
            traffic.mean_lookups,
            traffic.p95_lookups,
            traffic.distinct_fraction,
            control.cache_load_factor,
            control.cache_precision,
            choice,
            size,
        )

    def _read(self, table: ModelTable, choice: ShardingChoice, size: Size, shard: Shard) -> Estimate:
        storage, perf = shard.storage, shard.perf
        assert storage is not None
        assert perf is not None
        work = crowding(table, choice, self._cluster)
        # Bags are exchanged whole whatever rows they came from, rows of sequences are not; one rank exchanges nothing.
        sent = work if table.collection == "events" else 1.0
        sent = sent if self._cluster.world_size > 1 else 0.0
        times = Times(
            forward_compute_ms=perf.fwd_compute * work,
            forward_comms_ms=perf.fwd_comms * sent,
            backward_compute_ms=perf.bwd_compute * work,
            backward_comms_ms=perf.bwd_comms * sent,
            prefetch_ms=perf.prefetch_compute * work,
            input_ms=perf.input_dist_comms * work if self._cluster.world_size > 1 else 0.0,
        )
        weight_bytes = size[0] * size[1] * table.weight.element_size()
        tables = RankMemory(weight_bytes=weight_bytes, optimizer_bytes=optimizer_bytes(table, choice, size))
        if self._topology.compute_device == "cpu":
            host = replace(tables, buffer_bytes=max(0, storage.ddr - weight_bytes) + beside_bytes(table, choice, size))
            return Estimate(RankMemory(), host, times)
        if choice.kernel in ("fused", "dense"):
            hbm = replace(tables, buffer_bytes=max(0, storage.hbm - weight_bytes) + beside_bytes(table, choice, size))
            return Estimate(hbm, RankMemory(), times)
        assumed, really = cache_bytes(table, choice, size)
        hbm = RankMemory(cache_bytes=really, buffer_bytes=max(0, storage.hbm - assumed))
        return Estimate(hbm, tables, times)


def optimizer_bytes(table: ModelTable, choice: ShardingChoice, size: Size) -> int:
    """State of a fused optimizer for a shard of `size`.

    Ours and not TorchRec's, which takes a share of the weights' bytes: with a row-wise optimizer that is too little for
    fp16 tables and for column shards, each of which has a value a row of its own. A data-parallel table has the same
    optimizer, but not fused (see `Optimizers`); that one also counts its steps.
    """
    rows, columns = size
    match table.optimizer:
        case None | torch.optim.SGD | torchrec.optim.SGD:
            values = 0
        case torchrec.optim.RowWiseAdagrad:
            values = rows
        case torch.optim.Adam | torchrec.optim.Adam:
            values = 2 * rows * columns
        case _:
            values = rows * columns
    steps = 1 if choice.sharding == "data_parallel" and values else 0
    return (values + steps) * STATE_BYTES


def beside_bytes(table: ModelTable, choice: ShardingChoice, size: Size) -> int:
    """What TorchRec does not count: a copied table's gradient, which is DDP's bucket, and whose a managed row is."""
    if table.managed:
        return size[0] * MANAGED_BYTES_PER_ROW
    return table.num_bytes if choice.sharding == "data_parallel" else 0


def cache_bytes(table: ModelTable, choice: ShardingChoice, size: Size) -> tuple[int, int]:
    """HBM of the cache of a shard, as TorchRec's estimator counts it and with the cache's own precision."""
    if choice.kernel != "fused_uvm_caching":
        return 0, 0
    rows, columns = size
    factor = table.control.cache_load_factor or UVM_CACHING_RATIO
    weights = math.ceil(round(table.num_bytes * factor) * rows * columns / table.weight.numel())
    index = math.ceil(rows * (INDEX_BYTES_PER_ROW + factor * STATE_BYTES_PER_SLOT))
    precision = table.control.cache_precision
    scale = DTYPES[precision].itemsize / table.weight.element_size() if precision else 1.0
    return weights + index, math.ceil(weights * scale) + index


# 1 GB/s is 10^9 bytes in 10^3 milliseconds.
BYTES_PER_MS = 1e6


def to_topology(cluster: Cluster, *, reserved_hbm_bytes: int = 0, reserved_host_bytes: int = 0) -> Topology:
    """What TorchRec's estimators and partitioners take.

    Args:
        cluster: to describe.
        reserved_hbm_bytes: of every rank, not for tables.
        reserved_host_bytes: of every rank's share of host memory, not for tables.
    """
    hardware = cluster.hardware
    on_gpu = hardware.device == "cuda"
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=cluster.world_size, local_world_size=cluster.ranks_per_node),
        HardwareConfig(
            hbm_cap_bytes=max(0, cluster.hbm_bytes - reserved_hbm_bytes) if on_gpu else None,
            ddr_cap_bytes=max(0, cluster.host_memory_bytes - reserved_host_bytes),
            hbm_mem_bw=hardware.hbm_gb_per_s * BYTES_PER_MS if on_gpu else None,
            ddr_mem_bw=hardware.host_memory_gb_per_s * BYTES_PER_MS / cluster.ranks_per_node,
            hbm_to_ddr_mem_bw=hardware.pcie_gb_per_s * BYTES_PER_MS if on_gpu else None,
            intra_host_bw=hardware.intra_node_gb_per_s * BYTES_PER_MS,
            inter_host_bw=hardware.inter_node_gb_per_s * BYTES_PER_MS,
        ),
        # Without this flag TorchRec ignores every bandwidth above.
        KernelConfig(compute_device=hardware.device, use_hardware_based_bandwidth=True),
    )
