"""A run, whole: what data, which model, how it is trained and sharded. No torch here.

`configs/quickstart.toml` is a small complete example. Every key can be set on the command line:
`--set train.dense.lr=3e-4`.
"""

from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.data import DataConfig
from infnet_rec.config.model import ModelConfig
from infnet_rec.config.sharding import ShardingConfig
from infnet_rec.config.train import TrainConfig
from infnet_rec.strict import StrictModel


class RunConfig(StrictModel):
    """A complete run; see the sections' own classes."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
