"""A run, whole: what data, which model, how it is trained and sharded. No torch here.

`configs/quickstart.toml` is a small complete example. Every key can be set on the command line:
`--set train.dense.lr=3e-4`.
"""

import functools
from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag, create_model

import infnet_rec.config.baselines  # noqa: F401 - their sections stand in the registry of sections from here on
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.data import DataConfig
from infnet_rec.config.model import InfnetConfig, ModelConfig, model_sections
from infnet_rec.config.sharding import ShardingConfig
from infnet_rec.config.toml import StrictModel
from infnet_rec.config.train import TrainConfig


class RunConfig(StrictModel):
    """A complete run; see the sections' own classes.

    `run_config` gives the class that reads a file: there `model` is one of the sections that are registered.
    """

    data: DataConfig
    model: ModelConfig = InfnetConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


def run_config() -> type[RunConfig]:
    """The class of a whole file, with every model that is registered now."""
    return _run_config(tuple(model_sections().items()))


@functools.cache
def _run_config(sections: tuple[tuple[str, type[ModelConfig]], ...]) -> type[RunConfig]:
    choices = tuple(Annotated[section, Tag(f"({name})")] for name, section in sections)
    model: Any = Annotated[Union[choices], Discriminator(_name_of)]  # noqa: UP007 - choices are known now only
    return create_model("RunConfig", __base__=RunConfig, __doc__=RunConfig.__doc__, model=(model, InfnetConfig()))


def _name_of(model: object) -> str:
    """The union's tag; a section without a name is INFNet's."""
    name = model.get("name", "infnet") if isinstance(model, dict) else getattr(model, "name", "infnet")
    return f"({name})"
