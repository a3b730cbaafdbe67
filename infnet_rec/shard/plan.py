"""From one rank's plan to every rank's: what the planner and the sharded model must agree on."""

from typing import Any, Literal

import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder

from infnet_rec.faults import Fault
from infnet_rec.shard.hardware import Cluster, Hardware
from infnet_rec.shard.world import World

Communication = Literal["fp32", "fp16", "bf16"]
CPU = torch.device("cpu")


def make_sharders(communication: Communication = "fp32", device: torch.device = CPU) -> list[ModuleSharder[Any]]:
    """How each kind of collection is sharded.

    Args:
        communication: precision in which embeddings and their gradients travel between ranks. TorchRec takes fp16 for
            bf16 on a CPU, so ask for what you mean.
        device: of the ranks.
    """
    kind = CommType(communication)
    codecs = get_qcomm_codecs_registry(QCommsConfig(forward_precision=kind, backward_precision=kind), device=device)
    return [
        EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        ManagedCollisionEmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
    ]


def cluster_of(hardware: Hardware, world: World) -> Cluster:
    """The ranks of this run on such nodes.

    Raises:
        Fault: the ranks are not spread evenly over the nodes.
    """
    if world.world_size % world.local_world_size:
        raise Fault(
            f"{world.world_size} ranks with {world.local_world_size} on this machine: plans need as many on every "
            "machine; start them evenly"
        )
    return Cluster(hardware, world.world_size // world.local_world_size, world.local_world_size)


def group_cluster(cluster: Cluster, replica_groups: int) -> Cluster:
    """What one replica group has: TorchRec deals the ranks of every node out to the groups in turn.

    Raises:
        Fault: the groups do not divide the ranks of a node.
    """
    if replica_groups == 1:
        return cluster
    if cluster.ranks_per_node % replica_groups:
        raise Fault(
            f"sharding.replica_groups = {replica_groups}: must divide the {cluster.ranks_per_node} ranks of a node, "
            "which are dealt out to the groups in turn"
        )
    hardware = cluster.hardware
    share = {key: getattr(hardware, key) / replica_groups for key in ("host_memory_gib", "host_memory_gb_per_s")}
    ranks_per_node = cluster.ranks_per_node // replica_groups
    return Cluster(hardware.model_copy(update=share), cluster.num_nodes, ranks_per_node)
