"""The models that INFNet is compared with.

Every class has the keys of its model's options, which `infnet_rec.model.baselines` explains, with the same defaults.
"""

from typing import Literal

from infnet_rec.config.model import ModelConfig
from infnet_rec.config.ranges import Count, Dropout, Hidden

EXPERT_HIDDEN, GATE_HIDDEN, HEAD_HIDDEN = (512, 256, 128), (128, 64), (128, 64)


class SharedBottomConfig(ModelConfig):
    """See `infnet_rec.model.baselines.shared_bottom.SharedBottomOptions`."""

    name: Literal["shared_bottom"]
    bottom_hidden: Hidden = EXPERT_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


class MmoeConfig(ModelConfig):
    """MMoE, and OMoE with its one gate; see `infnet_rec.model.baselines.mmoe.MmoeOptions`."""

    name: Literal["mmoe", "omoe"]
    num_experts: Count = 8
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


class PleConfig(ModelConfig):
    """See `infnet_rec.model.baselines.ple.PleOptions`."""

    name: Literal["ple"]
    num_layers: Count = 1
    num_shared_experts: Count = 8
    num_specific_experts: Count = 1
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


class StemConfig(ModelConfig):
    """Its tables are (T + 1) * width wide; see `infnet_rec.model.baselines.stem.StemOptions`."""

    name: Literal["stem"]
    num_shared_experts: Count = 8
    num_specific_experts: Count = 1
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0
