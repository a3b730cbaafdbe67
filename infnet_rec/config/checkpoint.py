"""When a run is saved, where to, and how much is kept."""

from typing import Annotated, Literal

from pydantic import Field

from infnet_rec.config.ranges import Count
from infnet_rec.config.toml import StrictModel

SaveMode = Literal["sync", "async"]


class CheckpointConfig(StrictModel):
    """Checkpoints: a run that is stopped goes on from the newest, `eval` and the test at the end use the best.

    A run is saved after every evaluation, whatever stands here.

    Attributes:
        every_steps: steps between two checkpoints; 0 saves at evaluations only.
        keep_last: newest checkpoints that are kept.
        keep_best: checkpoints with the best mean AUC on valid that are kept besides.
        mode: "sync" trains on when a checkpoint is written, "async" when it is copied; the copy takes as much memory
            of the host as the rank's tables and optimizer state.
        folder: a folder or URL for the checkpoints of this run only; "" is `checkpoints` in the run directory.
    """

    every_steps: Annotated[int, Field(ge=0)] = 1000
    keep_last: Count = 2
    keep_best: Count = 1
    mode: SaveMode = "sync"
    folder: str = ""
