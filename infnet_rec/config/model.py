"""What every model has, and INFNet; `infnet_rec.config.baselines` has the others."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.config.ranges import Count, Dropout, Hidden, Positive
from infnet_rec.strict import StrictModel


class ModelConfig(StrictModel):
    """What every model has; its other keys are its own.

    Attributes:
        width: of every token, and so of every embedding table (FM's and STEM's are wider, see there); FBGEMM's kernels
            want a multiple of 4.
        table_std: standard deviation of the initial embeddings.
        compile: the tower by torch.compile. The first steps, and the first evaluation, take a minute or more each time
            that nothing is in its cache; the steps after them are faster, and differ in the last bits.
    """

    width: Annotated[int, Field(ge=4, multiple_of=4)] = 16
    table_std: Positive = 0.01
    compile: bool = False


class InfnetConfig(ModelConfig):
    """INFNet; see `infnet_rec.model.infnet.InfnetOptions` for what the options of the tower mean.

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
