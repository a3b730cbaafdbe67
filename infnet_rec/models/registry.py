"""A run's model: which tower, how wide its tables are, and what a run may not ask of it."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from torch import nn

from infnet_rec.config.model import MAX_TABLE_WIDTH, InfnetConfig, ModelConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.errors import UserError
from infnet_rec.models.baselines.dcn import Dcn, DcnOptions
from infnet_rec.models.baselines.dien import Dien, DienOptions
from infnet_rec.models.baselines.din import Din, DinOptions
from infnet_rec.models.baselines.fm import Fm, FmOptions
from infnet_rec.models.baselines.gdcn import Gdcn, GdcnOptions
from infnet_rec.models.baselines.hstu import Hstu, HstuOptions
from infnet_rec.models.baselines.mmoe import Mmoe, MmoeOptions, Omoe
from infnet_rec.models.baselines.ple import Ple, PleOptions
from infnet_rec.models.baselines.shared_bottom import SharedBottom, SharedBottomOptions
from infnet_rec.models.baselines.stem import Stem, StemOptions
from infnet_rec.models.baselines.wukong import Wukong, WukongOptions
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.infnet.options import InfnetOptions
from infnet_rec.models.tokens import TokenLayout
from infnet_rec.schema import Schema

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
        UserError: the model cannot be built for this schema.
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
        UserError: wider than FBGEMM's kernels take.
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
        raise UserError(
            f"model.width = {width}: {config.model.name} for {layout.num_tasks} tasks makes tables of {found:,} "
            f"columns of it, and FBGEMM's kernels for GPUs give zeros beyond {MAX_TABLE_WIDTH:,}; {remedy}"
        )
    return found


def make_infnet(config: RunConfig, schema: Schema, form: type[Infnet]) -> Infnet:
    """INFNet in one of its forms: they have the same parameters.

    Raises:
        UserError: the run's model is another one.
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
        UserError: the run's model is another one.
    """
    if not isinstance(config.model, InfnetConfig):
        raise UserError(f'model.name is "{config.model.name}": only "infnet" has several forms to compare; choose it')
    return _options(InfnetOptions, config.model)


def _options(kind: type[Options], model: ModelConfig) -> Options:
    """The tower's options; their names are the section's keys."""
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {name: getattr(model, name) for name in names}
    return kind(**values)
