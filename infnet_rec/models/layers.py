"""From tokens to logits, and the small parts that heads, gates and proxies are made of.

Shapes: B examples, T tasks, P proxies, X whatever an MLP takes, Y what it makes, G MLPs computed together, D width.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from infnet_rec.config.model import AblationHead
from infnet_rec.models.batched import linear_alike, stack_alike
from infnet_rec.models.tokens import Tokens


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


class Gates(nn.ModuleDict):
    """The MLPs of proxy gated units, by the kind of token that is gated."""

    def __init__(self, num_inputs: Mapping[str, int], hidden: Sequence[int], width: int, dropout: float = 0.0) -> None:
        """Makes an MLP for each kind.

        Args:
            num_inputs: of each kind's MLP.
            hidden: layers, the same for all.
            width: D, of what they make.
            dropout: on hidden layers.
        """
        super().__init__({kind: Mlp(number, hidden, width, dropout) for kind, number in num_inputs.items()})

    def alike(self) -> list[list[Tensor]]:
        """See `HasAlike`."""
        return alike_layers(self._mlps(), one_input=False)

    def forward(self, proxy_BPD: Mapping[str, Tensor], stacked: Sequence[Tensor] | None = None) -> Tensor:
        """What the sigmoid is taken of, [G, B, D] in the order of kinds, from each kind's updated proxies.

        Args:
            proxy_BPD: by kind.
            stacked: what `stack_alike` makes of this module, where it has been called.
        """
        inputs_BX = [proxy_BPD[kind].flatten(1) for kind in self]
        return run_together(self._mlps(), inputs_BX, stack_alike(self)[0] if stacked is None else stacked)

    def _mlps(self) -> list[Mlp]:
        return [cast(Mlp, mlp) for mlp in self.values()]


class TaskHeads(nn.Module):
    """An MLP of its own for each task."""

    def __init__(self, num_tasks: int, width: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Mlp(width, hidden, 1, dropout) for _ in range(num_tasks))

    def alike(self) -> list[list[Tensor]]:
        """See `HasAlike`."""
        return alike_layers(self._mlps(), one_input=True)

    def forward(self, token_BTD: Tensor, stacked: Sequence[Tensor] | None = None) -> Tensor:
        """logits_BT, each from its own task's token.

        Args:
            token_BTD: a token for each task.
            stacked: what `stack_alike` makes of this module, where it has been called.
        """
        weights = stack_alike(self)[0] if stacked is None else stacked
        logits_TB1 = run_together(self._mlps(), token_BTD.transpose(0, 1), weights)
        return logits_TB1.squeeze(2).t().contiguous()

    def _mlps(self) -> list[Mlp]:
        return [cast(Mlp, tower) for tower in self.towers]


def alike_layers(mlps: Sequence[Mlp], *, one_input: bool) -> list[list[Tensor]]:
    """Weights and biases of each layer, of all MLPs together; of the first layers one by one where inputs differ."""
    if not mlps:
        return []
    first, *later = (
        [cast(Linear, layer) for layer in layers] for layers in zip(*(m.layers for m in mlps), strict=True)
    )
    groups = [*([first] if one_input else ([layer] for layer in first)), *later]
    return [[getattr(layer, part) for layer in group] for group in groups for part in ("weight", "bias")]


def run_together(mlps: Sequence[Mlp], input_GBX: Tensor | Sequence[Tensor], stacked: Sequence[Tensor]) -> Tensor:
    """What each MLP makes of its own input, [G, B, Y], with one batched product a layer.

    Args:
        mlps: of one shape, but that their first layers may take numbers of inputs that differ.
        input_GBX: one for each of them; a list of [B, X] where X differs.
        stacked: their `alike_layers`, stacked.
    """
    layers = list(zip(stacked[::2], stacked[1::2], strict=True))
    if isinstance(input_GBX, Tensor):
        num_first, hidden_GBY = 1, linear_alike(input_GBX, *layers[0])
    else:
        num_first = len(input_GBX)
        pairs = zip(input_GBX, layers[:num_first], strict=True)
        alone_1BY = [linear_alike(x_BX[None], weight, bias) for x_BX, (weight, bias) in pairs]
        hidden_GBY = torch.cat(alone_1BY) if num_first > 1 else alone_1BY[0]
    for weight, bias in layers[num_first:]:
        hidden_GBY = linear_alike(mlps[0].dropout(torch.relu(hidden_GBY)), weight, bias)
    return hidden_GBY


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
