"""Sequences read by one kernel, and the choice between it and plain torch.

"fused" runs the kernels of `triton_kernels.py`: tokens stay where TorchRec left them, no scores are stored, and a
reading costs one pass over the tokens (two in the backward pass: one to read, one to write). "eager" is
`jagged_attention.py` in plain torch. "auto" takes "fused" on a GPU where nothing stands in its way.

With TRITON_INTERPRET=1, set before Triton is imported, "fused" also runs on a CPU, very slowly: that is for tests.

Shapes: B examples, F sequences, L sequence tokens of the whole batch, R queries, X run starts F * B + 1, D width.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from infnet_rec.config.model import Attention
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.attention import TokenSet, check_lengths, check_query, next_gate, times_gate
from infnet_rec.models.infnet.jagged_attention import arrange_sequences
from infnet_rec.models.precision import narrowed, product_dtype

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


def lay_out_sequences(token_LD: Tensor, lengths_FB: Tensor, attention: Attention) -> TokenSet:
    """Sequence tokens that queries can read. Done once a forward; every block reads what comes back.

    Args:
        token_LD: feature-major tokens, see `Tokens.sequence_LD`.
        lengths_FB: number of events of each sequence in each example; sums to L.
        attention: how to read them.

    Raises:
        UserError: lengths and tokens do not fit, or "fused" does not work on this device.
    """
    reason = why_eager(attention, token_LD.device, token_LD.shape[1])
    dtype = product_dtype(token_LD)
    if reason is None and dtype not in (torch.float32, torch.bfloat16):
        reason = f"the tokens are {dtype}, and the kernel reads float32 and bfloat16"
        if attention == "fused":
            raise UserError(f'model.attention is "fused": {reason}; say "eager"')
    if reason is None:
        return fuse_sequences(narrowed(token_LD), lengths_FB)
    if attention == "auto" and not torch.compiler.is_compiling():
        _log_once(f"attention is eager: {reason}")
    return arrange_sequences(token_LD, lengths_FB)


@dataclass(frozen=True, slots=True)
class FusedTokens:
    """Any number of tokens in each example, read where they lie.

    Attributes:
        token_LD: the tokens as they were looked up, feature-major.
        start_X: row of the first token of each (sequence, example), feature-major, then L: TorchRec's own offsets.
        num_examples: B.
        gate_BD: product of all factors so far; None before the first.
    """

    token_LD: Tensor
    start_X: Tensor
    num_examples: int
    gate_BD: Tensor | None = None

    def attend(self, query_BRD: Tensor) -> tuple[Tensor, Self]:
        """See `TokenSet.attend`. An example without tokens gets exactly 0, and so do its gradients."""
        check_query(query_BRD, self.token_LD, self.num_examples)
        gated_BRD = times_gate(query_BRD, self.gate_BD)
        # More queries than a kernel can hold come in portions, and each reads all tokens again.
        most = max_queries(self.token_LD)
        portions = gated_BRD.split(most, dim=1) if gated_BRD.shape[1] > most else (gated_BRD,)
        read_BRD = [_attend(portion, self.token_LD, self.start_X) for portion in portions]
        whole_BRD = read_BRD[0] if len(read_BRD) == 1 else torch.cat(read_BRD, dim=1)
        return times_gate(whole_BRD.to(query_BRD.dtype), self.gate_BD), self

    def gated(self, factor_BD: Tensor) -> Self:
        """See `TokenSet.gated`. Costs B x D, whatever the number of tokens."""
        return replace(self, gate_BD=next_gate(self.gate_BD, factor_BD, self.token_LD, self.num_examples))


def fuse_sequences(token_LD: Tensor, lengths_FB: Tensor) -> FusedTokens:
    """Sequence tokens for the kernel; see `lay_out_sequences`.

    Raises:
        UserError: see `check_lengths`.
    """
    check_lengths(token_LD, lengths_FB)
    # A kernel must not read past the end while the device is still about to find that the lengths are wrong.
    end_X = lengths_FB.flatten().cumsum(dim=0).clamp(max=token_LD.shape[0])
    return FusedTokens(token_LD.contiguous(), functional.pad(end_X, (1, 0)), lengths_FB.shape[1])


def max_queries(token_LD: Tensor) -> int:
    """How many queries a program can hold in registers; float32 products without tensor cores take many."""
    if token_LD.element_size() == 2:
        return 64
    return max(16, 2048 // max(32, 1 << (token_LD.shape[1] - 1).bit_length()))


class _Attend(torch.autograd.Function):
    """query_BRD, token_LD and start_X to read_BRD, in float32."""

    @staticmethod
    def forward(ctx: Any, query_BRD: Tensor, token_LD: Tensor, start_X: Tensor) -> Tensor:
        query_BRD = query_BRD.contiguous()
        read_BRD = torch.empty_like(query_BRD, dtype=torch.float32)
        norm_BR = read_BRD.new_empty(query_BRD.shape[:2])
        if (work := _dry.get()) is None:
            from infnet_rec.models.infnet import triton_kernels as fused_kernels

            fused_kernels.launch_kernel(
                fused_kernels.attend_forward, (token_LD, start_X, query_BRD), (read_BRD, norm_BR)
            )
        else:
            # Scores, and sums of tokens.
            flops = 2 * 2 * token_LD.numel() * query_BRD.shape[1]
            work.append(KernelWork(token_LD.nbytes + query_BRD.nbytes + read_BRD.nbytes, flops))
        ctx.save_for_backward(query_BRD, token_LD, start_X, read_BRD, norm_BR)
        return read_BRD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_read_BRD: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        query_BRD, token_LD, start_X, read_BRD, norm_BR = ctx.saved_tensors
        # Every token belongs to one example, so the kernel writes every row.
        grad_query_BRD, grad_token_LD = torch.empty_like(query_BRD), torch.empty_like(token_LD)
        if (work := _dry.get()) is None:
            from infnet_rec.models.infnet import triton_kernels as fused_kernels

            fused_kernels.launch_kernel(
                fused_kernels.attend_backward,
                (token_LD, start_X, query_BRD),
                (read_BRD, norm_BR),
                (grad_read_BRD.contiguous(), grad_query_BRD, grad_token_LD),
            )
        else:
            # Scores again, the gradients of weights and scores, and what they make of queries and tokens.
            flops = 5 * 2 * token_LD.numel() * query_BRD.shape[1]
            work.append(KernelWork(2 * token_LD.nbytes + 3 * query_BRD.nbytes + read_BRD.nbytes, flops))
        return grad_query_BRD, grad_token_LD, None


# The kernel is compiled already: torch.compile goes around it.
_attend: Callable[[Tensor, Tensor, Tensor], Tensor] = cast(Any, torch.compiler.disable(_Attend.apply))
