"""WuKong: layers of factorisation machines and linear compression, stacked until they form products of many fields.

A layer takes N_i vectors X and gives N_F + N_L of them:

    FMB(X) = reshape(MLP(LayerNorm(flatten(X (X^T Y)))), [N_F, D])       Y [N_i, K] learned: products of pairs of fields
    LCB(X) = W X                                                         W [N_L, N_i]: linear, no bias
    X'     = LayerNorm_D(concat[FMB, LCB] + P X)                         P [N_F + N_L, N_i] with a bias, where sizes
                                                                         differ; X itself where they agree

The MLP of an FMB ends in a linear layer (FuxiCTR puts a ReLU there, two other implementations do not). The body MLP
reads the flattened last X, and the head reads the body; with several tasks each has its own head on the same vector.

Reference: Zhang et al., Wukong: Towards a Scaling Law for Large-Scale Recommendation, ICML 2024.

Shapes: B examples, N fields, Y fields that come out of a layer, K rank of the products, T tasks, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infnet_rec.errors import UserError
from infnet_rec.models.baselines.fields import DeepMlp, fields_BND, for_every_task
from infnet_rec.models.layers import Linear, Mlp, TaskHeads
from infnet_rec.models.options import option_faults
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.tokens import TokenLayout, Tokens


@dataclass(frozen=True, slots=True)
class WukongOptions:
    """What the layout does not decide.

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

    num_layers: int = 3
    num_products: int = 40
    num_linear: int = 40
    rank: int = 8
    product_hidden: tuple[int, ...] = (32, 32)
    deep_hidden: tuple[int, ...] = (32, 32)
    head_hidden: tuple[int, ...] = ()
    batch_norm: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        faults = option_faults(self)
        if self.rank < 1:
            faults.append(f"rank is {self.rank}; it must be at least 1")
        if faults:
            raise UserError("\n".join(f"wukong: {fault}" for fault in faults))


class Products(nn.Module):
    """FMB: vectors made of products of pairs of fields."""

    def __init__(self, num_fields: int, width: int, options: WukongOptions) -> None:
        super().__init__()
        self.rank_NK = nn.Parameter(torch.empty(num_fields, options.rank))
        self.norm = nn.LayerNorm(num_fields * options.rank)
        self.mlp = Mlp(num_fields * options.rank, options.product_hidden, options.num_products * width, options.dropout)
        self.width = width
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws Y; norm and MLP draw themselves."""
        nn.init.xavier_normal_(self.rank_NK)

    def forward(self, field_BND: Tensor) -> Tensor:
        """[B, N_F, D]."""
        product_BNK = field_BND @ (field_BND.transpose(1, 2) @ self.rank_NK)
        return self.mlp(self.norm(product_BNK.flatten(1))).unflatten(1, (-1, self.width))


class WukongLayer(nn.Module):
    """One layer."""

    def __init__(self, num_fields: int, width: int, options: WukongOptions) -> None:
        super().__init__()
        num_outputs = options.num_products + options.num_linear
        self.products = Products(num_fields, width, options)
        self.linear = Linear(num_fields, options.num_linear, bias=False)
        self.shortcut = Linear(num_fields, num_outputs) if num_fields != num_outputs else nn.Identity()
        self.norm = nn.LayerNorm(width)

    def forward(self, field_BND: Tensor) -> Tensor:
        """[B, N, D] -> [B, Y, D]."""
        field_BDN = field_BND.transpose(1, 2)
        made_BYD = torch.cat([self.products(field_BND), self.linear(field_BDN).transpose(1, 2)], dim=1)
        return self.norm(made_BYD + self.shortcut(field_BDN).transpose(1, 2))


class Wukong(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, width: int, options: WukongOptions) -> None:
        super().__init__()
        self.num_tasks = layout.num_tasks
        num_fields, num_outputs = len(layout.feature_names) + len(layout.sequence_names), 0
        self.layers = nn.ModuleList()
        for _ in range(options.num_layers):
            self.layers.append(WukongLayer(num_outputs or num_fields, width, options))
            num_outputs = options.num_products + options.num_linear
        self.deep = DeepMlp(
            num_outputs * width, options.deep_hidden, dropout=options.dropout, batch_norm=options.batch_norm
        )
        self.heads = TaskHeads(layout.num_tasks, self.deep.num_outputs, options.head_hidden, options.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        field_BND = fields_BND(tokens)
        for layer in self.layers:
            field_BND = layer(field_BND)
        return self.heads(for_every_task(self.deep(field_BND.flatten(1)), self.num_tasks))
