"""In which numbers the dense part computes: tables, optimizer and loss stay in float32 whatever is chosen here."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bfloat16 inside, by autocast; "fp32" leaves everything as it is, an outer autocast too."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


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
