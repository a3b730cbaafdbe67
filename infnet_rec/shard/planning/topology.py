"""A cluster in TorchRec's terms: bytes, bytes a millisecond, and everything for one rank."""

from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, Topology, TopologyFactory, TrainerConfig

from infnet_rec.shard.hardware import Cluster

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
