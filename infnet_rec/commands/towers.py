"""A run's model: which tower, how wide its tables are, and what a run may not ask of it."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import nn

from infnet_rec.commands.run_schema import Data
from infnet_rec.commands.table_rules import precisions_of
from infnet_rec.config.model import MAX_TABLE_WIDTH, InfnetConfig, ModelConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.faults import Fault
from infnet_rec.model.baselines.dcn import Dcn, DcnOptions
from infnet_rec.model.baselines.dien import Dien, DienOptions
from infnet_rec.model.baselines.din import Din, DinOptions
from infnet_rec.model.baselines.fm import Fm, FmOptions
from infnet_rec.model.baselines.gdcn import Gdcn, GdcnOptions
from infnet_rec.model.baselines.hstu import Hstu, HstuOptions
from infnet_rec.model.baselines.mmoe import Mmoe, MmoeOptions, Omoe
from infnet_rec.model.baselines.ple import Ple, PleOptions
from infnet_rec.model.baselines.shared_bottom import SharedBottom, SharedBottomOptions
from infnet_rec.model.baselines.stem import Stem, StemOptions
from infnet_rec.model.baselines.wukong import Wukong, WukongOptions
from infnet_rec.model.embeddings import TokenAssembly, make_bags, make_events
from infnet_rec.model.fused import why_eager
from infnet_rec.model.infnet import Infnet
from infnet_rec.model.infnet_options import InfnetOptions
from infnet_rec.model.managed import make_managed
from infnet_rec.model.ranking import MultiTaskLoss, RankingModel
from infnet_rec.model.tokens import TokenLayout
from infnet_rec.schema import Schema
from infnet_rec.shard.world import World

Options = TypeVar("Options")


# What a baseline's name stands for.
BASELINES: dict[str, tuple[Callable[[TokenLayout, int, Any], nn.Module], type[Any]]] = {
    "fm": (Fm, FmOptions),
    "din": (Din, DinOptions),
    "dien": (Dien, DienOptions),
    "dcnv2": (Dcn, DcnOptions),
    "gdcn": (Gdcn, GdcnOptions),
    "wukong": (Wukong, WukongOptions),
    "hstu": (Hstu, HstuOptions),
    "shared_bottom": (SharedBottom, SharedBottomOptions),
    "mmoe": (Mmoe, MmoeOptions),
    "omoe": (Omoe, MmoeOptions),
    "ple": (Ple, PleOptions),
    "stem": (Stem, StemOptions),
}
# Those that keep more than one embedding in a row.
WIDE: dict[str, Callable[[TokenLayout, int], int]] = {"fm": Fm.table_width, "stem": Stem.table_width}


def make_tower(config: RunConfig, schema: Schema) -> nn.Module:
    """The dense part of the run's model.

    Raises:
        Fault: the model cannot be built for this schema.
    """
    model = config.model
    if isinstance(model, InfnetConfig):
        return make_infnet(config, schema, Infnet)
    make, options = BASELINES[model.name]
    tower: Any = make(TokenLayout.of(schema), model.width, _options(options, model))
    tower.precision = config.train.precision
    return tower


def table_width(config: RunConfig, schema: Schema) -> int:
    """Columns of every embedding table: `model.width`, unless the model keeps more in a row.

    Raises:
        Fault: wider than FBGEMM's kernels take.
    """
    wider, width = WIDE.get(config.model.name), config.model.width
    if wider is None:
        return width
    layout = TokenLayout.of(schema)
    found = wider(layout, width)
    if found > MAX_TABLE_WIDTH:
        # Widths go in fours.
        fitting = [w for w in range(4, width, 4) if wider(layout, w) <= MAX_TABLE_WIDTH]
        remedy = f"take at most {fitting[-1]}" if fitting else "train fewer tasks (train.tasks)"
        raise Fault(
            f"model.width = {width}: {config.model.name} for {layout.num_tasks} tasks makes tables of {found:,} "
            f"columns of it, and FBGEMM's kernels for GPUs give zeros beyond {MAX_TABLE_WIDTH:,}; {remedy}"
        )
    return found


def make_infnet(config: RunConfig, schema: Schema, form: type[Infnet]) -> Infnet:
    """INFNet in one of its forms: they have the same parameters.

    Raises:
        Fault: the run's model is another one.
    """
    return form(
        num_features=len(schema.features),
        group_of_sequence=schema.group_of_sequence,
        num_tasks=len(schema.tasks),
        width=config.model.width,
        options=infnet_options(config),
        precision=config.train.precision,
    )


def infnet_options(config: RunConfig) -> InfnetOptions:
    """INFNet's options.

    Raises:
        Fault: the run's model is another one.
    """
    if not isinstance(config.model, InfnetConfig):
        raise Fault(f'model.name is "{config.model.name}": only "infnet" has several forms to compare; choose it')
    return _options(InfnetOptions, config.model)


def check_tower(config: RunConfig, schema: Schema, world: World) -> None:
    """Refuses a model that cannot be built, or not as the run wants it; allocates nothing.

    Raises:
        Fault: see there.
    """
    if isinstance(config.model, InfnetConfig):
        why_eager(config.model.attention, world.device, config.model.width)
    with torch.device("meta"):
        make_tower(config, schema)


def describe_tower(config: RunConfig, world: World) -> str:
    """How the model computes, in a line."""
    if not isinstance(config.model, InfnetConfig):
        return f"model: {config.model.name}; products in {config.train.precision}"
    reason = why_eager(config.model.attention, world.device, config.model.width)
    attention = "fused" if reason is None else f"eager, because {reason}"
    return f"attention: {attention}; products in {config.train.precision}"


def _options(kind: type[Options], model: ModelConfig) -> Options:
    """The tower's options; their names are the section's keys."""
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {name: getattr(model, name) for name in names}
    return kind(**values)


def meta_model(config: RunConfig, data: Data) -> RankingModel:
    """The whole model on the meta device: nothing is allocated."""
    schema, width = data.schema, table_width(config, data.schema)
    weights = tuple(config.train.loss.task_weights.get(name, 1.0) for name in data.task_names)
    with torch.device("meta"):
        tower = make_tower(config, schema)
        criterion = MultiTaskLoss(weights, config.train.loss.weighting, embedding_l2=config.train.loss.embedding_l2)
    half = [name for name, precision in precisions_of(config, schema).items() if precision == "fp16"]
    bags, events = make_bags(schema, width, half), make_events(schema, width, half)
    managed = make_managed(schema, width, config.model.table_std)
    return RankingModel(bags, events, TokenAssembly(schema, width), tower, criterion, managed)
