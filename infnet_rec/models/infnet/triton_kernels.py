"""Triton kernels: few queries of an example read all tokens of its sequences, which are streamed once.

One program an example. Its tokens lie in F runs, one a sequence; a block of tokens may reach over several short runs,
so blocks are full whatever the lengths. The scores of a block meet the online softmax and are forgotten; the backward
pass makes them again out of the log-sum-exp that the forward pass kept. Tokens are keys and values at once, and every
token belongs to one example, so its gradient is written once, by one program, without atomics.

Sums are in float32 whatever the tokens are in; products of float32 are not rounded to TF32.

Shapes: B examples, F sequences, R queries of an example, N tokens of a block, D width; R, D and F are padded here.

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
        num_sequences: F.
        num_queries: R.
        width: D.
        token_bytes: of one number of a token, 2 or 4.
    """

    num_sequences: int
    num_queries: int
    width: int
    token_bytes: int

    @property
    def padded_sequences(self) -> int:
        """F, padded."""
        return padded(self.num_sequences, 1)

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
def _runs(offset_ptr: tl.tensor, SIZE: tl.constexpr) -> Any:
    """Where the tokens of this program's example lie.

    Counted through its runs, token v of the example is row `first + v` plus the gaps after all runs that end at or
    before v; see `_rows`.

    Returns:
        first: row of the first run's start.
        total: tokens of the example.
        end_F: tokens up to the end of each run.
        gap_F: rows between each run's end and the next one's start.
    """
    example, num_examples = tl.program_id(0), tl.num_programs(0)
    f_F = tl.arange(0, SIZE.padded_sequences)
    run_F = offset_ptr + f_F * num_examples + example
    start_F = tl.load(run_F, mask=f_F < SIZE.num_sequences, other=0)
    stop_F = tl.load(run_F + 1, mask=f_F < SIZE.num_sequences, other=0)
    next_F = tl.load(run_F + num_examples, mask=f_F + 1 < SIZE.num_sequences, other=0)
    gap_F = tl.where(f_F + 1 < SIZE.num_sequences, next_F - stop_F, 0).to(tl.int32)
    length_F = (stop_F - start_F).to(tl.int32)
    return tl.load(offset_ptr + example).to(tl.int32), tl.sum(length_F), tl.cumsum(length_F, 0), gap_F


@triton.jit
def _rows(begin: tl.tensor, runs: tl.tuple, BLOCK: tl.constexpr) -> Any:
    """The rows of a block of an example's tokens, and which of them there are."""
    first, total, end_F, gap_F = runs
    v_N = begin + tl.arange(0, BLOCK)
    passed_NF = v_N[:, None] >= end_F[None, :]
    return first + v_N + tl.sum(tl.where(passed_NF, gap_F[None, :], 0), 1), v_N < total


@triton.jit
def _tokens(row_N: tl.tensor, there_N: tl.tensor, SIZE: tl.constexpr) -> Any:
    """Where a block of tokens lies in a [L, D] tensor, and which of its values there are."""
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
        inputs: token_LD; offset_X [F * B + 1], where each run starts; query_BRD.
        outputs: read_BRD and norm_BR (logarithm of the softmax's denominator), both float32.
        SIZE: an `Extent`.
        BLOCK: tokens of a block, N.
    """
    token_ptr, offset_ptr, query_ptr = inputs
    read_ptr, norm_ptr = outputs
    place_R, there_R, place_RD, there_RD = _queries(SIZE)
    query_RD = tl.load(query_ptr + place_RD, mask=there_RD, other=0.0).to(token_ptr.dtype.element_ty)
    top_R = tl.full([SIZE.padded_queries], -float("inf"), tl.float32)
    total_R = tl.full([SIZE.padded_queries], 0.0, tl.float32)
    read_RD = tl.full([SIZE.padded_queries, SIZE.padded_width], 0.0, tl.float32)
    runs = _runs(offset_ptr, SIZE)
    for begin in range(0, _whole(runs[1]), BLOCK):
        row_N, there_N = _rows(begin, runs, BLOCK)
        place_ND, there_ND = _tokens(row_N, there_N, SIZE)
        token_ND = tl.load(token_ptr + place_ND, mask=there_ND, other=0.0)
        score_RN = _product(query_RD, tl.trans(token_ND))
        score_RN = tl.where(there_N[None, :], score_RN, -float("inf"))
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
    inputs: tl.tuple, outputs: tl.tuple, gradients: tl.tuple, SIZE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """The gradients of queries and tokens.

    With scores s = q x, weights p = exp(s - norm), reads o = sum p x and their gradient g:
    ds = p (g x - g o), dq = sum ds x, dx = sum over queries of p g + ds q.

    Args:
        inputs: as in `attend_forward`.
        outputs: what it wrote.
        gradients: of read_BRD, given; of query_BRD and token_LD, written.
        SIZE: an `Extent`.
        BLOCK: tokens of a block, N.
    """
    token_ptr, offset_ptr, query_ptr = inputs
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
    runs = _runs(offset_ptr, SIZE)
    for begin in range(0, _whole(runs[1]), BLOCK):
        row_N, there_N = _rows(begin, runs, BLOCK)
        place_ND, there_ND = _tokens(row_N, there_N, SIZE)
        token_ND = tl.load(token_ptr + place_ND, mask=there_ND, other=0.0)
        score_NR = _product(token_ND, query_DR)
        # Without the mask, exp of an absent token's score 0 may be infinite, and infinite times 0 is no number.
        weight_NR = tl.where(there_N[:, None], tl.exp(score_NR - norm_R[None, :]), 0.0)
        given_token_NR = _product(token_ND, given_DR)
        grad_score_NR = (weight_NR * (given_token_NR - given_read_R[None, :])).to(token_ND.dtype)
        grad_token_ND = _product(weight_NR.to(token_ND.dtype), given_RD)
        grad_token_ND += _product(grad_score_NR, query_RD)
        tl.store(grad_token_ptr + place_ND, grad_token_ND, mask=there_ND)
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


_TUNED = {
    kernel: triton.autotune(
        configs=[
            triton.Config({"BLOCK": block}, num_warps=num_warps, num_stages=2)
            for block in (16, 32, 64, 128)
            for num_warps in (4, 8)
        ],
        key=["SIZE"],
        prune_configs_by={"early_config_prune": _candidates},
    )(kernel)
    for kernel in (attend_forward, attend_backward)
}


def launch_kernel(kernel: Any, inputs: tuple[torch.Tensor, ...], *others: tuple[torch.Tensor, ...]) -> None:
    """Runs a kernel on a whole batch; the first time for an `Extent` it tries block sizes, which takes seconds.

    Args:
        kernel: `attend_forward` or `attend_backward`.
        inputs: token_LD, start_X and query_BRD, contiguous.
        *others: the kernel's other tensors.
    """
    token_LD, start_X, query_BRD = inputs
    num_examples, num_queries, width = query_BRD.shape
    if num_examples == 0:
        return
    size = Extent((start_X.shape[0] - 1) // num_examples, num_queries, width, token_LD.element_size())
    if INTERPRETED:
        kernel[(num_examples,)](inputs, *others, SIZE=size, BLOCK=INTERPRETED_BLOCK)
        return
    with torch.cuda.device_of(token_LD):
        _TUNED[kernel][(num_examples,)](inputs, *others, SIZE=size)
