"""What every model has, and INFNet; `infnet_rec.config.baselines` has the others."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.config.ranges import Count, Dropout, Hidden, Positive
from infnet_rec.config.toml import StrictModel

# FBGEMM's forward kernels for GPUs have returned zeros for wider rows (https://github.com/pytorch/FBGEMM/pull/5569),
# and its optimizers apart from the backward pass take none. A run must be able to move from a CPU to a GPU, so the
# limit holds on every device.
MAX_TABLE_WIDTH = 1024


class ManagedTable(StrictModel):
    """A table of fixed size for a feature with encoding "hash", whose rows are given to ids as they come.

    Any number of ids may arrive after the store was built; choose `buckets` of the recipe so large that they hardly
    ever collide. Every `interval_steps` training steps, the ids seen since the last time are ranked with those that
    have rows. As long as there are free rows every new id gets one. When the table is full, an id of a higher rank
    takes the row of the lowest: that row and its optimizer state begin anew. Ids without a row share one, the last of
    each rank's part: so do all until the first interval is over, those that rank too low, and in evaluation those that
    training never saw. The planner spreads such a table over all ranks by row, ids by ranges of hashes, and each rank
    manages its part alone.

    A checkpoint keeps which id has which row. It does not keep what was counted since the last interval, so a run goes
    on to the bit only from a step that `interval_steps` divides. It loads on a number of ranks that divides that of
    the run which wrote it, since TorchRec cannot split a part; on fewer ranks, ids without a row read the last row of
    the last of the parts that were joined.

    Attributes:
        kind: "managed".
        rows: of the table; the number of ranks must divide it.
        eviction: who keeps a row: "lfu" the ids seen most often, "lru" those seen last, "distance_lfu" the highest
            count divided by the steps since it was last seen.
        interval_steps: training steps from one ranking to the next.
    """

    kind: Literal["managed"]
    rows: Annotated[int, Field(ge=2)]
    eviction: Literal["lfu", "lru", "distance_lfu"] = "lfu"
    interval_steps: Count


class ModelConfig(StrictModel):
    """What every model has; its other keys are its own.

    Attributes:
        width: of every token, and so of every embedding table (FM's and STEM's are wider, see there); FBGEMM's kernels
            want a multiple of 4, and tables of at most 1,024 columns.
        table_std: standard deviation of the initial embeddings.
        tables: by name, those that are not simply one row an id.
        compile: the tower by torch.compile. The first steps, and the first evaluation, take a minute or more each time
            that nothing is in its cache; the steps after them are hardly faster on a CPU, and differ in the last bits.
    """

    width: Annotated[int, Field(ge=4, le=MAX_TABLE_WIDTH, multiple_of=4)] = 16
    table_std: Positive = 0.01
    tables: dict[str, ManagedTable] = Field(default_factory=dict)
    compile: bool = False


class InfnetConfig(ModelConfig):
    """INFNet; see `infnet_rec.models.infnet.options.InfnetOptions` for what the options of the tower mean.

    Attributes:
        attention: how sequences are read: "fused" by a kernel on a GPU, "eager" in plain torch, "auto" by the kernel
            where it works. The first lines of a run say which.
    """

    name: Literal["infnet"] = "infnet"
    num_blocks: Count = 2
    num_categorical_proxies: Count = 4
    num_shared_tokens: Count = 2
    num_heads: Count = 1
    proxy_hidden: Hidden = (128,)
    gate_hidden: Hidden = (64,)
    head_hidden: Hidden = (64, 32)
    pooling: Literal["sum", "mean"] = "sum"
    residual: Literal["both", "proxy", "gate", "none"] = "both"
    proxy_norm: Literal["none", "layer"] = "none"
    readout: Literal["task", "proxies"] = "task"
    dropout: Dropout = 0.0
    ablation: Literal["none", "no_task_tokens", "no_gates", "no_cross_attention"] = "none"
    ablation_head: Literal["pool", "late"] = "pool"
    attention: Literal["auto", "eager", "fused"] = "auto"
    checkpoint_blocks: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} does not divide by num_heads = {self.num_heads}")
        return self
