"""The first proxies of the categorical and the sequence tokens.

Shapes: B examples, M categorical tokens, F sequences, G groups of them, L sequence tokens of the whole batch,
P proxies, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from infnet_rec.config.model import Pooling
from infnet_rec.models.batched import Constant, stack_alike
from infnet_rec.models.infnet.attention import check_lengths, is_gpu, per_token
from infnet_rec.models.infnet.jagged_attention import chunk_tokens, next_link, outside_graphs
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
        """Proxies [B, G, D], 0 for a group without events, and the sequence tokens for whoever reads them next."""
        sum_BGD, count_BG, token_LD = pool_sequences(
            tokens.sequence_LD, tokens.lengths_FB, self.group_F(), self.num_groups
        )
        count_BG1 = count_BG[..., None].to(sum_BGD.dtype)
        # Sums over long histories and what is made of them need float32, and are too few for a narrower product to pay.
        with torch.autocast(sum_BGD.device.type, enabled=False):
            proxy_BGD = sum_BGD @ self.projection.weight.t() + count_BG1 * self.projection.bias
        return proxy_BGD if self.pooling == "sum" else proxy_BGD / count_BG1.clamp(min=1), token_LD


@outside_graphs
def pool_sequences(
    token_LD: Tensor, lengths_FB: Tensor, group_F: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds up the events of each group of sequences. The first link of the chain that `model.jagged` describes.

    Args:
        token_LD: feature-major tokens, as in `Tokens.sequence_LD`.
        lengths_FB: number of events of each sequence in each example; sums to L.
        group_F: for each sequence, the index of its group, 0 .. G - 1, int64.
        num_groups: G.

    Returns:
        sum_BGD: sums of tokens; 0 for a group without events.
        count_BG: numbers of events.
        token_LD: the same tokens, for readings and nothing else.

    Raises:
        UserError: see `check_lengths`.
    """
    check_lengths(token_LD, lengths_FB)
    num_examples = lengths_FB.shape[1]
    num_slots = num_examples * num_groups
    slot_FB = torch.arange(0, num_slots, num_groups, device=group_F.device) + group_F[:, None]
    slot_L = per_token(slot_FB, lengths_FB, token_LD.shape[0])
    sum_XD, passed_on_LD = _Pool.apply(token_LD, slot_L, num_slots)
    count_GB = lengths_FB.new_zeros(num_groups, num_examples).index_add_(0, group_F, lengths_FB)
    return sum_XD.view(num_examples, num_groups, -1), count_GB.t(), next_link(token_LD, passed_on_LD)


class _Pool(torch.autograd.Function):
    """token_LD, the slot of each and the number of slots to the sum of each slot's tokens, and token_LD."""

    @staticmethod
    def forward(ctx: Any, token_LD: Tensor, slot_L: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slot_L)
        sum_XD = token_LD.new_zeros(num_slots, token_LD.shape[1]).index_add_(0, slot_L, token_LD)
        return sum_XD, token_LD.view_as(token_LD)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_sum_XD: Tensor | None, grad_token_LD: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        (slot_L,) = ctx.saved_tensors
        if grad_sum_XD is None:
            return grad_token_LD, None, None
        if grad_token_LD is None:
            return grad_sum_XD.index_select(0, slot_L), None, None
        size = pool_tokens(slot_L)
        for grad_XD, slot_X in zip(grad_token_LD.split(size), slot_L.split(size), strict=True):
            grad_XD += grad_sum_XD.index_select(0, slot_X)
        return grad_token_LD, None, None


def pool_tokens(slot_L: Tensor) -> int:
    """How many tokens get their gradient at once: what a processor's cache holds, or a share of all."""
    return max(1, -(-len(slot_L) // PARTS_ON_GPU)) if is_gpu(slot_L.device) else chunk_tokens(slot_L.device)
