"""Histories in the order in which a recurrent network walks them: first events of all examples, then second ones.

Examples are sorted by falling length, so that step t of the network works on the first `sizes[t]` of them: no padding is
formed or computed. This is the layout of torch's PackedSequence.

Shapes: B examples, N events of the whole batch, P pairs of neighbours, T steps, Y examples that have events,
X values of an event.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from infnet_rec.model.attention import per_token


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each event goes.

    Attributes:
        order_B: the examples by falling length.
        place_N: for each event in the batch's order, its row in the packed order.
        example_N: for each packed row, its example.
        sizes_T: for each step, how many examples are that long; T steps.
        sizes: the same as Python numbers.
    """

    order_B: Tensor
    place_N: Tensor
    example_N: Tensor
    sizes_T: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, lengths_B: Tensor, num_events: int) -> Self:
        """Plans the packing of events that stand example by example.

        Args:
            lengths_B: events of each example.
            num_events: their sum.
        """
        device = lengths_B.device
        sorted_B, order_B = lengths_B.sort(descending=True, stable=True)
        rank_B = torch.empty_like(order_B).index_copy(0, order_B, torch.arange(len(order_B), device=device))
        # On a GPU these two wait for the lengths: the number of steps, and the examples of each, shape the computation.
        num_steps = int(sorted_B[0])
        long_enough_TB = sorted_B > torch.arange(num_steps, device=device)[:, None]
        sizes_T = long_enough_TB.sum(dim=1)
        start_T = sizes_T.cumsum(dim=0) - sizes_T

        first_B = lengths_B.cumsum(dim=0) - lengths_B
        row_N = torch.arange(num_events, device=device)
        step_N = row_N - per_token(first_B, lengths_B, num_events)
        place_N = start_T[step_N] + per_token(rank_B, lengths_B, num_events)
        example_N = order_B[row_N - per_token(start_T, sizes_T, num_events)]
        return cls(order_B, place_N, example_N, sizes_T, sizes_T.tolist())

    def pack(self, event_NX: Tensor) -> Tensor:
        """Events in packed order; the backward pass is a plain gather."""
        return torch.empty_like(event_NX).index_copy(0, self.place_N, event_NX)

    def run(self, recurrent: nn.GRU, event_NX: Tensor) -> Tensor:
        """The states of a recurrent network after each packed event."""
        states, _ = recurrent(PackedSequence(event_NX, torch.tensor(self.sizes)))
        return states.data

    def by_example(self, state_YX: Tensor) -> Tensor:
        """States of the Y sorted examples that have events, in the batch's order: [B, X], 0 for those without."""
        spread_BX = state_YX.new_zeros(len(self.order_B), state_YX.shape[1])
        return spread_BX.index_copy(0, self.order_B[: len(state_YX)], state_YX)

    def softmax(self, score_N: Tensor) -> Tensor:
        """Over the events of each example."""
        # A softmax does not change when one number is taken from all its scores: no gradient has to flow through it.
        detached_N = score_N.detach()
        top_B = detached_N.new_zeros(len(self.order_B)).scatter_reduce(
            0, self.example_N, detached_N, "amax", include_self=False
        )
        weight_N = torch.exp(score_N - top_B[self.example_N])
        total_B = weight_N.new_zeros(len(self.order_B)).index_add(0, self.example_N, weight_N)
        return weight_N / total_B[self.example_N]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Packed rows of all events but the last of each example, and of the event that follows each of them."""
        first = self.sizes[0]
        next_P = torch.arange(first, len(self.place_N), device=self.place_N.device)
        return next_P - per_token(self.sizes_T[:-1], self.sizes_T[1:], len(next_P)), next_P
