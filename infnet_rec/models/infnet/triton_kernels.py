"""Triton kernels: few queries of an example read all tokens of its sequences, which are streamed once.

One program an example. Its tokens are listed as rows of the distinct embeddings, each distinct one once with how many
there are, whose logarithm is added to its scores. The scores of a block meet the online softmax and are forgotten; the
backward pass makes them again out of the log-sum-exp that the forward pass kept. Tokens are keys and values at once.
Examples share rows, so a row's gradient is added up with atomics, in an order that differs from run to run; where
that is not wanted, each example writes the gradients of its own entries, and they are added up afterwards.

Sums are in float32 whatever the tokens are in; products of float32 are not rounded to TF32.

Shapes: B examples, R queries of an example, U distinct tokens of an example, of all examples together, N of them in a
block, X distinct embeddings, D width; R and D are padded here.

Reference: Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867; Dao et al.,
FlashAttention, arXiv 2205.14135, for the backward pass.
"""

# Inside a kernel stands Triton's language, to which Python's types do not apply.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

# The smallest side of a matrix that `tl.dot` takes.
MIN_SIDE = 16
# Tokens of a block under the interpreter, where nothing is tuned: small tests should have several blocks too.
INTERPRETED_BLOCK = 16
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@dataclass(frozen=True, slots=True)
class Extent:
    """The numbers that a kernel is compiled for; tensor cores want the padded ones, powers of two.

    Attributes:
        num_queries: R.
        width: D.
        token_bytes: of one number of a token, 2 or 4.
    """

    num_queries: int
    width: int
    token_bytes: int

    @property
    def padded_queries(self) -> int:
        """R, padded."""
        return padded(self.num_queries, MIN_SIDE)

    @property
    def padded_width(self) -> int:
        """D, padded."""
        return padded(self.width, MIN_SIDE)


def padded(size: int, least: int) -> int:
    """The next power of two, or `least`."""
    return max(least, 1 << (size - 1).bit_length())


@triton.jit
def _extent(start_ptr: tl.tensor) -> Any:
    """The first entry of this program's example, and how many it has."""
    start_ptr += tl.program_id(0)
    first = tl.load(start_ptr).to(tl.int32)
    return first, tl.load(start_ptr + 1).to(tl.int32) - first


@triton.jit
def _entries(row_ptr: tl.tensor, count_ptr: tl.tensor, begin: tl.tensor, extent: tl.tuple, BLOCK: tl.constexpr) -> Any:
    """A block of an example's entries: which there are, where, their rows, and the logarithms of their counts."""
    first, total = extent
    v_N = begin + tl.arange(0, BLOCK)
    there_N = v_N < total
    row_N = tl.load(row_ptr + first + v_N, mask=there_N, other=0)
    count_N = tl.load(count_ptr + first + v_N, mask=there_N, other=1)
    # An entry that is not there weighs nothing.
    bias_N = tl.where(there_N, tl.log(count_N.to(tl.float32)), -float("inf"))
    return there_N, first + v_N, row_N, bias_N


@triton.jit
def _tokens(row_N: tl.tensor, there_N: tl.tensor, SIZE: tl.constexpr) -> Any:
    """Where a block of tokens lies in a tensor of D columns, and which of its values there are."""
    d_D = tl.arange(0, SIZE.padded_width)
    return row_N.to(tl.int64)[:, None] * SIZE.width + d_D[None, :], there_N[:, None] & (d_D < SIZE.width)[None, :]


@triton.jit
def _queries(SIZE: tl.constexpr) -> Any:
    """Where this program's example lies in a [B, R] tensor and in a [B, R, D] one, each with what there is of it."""
    r_R, d_D = tl.arange(0, SIZE.padded_queries), tl.arange(0, SIZE.padded_width)
    place_R = tl.program_id(0).to(tl.int64) * SIZE.num_queries + r_R
    there_R = r_R < SIZE.num_queries
    there_RD = there_R[:, None] & (d_D < SIZE.width)[None, :]
    return place_R, there_R, place_R[:, None] * SIZE.width + d_D[None, :], there_RD


