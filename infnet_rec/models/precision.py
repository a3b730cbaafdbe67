"""In which numbers the dense part computes: tables, optimizer and loss stay in float32 whatever is chosen here."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from infnet_rec.config.train import Precision


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 inside, by autocast; "fp32" leaves everything as it is, an outer autocast too."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


def in_its_precision(forward: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Makes a tower's `forward` compute in the precision that stands in its attribute `precision`; fp32 without one.

    Args:
        forward: the method, from the tower and its `Tokens` to logits_BT; they come back in at least float32.
    """

    @wraps(forward)
    def computing(tower: Any, tokens: Any) -> Tensor:
        with computing_in(getattr(tower, "precision", "fp32"), tokens.lengths_FB.device):
            logits_BT = forward(tower, tokens)
        return widened(logits_BT)

    return computing


def product_dtype(value: Tensor) -> torch.dtype:
    """What autocast's products would make of the value; its own dtype without autocast."""
    kind = value.device.type
    casts = torch.is_autocast_enabled(kind) and value.dtype == torch.float32
    return torch.get_autocast_dtype(kind) if casts else value.dtype


def narrowed(value: Tensor) -> Tensor:
    """The value as autocast's products would cast it, once instead of in each of them; the same without autocast."""
    return value.to(product_dtype(value))


def widened(value: Tensor) -> Tensor:
    """At least float32: a long sum in bfloat16 stands still. Wider values come back as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
