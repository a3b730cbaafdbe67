"""Small layers of one shape computed together, and numbers that belong to a module's structure.

A GPU spends more time on being asked for a small product than on the product. Where several layers do the same with
weights of one shape (heads of tasks, gates, flows), their weights are stacked where they are used and one batched
product takes the place of many. Parameters stay what they are: one for each layer, under its own name.

Shapes: G layers that are computed together, B examples, X inputs, Y outputs of a layer.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from infnet_rec.model.precision import narrowed


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


def stack_alike(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Stacks the tensors of each group, which have one shape: [G, *shape] a group.

    One copy makes all of them, and under autocast one cast: products need not cast each weight by itself. Put groups
    with odd numbers of values last, so that the others stay where fast products want them.
    """
    flat_X = narrowed(torch.cat([tensor.flatten() for group in groups for tensor in group]))
    parts_X = flat_X.split([sum(tensor.numel() for tensor in group) for group in groups])
    return [part.view(len(group), *group[0].shape) for part, group in zip(parts_X, groups, strict=True)]


def linear_alike(input_GBX: Tensor, weight_GYX: Tensor, bias_GY: Tensor) -> Tensor:
    """A linear layer of its own for each of G inputs: [G, B, Y]."""
    return torch.baddbmm(bias_GY[:, None], input_GBX, weight_GYX.transpose(1, 2))
