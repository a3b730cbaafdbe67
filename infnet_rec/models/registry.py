"""A run's model: which tower belongs to its section, how wide its tables are.

A tower is an `nn.Module` made of a `TokenLayout` and its section; its `forward` takes `Tokens` and gives logits_BT.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import nn

from infnet_rec.config.model import MAX_TABLE_WIDTH, ModelConfig, model_section
from infnet_rec.config.run import RunConfig
from infnet_rec.errors import UserError
from infnet_rec.models.tokens import TokenLayout
from infnet_rec.schema import Schema


class MakesTower(Protocol):
    """A tower's class, or a function that makes one.

    It may have a static method `table_width(layout, width)`: how wide tables are where a row holds more than one
    embedding of `width`. Tokens are as wide as tables.
    """

    def __call__(self, layout: TokenLayout, config: Any, /) -> nn.Module:
        """Builds the tower, on the meta device too."""
        ...


Maker = TypeVar("Maker", bound=MakesTower)
_TOWERS: dict[type[ModelConfig], MakesTower] = {}


def register(section: type[ModelConfig]) -> Callable[[Maker], Maker]:
    """Says which tower a section configures; decorates the tower's class, or a function that makes it.

    The section becomes one of those that a run's file may have, if it is not yet.

    Args:
        section: the class of the section `model`.

    Raises:
        UserError: see `model_section`.
    """
    model_section(section)

    def remember(maker: Maker) -> Maker:
        _TOWERS[section] = maker
        return maker

    return remember


def make_tower(config: RunConfig, schema: Schema) -> nn.Module:
    """The dense part of the run's model.

    Raises:
        UserError: the model cannot be built for this schema.
    """
    tower: Any = _maker(config.model)(TokenLayout.of(schema), config.model)
    tower.precision = config.train.precision
    return tower


def table_width(config: RunConfig, schema: Schema) -> int:
    """Columns of every embedding table: `model.width`, unless the model keeps more in a row.

    Raises:
        UserError: wider than FBGEMM's kernels take.
    """
    wider: Callable[[TokenLayout, int], int] | None = getattr(_maker(config.model), "table_width", None)
    width = config.model.width
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


def _maker(section: ModelConfig) -> MakesTower:
    _import_own_towers()
    return _TOWERS[type(section)]


@functools.cache
def _import_own_towers() -> None:
    """Imports every tower of this package, each of which registers itself."""
    import infnet_rec.models.infnet.model  # noqa: F401
    from infnet_rec.models import baselines

    for module in pkgutil.iter_modules(baselines.__path__, f"{baselines.__name__}."):
        importlib.import_module(module.name)
