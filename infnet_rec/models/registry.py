"""A run's model: which tower belongs to its section, how wide its tables are.

A tower is an `nn.Module` made of a `TokenLayout` and its section; its `forward` takes `Tokens` and gives logits_BT.
"""

import functools
import importlib
import pkgutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from infnet_rec.config.model import MAX_TABLE_WIDTH, ModelConfig, model_section
from infnet_rec.config.plugins import plugin_of
from infnet_rec.config.run import RunConfig
from infnet_rec.errors import UserError
from infnet_rec.models.batched import Constant
from infnet_rec.models.tokens import TokenLayout, Tokens
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
    layout, make = TokenLayout.of(schema), _maker(config.model)
    if (plugin := plugin_of(config.model)) is not None:
        check_tower(make, layout, config.model, table_width(config, schema), plugin.name)
    tower: Any = make(layout, config.model)
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


def check_tower(make: MakesTower, layout: TokenLayout, section: ModelConfig, width: int, source: str) -> None:
    """Builds a tower that we do not know and runs it on two examples, one of which has no events.

    Args:
        make: the tower's class or function.
        layout: of the tokens.
        section: its configuration.
        width: of the tokens.
        source: the file or package that it is from, for messages.

    Raises:
        UserError: it cannot be built or run, its logits have another shape than one an example and task, or it has
            parameters that nobody would draw.
    """
    what = f"model {section.name!r} of {source}"
    # Towers are built on the meta device; this one must compute, and move no random number of the run's.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        lengths_FB = torch.tensor([[0, 3]] * len(layout.sequence_names), dtype=torch.int64).view(-1, 2)
        tokens = Tokens(
            categorical_BMD=torch.randn(2, len(layout.feature_names), width),
            distinct_XD=torch.randn(int(lengths_FB.sum()), width),
            lengths_FB=lengths_FB,
        )
        try:
            tower = make(layout, section)
            logits_BT = tower.eval()(tokens)
        except UserError:
            raise
        except Exception as error:  # whatever somebody else's code raises
            at, first_line = traceback.extract_tb(error.__traceback__)[-1], (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{what}: fails on two examples: {type(error).__name__}: {first_line} "
                f"({at.name}, line {at.lineno} of {Path(at.filename).name})"
            ) from error
    expected = (2, layout.num_tasks)
    if not isinstance(logits_BT, Tensor) or tuple(logits_BT.shape) != expected:
        found = tuple(logits_BT.shape) if isinstance(logits_BT, Tensor) else type(logits_BT).__name__
        raise UserError(
            f"{what}: forward gives {found} for 2 examples and {layout.num_tasks} tasks; return logits of shape "
            f"[examples, tasks], which is {expected}"
        )
    for name, module in tower.named_modules():
        own = [*module._parameters, *(() if isinstance(module, Constant) else module._buffers)]
        if own and not callable(getattr(module, "reset_parameters", None)):
            raise UserError(
                f"{what}: {name or 'the tower'} ({type(module).__name__}) holds {', '.join(own)} and has no method "
                "reset_parameters; towers are built without memory first, so give it one that draws them"
            )


def _maker(section: ModelConfig) -> MakesTower:
    _import_own_towers()
    if type(section) not in _TOWERS:
        raise UserError(
            f"model {section.name!r}: its section {type(section).__name__} has no tower; decorate one with "
            f"@register({type(section).__name__})"
        )
    return _TOWERS[type(section)]


@functools.cache
def _import_own_towers() -> None:
    """Imports every tower of this package, each of which registers itself."""
    import infnet_rec.models.infnet.model  # noqa: F401
    from infnet_rec.models import baselines

    for module in pkgutil.iter_modules(baselines.__path__, f"{baselines.__name__}."):
        importlib.import_module(module.name)
