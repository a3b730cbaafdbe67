"""The models that INFNet is compared with.

Every class has the keys of its model's options, which `infnet_rec.models.baselines` explains, with the same defaults: a
test compares them, since importing the options would import torch.
"""

from typing import Annotated, Literal

from pydantic import Field

from infnet_rec.config.model import ModelConfig
from infnet_rec.config.ranges import Count, Dropout, Hidden, NotNegative

DEEP_HIDDEN: Hidden = (512, 256, 128)
EXPERT_HIDDEN: Hidden = (512, 256, 128)
GATE_HIDDEN: Hidden = (128, 64)
HEAD_HIDDEN: Hidden = (128, 64)


class FmConfig(ModelConfig):
    """Its tables are wider than `width`; see `infnet_rec.models.baselines.fm`."""

    name: Literal["fm"]


class DinConfig(ModelConfig):
    """See `infnet_rec.models.baselines.din.DinOptions`."""

    name: Literal["din"]
    attention_hidden: Hidden = (64,)
    deep_hidden: Hidden = (512, 128, 64)
    head_hidden: Hidden = ()
    batch_norm: bool = False
    dropout: Dropout = 0.0


class DienConfig(ModelConfig):
    """See `infnet_rec.models.baselines.dien.DienOptions`."""

    name: Literal["dien"]
    auxiliary_weight: NotNegative = 1.0
    auxiliary_hidden: Hidden = (100, 50)
    deep_hidden: Hidden = (200, 80)
    head_hidden: Hidden = ()
    batch_norm: bool = True
    dropout: Dropout = 0.0


class DcnConfig(ModelConfig):
    """DCNv2; see `infnet_rec.models.baselines.dcn.DcnOptions`."""

    name: Literal["dcnv2"]
    cross: Literal["mixture", "full"] = "mixture"
    num_cross_layers: Count = 3
    num_experts: Count = 4
    rank: Count = 32
    deep_hidden: Hidden = DEEP_HIDDEN
    head_hidden: Hidden = ()
    batch_norm: bool = False
    dropout: Dropout = 0.0


class GdcnConfig(ModelConfig):
    """See `infnet_rec.models.baselines.gdcn.GdcnOptions`."""

    name: Literal["gdcn"]
    structure: Literal["stacked", "parallel"] = "stacked"
    num_cross_layers: Count = 3
    deep_hidden: Hidden = DEEP_HIDDEN
    head_hidden: Hidden = ()
    batch_norm: bool = False
    dropout: Dropout = 0.0


class WukongConfig(ModelConfig):
    """See `infnet_rec.models.baselines.wukong.WukongOptions`."""

    name: Literal["wukong"]
    num_layers: Count = 3
    num_products: Count = 40
    num_linear: Count = 40
    rank: Count = 8
    product_hidden: Hidden = (32, 32)
    deep_hidden: Hidden = (32, 32)
    head_hidden: Hidden = ()
    batch_norm: bool = True
    dropout: Dropout = 0.0


class HstuConfig(ModelConfig):
    """See `infnet_rec.models.baselines.hstu.HstuOptions`."""

    name: Literal["hstu"]
    num_layers: Count = 2
    num_heads: Count = 2
    max_tokens: Count = 256
    head_hidden: Hidden = (64, 32)
    dropout: Dropout = 0.2
    transducer_width: Annotated[int, Field(ge=0)] = 0


class SharedBottomConfig(ModelConfig):
    """See `infnet_rec.models.baselines.shared_bottom.SharedBottomOptions`."""

    name: Literal["shared_bottom"]
    bottom_hidden: Hidden = EXPERT_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


class MmoeConfig(ModelConfig):
    """MMoE, and OMoE with its one gate; see `infnet_rec.models.baselines.mmoe.MmoeOptions`."""

    name: Literal["mmoe", "omoe"]
    num_experts: Count = 8
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


class PleConfig(ModelConfig):
    """See `infnet_rec.models.baselines.ple.PleOptions`."""

    name: Literal["ple"]
    num_layers: Count = 1
    num_shared_experts: Count = 8
    num_specific_experts: Count = 1
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


class StemConfig(ModelConfig):
    """Its tables are (tasks + 1) * `width` wide; see `infnet_rec.models.baselines.stem.StemOptions`."""

    name: Literal["stem"]
    num_shared_experts: Count = 8
    num_specific_experts: Count = 1
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0
