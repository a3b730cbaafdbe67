"""plan.json: a whole plan, what it was made for and what it was expected to cost.

What TorchRec gets is built from the file's content alone, in training as in tests: there is no plan beside it.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardMetadata
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import (
    CacheAlgorithm,
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)
from torchrec.modules.embedding_configs import DataType, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from infnet_rec.config.toml import StrictModel, read_json, validate_model
from infnet_rec.errors import UserError
from infnet_rec.files import write_text
from infnet_rec.planner.hardware import Cluster, Device
from infnet_rec.planner.plan import Planned, PlannedShard, RankLoad, TablePlan, critical_rank
from infnet_rec.planner.request import Collection, Kernel, Precision, Sharding

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
    device: Device
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


def fingerprint_differences(planned: Fingerprint, here: Fingerprint) -> list[str]:
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


FORMAT = 1
PRECISIONS: dict[DataType, Precision] = {DataType.FP32: "fp32", DataType.FP16: "fp16"}


class Cache(StrictModel):
    """The cache in HBM of a table that stands in host memory; None is fbgemm's own choice."""

    load_factor: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    algorithm: Literal["lru", "lfu"] | None = None
    precision: Precision | None = None
    prefetch_pipeline: bool | None = None
    reserved_memory: float | None = None


class PlannedTable(StrictModel):
    """One table: see `TablePlan`, which has its estimates in its shards.

    Attributes:
        output: precision of what is looked up; None is TorchRec's choice.
    """

    name: str
    collection: Collection
    num_rows: int
    width: int
    sharding: Sharding
    kernel: Kernel
    cache: Cache | None = None
    output: Precision | None = None
    shards: tuple[PlannedShard, ...]


