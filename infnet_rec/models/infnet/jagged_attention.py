"""Sequence tokens read a few examples at a time: jagged attention in plain torch, in the memory of distinct rows.

Tokens are rows of the distinct embeddings of a batch. The rows of a chunk of examples are gathered, read while they are
in the processor's cache, and forgotten; the backward pass gathers them again. So nothing that grows with queries times
tokens is ever stored, and nothing of the size of all tokens is ever written.

Nor is a token read twice where an example has it several times. The softmax over all tokens is that over the distinct
ones, with the logarithm of how many there are added to the score of each:

    sum_k m_k exp(q x_k) x_k / sum_k m_k exp(q x_k),  and  m exp(s) = exp(s + log m)

and the gradient of a distinct token is the sum of those of its copies. It holds under gates too, which are one vector
an example.

Pooling and every block add to the gradient of the distinct rows. Autograd would make one of them for each reading and
then add them up. Here readings form a chain instead: each returns, beside what it read, the rows again, and the next
reading takes those.

    distinct_XD -> reading -> the same distinct_XD -> reading -> the same distinct_XD, which nothing takes

In the backward pass the last reading makes a gradient, and every earlier one adds its part to what comes down the
chain. There is no state outside the graph, so whatever autograd does with a graph (a part of it, twice, again from a
checkpoint) is right. Writing into the gradient that came down is safe because no one else has it: what a reading passes
on is taken by readings only, and where several take it autograd adds their gradients up before it hands them over.

Shapes: B examples, Y = B + 1 places between them, R queries, F sequences, L sequence tokens of the whole batch, U
distinct ones of an example, X distinct embeddings, N examples of a chunk, S slots of each, C = N * S, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from infnet_rec.batch import Repeats
from infnet_rec.models.infnet.attention import (
    check_lengths,
    check_query,
    is_gpu,
    next_gate,
    next_link,
    per_token,
    times_gate,
)
from infnet_rec.models.precision import product_dtype, widened

# Of 2048 to 32768 the fastest on a CPU, or within a tenth of it, for D = 16 to 64 and 90 to 2800 tokens an example;
# memory hardly depends on it. A GPU is given more for each launch; how much is best has not been measured.
CHUNK_TOKENS = 8192
CHUNK_TOKENS_GPU = 16 * CHUNK_TOKENS

Given = ParamSpec("Given")
Made = TypeVar("Made")


def outside_graphs(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """torch.compile goes around it: what a chunk holds depends on the lengths, and the chain on who has a gradient."""
    return cast(Any, torch.compiler.disable(function))


class Chunk(NamedTuple):
    """Examples that are read together; every one has a token.

    Attributes:
        first: of the examples, counted from the longest.
        last: the one after.
        row_C: row of the token in each slot, int64; slots that are left over repeat the example's last token.
        bias_N1S: what is added to the scores: the logarithm of how many tokens a slot stands for, minus infinity where
            it is left over; None where each stands for one.
    """

    first: int
    last: int
    row_C: Tensor
    bias_N1S: Tensor | None


class Entries(NamedTuple):
    """The tokens of each example, one example after the other.

    Attributes:
        row_U: as rows of the distinct embeddings.
        count_U: how many tokens each entry stands for; None where it is one everywhere.
        start_Y: where the entries of each example begin, then U.
    """

    row_U: Tensor
    count_U: Tensor | None
    start_Y: Tensor


# Not frozen: torch.compile would look into a frozen one, and capture the graphs anew for every number of chunks.
@dataclass(slots=True, eq=False)
class JaggedLayout:
    """Where the tokens of each example are.

    Attributes:
        example_B: the examples, the longest first: neighbours are alike, so little is padded.
        rank_B: where each example stands in that order.
        chunks: of all examples with tokens.
    """

    example_B: Tensor
    rank_B: Tensor
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class JaggedTokens:
    """Any number of tokens in each example, where they were looked up.

    Attributes:
        distinct_XD: the rows that tokens refer to; for the next reading only.
        layout: of the batch.
        gate_BD: product of all factors so far; None before the first.
    """

    distinct_XD: Tensor
    layout: JaggedLayout
    gate_BD: Tensor | None = None

    @outside_graphs
    def attend(self, query_BRD: Tensor) -> tuple[Tensor, Self]:
        """See `TokenSet.attend`. An example without tokens gets exactly 0, and so do its gradients."""
        check_query(query_BRD, self.distinct_XD, len(self.layout.example_B))
        read_BRD, passed_on_XD = _Read.apply(times_gate(query_BRD, self.gate_BD), self.distinct_XD, self.layout)
        link_XD = next_link(self.distinct_XD, passed_on_XD)
        return times_gate(read_BRD, self.gate_BD), replace(self, distinct_XD=link_XD)

    def gated(self, factor_BD: Tensor) -> Self:
        """See `TokenSet.gated`. Costs B x D, whatever the number of tokens."""
        return replace(self, gate_BD=next_gate(self.gate_BD, factor_BD, self.distinct_XD, len(self.layout.example_B)))


@outside_graphs
def arrange_sequences(
    distinct_XD: Tensor, lengths_FB: Tensor, row_L: Tensor | None = None, repeats: Repeats | None = None
) -> JaggedTokens:
    """Finds out where each example's tokens are. Done once a forward; every block reads the same chunks.

    Args:
        distinct_XD: see `Tokens`.
        lengths_FB: see `Tokens`.
        row_L: see `Tokens`.
        repeats: see `Tokens`.

    Raises:
        UserError: see `check_lengths`.
    """
    entries = list_entries(distinct_XD, lengths_FB, row_L, repeats)
    length_B, example_B = entries.start_Y.diff().sort(descending=True, stable=True)
    rank_B = torch.empty_like(example_B).scatter_(0, example_B, torch.arange(len(example_B), device=example_B.device))
    chunks = _chunks(entries, example_B, length_B, torch.promote_types(distinct_XD.dtype, torch.float32))
    return JaggedTokens(distinct_XD, JaggedLayout(example_B, rank_B, tuple(chunks)))


def list_entries(
    distinct_XD: Tensor, lengths_FB: Tensor, row_L: Tensor | None = None, repeats: Repeats | None = None
) -> Entries:
    """The tokens of each example side by side, each distinct one once where somebody counted.

    Args:
        distinct_XD: see `Tokens`.
        lengths_FB: see `Tokens`.
        row_L: see `Tokens`.
        repeats: see `Tokens`.

    Raises:
        UserError: see `check_lengths`.
    """
    check_lengths(distinct_XD, lengths_FB, row_L)
    if repeats is not None:
        return Entries(repeats.row_U, repeats.count_U, repeats.start_Y)
    # Each (example, sequence) is one run of tokens, there and here: a run moves by one distance.
    run_BF = lengths_FB.t()
    end_FB = lengths_FB.flatten().cumsum(dim=0).view_as(lengths_FB)
    end_BF = run_BF.flatten().cumsum(dim=0).view_as(run_BF)
    distance_BF = (end_FB - lengths_FB).t() - (end_BF - run_BF)
    num_tokens = distinct_XD.shape[0] if row_L is None else row_L.shape[0]
    place_L = torch.arange(num_tokens, device=lengths_FB.device) + per_token(distance_BF, run_BF, num_tokens)
    # Counting must not lead past the tokens while a GPU is still about to find that the lengths are wrong.
    start_Y = functional.pad(lengths_FB.sum(dim=0).cumsum(dim=0).clamp(max=num_tokens), (1, 0))
    return Entries(place_L if row_L is None else row_L.index_select(0, place_L), None, start_Y)


def chunk_tokens(device: torch.device) -> int:
    """About how many tokens are to be read together."""
    return CHUNK_TOKENS_GPU if is_gpu(device) else CHUNK_TOKENS


def _chunks(entries: Entries, example_B: Tensor, length_B: Tensor, dtype: torch.dtype) -> Iterator[Chunk]:
    """Cuts the examples, the longest first, into chunks of about as many entries; biases are of the type."""
    device = example_B.device
    log_count_U = None if entries.count_U is None else entries.count_U.to(dtype).log_()
    budget = chunk_tokens(device)
    lengths = _lengths_on_host(length_B, entries.row_U.shape[0])
    start_B = entries.start_Y[:-1].index_select(0, example_B)
    first = 0
    while first < len(lengths) and lengths[first] > 0:
        num_slots = lengths[first]
        part = [length for length in lengths[first : first + max(1, budget // num_slots)] if length > 0]
        last = first + len(part)
        length_N1, slot_S = length_B[first:last, None], torch.arange(num_slots, device=device)
        entry_C = (start_B[first:last, None] + torch.minimum(slot_S, length_N1 - 1)).flatten()
        bias_N1S = None if log_count_U is None else log_count_U.index_select(0, entry_C).view(-1, 1, num_slots)
        if sum(part) < len(part) * num_slots:
            absent_N1S = (slot_S >= length_N1)[:, None]
            if bias_N1S is None:
                bias_N1S = torch.zeros(absent_N1S.shape, dtype=dtype, device=device)
            bias_N1S.masked_fill_(absent_N1S, -torch.inf)
        yield Chunk(first, last, entries.row_U.index_select(0, entry_C).long(), bias_N1S)
        first = last


def _lengths_on_host(length_B: Tensor, num_entries: int) -> list[int]:
    """Sizes of chunks have to be known: a GPU is waited for, once a forward. Fake tensors share the entries evenly."""
    if isinstance(length_B, FakeTensor):
        least, more = divmod(num_entries, len(length_B))
        return [least + (example < more) for example in range(len(length_B))]
    return length_B.tolist()


class _Read(torch.autograd.Function):
    """query_BRD and distinct_XD to read_BRD, at least in float32, and distinct_XD. Stores the two, and no scores."""

    @staticmethod
    def forward(ctx: Any, query_BRD: Tensor, distinct_XD: Tensor, layout: JaggedLayout) -> tuple[Tensor, Tensor]:
        ctx.layout, ctx.query_dtype = layout, query_BRD.dtype
        ctx.set_materialize_grads(False)
        sorted_BRD = query_BRD.index_select(0, layout.example_B).to(product_dtype(distinct_XD))
        ctx.save_for_backward(sorted_BRD, distinct_XD)
        with _as_it_stands(distinct_XD):
            read_BRD = _read_chunks(sorted_BRD, distinct_XD, layout)
        return read_BRD.index_select(0, layout.rank_B), distinct_XD.view_as(distinct_XD)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_read_BRD: Tensor | None, grad_distinct_XD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_read_BRD is None:
            return None, grad_distinct_XD, None
        sorted_BRD, distinct_XD = ctx.saved_tensors
        if grad_distinct_XD is None and ctx.needs_input_grad[1]:
            grad_distinct_XD = torch.zeros_like(distinct_XD)
        grad_BRD = grad_read_BRD.index_select(0, ctx.layout.example_B).to(sorted_BRD.dtype)
        with _as_it_stands(distinct_XD):
            grad_query_BRD = _walk_back(grad_BRD, sorted_BRD, distinct_XD, ctx.layout, grad_distinct_XD)
        return grad_query_BRD.index_select(0, ctx.layout.rank_B).to(ctx.query_dtype), grad_distinct_XD, None


def _as_it_stands(distinct_XD: Tensor) -> torch.autocast:
    """Autocast holds in the forward pass and not in the backward pass; what it asks for has been done already."""
    return torch.autocast(distinct_XD.device.type, enabled=False)


def _read_chunks(query_BRD: Tensor, distinct_XD: Tensor, layout: JaggedLayout) -> Tensor:
    """What the queries of the examples, the longest first, read; 0 for examples without tokens."""
    read_BRD = widened(torch.zeros_like(query_BRD))
    for chunk in layout.chunks:
        examples = slice(chunk.first, chunk.last)
        token_NSD = _gather(distinct_XD, chunk, query_BRD.dtype)
        weight_NRS = _weights(query_BRD[examples], token_NSD, chunk.bias_N1S)
        read_BRD[examples] = torch.bmm(weight_NRS.to(query_BRD.dtype), token_NSD)
    return read_BRD


def _walk_back(
    grad_BRD: Tensor, query_BRD: Tensor, distinct_XD: Tensor, layout: JaggedLayout, grad_distinct_XD: Tensor | None
) -> Tensor:
    """The gradient of the queries; adds that of the tokens to `grad_distinct_XD`, if there is one."""
    dtype = query_BRD.dtype
    grad_query_BRD = torch.zeros_like(query_BRD)
    for chunk in layout.chunks:
        examples = slice(chunk.first, chunk.last)
        token_NSD = _gather(distinct_XD, chunk, dtype)
        query_NRD, grad_NRD = query_BRD[examples], grad_BRD[examples]
        weight_NRS = _weights(query_NRD, token_NSD, chunk.bias_N1S)
        grad_weight_NRS = widened(torch.bmm(grad_NRD, token_NSD.transpose(1, 2)))
        # The derivative of softmax in one pass. Slots that are left over weigh 0, and so does their gradient.
        grad_score_NRS = torch._softmax_backward_data(grad_weight_NRS, weight_NRS, -1, weight_NRS.dtype).to(dtype)
        grad_query_BRD[examples] = torch.bmm(grad_score_NRS, token_NSD)
        if grad_distinct_XD is not None:
            # A token is the value and the key of every query. Two products are faster than one of the two side by side.
            grad_NSD = torch.bmm(weight_NRS.to(dtype).transpose(1, 2), grad_NRD)
            grad_NSD.baddbmm_(grad_score_NRS.transpose(1, 2), query_NRD)
            grad_distinct_XD.index_add_(0, chunk.row_C, grad_NSD.flatten(0, 1).to(grad_distinct_XD.dtype))
    return grad_query_BRD


def _gather(distinct_XD: Tensor, chunk: Chunk, dtype: torch.dtype) -> Tensor:
    return distinct_XD.index_select(0, chunk.row_C).view(chunk.last - chunk.first, -1, distinct_XD.shape[1]).to(dtype)


def _weights(query_NRD: Tensor, token_NSD: Tensor, bias_N1S: Tensor | None) -> Tensor:
    token_NDS = token_NSD.transpose(1, 2)
    if bias_N1S is None:
        return widened(torch.bmm(query_NRD, token_NDS)).softmax(dim=-1)
    if bias_N1S.dtype == query_NRD.dtype:
        return torch.baddbmm(bias_N1S, query_NRD, token_NDS).softmax(dim=-1)
    # The logarithm of a count is not rounded to what products are in.
    return (widened(torch.bmm(query_NRD, token_NDS)) + bias_N1S).softmax(dim=-1)
