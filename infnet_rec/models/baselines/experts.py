"""Experts, and gates that mix them: what the multi-task models are made of.

Shapes: B examples, X inputs, E experts, H outputs of an expert.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infnet_rec.models.baselines.fields import DeepMlp
from infnet_rec.models.layers import Mlp


class Experts(nn.Module):
    """Networks that read the same input; each ends in ReLU."""

    def __init__(self, num_experts: int, num_inputs: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.experts = nn.ModuleList(DeepMlp(num_inputs, hidden, dropout=dropout) for _ in range(num_experts))

    def forward(self, input_BX: Tensor) -> Tensor:
        """[B, E, H]."""
        return torch.stack([expert(input_BX) for expert in self.experts], dim=1)


class Gate(nn.Module):
    """softmax(MLP(x)), one weight an expert."""

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_experts: int, dropout: float) -> None:
        super().__init__()
        self.mlp = Mlp(num_inputs, hidden, num_experts, dropout)

    def forward(self, input_BX: Tensor, expert_BEH: Tensor) -> Tensor:
        """The weighted sum of the experts, [B, H].

        Args:
            input_BX: what decides the weights.
            expert_BEH: what is summed.
        """
        weight_BE = self.mlp(input_BX).softmax(dim=-1)
        return (weight_BE[:, None] @ expert_BEH)[:, 0]
