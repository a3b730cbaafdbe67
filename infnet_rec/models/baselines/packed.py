"""Histories in the order in which a recurrent network walks them: first events of all examples, then second ones.

Examples are sorted by falling length, so that step t of the network works on the first `sizes[t]` of them: no padding
is formed or computed. This is the layout of torch's PackedSequence.

Shapes: B examples, N events of the whole batch, P pairs of neighbours, T steps, Y examples of a step,
X values of an event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from infnet_rec.models.infnet.attention import per_token
from infnet_rec.models.precision import widened


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

    def last_BX(self, states_YX: Sequence[Tensor]) -> Tensor:
        """The last state of each example, in the batch's order; 0 for an example without events.

        Args:
            states_YX: what `walk` returns.
        """
        # Who goes no further is at the end of a step, and the shortest histories are sorted last.
        left = [*self.sizes[1:], 0]
        ended_YX = torch.cat([state_YX[num:] for state_YX, num in zip(states_YX, left, strict=True)][::-1])
        spread_BX = ended_YX.new_zeros(len(self.order_B), ended_YX.shape[1])
        return spread_BX.index_copy(0, self.order_B[: len(ended_YX)], ended_YX)

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


def walk(cell: nn.GRUCell, input_NX: Tensor, sizes: Sequence[int], attention_N: Tensor | None = None) -> list[Tensor]:
    """The states of a GRU after each step, [Y, X] with as many rows as the step has examples.

    The update gate is the share of what is new, as in DIEN; torch's own GRU has it the other way round. That one, given
    a PackedSequence on a CPU, also clears as much memory in every step of its backward pass as all steps together hold.

    Args:
        cell: the weights; not called.
        input_NX: packed.
        sizes: see `Packing`.
        attention_N: factors of the update gate, packed; None for a plain GRU.
    """
    # A state that is carried from step to step is in float32, whatever the products are in.
    inputs_YZ = widened(functional.linear(input_NX, cell.weight_ih, cell.bias_ih)).split(sizes)
    attention_Y1 = [None] * len(sizes) if attention_N is None else attention_N[:, None].split(sizes)
    state_YX = widened(input_NX.new_zeros(sizes[0], input_NX.shape[1]))
    states = []
    for input_YZ, factor_Y1 in zip(inputs_YZ, attention_Y1, strict=True):
        before_YX = state_YX if len(state_YX) == len(input_YZ) else state_YX[: len(input_YZ)]
        inner_YZ = widened(functional.linear(before_YX, cell.weight_hh, cell.bias_hh))
        reset_in, update_in, new_in = input_YZ.chunk(3, dim=1)
        reset_inner, update_inner, new_inner = inner_YZ.chunk(3, dim=1)
        new_YX = torch.tanh(new_in + torch.sigmoid(reset_in + reset_inner) * new_inner)
        update_YX = torch.sigmoid(update_in + update_inner)
        if factor_Y1 is not None:
            update_YX = factor_Y1 * update_YX
        state_YX = torch.lerp(before_YX, new_YX, update_YX)
        states.append(state_YX)
    return states
