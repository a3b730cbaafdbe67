"""A run's model: which tower, how wide its tables are, and what a run may not ask of it."""

from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import nn

from infnet_rec.config.baselines import MmoeConfig, PleConfig, SharedBottomConfig, StemConfig
from infnet_rec.config.model import InfnetConfig, ModelConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.faults import Fault
from infnet_rec.model.baselines.mmoe import Mmoe, MmoeOptions, Omoe
from infnet_rec.model.baselines.ple import Ple, PleOptions
from infnet_rec.model.baselines.shared_bottom import SharedBottom, SharedBottomOptions
from infnet_rec.model.baselines.stem import Stem, StemOptions, stem_table_width
from infnet_rec.model.fused import why_eager
from infnet_rec.model.infnet import Infnet, InfnetOptions
from infnet_rec.model.tokens import TokenLayout
from infnet_rec.schema import Schema
from infnet_rec.shard.world import World

Options = TypeVar("Options")


def make_tower(config: RunConfig, schema: Schema) -> nn.Module:
    """The dense part of the run's model.

    Raises:
        Fault: the model cannot be built for this schema.
    """
    layout, model, width = TokenLayout.of(schema), config.model, config.model.width
    match model:
        case InfnetConfig():
            return make_infnet(config, schema, Infnet)
        case SharedBottomConfig():
            return SharedBottom(layout, width, _options(SharedBottomOptions, model))
        case MmoeConfig(name="mmoe"):
            return Mmoe(layout, width, _options(MmoeOptions, model))
        case MmoeConfig():
            return Omoe(layout, width, _options(MmoeOptions, model))
        case PleConfig():
            return Ple(layout, width, _options(PleOptions, model))
        case StemConfig():
            return Stem(layout, width, _options(StemOptions, model))


def table_width(config: RunConfig, schema: Schema) -> int:
    """Columns of every embedding table: `model.width`, unless the model keeps several embeddings in a row."""
    match config.model:
        case StemConfig(width=width):
            return stem_table_width(width, len(schema.tasks))
        case _:
            return config.model.width


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
    elif config.train.precision != "fp32":
        raise Fault(
            f'train.precision is "{config.train.precision}": {config.model.name} computes in "fp32"; "infnet" alone '
            "has another"
        )
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
