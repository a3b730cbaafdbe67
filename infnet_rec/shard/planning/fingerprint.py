"""What a plan was made for, so that it is applied to nothing else."""

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Literal, cast

from pydantic import Field
from torch import nn
from torchrec.modules.embedding_configs import DataType, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from infnet_rec.shard.hardware import Cluster
from infnet_rec.shard.planning.demand import Collection, Precision
from infnet_rec.strict import StrictModel

# The CUDA and the CPU build of fbgemm are one version of one library.
FBGEMM = ("fbgemm-gpu", "fbgemm-gpu-cpu")
MAX_DIFFERENCES = 5
Count = Annotated[int, Field(ge=1)]
Pooling = Literal["sum", "mean", "none"]
POOLING: dict[PoolingType, Pooling] = {PoolingType.SUM: "sum", PoolingType.MEAN: "mean", PoolingType.NONE: "none"}


class TablePrint(StrictModel):
    """A table, as far as a plan depends on it; `pooling` is "none" where every id keeps its own embedding."""

    name: str
    collection: Collection
    num_rows: Count
    width: Count
    precision: Precision
    pooling: Pooling


class WorldPrint(StrictModel):
    """The ranks; each of `replica_groups` groups holds all tables, and a plan is that of one group."""

    num_nodes: Count
    ranks_per_node: Count
    replica_groups: Count = 1

    @property
    def group_size(self) -> int:
        """Ranks that share one copy of the tables."""
        return self.num_nodes * self.ranks_per_node // self.replica_groups


class Fingerprint(StrictModel):
    """Everything that must be the same where a plan is applied.

    Attributes:
        tables: in the model's order.
        world: nodes and ranks.
        hardware: its name.
        device: what computes there.
        versions: of the libraries whose kernels and types the plan names.
    """

    tables: tuple[TablePrint, ...]
    world: WorldPrint
    hardware: str
    device: Literal["cuda", "cpu"]
    versions: dict[str, str]

    @property
    def short(self) -> str:
        """Twelve characters that stand for all of it."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def fingerprint_of(model: nn.Module, cluster: Cluster, *, replica_groups: int = 1) -> Fingerprint:
    """What a plan for this model on this cluster is made for.

    Args:
        model: on any device; its direct children that are embedding collections count.
        cluster: all ranks, of every replica group.
        replica_groups: see `WorldPrint`.
    """
    return Fingerprint(
        tables=tuple(_tables(model)),
        world=WorldPrint(
            num_nodes=cluster.num_nodes, ranks_per_node=cluster.ranks_per_node, replica_groups=replica_groups
        ),
        hardware=cluster.hardware.name,
        device=cluster.hardware.device,
        versions={"torchrec": _version("torchrec"), "fbgemm": _version(*FBGEMM)},
    )


def differences(planned: Fingerprint, here: Fingerprint) -> list[str]:
    """What a plan was made for and is not here, a phrase each; empty when they agree."""
    found = list(_table_differences(planned, here))
    if len(found) > MAX_DIFFERENCES:
        found = [*found[:MAX_DIFFERENCES], f"and {len(found) - MAX_DIFFERENCES} more tables"]
    if planned.world != here.world:
        found.append(f"it is for {_world(planned.world)}, here are {_world(here.world)}")
    if (planned.hardware, planned.device) != (here.hardware, here.device):
        found.append(f"it is for {planned.hardware} ({planned.device}), this is {here.hardware} ({here.device})")
    for package in sorted(planned.versions.keys() | here.versions.keys()):
        theirs, ours = planned.versions.get(package, "nothing"), here.versions.get(package, "nothing")
        if theirs != ours:
            found.append(f"it was made with {package} {theirs}, here is {ours}")
    return found


def _table_differences(planned: Fingerprint, here: Fingerprint) -> Iterator[str]:
    theirs, ours = ({table.name: table for table in prints.tables} for prints in (planned, here))
    for name in sorted(theirs.keys() - ours.keys()):
        yield f"it has table {name}, which this run has not"
    for name in sorted(ours.keys() - theirs.keys()):
        yield f"it lacks table {name}"
    for name in sorted(theirs.keys() & ours.keys()):
        for key in TablePrint.model_fields:
            old, new = getattr(theirs[name], key), getattr(ours[name], key)
            if old != new:
                yield f"table {name} had {key} {old}, here {new}"


def _world(world: WorldPrint) -> str:
    groups = f" in {world.replica_groups} replica groups" if world.replica_groups > 1 else ""
    return f"{world.num_nodes} x {world.ranks_per_node} ranks{groups}"


def _tables(model: nn.Module) -> Iterator[TablePrint]:
    for collection, module in model.named_children():
        if isinstance(module, EmbeddingBagCollection):
            configs = [(config, config.pooling) for config in module.embedding_bag_configs()]
        elif isinstance(module, ManagedCollisionEmbeddingBagCollection):
            configs = [(config, config.pooling) for config in module._embedding_bag_collection.embedding_bag_configs()]
        elif isinstance(module, EmbeddingCollection):
            configs = [(config, PoolingType.NONE) for config in module.embedding_configs()]
        else:
            continue
        for config, pooling in configs:
            yield TablePrint(
                name=config.name,
                collection=cast(Collection, collection),
                num_rows=config.num_embeddings,
                width=config.embedding_dim,
                precision="fp16" if config.data_type == DataType.FP16 else "fp32",
                pooling=POOLING[pooling],
            )


def _version(*packages: str) -> str:
    """The first of them that is installed, without what a build appends."""
    for package in packages:
        try:
            return metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return "none"