class PlanFile(StrictModel):
    """Everything in a plan.json.

    Attributes:
        format: of the file.
        fingerprint: what it was made for.
        local_batch_size: examples a rank and step that memory and times were estimated for.
        tables: in the model's order.
        ranks: what all tables ask of each.
    """

    format: Literal[1] = FORMAT
    fingerprint: Fingerprint
    local_batch_size: int
    tables: tuple[PlannedTable, ...]
    ranks: tuple[RankLoad, ...]

    @property
    def critical(self) -> RankLoad:
        """The rank that the others wait for."""
        return critical_rank(self.ranks)

    def sharding_plan(self) -> ShardingPlan:
        """What `DistributedModelParallel` takes; with replica groups, the plan of one group."""
        modules: dict[str, EmbeddingModuleShardingPlan] = {}
        device, world = self.fingerprint.device, self.fingerprint.world
        # Of one group: `group_cluster` deals a node's ranks out to the groups.
        ranks_per_node = world.ranks_per_node // world.replica_groups
        for table in self.tables:
            module = modules.setdefault(table.collection, EmbeddingModuleShardingPlan())
            module[table.name] = _sharding(table, device, ranks_per_node)
        return ShardingPlan(dict(modules))

    def text(self) -> str:
        """The file: JSON with a line for every shard and rank, so that a line tool shows what moved."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        head = {"format": FORMAT, "local_batch_size": self.local_batch_size}
        lines = ["{", *(f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items())]
        prints = data["fingerprint"]
        lines += [' "fingerprint": {', '  "tables": [', *_each(prints.pop("tables"), "   "), "  ],"]
        lines += [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in prints.items()]
        lines[-1] = lines[-1].removesuffix(",")
        lines += [" },", ' "tables": [']
        for position, table in enumerate(data["tables"]):
            shards = table.pop("shards")
            lines += [f'  {json.dumps(table)[:-1]}, "shards": [', *_each(shards, "   ")]
            lines.append("  ]}" + "," * (position + 1 < len(data["tables"])))
        return "\n".join([*lines, " ],", ' "ranks": [', *_each(data["ranks"], "  "), " ]", "}"]) + "\n"


def plan_file(planned: Planned, fingerprint: Fingerprint, *, local_batch_size: int) -> PlanFile:
    """A plan as it is written; what is read back makes exactly TorchRec's plan.

    Args:
        planned: what the search found.
        fingerprint: of what it was searched for.
        local_batch_size: likewise.
    """
    tables = tuple(_table(table, planned.plan) for table in planned.tables)
    made = PlanFile(fingerprint=fingerprint, local_batch_size=local_batch_size, tables=tables, ranks=planned.ranks)
    assert made.sharding_plan() == planned.plan, "the file does not hold all of the plan"
    return made


def write_plan(path: Path, plan: PlanFile) -> None:
    """Writes it whole or not at all, in the place of what stood there.

    Raises:
        UserError: the folder is missing or may not be written.
    """
    write_text(path, plan.text())


def read_plan(path: Path) -> PlanFile:
    """Reads a plan.

    Raises:
        UserError: no such file, or not a plan of this format.
    """
    return validate_model(PlanFile, read_json(path), str(path))


def check_made_for(plan: PlanFile, here: Fingerprint, source: str) -> None:
    """Refuses a plan that was made for something else.

    Args:
        plan: as read.
        here: what it is to be applied to.
        source: where it is from, for the message.

    Raises:
        UserError: the fingerprints differ; names both and what differs.
    """
    found = fingerprint_differences(plan.fingerprint, here)
    if found:
        raise UserError(
            f"{source}: was made for something else (its fingerprint is {plan.fingerprint.short}, this run's "
            f"{here.short}): {'; '.join(found)}; plan again with `infnet-rec plan --out`, or train without a plan file"
        )


def _each(rows: list[Any], indent: str) -> list[str]:
    """Items of a JSON list, one a line."""
    return [f"{indent}{json.dumps(row)}" + "," * (k + 1 < len(rows)) for k, row in enumerate(rows)]


def _table(table: TablePlan, plan: ShardingPlan) -> PlannedTable:
    module = plan.plan[table.collection]
    assert isinstance(module, EmbeddingModuleShardingPlan)
    params, output = module[table.name].cache_params, module[table.name].output_dtype
    cache = None
    if params is not None:
        cache = Cache(
            load_factor=params.load_factor,
            algorithm=None
            if params.algorithm is None
            else ("lru" if params.algorithm == CacheAlgorithm.LRU else "lfu"),
            precision=None if params.precision is None else PRECISIONS[params.precision],
            prefetch_pipeline=params.prefetch_pipeline,
            reserved_memory=params.reserved_memory,
        )
    return PlannedTable(
        name=table.name,
        collection=table.collection,
        num_rows=table.num_rows,
        width=table.width,
        sharding=table.sharding,
        kernel=table.kernel,
        cache=cache,
        output=None if output is None else PRECISIONS[output],
        shards=table.shards,
    )


def _sharding(table: PlannedTable, device: str, ranks_per_node: int) -> ParameterSharding:
    spec = None
    if table.sharding != "data_parallel":
        spec = EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=[shard.first_row, shard.first_column],
                    shard_sizes=[shard.num_rows, shard.num_columns],
                    placement=placement(device, shard.rank, ranks_per_node),  # pyright: ignore[reportArgumentType]
                )
                for shard in table.shards
            ]
        )
    return ParameterSharding(
        sharding_type=table.sharding,
        compute_kernel=table.kernel,
        ranks=[shard.rank for shard in table.shards],
        sharding_spec=spec,
        cache_params=None if table.cache is None else _cache_params(table.cache),
        output_dtype=None if table.output is None else DataType[table.output.upper()],
    )


def _cache_params(cache: Cache) -> CacheParams:
    return CacheParams(
        algorithm=None if cache.algorithm is None else CacheAlgorithm[cache.algorithm.upper()],
        load_factor=cache.load_factor,
        reserved_memory=cache.reserved_memory,
        precision=None if cache.precision is None else DataType[cache.precision.upper()],
        prefetch_pipeline=cache.prefetch_pipeline,
    )
