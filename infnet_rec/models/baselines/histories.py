"""Sequences as histories of whole events, without padding.

Sequences of one behaviour list the same events, so the n-th rows of all of them are one event: side by side they are
its attributes. Rows stay in TorchRec's order: all events of example 0, oldest first, then those of example 1.

Shapes: B examples, F sequences, N events of one behaviour in the whole batch, X = attributes * D values of an event,
D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infnet_rec.models.infnet.attention import check_lengths, per_token
from infnet_rec.models.tokens import TokenLayout, Tokens


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a target-aware model reads of one behaviour.

    Attributes:
        attended: sequences whose attribute the candidate has too, in the layout's order.
        targets: the categorical token of the candidate for each of them.
        pooled: the other sequences of the behaviour.
    """

    attended: tuple[int, ...]
    targets: tuple[int, ...]
    pooled: tuple[int, ...]

    @property
    def sequences(self) -> tuple[int, ...]:
        """All sequences of the behaviour, in the layout's order."""
        return tuple(sorted(self.attended + self.pooled))


def behaviours_of(layout: TokenLayout) -> tuple[Behaviour, ...]:
    """The behaviours, in the order in which the layout numbers them."""
    found = []
    for behaviour in sorted(set(layout.behaviour_of_sequence)):
        mine = [f for f, other in enumerate(layout.behaviour_of_sequence) if other == behaviour]
        pairs = [(f, target) for f in mine if (target := layout.target_of_sequence[f]) is not None]
        pooled = tuple(f for f in mine if layout.target_of_sequence[f] is None)
        found.append(Behaviour(tuple(f for f, _ in pairs), tuple(target for _, target in pairs), pooled))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class History:
    """The events of one behaviour in a batch.

    Attributes:
        rows_ND: the rows of each sequence of the batch, F times [N, D]; those of other behaviours have another N.
        lengths_B: events of each example; sums to N.
        example_N: the example of each event.
    """

    rows_ND: Sequence[Tensor]
    lengths_B: Tensor
    example_N: Tensor

    def events_NX(self, sequences: Sequence[int]) -> Tensor:
        """Attributes of every event side by side."""
        return torch.cat([self.rows_ND[f] for f in sequences], dim=1)

    def sum_BX(self, value_NX: Tensor) -> Tensor:
        """What the events of each example add up to; 0 for an example without events."""
        return value_NX.new_zeros(len(self.lengths_B), value_NX.shape[1]).index_add(0, self.example_N, value_NX)

    def mean_BX(self, value_NX: Tensor) -> Tensor:
        """The same divided by the number of events."""
        return self.sum_BX(value_NX) / self.lengths_B[:, None].clamp(min=1)


def histories(tokens: Tokens, behaviours: Sequence[Behaviour]) -> list[History]:
    """The batch's events, one history a behaviour.

    Raises:
        UserError: lengths and tokens do not fit.
    """
    token_LD = tokens.sequence_LD
    check_lengths(token_LD, tokens.lengths_FB)
    # On a GPU this waits for the lengths, once a forward: the sizes of what is computed next hang on them.
    rows_ND = token_LD.split(tokens.lengths_FB.sum(dim=1).tolist())
    example_B = torch.arange(tokens.lengths_FB.shape[1], device=tokens.lengths_FB.device)
    found = []
    for behaviour in behaviours:
        first = behaviour.sequences[0]
        lengths_B = tokens.lengths_FB[first]
        found.append(History(rows_ND, lengths_B, per_token(example_B, lengths_B, rows_ND[first].shape[0])))
    return found
