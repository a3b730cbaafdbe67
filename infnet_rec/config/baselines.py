"""The models that INFNet is compared with: each class holds what the data does not decide about one of them.

`infnet_rec.models.baselines` has their towers, one file a family, with the equations whose letters are used here.
"""

from typing import Annotated, Literal

from pydantic import Field

from infnet_rec.config.model import ModelConfig, model_section
from infnet_rec.config.ranges import Count, Dropout, Hidden, NotNegative

DEEP_HIDDEN: Hidden = (512, 256, 128)
EXPERT_HIDDEN: Hidden = (512, 256, 128)
GATE_HIDDEN: Hidden = (128, 64)
HEAD_HIDDEN: Hidden = (128, 64)


@model_section
class FmConfig(ModelConfig):
    """Factorisation machine. Its tables are wider than `width`: they hold linear weights too."""

    name: Literal["fm"] = "fm"


@model_section
class DinConfig(ModelConfig):
    """DIN.

    Attributes:
        attention_hidden: hidden layers of the network that weighs events; at least one.
        deep_hidden: layers of the body.
        head_hidden: hidden layers of every task's head; none is one linear layer.
        batch_norm: in the body.
        dropout: on the layers of the body, and on hidden layers of heads.
    """

    name: Literal["din"] = "din"
    attention_hidden: Annotated[Hidden, Field(min_length=1)] = (64,)
    deep_hidden: Hidden = (512, 128, 64)
    head_hidden: Hidden = ()
    batch_norm: bool = False
    dropout: Dropout = 0.0


@model_section
class DienConfig(ModelConfig):
    """DIEN.

    Attributes:
        auxiliary_weight: of the auxiliary loss; with 0 its networks do not exist.
        auxiliary_hidden: hidden layers of its networks.
        deep_hidden: layers of the body.
        head_hidden: hidden layers of every task's head; none is one linear layer.
        batch_norm: in the body.
        dropout: on the layers of the body, and on hidden layers of heads.
    """

    name: Literal["dien"] = "dien"
    auxiliary_weight: NotNegative = 1.0
    auxiliary_hidden: Hidden = (100, 50)
    deep_hidden: Hidden = (200, 80)
    head_hidden: Hidden = ()
    batch_norm: bool = True
    dropout: Dropout = 0.0


@model_section
class DcnConfig(ModelConfig):
    """DCNv2.

    Attributes:
        cross: "mixture" of low-rank experts, or "full" matrices.
        num_cross_layers: L.
        num_experts: E of a mixture.
        rank: K of a mixture's experts.
        deep_hidden: layers of the MLP beside the cross layers.
        head_hidden: hidden layers of every task's head; none is one linear layer.
        batch_norm: in the MLP.
        dropout: on the MLP's layers, and on hidden layers of heads.
    """

    name: Literal["dcnv2"] = "dcnv2"
    cross: Literal["mixture", "full"] = "mixture"
    num_cross_layers: Count = 3
    num_experts: Count = 4
    rank: Count = 32
    deep_hidden: Hidden = DEEP_HIDDEN
    head_hidden: Hidden = ()
    batch_norm: bool = False
    dropout: Dropout = 0.0


@model_section
class GdcnConfig(ModelConfig):
    """GDCN.

    Attributes:
        structure: where the MLP is.
        num_cross_layers: L.
        deep_hidden: layers of the MLP.
        head_hidden: hidden layers of every task's head; none is one linear layer.
        batch_norm: in the MLP.
        dropout: on the MLP's layers, and on hidden layers of heads.
    """

    name: Literal["gdcn"] = "gdcn"
    structure: Literal["stacked", "parallel"] = "stacked"
    num_cross_layers: Count = 3
    deep_hidden: Hidden = DEEP_HIDDEN
    head_hidden: Hidden = ()
    batch_norm: bool = False
    dropout: Dropout = 0.0


@model_section
class WukongConfig(ModelConfig):
    """WuKong.

    Attributes:
        num_layers: how many are stacked.
        num_products: N_F, vectors that a layer's factorisation machine makes.
        num_linear: N_L, vectors that a layer's compression makes.
        rank: K.
        product_hidden: hidden layers of the MLP in a factorisation machine.
        deep_hidden: layers of the body.
        head_hidden: hidden layers of every task's head; none is one linear layer.
        batch_norm: in the body.
        dropout: on the layers of the body, and on hidden layers of products and heads.
    """

    name: Literal["wukong"] = "wukong"
    num_layers: Count = 3
    num_products: Count = 40
    num_linear: Count = 40
    rank: Count = 8
    product_hidden: Hidden = (32, 32)
    deep_hidden: Hidden = (32, 32)
    head_hidden: Hidden = ()
    batch_norm: bool = True
    dropout: Dropout = 0.0


@model_section
class HstuConfig(ModelConfig):
    """HSTU.

    Attributes:
        num_layers: of attention.
        num_heads: of each layer; divides the width, or `transducer_width` where that is not 0.
        max_tokens: Nmax. About as many as an example has at most: context, the events of all behaviours and the target.
        head_hidden: hidden layers of every task's head.
        dropout: in the layers, and on hidden layers of heads.
        transducer_width: of all tokens in the layers, and of what the heads read; 0: that of the tables.
    """

    name: Literal["hstu"] = "hstu"
    num_layers: Count = 2
    num_heads: Count = 2
    max_tokens: Count = 256
    head_hidden: Hidden = (64, 32)
    dropout: Dropout = 0.2
    transducer_width: Annotated[int, Field(ge=0)] = 0


@model_section
class SharedBottomConfig(ModelConfig):
    """Shared-Bottom.

    Attributes:
        bottom_hidden: layers of the bottom.
        head_hidden: hidden layers of each task's tower.
        dropout: on all of these.
    """

    name: Literal["shared_bottom"] = "shared_bottom"
    bottom_hidden: Hidden = EXPERT_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


@model_section
class MmoeConfig(ModelConfig):
    """MMoE, and OMoE with its one gate for all tasks.

    Attributes:
        num_experts: E.
        expert_hidden: layers of each expert.
        gate_hidden: hidden layers of each gate.
        head_hidden: hidden layers of each task's tower.
        dropout: on all of these.
    """

    name: Literal["mmoe", "omoe"] = "mmoe"
    num_experts: Count = 8
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


@model_section
class PleConfig(ModelConfig):
    """PLE.

    Attributes:
        num_layers: of experts.
        num_shared_experts: of each layer.
        num_specific_experts: of each task in each layer.
        expert_hidden: layers of each expert.
        gate_hidden: hidden layers of each gate.
        head_hidden: hidden layers of each task's tower.
        dropout: on all of these.
    """

    name: Literal["ple"] = "ple"
    num_layers: Count = 1
    num_shared_experts: Count = 8
    num_specific_experts: Count = 1
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0


@model_section
class StemConfig(ModelConfig):
    """STEM. Its tables are (tasks + 1) * `width` wide.

    Attributes:
        num_shared_experts: that read the shared embeddings.
        num_specific_experts: of each task, that read its own embeddings.
        expert_hidden: layers of each expert.
        gate_hidden: hidden layers of each gate.
        head_hidden: hidden layers of each task's tower.
        dropout: on all of these.
    """

    name: Literal["stem"] = "stem"
    num_shared_experts: Count = 8
    num_specific_experts: Count = 1
    expert_hidden: Hidden = EXPERT_HIDDEN
    gate_hidden: Hidden = GATE_HIDDEN
    head_hidden: Hidden = HEAD_HIDDEN
    dropout: Dropout = 0.0
