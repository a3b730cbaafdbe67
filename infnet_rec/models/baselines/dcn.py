"""DCNv2: cross layers and an MLP, both on the concatenated fields x_0, side by side.

A cross layer multiplies x_0 by what it makes of x_l, so that L layers form products of up to L + 1 fields:

    full      x_{l+1} = x_l + x_0 * (W_l x_l + b_l)
    mixture   x_{l+1} = x_l + x_0 * (sum_e g_e U_le tanh(C_le tanh(V_le^T x_l)) + b_l),   g = softmax(G x_l)

with E experts of low rank; G, without a bias, is one for all layers, and b_l one for all experts. As g sums to 1, all
experts' U are applied in one product. The head reads [x_L ; MLP(x_0)]; with several tasks each has a head of its own on
this vector, and without hidden layers of heads that is one linear layer with an output for each task.

Reference: Wang et al., DCN V2, WWW 2021; G for all layers, and tanh, as in the authors' and FuxiCTR's code.

Shapes: B examples, N fields, X = N * D values of all fields, E experts, K their rank, T tasks, D width.
"""

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import DcnConfig
from infnet_rec.models.baselines.fields import DeepMlp, fields_BND, for_every_task
from infnet_rec.models.layers import Linear, TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


class MixtureLayer(nn.Module):
    """What x_0 is multiplied by: experts of low rank, mixed by a gate that is given."""

    def __init__(self, num_inputs: int, num_experts: int, rank: int) -> None:
        super().__init__()
        self.down_EKX = nn.Parameter(torch.empty(num_experts, rank, num_inputs))
        self.inner_EKK = nn.Parameter(torch.empty(num_experts, rank, rank))
        self.up_EXK = nn.Parameter(torch.empty(num_experts, num_inputs, rank))
        self.bias_X = nn.Parameter(torch.empty(num_inputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier normal weights for each expert, bias 0."""
        for weight_EYX in (self.down_EKX, self.inner_EKK, self.up_EXK):
            for weight_YX in weight_EYX:
                nn.init.xavier_normal_(weight_YX)
        nn.init.zeros_(self.bias_X)

    def forward(self, input_BX: Tensor, gate_BE: Tensor) -> Tensor:
        """[B, X]."""
        num_experts, rank, _ = self.down_EKX.shape
        small_BEK = torch.tanh(input_BX @ self.down_EKX.flatten(0, 1).t()).unflatten(1, (num_experts, rank))
        small_BEK = torch.tanh(torch.einsum("bej,ekj->bek", small_BEK, self.inner_EKK))
        mixed_BX = (small_BEK * gate_BE[..., None]).flatten(1) @ self.up_EXK.transpose(1, 2).flatten(0, 1)
        return mixed_BX + self.bias_X


class Mixture(nn.Module):
    """All layers of "mixture"."""

    def __init__(self, num_inputs: int, config: DcnConfig) -> None:
        super().__init__()
        self.gate = Linear(num_inputs, config.num_experts, bias=False)
        self.layers = nn.ModuleList(
            MixtureLayer(num_inputs, config.num_experts, config.rank) for _ in range(config.num_cross_layers)
        )

    def forward(self, first_BX: Tensor) -> Tensor:
        """x_0 -> x_L."""
        x_BX = first_BX
        for layer in self.layers:
            x_BX = x_BX + first_BX * layer(x_BX, self.gate(x_BX).softmax(dim=-1))
        return x_BX


class Full(nn.Module):
    """All layers of "full"."""

    def __init__(self, num_inputs: int, config: DcnConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(num_inputs, num_inputs) for _ in range(config.num_cross_layers))

    def forward(self, first_BX: Tensor) -> Tensor:
        """x_0 -> x_L."""
        x_BX = first_BX
        for layer in self.layers:
            x_BX = x_BX + first_BX * layer(x_BX)
        return x_BX


@register(DcnConfig)
class Dcn(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, config: DcnConfig) -> None:
        super().__init__()
        self.num_tasks = layout.num_tasks
        num_inputs = layout.num_fields * config.width
        self.cross = (Mixture if config.cross == "mixture" else Full)(num_inputs, config)
        self.deep = DeepMlp(num_inputs, config.deep_hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.heads = TaskHeads(layout.num_tasks, num_inputs + self.deep.num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        first_BX = fields_BND(tokens).flatten(1)
        both_BX = torch.cat([self.cross(first_BX), self.deep(first_BX)], dim=1)
        return self.heads(for_every_task(both_BX, self.num_tasks))
