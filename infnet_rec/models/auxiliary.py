"""A second loss inside a tower, without a second output.

Every tower returns logits_BT and nothing else. A tower with a loss of its own lets the logits carry it: they stay what
they are, and whoever takes a gradient through them adds that loss to what is minimised.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


class _Carry(torch.autograd.Function):
    """logits_BT and a scalar to logits_BT; the scalar's gradient is 1, whatever becomes of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_BT: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return logits_BT.view_as(logits_BT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return grads[0], torch.ones_like(loss)


# The tower's loss is no part of the loss that training reports, and a factor on that one would not reach this one.
carry_loss: Callable[[Tensor, Tensor], Tensor] = cast(Any, _Carry.apply)
