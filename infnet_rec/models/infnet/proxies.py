"""The first proxies of the categorical and the sequence tokens.

Shapes: B examples, M categorical tokens, F sequences, G groups of them, L sequence tokens of the whole batch,
X distinct embeddings, Z = F * B runs of tokens, P proxies, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from infnet_rec.batch import Repeats
from infnet_rec.config.model import Pooling
from infnet_rec.models.batched import Constant, stack_alike
from infnet_rec.models.infnet.attention import check_lengths, is_gpu, next_link, per_token
from infnet_rec.models.infnet.jagged_attention import chunk_tokens, outside_graphs
from infnet_rec.models.layers import Linear, Mlp, alike_layers, run_together
from infnet_rec.models.tokens import Tokens

# A GPU adds the gradient of sums to that of all tokens in so many parts, whatever their number: each costs memory for
# its share of the tokens, and two launches.
PARTS_ON_GPU = 2


class CategoricalProxies(nn.Module):
    """C~ = reshape(MLP(flatten C)).

    Reference: INFNet, proxy tokens, phi_cat.
    """

    def __init__(self, num_features: int, width: int, num_proxies: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.num_proxies = num_proxies
        self.mlp = Mlp(num_features * width, hidden, num_proxies * width, dropout)

    def alike(self) -> list[list[Tensor]]:
        """See `HasAlike`."""
        return alike_layers([self.mlp], one_input=False)

    def forward(self, tokens: Tokens, stacked: Sequence[Tensor] | None = None) -> Tensor:
        """[B, P, D].

        Args:
            tokens: of a batch.
            stacked: what `stack_alike` makes of this module, where it has been called.
        """
        weights = stack_alike(self)[0] if stacked is None else stacked
        proxy_1BX = run_together([self.mlp], [tokens.categorical_BMD.flatten(1)], weights)
        return proxy_1BX.squeeze(0).unflatten(1, (self.num_proxies, -1))


class SequenceProxies(nn.Module):
    """S~: for each group of sequences, the sum (or mean) over its events of one shared linear projection.

    A projection is linear, so the events are pooled first and projected once; its bias counts once for every event.

    Reference: INFNet, proxy tokens, phi_seq.
    """

    def __init__(self, group_of_sequence: tuple[int, ...], width: int, pooling: Pooling) -> None:
        super().__init__()
        self.group_of_sequence = group_of_sequence
        self.num_groups = max(group_of_sequence) + 1
        self.pooling = pooling
        self.projection = Linear(width, width)
        self.group_F = Constant(group_of_sequence, torch.int64)

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Proxies [B, G, D], 0 for a group without events, and the distinct rows for whoever reads them next."""
        sum_BGD, count_BG, link_XD = pool_sequences(
            tokens.distinct_XD, tokens.lengths_FB, self.group_F(), self.num_groups, tokens.row_L, tokens.repeats
        )
        count_BG1 = count_BG[..., None].to(sum_BGD.dtype)
        # Sums over long histories and what is made of them need float32, and are too few for a narrower product to pay.
        with torch.autocast(sum_BGD.device.type, enabled=False):
            proxy_BGD = sum_BGD @ self.projection.weight.t() + count_BG1 * self.projection.bias
        return proxy_BGD if self.pooling == "sum" else proxy_BGD / count_BG1.clamp(min=1), link_XD


@outside_graphs
def pool_sequences(
    distinct_XD: Tensor,
    lengths_FB: Tensor,
    group_F: Tensor,
    num_groups: int,
    row_L: Tensor | None = None,
    repeats: Repeats | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds up the events of each group of sequences. The first link of the chain that `jagged_attention` describes.

    Args:
        distinct_XD: see `Tokens`.
        lengths_FB: see `Tokens`.
        group_F: for each sequence, the index of its group, 0 .. G - 1, int64.
        num_groups: G.
        row_L: see `Tokens`.
        repeats: see `Tokens`.

    Returns:
        sum_BGD: sums of tokens; 0 for a group without events.
        count_BG: numbers of events.
        distinct_XD: the same rows, for readings and nothing else.

    Raises:
        UserError: see `check_lengths`.
    """
    check_lengths(distinct_XD, lengths_FB, row_L)
    num_examples = lengths_FB.shape[1]
    sum_ZD, passed_on_XD = _Pool.apply(distinct_XD, lengths_FB, row_L, repeats)
    # A sum over runs of tokens, not one over tokens, is what finds its group.
    sum_FX = sum_ZD.view(len(group_F), -1)
    sum_GX = sum_FX.new_zeros(num_groups, sum_FX.shape[1]).index_add(0, group_F, sum_FX)
    count_GB = lengths_FB.new_zeros(num_groups, num_examples).index_add_(0, group_F, lengths_FB)
    sum_BGD = sum_GX.view(num_groups, num_examples, -1).transpose(0, 1)
    return sum_BGD, count_GB.t(), next_link(distinct_XD, passed_on_XD)


class _Pool(torch.autograd.Function):
    """distinct_XD, and where tokens are, to the sum of the tokens of each (sequence, example), and distinct_XD."""

    @staticmethod
    def forward(
        ctx: Any, distinct_XD: Tensor, lengths_FB: Tensor, row_L: Tensor | None, repeats: Repeats | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.repeats, ctx.num_rows = repeats, distinct_XD.shape[0]
        length_Z = lengths_FB.flatten()
        ctx.save_for_backward(length_Z, row_L)
        start_Z = length_Z.cumsum(dim=0) - length_Z
        if row_L is None:
            row_L = torch.arange(ctx.num_rows, device=length_Z.device)
        return functional.embedding_bag(row_L, distinct_XD, start_Z, mode="sum"), distinct_XD.view_as(distinct_XD)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_sum_ZD: Tensor | None, grad_distinct_XD: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        if grad_sum_ZD is None:
            return grad_distinct_XD, None, None, None
        length_Z, row_L = ctx.saved_tensors
        num_tokens = ctx.num_rows if row_L is None else row_L.shape[0]
        run_L = per_token(torch.arange(len(length_Z), dtype=torch.int32, device=length_Z.device), length_Z, num_tokens)
        repeats: Repeats | None = ctx.repeats
        if repeats is not None:
            # The gradient of a row is the sum of those of the runs that have it.
            by_row_L = run_L.index_select(0, repeats.by_row_L)
            own_XD = functional.embedding_bag(by_row_L, grad_sum_ZD.contiguous(), repeats.row_start_X, mode="sum")
            return own_XD if grad_distinct_XD is None else grad_distinct_XD.add_(own_XD), None, None, None
        if grad_distinct_XD is None:
            grad_distinct_XD = grad_sum_ZD.new_zeros(ctx.num_rows, grad_sum_ZD.shape[1])
        size = pool_tokens(run_L)
        rows = grad_distinct_XD.split(size) if row_L is None else row_L.split(size)
        for row_X, run_X in zip(rows, run_L.split(size), strict=True):
            if row_L is None:
                row_X += grad_sum_ZD.index_select(0, run_X)
            else:
                grad_distinct_XD.index_add_(0, row_X, grad_sum_ZD.index_select(0, run_X))
        return grad_distinct_XD, None, None, None


def pool_tokens(run_L: Tensor) -> int:
    """How many tokens get their gradient at once: what a processor's cache holds, or a share of all."""
    return max(1, -(-len(run_L) // PARTS_ON_GPU)) if is_gpu(run_L.device) else chunk_tokens(run_L.device)