@triton.jit
def _product(left: tl.tensor, right: tl.tensor) -> Any:
    """Matrix product, summed in float32."""
    # The interpreter multiplies bfloat16 as if its bits were an integer's.
    if INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _whole(number: tl.tensor) -> Any:
    """The number itself, as the end of a range."""
    # The interpreter of Triton 3.6 leaves it in an array of one number, which numpy 2.4 takes for no number.
    if INTERPRETED:
        return number.handle.data.item()
    return number


@triton.jit
def attend_forward(inputs: tl.tuple, outputs: tl.tuple, SIZE: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """Reads the tokens.

    Args:
        inputs: distinct_XD; row_U; count_U; start_Y [B + 1], where each example's entries start; query_BRD.
        outputs: read_BRD and norm_BR (logarithm of the softmax's denominator), both float32.
        SIZE: an `Extent`.
        BLOCK: tokens of a block, N.
    """
    token_ptr, row_ptr, count_ptr, start_ptr, query_ptr = inputs
    read_ptr, norm_ptr = outputs
    place_R, there_R, place_RD, there_RD = _queries(SIZE)
    query_RD = tl.load(query_ptr + place_RD, mask=there_RD, other=0.0).to(token_ptr.dtype.element_ty)
    top_R = tl.full([SIZE.padded_queries], -float("inf"), tl.float32)
    total_R = tl.full([SIZE.padded_queries], 0.0, tl.float32)
    read_RD = tl.full([SIZE.padded_queries, SIZE.padded_width], 0.0, tl.float32)
    extent = _extent(start_ptr)
    for begin in range(0, _whole(extent[1]), BLOCK):
        there_N, _, row_N, bias_N = _entries(row_ptr, count_ptr, begin, extent, BLOCK)
        place_ND, there_ND = _tokens(row_N, there_N, SIZE)
        token_ND = tl.load(token_ptr + place_ND, mask=there_ND, other=0.0)
        score_RN = _product(query_RD, tl.trans(token_ND)) + bias_N[None, :]
        # A block holds a token, so the new top is a number even where the old one is not.
        new_top_R = tl.maximum(top_R, tl.max(score_RN, 1))
        weight_RN = tl.exp(score_RN - new_top_R[:, None])
        shrink_R = tl.exp(top_R - new_top_R)
        total_R = total_R * shrink_R + tl.sum(weight_RN, 1)
        read_RD = read_RD * shrink_R[:, None]
        read_RD += _product(weight_RN.to(token_ND.dtype), token_ND)
        top_R = new_top_R
    # An example without tokens reads 0; its norm is never used.
    total_R = tl.where(total_R > 0, total_R, 1.0)
    tl.store(read_ptr + place_RD, read_RD / total_R[:, None], mask=there_RD)
    tl.store(norm_ptr + place_R, top_R + tl.log(total_R), mask=there_R)


@triton.jit
def attend_backward(
    inputs: tl.tuple,
    outputs: tl.tuple,
    gradients: tl.tuple,
    ADDS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The gradients of queries and tokens.

    With scores s = q x, weights p = exp(s - norm), reads o = sum p x and their gradient g:
    ds = p (g x - g o), dq = sum ds x, dx = sum over queries of p g + ds q.

    Args:
        inputs: as in `attend_forward`.
        outputs: what it wrote.
        gradients: of read_BRD, given; of query_BRD, written; of tokens, float32.
        ADDS: whether the last are those of distinct_XD, and are added to; else they are those of each entry, [U, D].
        SIZE: an `Extent`.
        BLOCK: tokens of a block, N.
    """
    token_ptr, row_ptr, count_ptr, start_ptr, query_ptr = inputs
    read_ptr, norm_ptr = outputs
    given_ptr, grad_query_ptr, grad_token_ptr = gradients
    place_R, there_R, place_RD, there_RD = _queries(SIZE)
    # Rounded first, so that what is subtracted below errs as what it is subtracted from.
    given_RD = tl.load(given_ptr + place_RD, mask=there_RD, other=0.0).to(token_ptr.dtype.element_ty)
    read_RD = tl.load(read_ptr + place_RD, mask=there_RD, other=0.0)
    given_read_R = tl.sum(given_RD.to(tl.float32) * read_RD, 1)
    norm_R = tl.load(norm_ptr + place_R, mask=there_R, other=0.0)
    query_RD = tl.load(query_ptr + place_RD, mask=there_RD, other=0.0).to(token_ptr.dtype.element_ty)
    query_DR, given_DR = tl.trans(query_RD), tl.trans(given_RD)
    grad_query_RD = tl.full([SIZE.padded_queries, SIZE.padded_width], 0.0, tl.float32)
    extent = _extent(start_ptr)
    for begin in range(0, _whole(extent[1]), BLOCK):
        there_N, entry_N, row_N, bias_N = _entries(row_ptr, count_ptr, begin, extent, BLOCK)
        place_ND, there_ND = _tokens(row_N, there_N, SIZE)
        token_ND = tl.load(token_ptr + place_ND, mask=there_ND, other=0.0)
        # An entry that is not there has a score of minus infinity, whose exp is 0.
        weight_NR = tl.exp(_product(token_ND, query_DR) + bias_N[:, None] - norm_R[None, :])
        given_token_NR = _product(token_ND, given_DR)
        grad_score_NR = (weight_NR * (given_token_NR - given_read_R[None, :])).to(token_ND.dtype)
        grad_token_ND = _product(weight_NR.to(token_ND.dtype), given_RD)
        grad_token_ND += _product(grad_score_NR, query_RD)
        if ADDS:
            tl.atomic_add(grad_token_ptr + place_ND, grad_token_ND, mask=there_ND, sem="relaxed")
        else:
            own_ND, there_ND = _tokens(entry_N, there_N, SIZE)
            tl.store(grad_token_ptr + own_ND, grad_token_ND, mask=there_ND)
        grad_query_RD += _product(tl.trans(grad_score_NR), token_ND)
    tl.store(grad_query_ptr + place_RD, grad_query_RD, mask=there_RD)


def _candidates(configs: list[triton.Config], _named: dict[str, Any], **rest: Any) -> list[triton.Config]:
    """The configurations worth trying.

    Larger blocks spill registers, and take the compiler many seconds to do so. Products of float32 run without tensor
    cores and need most of them.
    """
    size: Extent = rest["SIZE"]
    area = size.padded_queries * size.padded_width
    if size.token_bytes == 2:
        most = 128 if area < 2048 else 64
    elif area <= 1024:
        most = 64 if area <= 512 else 32
    else:
        most = 16
    fitting = [config for config in configs if config.kwargs["BLOCK"] <= most]
    return [config for config in fitting if config.num_warps == 8] if most == 16 else fitting


def _forget_gradients(arguments: dict[str, Any], reset_only: bool = False) -> None:  # noqa: FBT001, FBT002 - Triton's own
    """Every trial of the kernel that adds to the gradients of tokens begins from none, and so does what comes after."""
    arguments["gradients"][-1].zero_()


def _tuned(kernel: Any, key: list[str], **hooks: Any) -> Any:
    return triton.autotune(
        configs=[
            triton.Config({"BLOCK": block}, num_warps=num_warps, num_stages=2)
            for block in (16, 32, 64, 128)
            for num_warps in (4, 8)
        ],
        key=key,
        prune_configs_by={"early_config_prune": _candidates},
        **hooks,
    )(kernel)


_TUNED = {
    attend_forward: _tuned(attend_forward, ["SIZE"]),
    attend_backward: _tuned(attend_backward, ["SIZE", "ADDS"], pre_hook=_forget_gradients),
}


def launch_kernel(
    kernel: Any, inputs: tuple[torch.Tensor, ...], *others: tuple[torch.Tensor, ...], **options: bool
) -> None:
    """Runs a kernel on a whole batch; the first time for an `Extent` it tries block sizes, which takes seconds.

    Args:
        kernel: `attend_forward` or `attend_backward`.
        inputs: as the kernel takes them, contiguous.
        *others: the kernel's other tensors.
        **options: of the kernel.
    """
    token_XD, *_, query_BRD = inputs
    num_examples, num_queries, width = query_BRD.shape
    if num_examples == 0:
        return
    size = Extent(num_queries, width, token_XD.element_size())
    if INTERPRETED:
        kernel[(num_examples,)](inputs, *others, **options, SIZE=size, BLOCK=INTERPRETED_BLOCK)
        return
    with torch.cuda.device_of(token_XD):
        _TUNED[kernel][(num_examples,)](inputs, *others, **options, SIZE=size)
