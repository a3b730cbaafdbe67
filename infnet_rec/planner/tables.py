"""The tables of a model, as the planner sees them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.planner.utils import sharder_name
from torchrec.distributed.types import ModuleSharder
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import BaseManagedCollisionEmbeddingCollection

from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.models.dynamic_tables import make_managed
from infnet_rec.models.embeddings import TokenAssembly, make_bags, make_events
from infnet_rec.models.ranking_model import MultiTaskLoss, RankingModel
from infnet_rec.models.registry import make_tower, table_width
from infnet_rec.planner.request import FREE, Collection, Controls, Precision, TableControl, TableTraffic
from infnet_rec.planner.table_rules import precisions_of

DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class ModelTable:
    """One table of the model.

    Attributes:
        name: unique in the model.
        collection: what kind of module holds it.
        path: of that module.
        module: that module.
        weight: on the meta device, in the precision to plan for, without its optimizer (see `Estimates`).
        optimizer: fused into its backward pass; None where none is attached.
        averages: whether a bag's rows are averaged, not summed.
        managed: whether its rows are given to ids as they come.
        traffic: how it is read.
        control: what it may do.
    """

    name: str
    collection: Collection
    path: str
    module: nn.Module
    weight: Tensor
    optimizer: type[torch.optim.Optimizer] | None
    averages: bool
    managed: bool
    traffic: TableTraffic
    control: TableControl

    @property
    def num_rows(self) -> int:
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()


def plain_sharders() -> list[ModuleSharder[Any]]:
    """Enough to plan all collections."""
    return [
        EmbeddingBagCollectionSharder(),
        EmbeddingCollectionSharder(),
        ManagedCollisionEmbeddingBagCollectionSharder(),
    ]


def read_tables(
    model: nn.Module,
    traffic: Mapping[str, TableTraffic],
    controls: Controls,
    sharders: Iterable[ModuleSharder[Any]],
) -> tuple[ModelTable, ...]:
    """All tables that the sharders will shard, bags first.

    Args:
        model: any module that holds embedding collections.
        traffic: how often each table is read, by name.
        controls: what tables may do, by name.
        sharders: of the collections that count.

    Raises:
        UserError: a control or a table's traffic has no counterpart; two tables share a name.
    """
    by_type = {sharder_name(sharder.module_type): sharder for sharder in sharders}
    tables: dict[str, ModelTable] = {}
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop(0)
        sharder = by_type.get(sharder_name(type(module)))
        if sharder is None:
            waiting += [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            continue
        for name, weight in sharder.shardable_parameters(module).items():
            if name in tables:
                raise UserError(
                    f"table {name!r} stands in two collections; TorchRec plans by name, so names must be unique"
                )
            if name not in traffic:
                raise UserError(f"table {name!r}: nothing says how often it is read; give its traffic")
            tables[name] = _table(name, path, module, weight, traffic[name], controls.get(name, FREE))
    for name in controls:
        if name not in tables:
            raise UserError(f"table {name!r}: is not in the model{did_you_mean(name, tables)}; it has {_some(tables)}")
    return tuple(sorted(tables.values(), key=lambda table: table.collection))


def _table(
    name: str, path: str, module: nn.Module, weight: Tensor, traffic: TableTraffic, control: TableControl
) -> ModelTable:
    managed = isinstance(module, BaseManagedCollisionEmbeddingCollection)
    plain: Collection = "bags" if isinstance(module, EmbeddingBagCollection) else "events"
    configs = module.embedding_bag_configs() if isinstance(module, EmbeddingBagCollection) else []
    precision = control.precision
    dtype = DTYPES[precision] if precision else weight.dtype
    return ModelTable(
        name=name,
        collection="managed" if managed else plain,
        path=path,
        module=module,
        weight=torch.empty(tuple(weight.shape), dtype=dtype, device="meta"),
        optimizer=getattr(weight, "_optimizer_classes", [None])[0],
        averages=any(config.name == name and config.pooling is PoolingType.MEAN for config in configs),
        managed=managed,
        traffic=traffic,
        control=control,
    )


def _some(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def meta_model(config: RunConfig, data: RunData) -> RankingModel:
    """The whole model on the meta device: nothing is allocated."""
    schema, width = data.schema, table_width(config, data.schema)
    with torch.device("meta"):
        tower = make_tower(config, schema)
        criterion = MultiTaskLoss(config.train.loss, data.task_names)
    half = [name for name, precision in precisions_of(config, schema).items() if precision == "fp16"]
    bags, events = make_bags(schema, width, half), make_events(schema, width, half)
    managed = make_managed(schema, width, config.model.table_std)
    return RankingModel(bags, events, TokenAssembly(schema, width), tower, criterion, managed)
