"""Which table lives where.

One or two candidates a table, chosen by a policy on its size, keep TorchRec's planner fast: almost all of its time goes
into enumerating shardings that nobody wants.
"""

from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType

from infnet_rec.model.ranking import RankingModel
from infnet_rec.shard.world import World


def make_sharders() -> list[ModuleSharder[Any]]:
    """How each kind of collection is sharded."""
    return [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]


def make_plan(model: RankingModel, world: World, *, local_batch_size: int, row_wise_min_rows: int) -> ShardingPlan:
    """Plans on every rank and takes rank 0's answer.

    Args:
        model: on the meta device, with its fused optimizers attached so that their state is counted.
        world: all ranks.
        local_batch_size: examples a rank and step.
        row_wise_min_rows: tables of at least so many rows are spread over all ranks by row, smaller ones live whole on
            one rank. On CPU TorchRec shards bags by table only.
    """
    on_cpu = world.device.type == "cpu"
    constraints = {}
    for collection, configs in (
        ("bags", model.bags.embedding_bag_configs()),
        ("events", model.events.embedding_configs()),
    ):
        for config in configs:
            spread = config.num_embeddings >= row_wise_min_rows and not (on_cpu and collection == "bags")
            kind = ShardingType.ROW_WISE if spread else ShardingType.TABLE_WISE
            constraints[config.name] = ParameterConstraints(
                sharding_types=[kind.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
            )
    # Unless told, TorchRec takes a GPU for one of 32 GB.
    hbm = None if on_cpu else torch.cuda.get_device_properties(world.device).total_memory
    topology = Topology(
        world_size=world.world_size,
        local_world_size=world.local_world_size,
        compute_device=world.device.type,
        hbm_cap=hbm,
    )
    planner = EmbeddingShardingPlanner(topology=topology, batch_size=local_batch_size, constraints=constraints)
    assert dist.group.WORLD is not None
    return planner.collective_plan(model, make_sharders(), dist.group.WORLD)
