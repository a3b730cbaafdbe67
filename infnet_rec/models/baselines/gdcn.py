"""GDCN: cross layers with a gate on every value, on the concatenated fields x_0.

    x_{l+1} = x_l + x_0 * (W_l x_l + b_l) * sigmoid(V_l x_l)

W and V have no bias of their own; b starts uniform in [0, 1). "stacked": an MLP reads x_L, and the head reads the MLP.
"parallel" (GDCN-P): the head reads [x_L ; MLP(x_0)]. With several tasks each has a head of its own on the same vector.
The paper's choice of a width for each field is left out: our tables are of one width.

Reference: Wang et al., Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction, CIKM 2023.

Shapes: B examples, N fields, X = N * D values of all fields, T tasks, D width.
"""

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import GdcnConfig
from infnet_rec.models.baselines.fields import DeepMlp, fields_BND, for_every_task
from infnet_rec.models.layers import Linear, TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


class GatedCross(nn.Module):
    """One gated cross layer."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.weight = Linear(num_inputs, num_inputs, bias=False)
        self.gate = Linear(num_inputs, num_inputs, bias=False)
        self.bias_X = nn.Parameter(torch.empty(num_inputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the bias; the two matrices draw themselves."""
        nn.init.uniform_(self.bias_X)

    def forward(self, x_BX: Tensor, first_BX: Tensor) -> Tensor:
        """x_l -> x_{l+1}."""
        return x_BX + first_BX * (self.weight(x_BX) + self.bias_X) * torch.sigmoid(self.gate(x_BX))


@register(GdcnConfig)
class Gdcn(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, config: GdcnConfig) -> None:
        super().__init__()
        self.num_tasks, self.parallel = layout.num_tasks, config.structure == "parallel"
        num_inputs = layout.num_fields * config.width
        self.cross = nn.ModuleList(GatedCross(num_inputs) for _ in range(config.num_cross_layers))
        self.deep = DeepMlp(num_inputs, config.deep_hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        num_read = self.deep.num_outputs + (num_inputs if self.parallel else 0)
        self.heads = TaskHeads(layout.num_tasks, num_read, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        first_BX = fields_BND(tokens).flatten(1)
        x_BX = first_BX
        for layer in self.cross:
            x_BX = layer(x_BX, first_BX)
        read_BX = torch.cat([x_BX, self.deep(first_BX)], dim=1) if self.parallel else self.deep(x_BX)
        return self.heads(for_every_task(read_BX, self.num_tasks))
