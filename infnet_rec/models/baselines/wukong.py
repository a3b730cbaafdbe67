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

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import WukongConfig
from infnet_rec.models.baselines.fields import DeepMlp, fields_BND, for_every_task
from infnet_rec.models.layers import Linear, Mlp, TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


class Products(nn.Module):
    """FMB: vectors made of products of pairs of fields."""

    def __init__(self, num_fields: int, config: WukongConfig) -> None:
        super().__init__()
        self.rank_NK = nn.Parameter(torch.empty(num_fields, config.rank))
        self.norm = nn.LayerNorm(num_fields * config.rank)
        self.width = config.width
        num_inputs, num_outputs = num_fields * config.rank, config.num_products * config.width
        self.mlp = Mlp(num_inputs, config.product_hidden, num_outputs, config.dropout)
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

    def __init__(self, num_fields: int, config: WukongConfig) -> None:
        super().__init__()
        num_outputs = config.num_products + config.num_linear
        self.products = Products(num_fields, config)
        self.linear = Linear(num_fields, config.num_linear, bias=False)
        self.shortcut = Linear(num_fields, num_outputs) if num_fields != num_outputs else nn.Identity()
        self.norm = nn.LayerNorm(config.width)

    def forward(self, field_BND: Tensor) -> Tensor:
        """[B, N, D] -> [B, Y, D]."""
        field_BDN = field_BND.transpose(1, 2)
        made_BYD = torch.cat([self.products(field_BND), self.linear(field_BDN).transpose(1, 2)], dim=1)
        return self.norm(made_BYD + self.shortcut(field_BDN).transpose(1, 2))


@register(WukongConfig)
class Wukong(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, config: WukongConfig) -> None:
        super().__init__()
        self.num_tasks = layout.num_tasks
        num_fields, num_outputs = layout.num_fields, 0
        self.layers = nn.ModuleList()
        for _ in range(config.num_layers):
            self.layers.append(WukongLayer(num_outputs or num_fields, config))
            num_outputs = config.num_products + config.num_linear
        self.deep = DeepMlp(
            num_outputs * config.width, config.deep_hidden, dropout=config.dropout, batch_norm=config.batch_norm
        )
        self.heads = TaskHeads(layout.num_tasks, self.deep.num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        field_BND = fields_BND(tokens)
        for layer in self.layers:
            field_BND = layer(field_BND)
        return self.heads(for_every_task(self.deep(field_BND.flatten(1)), self.num_tasks))
