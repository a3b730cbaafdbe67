"""Sequence tokens read a few examples at a time: jagged attention in plain torch, in the memory of its tokens.

A chunk of examples is gathered from the tokens, read while it is in the processor's cache, and forgotten; the backward
pass gathers it again. So nothing that grows with queries times tokens is ever stored, nor is a second layout of the
tokens.

The gradient of the tokens is as large as they are, and pooling and every block add to it. Autograd would make one of
them for each reading and then add them up. Here readings form a chain instead: each returns, beside what it read, the
tokens again, and the next reading takes those.

    token_LD -> reading -> the same token_LD -> reading -> the same token_LD, which nothing takes

In the backward pass the last reading makes a gradient, and every earlier one adds its part to what comes down the
chain. There is no state outside the graph, so whatever autograd does with a graph (a part of it, twice, again from a
checkpoint) is right. Writing into the gradient that came down is safe because no one else has it: what a reading passes
on is taken by readings only, and where several take it autograd adds their gradients up before it hands them over.

Shapes: B examples, R queries, F sequences, L sequence tokens of the whole batch, N examples of a chunk, S slots of
each, C = N * S, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from infnet_rec.models.infnet.attention import check_lengths, check_query, is_gpu, next_gate, per_token, times_gate
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
        row_C: row of the token in each slot; slots that are left over repeat the example's last token.
        absent_N1S: True where a slot is left over; None where none is.
    """

    first: int
    last: int
    row_C: Tensor
    absent_N1S: Tensor | None


@dataclass(frozen=True, slots=True)
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
    """Any number of tokens in each example, where TorchRec left them.

    Attributes:
        token_LD: the tokens as they were looked up, feature-major; for the next reading only.
        layout: of the batch.
        gate_BD: product of all factors so far; None before the first.
    """

    token_LD: Tensor
    layout: JaggedLayout
    gate_BD: Tensor | None = None

    @outside_graphs
    def attend(self, query_BRD: Tensor) -> tuple[Tensor, Self]:
        """See `TokenSet.attend`. An example without tokens gets exactly 0, and so do its gradients."""
        check_query(query_BRD, self.token_LD, len(self.layout.example_B))
        read_BRD, token_LD = _Read.apply(times_gate(query_BRD, self.gate_BD), self.token_LD, self.layout)
        return times_gate(read_BRD, self.gate_BD), replace(self, token_LD=next_link(self.token_LD, token_LD))

    def gated(self, factor_BD: Tensor) -> Self:
        """See `TokenSet.gated`. Costs B x D, whatever the number of tokens."""
        return replace(self, gate_BD=next_gate(self.gate_BD, factor_BD, self.token_LD, len(self.layout.example_B)))


@outside_graphs
def arrange_sequences(token_LD: Tensor, lengths_FB: Tensor) -> JaggedTokens:
    """Finds out where each example's tokens are. Done once a forward; every block reads the same chunks.

    Args:
        token_LD: all events of sequence 0 (example 0, then 1, ...), then all of sequence 1, and so on.
        lengths_FB: number of events of each sequence in each example; sums to L.

    Raises:
        UserError: see `check_lengths`.
    """
    check_lengths(token_LD, lengths_FB)
    length_B, example_B = lengths_FB.sum(dim=0).sort(descending=True, stable=True)
    rank_B = torch.empty_like(example_B).scatter_(0, example_B, torch.arange(len(example_B), device=example_B.device))

    # Each (example, sequence) is one run of tokens, in the source and in this order: a run moves by one distance.
    run_BF = lengths_FB.t().index_select(0, example_B)
    end_FB = lengths_FB.flatten().cumsum(dim=0).view_as(lengths_FB)
    source_BF = (end_FB - lengths_FB).t().index_select(0, example_B)
    target_BF = (run_BF.flatten().cumsum(dim=0) - run_BF.flatten()).view_as(run_BF)
    num_tokens = token_LD.shape[0]
    row_L = torch.arange(num_tokens, device=token_LD.device) + per_token(source_BF - target_BF, run_BF, num_tokens)
    return JaggedTokens(token_LD, JaggedLayout(example_B, rank_B, tuple(_chunks(row_L, length_B))))


def next_link(token_LD: Tensor, passed_on_LD: Tensor) -> Tensor:
    """What the next reading takes: what the last one passed on, where it hands gradients down.

    It has none to hand down for tokens that are not learned; and under `no_grad` it is no link at all.
    """
    return passed_on_LD if token_LD.requires_grad and torch.is_grad_enabled() else token_LD


def chunk_tokens(device: torch.device) -> int:
    """About how many tokens are to be read together."""
    return CHUNK_TOKENS_GPU if is_gpu(device) else CHUNK_TOKENS


