"""Factorisation machine.

    y = b + sum_i w_i + 1/2 sum_k [ (sum_i e_ik)^2 - sum_i e_ik^2 ]

over the fields i and the columns k of their embeddings e_i. A sequence's field is the mean of its events; its linear
weight is the sum of theirs.

Where the weights w are: in the tables, as columns behind the embedding. A table that is read as a feature and as a
sequence of several behaviours has a column for each of these roles, so that having watched an item weighs nothing like
being shown it; two sequences of one behaviour that read one table share theirs. The weights start as small as the
embeddings do.

Several tasks (ours): each has its own columns of w and its own b, and its sum over k weighs column k by its own p_k,
which starts at 1: the prediction layer of a neural factorisation machine without hidden layers. One task has no p: it
would say twice what the scale of the embeddings says.

Reference: Rendle, Factorization Machines, ICDM 2010; He and Chua, Neural Factorization Machines, SIGIR 2017, for p.

Shapes: B examples, M categorical tokens, F sequences, R roles, T tasks, D width of an embedding, X width of a token.
"""

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import FmConfig
from infnet_rec.models.baselines.fields import pool_each_sequence
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


@register(FmConfig)
class Fm(nn.Module):
    """See the module. All but a few of its parameters are in the tables."""

    def __init__(self, layout: TokenLayout, config: FmConfig) -> None:
        """Builds the model.

        Args:
            layout: what the tokens say.
            config: its `width` is D; the tokens are `table_width` wide.
        """
        super().__init__()
        width = config.width
        self.width, self.num_tasks = width, layout.num_tasks
        self.num_roles = _num_roles(layout)
        self.role_of_sequence = tuple(1 + behaviour for behaviour in layout.behaviour_of_sequence)
        self.bias_T = nn.Parameter(torch.empty(layout.num_tasks))
        self.product_TD: nn.Parameter | None = None
        if layout.num_tasks > 1:
            self.product_TD = nn.Parameter(torch.empty(layout.num_tasks, width))
        self.reset_parameters()

    @staticmethod
    def table_width(layout: TokenLayout, width: int) -> int:
        """How wide tables are: embedding and linear weights; FBGEMM's kernels want a multiple of 4."""
        return width + -(-_num_roles(layout) * layout.num_tasks // 4) * 4

    def reset_parameters(self) -> None:
        """Starts as one factorisation machine for all tasks."""
        nn.init.zeros_(self.bias_T)
        if self.product_TD is not None:
            nn.init.ones_(self.product_TD)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT, from tokens that are `table_width` wide."""
        sum_BFX, count_BF1 = pool_each_sequence(tokens)
        embedding_BMD, weight_BMRT = self._split(tokens.categorical_BMD)
        sum_BFD, weight_BFRT = self._split(sum_BFX)

        field_BND = torch.cat([embedding_BMD, sum_BFD / count_BF1.clamp(min=1)], dim=1)
        pair_BD = (field_BND.sum(dim=1).square() - field_BND.square().sum(dim=1)) / 2
        linear_BT = weight_BMRT[:, :, 0].sum(dim=1)
        for f, role in enumerate(self.role_of_sequence):
            linear_BT = linear_BT + weight_BFRT[:, f, role]
        pair_BT = pair_BD.sum(dim=1, keepdim=True) if self.product_TD is None else pair_BD @ self.product_TD.t()
        return self.bias_T + linear_BT + pair_BT

    def _split(self, token_BNX: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, and linear weights [B, N, R, T]; columns that only fill up stay unused."""
        stop = self.width + self.num_roles * self.num_tasks
        weight_BNRT = token_BNX[..., self.width : stop].unflatten(-1, (self.num_roles, self.num_tasks))
        return token_BNX[..., : self.width], weight_BNRT


def _num_roles(layout: TokenLayout) -> int:
    """A feature, or a sequence of one of the behaviours."""
    return 1 + max(layout.behaviour_of_sequence, default=-1) + 1
