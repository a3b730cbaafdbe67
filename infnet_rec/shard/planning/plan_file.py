"""plan.json: a whole plan, what it was made for and what it was expected to cost.

What TorchRec gets is built from the file's content alone, in training as in tests: there is no plan beside it.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
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
from torchrec.modules.embedding_configs import DataType

from infnet_rec.faults import Fault
from infnet_rec.files import write_text
from infnet_rec.shard.planning.demand import Collection, Kernel, Precision, Sharding
from infnet_rec.shard.planning.fingerprint import Fingerprint, differences
from infnet_rec.shard.planning.planned import Planned, RankLoad, TablePlan, TableShard
from infnet_rec.strict import StrictModel, check, read_json

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
    shards: tuple[TableShard, ...]


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
        Fault: the folder is missing or may not be written.
    """
    write_text(path, plan.text())


def read_plan(path: Path) -> PlanFile:
    """Reads a plan.

    Raises:
        Fault: no such file, or not a plan of this format.
    """
    return check(PlanFile, read_json(path), str(path))


def check_made_for(plan: PlanFile, here: Fingerprint, source: str) -> None:
    """Refuses a plan that was made for something else.

    Args:
        plan: as read.
        here: what it is to be applied to.
        source: where it is from, for the message.

    Raises:
        Fault: the fingerprints differ; names both and what differs.
    """
    found = differences(plan.fingerprint, here)
    if found:
        raise Fault(
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
