"""From tokens to logits, and the small parts that heads, gates and proxies are made of.

Shapes: B examples, T tasks, P proxies, X whatever an MLP takes, D width.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from infnet_rec.model.tokens import Tokens

AblationHead = Literal["pool", "late"]


class Linear(nn.Linear):
    """A linear layer that starts with Xavier normal weights and bias 0."""

    def reset_parameters(self) -> None:
        """Draws the weight anew; called by the constructor too."""
        nn.init.xavier_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Mlp(nn.Module):
    """Linear layers with ReLU, then dropout, between them; the last one is linear."""

    def __init__(self, num_inputs: int, hidden: Sequence[int], num_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise((num_inputs, *hidden, num_outputs)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_BX: Tensor) -> Tensor:
        """[B, num_inputs] -> [B, num_outputs]."""
        *inner, last = self.layers
        for layer in inner:
            input_BX = self.dropout(torch.relu(layer(input_BX)))
        return last(input_BX)


class LearnedTokens(nn.Module):
    """Tokens that are parameters, the same for every example: T, and T~."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.token_PD = nn.Parameter(torch.empty(num_tokens, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the tokens anew."""
        nn.init.normal_(self.token_PD, std=0.1)

    def forward(self, tokens: Tokens) -> Tensor:
        """[B, P, D], without a copy."""
        return self.token_PD.expand(tokens.categorical_BMD.shape[0], -1, -1)


class TaskHeads(nn.Module):
    """An MLP of its own for each task."""

    def __init__(self, num_tasks: int, width: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Mlp(width, hidden, 1, dropout) for _ in range(num_tasks))

    def forward(self, token_BTD: Tensor) -> Tensor:
        """logits_BT, each from its own task's token."""
        token_BD = token_BTD.unbind(dim=1)
        return torch.cat([tower(token) for tower, token in zip(self.towers, token_BD, strict=True)], dim=1)


def read_everything(task_BTD: Tensor, categorical_BPD: Tensor, sequence_BPD: Tensor) -> Tensor:
    """Each task's token, C~ and S~ side by side, [B, T, (1 + P) * D]; P counts the proxies of both kinds."""
    proxies_BX = torch.cat([categorical_BPD, sequence_BPD], dim=1).flatten(1)
    return torch.cat([task_BTD, proxies_BX[:, None].expand(-1, task_BTD.shape[1], -1)], dim=2)


def read_proxies(categorical_BPD: Tensor, sequence_BPD: Tensor, num_tasks: int, head: AblationHead) -> Tensor:
    """What heads read where there are no task tokens, the same for every task: [B, T, D], or [B, T, P * D] for "late".

    Args:
        categorical_BPD: C~.
        sequence_BPD: S~.
        num_tasks: T.
        head: mean C~ + mean S~, or all of them side by side.
    """
    if head == "late":
        read_BX = torch.cat([categorical_BPD, sequence_BPD], dim=1).flatten(1)
    else:
        read_BX = categorical_BPD.mean(dim=1) + sequence_BPD.mean(dim=1)
    return read_BX[:, None].expand(-1, num_tasks, -1)


def read_tokens(task_BTD: Tensor, categorical_B1D: Tensor, sequence_B1D: Tensor, head: AblationHead) -> Tensor:
    """What heads read where task tokens learn nothing from the example: [B, T, D], or [B, T, 3 * D] for "late".

    Args:
        task_BTD: task tokens.
        categorical_B1D: mean categorical token.
        sequence_B1D: mean sequence token; 0 for an example without events.
        head: each task's token plus the mean tokens, or the three side by side.
    """
    if head == "late":
        return torch.cat([task_BTD, *(mean.expand_as(task_BTD) for mean in (categorical_B1D, sequence_B1D))], dim=2)
    return task_BTD + categorical_B1D + sequence_B1D
