"""A run, whole: what data, which model, how it is trained and sharded. No torch here.

`configs/quickstart.toml` is a small complete example. Every key can be set on the command line:
`--set train.dense.lr=3e-4`.
"""

from typing import Annotated

from pydantic import Discriminator, Tag

from infnet_rec.config.baselines import (
    DcnConfig,
    DienConfig,
    DinConfig,
    FmConfig,
    GdcnConfig,
    HstuConfig,
    MmoeConfig,
    PleConfig,
    SharedBottomConfig,
    StemConfig,
    WukongConfig,
)
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.data import DataConfig
from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.sharding import ShardingConfig
from infnet_rec.config.toml import StrictModel
from infnet_rec.config.train import TrainConfig


def _name_of(model: object) -> str:
    """The union's tag; a section without a name is INFNet's."""
    name = model.get("name", "infnet") if isinstance(model, dict) else getattr(model, "name", "infnet")
    return f"({name})"


AnyModel = Annotated[
    Annotated[InfnetConfig, Tag("(infnet)")]
    | Annotated[FmConfig, Tag("(fm)")]
    | Annotated[DinConfig, Tag("(din)")]
    | Annotated[DienConfig, Tag("(dien)")]
    | Annotated[DcnConfig, Tag("(dcnv2)")]
    | Annotated[GdcnConfig, Tag("(gdcn)")]
    | Annotated[WukongConfig, Tag("(wukong)")]
    | Annotated[HstuConfig, Tag("(hstu)")]
    | Annotated[SharedBottomConfig, Tag("(shared_bottom)")]
    | Annotated[MmoeConfig, Tag("(mmoe)")]
    | Annotated[MmoeConfig, Tag("(omoe)")]
    | Annotated[PleConfig, Tag("(ple)")]
    | Annotated[StemConfig, Tag("(stem)")],
    Discriminator(_name_of),
]


class RunConfig(StrictModel):
    """A complete run; see the sections' own classes."""

    data: DataConfig
    model: AnyModel = InfnetConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