def _chunks(row_L: Tensor, length_B: Tensor) -> Iterator[Chunk]:
    """Cuts the examples, the longest first, into chunks of about as many tokens."""
    budget = chunk_tokens(row_L.device)
    lengths = _lengths_on_host(length_B, row_L.shape[0])
    first = start = 0
    while first < len(lengths) and lengths[first] > 0:
        num_slots = lengths[first]
        part = [length for length in lengths[first : first + max(1, budget // num_slots)] if length > 0]
        last, end = first + len(part), start + sum(part)
        if end - start == len(part) * num_slots:
            yield Chunk(first, last, row_L[start:end], None)
        else:
            length_N1 = length_B[first:last, None]
            start_N1 = start + length_N1.cumsum(dim=0) - length_N1
            slot_S = torch.arange(num_slots, device=row_L.device)
            token_NS = start_N1 + torch.minimum(slot_S, length_N1 - 1)
            yield Chunk(first, last, row_L[token_NS.flatten()], (slot_S >= length_N1)[:, None])
        first, start = last, end


def _lengths_on_host(length_B: Tensor, num_tokens: int) -> list[int]:
    """Sizes of chunks have to be known: a GPU is waited for, once a forward. Fake tensors share the tokens evenly."""
    if isinstance(length_B, FakeTensor):
        least, more = divmod(num_tokens, len(length_B))
        return [least + (example < more) for example in range(len(length_B))]
    return length_B.tolist()


class _Read(torch.autograd.Function):
    """query_BRD and token_LD to read_BRD, at least in float32, and token_LD. Stores the two, and no scores."""

    @staticmethod
    def forward(ctx: Any, query_BRD: Tensor, token_LD: Tensor, layout: JaggedLayout) -> tuple[Tensor, Tensor]:
        ctx.layout, ctx.query_dtype = layout, query_BRD.dtype
        ctx.set_materialize_grads(False)
        sorted_BRD = query_BRD.index_select(0, layout.example_B).to(product_dtype(token_LD))
        ctx.save_for_backward(sorted_BRD, token_LD)
        with _as_it_stands(token_LD):
            read_BRD = _read_chunks(sorted_BRD, token_LD, layout)
        return read_BRD.index_select(0, layout.rank_B), token_LD.view_as(token_LD)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_read_BRD: Tensor | None, grad_token_LD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_read_BRD is None:
            return None, grad_token_LD, None
        sorted_BRD, token_LD = ctx.saved_tensors
        if grad_token_LD is None and ctx.needs_input_grad[1]:
            grad_token_LD = torch.zeros_like(token_LD)
        grad_BRD = grad_read_BRD.index_select(0, ctx.layout.example_B).to(sorted_BRD.dtype)
        with _as_it_stands(token_LD):
            grad_query_BRD = _walk_back(grad_BRD, sorted_BRD, token_LD, ctx.layout, grad_token_LD)
        return grad_query_BRD.index_select(0, ctx.layout.rank_B).to(ctx.query_dtype), grad_token_LD, None


def _as_it_stands(token_LD: Tensor) -> torch.autocast:
    """Autocast holds in the forward pass and not in the backward pass; what it asks for has been done already."""
    return torch.autocast(token_LD.device.type, enabled=False)


def _read_chunks(query_BRD: Tensor, token_LD: Tensor, layout: JaggedLayout) -> Tensor:
    """What the queries of the examples, the longest first, read; 0 for examples without tokens."""
    read_BRD = widened(torch.zeros_like(query_BRD))
    for chunk in layout.chunks:
        examples = slice(chunk.first, chunk.last)
        token_NSD = _gather(token_LD, chunk, query_BRD.dtype)
        weight_NRS = _weights(query_BRD[examples], token_NSD, chunk.absent_N1S)
        read_BRD[examples] = torch.bmm(weight_NRS.to(query_BRD.dtype), token_NSD)
    return read_BRD


def _walk_back(
    grad_BRD: Tensor, query_BRD: Tensor, token_LD: Tensor, layout: JaggedLayout, grad_token_LD: Tensor | None
) -> Tensor:
    """The gradient of the queries; adds that of the tokens to `grad_token_LD`, if there is one."""
    dtype = query_BRD.dtype
    grad_query_BRD = torch.zeros_like(query_BRD)
    for chunk in layout.chunks:
        examples = slice(chunk.first, chunk.last)
        token_NSD = _gather(token_LD, chunk, dtype)
        query_NRD, grad_NRD = query_BRD[examples], grad_BRD[examples]
        weight_NRS = _weights(query_NRD, token_NSD, chunk.absent_N1S)
        grad_weight_NRS = widened(torch.bmm(grad_NRD, token_NSD.transpose(1, 2)))
        # The derivative of softmax in one pass. Slots that are left over weigh 0, and so does their gradient.
        grad_score_NRS = torch._softmax_backward_data(grad_weight_NRS, weight_NRS, -1, weight_NRS.dtype).to(dtype)
        grad_query_BRD[examples] = torch.bmm(grad_score_NRS, token_NSD)
        if grad_token_LD is not None:
            # A token is the value and the key of every query: two products, made as one.
            left_NQS = torch.cat([weight_NRS.to(dtype), grad_score_NRS], dim=1)
            grad_NSD = torch.bmm(left_NQS.transpose(1, 2), torch.cat([grad_NRD, query_NRD], dim=1))
            grad_token_LD.index_add_(0, chunk.row_C, grad_NSD.flatten(0, 1).to(grad_token_LD.dtype))
    return grad_query_BRD


def _gather(token_LD: Tensor, chunk: Chunk, dtype: torch.dtype) -> Tensor:
    return token_LD.index_select(0, chunk.row_C).view(chunk.last - chunk.first, -1, token_LD.shape[1]).to(dtype)


def _weights(query_NRD: Tensor, token_NSD: Tensor, absent_N1S: Tensor | None) -> Tensor:
    score_NRS = widened(torch.bmm(query_NRD, token_NSD.transpose(1, 2)))
    if absent_N1S is not None:
        score_NRS.masked_fill_(absent_N1S, -torch.inf)
    return score_NRS.softmax(dim=-1)
