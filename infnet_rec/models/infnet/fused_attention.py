"""Sequences read by one kernel, and the choice between it and plain torch.

"fused" runs the kernels of `triton_kernels.py`: rows stay where they were looked up, no scores are stored, and a
reading costs one pass over the distinct tokens of each example (two in the backward pass: one to read, one to add).
"eager" is `jagged_attention.py` in plain torch. "auto" takes "fused" on a GPU where nothing stands in its way.

With TRITON_INTERPRET=1, set before Triton is imported, "fused" also runs on a CPU, very slowly: that is for tests.

Shapes: B examples, Y = B + 1 places between them, F sequences, L sequence tokens of the whole batch, U distinct ones of
an example, X distinct embeddings, R queries, D width.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infnet_rec.batch import Repeats
from infnet_rec.config.model import Attention
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.attention import TokenSet, check_query, next_gate, times_gate
from infnet_rec.models.infnet.jagged_attention import arrange_sequences, list_entries
from infnet_rec.models.precision import narrowed, product_dtype
from infnet_rec.models.tokens import Tokens

# Wider tokens do not fit into registers next to their queries and gradients.
MAX_WIDTH = 128
MIN_CAPABILITY = (8, 0)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelWork:
    """What a kernel that was left out would have done."""

    moved_bytes: int
    flops: int


_dry: ContextVar[list[KernelWork] | None] = ContextVar("_dry", default=None)


@contextmanager
def dry_run() -> Iterator[list[KernelWork]]:
    """Inside, any device will do for "fused", and its kernels write nothing: for counting what they allocate.

    The list that comes out fills with what they would have done.
    """
    work: list[KernelWork] = []
    token = _dry.set(work)
    try:
        yield work
    finally:
        _dry.reset(token)


def why_eager(attention: Attention, device: torch.device, width: int) -> str | None:
    """Why sequences on this device are not read by the kernel; None where they are.

    Args:
        attention: what was asked for.
        device: where tokens will be.
        width: D.

    Raises:
        UserError: "fused" was asked for and does not work there.
    """
    if attention == "eager":
        return "model.attention says so"
    reason = _obstacle(device, width, interpreted=attention == "fused" and _interprets())
    if reason is not None and attention == "fused":
        raise UserError(f'model.attention is "fused": {reason}; say "auto" or "eager"')
    return reason


def _obstacle(device: torch.device, width: int, *, interpreted: bool) -> str | None:
    if _dry.get() is not None and width <= MAX_WIDTH:
        return None
    if device.type != "cuda" and not interpreted:
        return f"the device is {device.type}, and the kernel needs a GPU"
    if find_spec("triton") is None:
        return "Triton is not installed, and its kernel needs it"
    if width > MAX_WIDTH:
        return f"the width is {width}, and the kernel's is at most {MAX_WIDTH}"
    if interpreted:
        return None
    found = torch.cuda.get_device_capability(device)
    if found < MIN_CAPABILITY:
        return f"the GPU's compute capability is {found}, and the kernel needs {MIN_CAPABILITY}"
    return None


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _log_once(line: str) -> None:
    log.info(line)


def lay_out_sequences(tokens: Tokens, attention: Attention) -> TokenSet:
    """Sequence tokens that queries can read. Done once a forward; every block reads what comes back.

    Args:
        tokens: of a batch.
        attention: how to read them.

    Raises:
        UserError: lengths and tokens do not fit, or "fused" does not work on this device.
    """
    distinct_XD = tokens.distinct_XD
    reason = why_eager(attention, distinct_XD.device, distinct_XD.shape[1])
    dtype = product_dtype(distinct_XD)
    if reason is None and dtype not in (torch.float32, torch.bfloat16):
        reason = f"the tokens are {dtype}, and the kernel reads float32 and bfloat16"
        if attention == "fused":
            raise UserError(f'model.attention is "fused": {reason}; say "eager"')
    if reason is None:
        return fuse_sequences(narrowed(distinct_XD), tokens.lengths_FB, tokens.row_L, tokens.repeats)
    if attention == "auto" and not torch.compiler.is_compiling():
        _log_once(f"attention is eager: {reason}")
    return arrange_sequences(distinct_XD, tokens.lengths_FB, tokens.row_L, tokens.repeats)


@dataclass(frozen=True, slots=True)
class FusedTokens:
    """Any number of tokens in each example, read where they were looked up.

    Attributes:
        distinct_XD: the rows that tokens refer to.
        row_U: the tokens of each example, one example after the other.
        count_U: how many tokens each entry stands for.
        start_Y: where the entries of each example begin, then U.
        gate_BD: product of all factors so far; None before the first.
    """

    distinct_XD: Tensor
    row_U: Tensor
    count_U: Tensor
    start_Y: Tensor
    gate_BD: Tensor | None = None

    def attend(self, query_BRD: Tensor) -> tuple[Tensor, Self]:
        """See `TokenSet.attend`. An example without tokens gets exactly 0, and so do its gradients."""
        check_query(query_BRD, self.distinct_XD, len(self.start_Y) - 1)
        gated_BRD = times_gate(query_BRD, self.gate_BD)
        # More queries than a kernel can hold come in portions, and each reads all tokens again.
        most = max_queries(self.distinct_XD)
        portions = gated_BRD.split(most, dim=1) if gated_BRD.shape[1] > most else (gated_BRD,)
        entries = self.row_U, self.count_U, self.start_Y
        read_BRD = [_attend(portion, self.distinct_XD, *entries) for portion in portions]
        whole_BRD = read_BRD[0] if len(read_BRD) == 1 else torch.cat(read_BRD, dim=1)
        return times_gate(whole_BRD.to(query_BRD.dtype), self.gate_BD), self

    def gated(self, factor_BD: Tensor) -> Self:
        """See `TokenSet.gated`. Costs B x D, whatever the number of tokens."""
        return replace(self, gate_BD=next_gate(self.gate_BD, factor_BD, self.distinct_XD, len(self.start_Y) - 1))


def fuse_sequences(
    distinct_XD: Tensor, lengths_FB: Tensor, row_L: Tensor | None = None, repeats: Repeats | None = None
) -> FusedTokens:
    """Sequence tokens for the kernel; see `lay_out_sequences`.

    Args:
        distinct_XD: see `Tokens`.
        lengths_FB: see `Tokens`.
        row_L: see `Tokens`.
        repeats: see `Tokens`.

    Raises:
        UserError: see `check_lengths`.
    """
    row_U, count_U, start_Y = list_entries(distinct_XD, lengths_FB, row_L, repeats)
    if count_U is None:
        count_U = torch.ones_like(row_U, dtype=torch.int32)
    return FusedTokens(distinct_XD.contiguous(), row_U.contiguous(), count_U, start_Y)


def max_queries(distinct_XD: Tensor) -> int:
    """How many queries a program can hold in registers; float32 products without tensor cores take many."""
    if distinct_XD.element_size() == 2:
        return 64
    return max(16, 2048 // max(32, 1 << (distinct_XD.shape[1] - 1).bit_length()))


class _Attend(torch.autograd.Function):
    """query_BRD, distinct_XD, row_U, count_U and start_Y to read_BRD, in float32."""

    @staticmethod
    def forward(
        ctx: Any, query_BRD: Tensor, distinct_XD: Tensor, row_U: Tensor, count_U: Tensor, start_Y: Tensor
    ) -> Tensor:
        query_BRD = query_BRD.contiguous()
        read_BRD = torch.empty_like(query_BRD, dtype=torch.float32)
        norm_BR = read_BRD.new_empty(query_BRD.shape[:2])
        inputs = distinct_XD, row_U, count_U, start_Y, query_BRD
        if (work := _dry.get()) is None:
            from infnet_rec.models.infnet import triton_kernels as fused_kernels

            fused_kernels.launch_kernel(fused_kernels.attend_forward, inputs, (read_BRD, norm_BR))
        else:
            # Scores, and sums of tokens.
            flops = 2 * 2 * row_U.numel() * query_BRD.shape[1] * query_BRD.shape[2]
            work.append(KernelWork(_entry_bytes(inputs) + query_BRD.nbytes + read_BRD.nbytes, flops))
        ctx.save_for_backward(*inputs, read_BRD, norm_BR)
        return read_BRD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_read_BRD: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        *inputs, read_BRD, norm_BR = ctx.saved_tensors
        distinct_XD, row_U, *_, query_BRD = inputs
        grad_query_BRD = torch.empty_like(query_BRD)
        # Examples share rows, and atomics add in any order.
        adds = not torch.are_deterministic_algorithms_enabled()
        num_gradients = len(distinct_XD) if adds else len(row_U)
        grad_token_XD = torch.zeros(num_gradients, distinct_XD.shape[1], device=distinct_XD.device)
        if (work := _dry.get()) is None:
            from infnet_rec.models.infnet import triton_kernels as fused_kernels

            fused_kernels.launch_kernel(
                fused_kernels.attend_backward,
                tuple(inputs),
                (read_BRD, norm_BR),
                (grad_read_BRD.contiguous(), grad_query_BRD, grad_token_XD),
                ADDS=adds,
            )
        else:
            # Scores again, the gradients of weights and scores, and what they make of queries and tokens.
            flops = 5 * 2 * row_U.numel() * query_BRD.shape[1] * query_BRD.shape[2]
            added_bytes = 4 * row_U.numel() * distinct_XD.shape[1]
            moved_bytes = _entry_bytes(inputs) + added_bytes + 3 * query_BRD.nbytes + read_BRD.nbytes
            work.append(KernelWork(moved_bytes, flops))
        if not adds:
            zero_XD = grad_token_XD.new_zeros(distinct_XD.shape)
            grad_token_XD = zero_XD.index_add_(0, row_U, grad_token_XD)
        return grad_query_BRD, grad_token_XD.to(distinct_XD.dtype), None, None, None


def _entry_bytes(inputs: Sequence[Tensor]) -> int:
    """What is read of the tokens: a row for each entry, where it is, and its count."""
    distinct_XD, row_U, count_U, *_ = inputs
    return row_U.numel() * distinct_XD.shape[1] * distinct_XD.element_size() + row_U.nbytes + count_U.nbytes


# The kernel is compiled already: torch.compile goes around it.
_attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = cast(Any, torch.compiler.disable(_Attend.apply))
