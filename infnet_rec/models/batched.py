"""Small layers of one shape computed together, and numbers that belong to a module's structure.

A GPU spends more time on being asked for a small product than on the product. Where several layers do the same with
weights of one shape (heads of tasks, gates, flows), their weights are stacked where they are used and one batched
product takes the place of many. Parameters stay what they are: one for each layer, under its own name.

Shapes: G layers that are computed together, B examples, X inputs, Y outputs of a layer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from infnet_rec.models.precision import narrowed

# Products are fastest on weights that begin at a multiple of 16 bytes: of 8 values in bfloat16.
ALIGNED = 8


class Constant(nn.Module):
    """Numbers that a module needs on its device: no weight, no part of a state dict, and never copied in a step.

    They move with the module, and are put there anew where `to_empty` leaves nothing.
    """

    def __init__(self, values: Sequence[float], dtype: torch.dtype) -> None:
        """Keeps the numbers.

        Args:
            values: one after the other.
            dtype: of the tensor; a floating one follows the module's.
        """
        super().__init__()
        self._values = tuple(values)
        self.value: Tensor
        self.register_buffer("value", torch.tensor(self._values, dtype=dtype), persistent=False)

    def forward(self) -> Tensor:
        """[number of values], on the module's device."""
        return self.value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's own
        super()._apply(fn, recurse)
        if not self.value.is_meta:
            self.value.copy_(torch.tensor(self._values, dtype=self.value.dtype))
        return self


class HasAlike(Protocol):
    """A module whose weights are stacked before they are used."""

    def alike(self) -> list[list[Tensor]]:
        """Groups of its parameters; those of a group have one shape."""
        ...


def stack_alike(*parts: HasAlike) -> list[list[Tensor]]:
    """Stacks the weights of each group of each part: [G, *shape].

    One copy makes all of them, and under autocast one cast: products need not cast each weight by itself.
    """
    groups_of_parts = [part.alike() for part in parts]
    groups = [group for groups in groups_of_parts for group in groups]
    sizes = [sum(tensor.numel() for tensor in group) for group in groups]
    # Odd sizes last: the others then begin where fast products want them to.
    order = sorted(range(len(groups)), key=lambda place: sizes[place] % ALIGNED != 0)
    flat_X = narrowed(torch.cat([tensor.flatten() for place in order for tensor in groups[place]]))
    parts_X = dict(zip(order, flat_X.split([sizes[place] for place in order]), strict=True))
    stacked = iter([parts_X[place].view(len(g), *g[0].shape) for place, g in enumerate(groups)])
    return [[next(stacked) for _ in groups] for groups in groups_of_parts]


def linear_alike(input_GBX: Tensor, weight_GYX: Tensor, bias_GY: Tensor) -> Tensor:
    """A linear layer of its own for each of G inputs: [G, B, Y]."""
    if len(weight_GYX) == 1:
        return functional.linear(input_GBX.squeeze(0), weight_GYX.squeeze(0), bias_GY.squeeze(0))[None]
    return torch.baddbmm(bias_GY[:, None], input_GBX, weight_GYX.transpose(1, 2))
