"""Everything about INFNet that the schema does not decide."""

from dataclasses import dataclass
from typing import Literal

from infnet_rec.errors import UserError
from infnet_rec.models.infnet.fused_attention import Attention
from infnet_rec.models.infnet.proxies import Pooling
from infnet_rec.models.layers import AblationHead
from infnet_rec.models.options import option_faults

Residual = Literal["both", "proxy", "gate", "none"]
ProxyNorm = Literal["none", "layer"]
Readout = Literal["task", "proxies"]
Ablation = Literal["none", "no_task_tokens", "no_gates", "no_cross_attention"]


@dataclass(frozen=True, slots=True)
class InfnetOptions:
    """Everything about INFNet that the schema does not decide.

    Attributes:
        num_blocks: at least 2; an ablation, or heads that read proxies, can do with 1.
        num_categorical_proxies: tokens of C~.
        num_shared_tokens: tokens of T~.
        num_heads: heads of every cross attention; divides the width.
        proxy_hidden: hidden layers of the MLP that makes C~.
        gate_hidden: hidden layers of every gate.
        head_hidden: hidden layers of every task's head.
        pooling: how the events of a group become its proxy. A sum grows with the length of the history.
        residual: "proxy" adds each query to what it read (C~' = C~ + CA + CA, and so for S~, T~ and T^), "gate" makes
            the gate's factor 1 + sigmoid, "both" does both. "none" is the paper to the letter; it trains slowly.
        proxy_norm: "layer" normalises C~', S~', T~' and T^ before anything reads them.
        readout: what every task's head reads. "task": its token T', as in the paper. "proxies": T', all of C~' and all
            of S~' side by side. A task token reads all fields through one matrix; in C~ every field has weights of its
            own.
        dropout: on the hidden layers of proxies, gates and heads.
        ablation: the paper's w/o1, w/o2, w/o3. Options of a part that is left out do nothing.
        ablation_head: what heads read where task tokens are missing (w/o1) or learn nothing (w/o3). "pool": mean C~ +
            mean S~, and T_i + mean C + mean S. "late": all of C~ and S~ side by side, and T_i, mean C, mean S side by
            side, which is more than the whole network's heads read.
        attention: how sequences are read; "auto" is "fused" where that works. See `fused_attention.py`.
        checkpoint_blocks: the backward pass computes every block again instead of storing what is inside: scores of
            categorical tokens, queries, gates. Scores of sequences are never stored.
    """

    num_blocks: int = 2
    num_categorical_proxies: int = 4
    num_shared_tokens: int = 2
    num_heads: int = 1
    proxy_hidden: tuple[int, ...] = (128,)
    gate_hidden: tuple[int, ...] = (64,)
    head_hidden: tuple[int, ...] = (64, 32)
    pooling: Pooling = "sum"
    residual: Residual = "both"
    proxy_norm: ProxyNorm = "none"
    readout: Readout = "task"
    dropout: float = 0.0
    ablation: Ablation = "none"
    ablation_head: AblationHead = "pool"
    attention: Attention = "auto"
    checkpoint_blocks: bool = False

    def __post_init__(self) -> None:
        faults = option_faults(self)
        if self.ablation != "none" and self.readout != "task":
            faults.append(
                f"readout is {self.readout!r}; it must be 'task' with ablation {self.ablation!r}, whose heads read what"
                " ablation_head says"
            )
        if self.ablation == "none" and self.readout == "task" and self.num_blocks == 1:
            faults.append(
                "num_blocks is 1; it must be at least 2: one block leaves the categorical and the sequence proxies"
                " untrained, because nothing reads what they become in the last block"
            )
        if faults:
            raise UserError("\n".join(f"infnet: {fault}" for fault in faults))
