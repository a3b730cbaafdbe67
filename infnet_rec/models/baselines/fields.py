"""What the baselines share: tokens as fields, and the layers that they are made of.

A field is one vector an example. Models that do not read sequences event by event see each sequence as one field, the
mean of its events.

Shapes: B examples, M categorical tokens, F sequences, N = M + F fields, L sequence tokens of the whole batch, R rows,
X whatever a layer takes, T tasks, D width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from infnet_rec.models.infnet.attention import check_lengths, per_token
from infnet_rec.models.layers import Linear
from infnet_rec.models.tokens import Tokens


def pool_each_sequence(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """sum_BFD, the events of each sequence added up, and count_BF1, how many they are.

    Raises:
        UserError: lengths and tokens do not fit.
    """
    lengths_FB, token_LD = tokens.lengths_FB, tokens.sequence_LD
    check_lengths(token_LD, lengths_FB)
    place_FB = torch.arange(lengths_FB.numel(), device=lengths_FB.device).view_as(lengths_FB)
    place_L = per_token(place_FB, lengths_FB, token_LD.shape[0])
    sum_XD = token_LD.new_zeros(lengths_FB.numel(), token_LD.shape[1]).index_add(0, place_L, token_LD)
    sum_FBD = sum_XD.unflatten(0, lengths_FB.shape)
    return sum_FBD.transpose(0, 1), lengths_FB.t()[..., None].to(sum_FBD.dtype)


def fields_BND(tokens: Tokens) -> Tensor:
    """The categorical tokens, then the mean event of each sequence; 0 for a sequence without events."""
    sum_BFD, count_BF1 = pool_each_sequence(tokens)
    return torch.cat([tokens.categorical_BMD, sum_BFD / count_BF1.clamp(min=1)], dim=1)


def for_every_task(shared_BX: Tensor, num_tasks: int) -> Tensor:
    """The same vector for the head of each task, [B, T, X], without a copy."""
    return shared_BX[:, None].expand(-1, num_tasks, -1)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes any number of rows: fewer than two have no spread, so running statistics serve."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, X] -> [R, X]."""
        if not self.training or len(input) > 1:
            return super().forward(input)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class DeepMlp(nn.Module):
    """Linear -> [batch normalisation] -> ReLU -> dropout, after the last layer too: a body, whose head comes after it.

    `infnet_rec.models.layers.Mlp` is the one that ends in a linear layer. Without hidden layers this one does nothing.
    """

    def __init__(
        self, num_inputs: int, hidden: Sequence[int], *, dropout: float = 0.0, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise((num_inputs, *hidden)))
        self.norms = nn.ModuleList(BatchNorm(units) if batch_norm else nn.Identity() for units in hidden)
        self.dropout = nn.Dropout(dropout)
        self.num_outputs = (num_inputs, *hidden)[-1]

    def forward(self, input_BX: Tensor) -> Tensor:
        """[B, num_inputs] -> [B, num_outputs]."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            input_BX = self.dropout(torch.relu(norm(layer(input_BX))))
        return input_BX
