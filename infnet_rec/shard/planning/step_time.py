"""How long a step takes, by part: tables by TorchRec's estimates, the rest by a roofline.

The estimate of the rest rests on the assumptions below and on the peaks of the hardware; it is for comparing plans and
for orders of magnitude, not for promises.
"""

from dataclasses import dataclass

from infnet_rec.model.precision import Precision
from infnet_rec.shard.hardware import Cluster
from infnet_rec.shard.planning.dense import DenseMemory
from infnet_rec.shard.planning.planned import Times
from infnet_rec.shard.planning.tower_cost import TowerCost

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
