"""Cross attention from a few queries to many tokens, with projections and gates moved onto the queries.

The paper projects every token to a key and a value in every flow, and multiplies every token by a gate in every block.
Neither has to be formed. With tokens X, weights Wq, Wk, Wv and a gate G (one vector an example),

    softmax((Q Wq) (X Wk)^T) (X Wv)  =  (softmax((Q (Wq Wk^T)) X^T) X) Wv
    softmax(A (X * G)^T) (X * G)     =  (softmax((A * G) X^T) X) * G

so tokens are only ever read, by a handful of queries, and queries that share a token set read it together.

Shapes: B examples, P queries, R = absorbed queries of all flows (and heads) together, X tokens an example, L sequence
tokens of the whole batch, F sequences or flows, H heads, K = D / H, D width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from infnet_rec.errors import UserError
from infnet_rec.models.batched import Constant, stack_alike
from infnet_rec.models.precision import narrowed

_stands_for_gpu: ContextVar[bool] = ContextVar("_stands_for_gpu", default=False)


class TokenSet(Protocol):
    """Tokens that queries can read."""

    def attend(self, query_BRD: Tensor) -> tuple[Tensor, Self]:
        """Each query's mean of the tokens, weighted by the softmax of its inner products with them: [B, R, D].

        Comes with the same tokens for the next reading: taking those and not these saves memory, see `model.jagged`.
        """
        ...

    def gated(self, factor_BD: Tensor) -> Self:
        """The same tokens, each multiplied by its example's factor."""
        ...


@dataclass(frozen=True, slots=True)
class DenseTokens:
    """As many tokens in every example; at least one.

    Attributes:
        token_BXD: the tokens as they were looked up.
        gate_BD: product of all factors so far; None before the first.
    """

    token_BXD: Tensor
    gate_BD: Tensor | None = None

    def attend(self, query_BRD: Tensor) -> tuple[Tensor, Self]:
        """See `TokenSet.attend`. Plain products beat scaled_dot_product_attention on CPU at these sizes."""
        token_BXD = self.token_BXD
        check_query(query_BRD, token_BXD, token_BXD.shape[0])
        query_BRD = times_gate(query_BRD, self.gate_BD).to(token_BXD.dtype)
        # All is as wide as products want it: on a GPU autocast would make the softmax wider, and narrow it again.
        with torch.autocast(query_BRD.device.type, enabled=False):
            if torch.compiler.is_compiling():
                return times_gate(_weights(query_BRD, token_BXD) @ token_BXD, self.gate_BD), self
            read_BRD, passed_on_BXD = _ReadDense.apply(query_BRD, token_BXD)
        link_BXD = next_link(token_BXD, passed_on_BXD)
        return times_gate(read_BRD, self.gate_BD), replace(self, token_BXD=link_BXD)

    def gated(self, factor_BD: Tensor) -> Self:
        """See `TokenSet.gated`. Costs B x D, whatever the number of tokens."""
        return replace(self, gate_BD=next_gate(self.gate_BD, factor_BD, self.token_BXD, self.token_BXD.shape[0]))


class _ReadDense(torch.autograd.Function):
    """query_BRD and token_BXD to read_BRD and token_BXD: a link of the chain that `jagged_attention` describes.

    Autograd would make two gradients of the tokens for each reading, one of them the other way round in memory.
    """

    @staticmethod
    def forward(ctx: Any, query_BRD: Tensor, token_BXD: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        weight_BRX = _weights(query_BRD, token_BXD)
        ctx.save_for_backward(query_BRD, token_BXD, weight_BRX)
        return torch.bmm(weight_BRX, token_BXD), token_BXD.view_as(token_BXD)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's types lose the names
        ctx: Any, grad_read_BRD: Tensor | None, grad_token_BXD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if grad_read_BRD is None:
            return None, grad_token_BXD
        query_BRD, token_BXD, weight_BRX = ctx.saved_tensors
        with torch.autocast(query_BRD.device.type, enabled=False):
            grad_weight_BRX = torch.bmm(grad_read_BRD, token_BXD.transpose(1, 2))
            grad_score_BRX = torch._softmax_backward_data(grad_weight_BRX, weight_BRX, -1, weight_BRX.dtype)
            grad_query_BRD = torch.bmm(grad_score_BRX, token_BXD) if ctx.needs_input_grad[0] else None
            if not ctx.needs_input_grad[1]:
                return grad_query_BRD, grad_token_BXD
            # A token is the value and the key of every query. Two products are faster than one of the two side by side.
            weight_BXR = weight_BRX.transpose(1, 2)
            if grad_token_BXD is None:
                grad_token_BXD = torch.bmm(weight_BXR, grad_read_BRD)
            else:
                grad_token_BXD.baddbmm_(weight_BXR, grad_read_BRD)
            return grad_query_BRD, grad_token_BXD.baddbmm_(grad_score_BRX.transpose(1, 2), query_BRD)


def _weights(query_BRD: Tensor, token_BXD: Tensor) -> Tensor:
    return torch.bmm(query_BRD, token_BXD.transpose(1, 2)).softmax(dim=-1)


def next_link(token_XD: Tensor, passed_on_XD: Tensor) -> Tensor:
    """What the next reading takes: what the last one passed on, where it hands gradients down.

    It has none to hand down for tokens that are not learned; and under `no_grad` it is no link at all.
    """
    return passed_on_XD if token_XD.requires_grad and torch.is_grad_enabled() else token_XD


class Flow(nn.Module):
    """CA(Q, X) = softmax(Q Wq (X Wk)^T / sqrt(K)) (X Wv), head by head: the weights of one flow of information.

    No biases and no output projection. Weights act from the right: Q Wq.

    Reference: INFNet, heterogeneous flows, cross attention.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_DD = nn.Parameter(torch.empty(width, width))
        self.key_DD = nn.Parameter(torch.empty(width, width))
        self.value_DD = nn.Parameter(torch.empty(width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the three weights anew."""
        for weight_DD in (self.query_DD, self.key_DD, self.value_DD):
            nn.init.xavier_normal_(weight_DD)


class Run(NamedTuple):
    """Absorbed queries that stand side by side and read one token set.

    Attributes:
        kind: of the set.
        names: who reads.
        num_queries: of each of them.
    """

    kind: str
    names: tuple[str, ...]
    num_queries: tuple[int, ...]

    def sizes(self, num_heads: int) -> list[int]:
        """Absorbed queries of each reader: one for each query and head."""
        return [number * num_heads for number in self.num_queries]


class Readings(nn.Module):
    """All flows of a block; what they read is added up for each query.

    Every reader reads as many sets. One batched product absorbs all queries and one makes values of what they read; in
    between each set is read once. For that, queries come in an order in which those of one set are neighbours: what
    every reader reads first, then what every reader reads second.
    """

    def __init__(
        self, readers: Mapping[str, Sequence[str]], num_tokens: Mapping[str, int], width: int, num_heads: int
    ) -> None:
        """Makes the weights.

        Args:
            readers: for each kind of tokens, who reads them.
            num_tokens: of each reader, P in all. Their order is that of the queries: neighbours should read the same.
            width: D.
            num_heads: H; divides the width.
        """
        super().__init__()
        self.kinds = tuple(readers)
        for kind, names in readers.items():
            self.add_module(kind, nn.ModuleDict({name: Flow(width, num_heads) for name in names}))
        self.num_heads, self.num_tokens = num_heads, dict(num_tokens)
        reads = [[kind for kind, names in readers.items() if name in names] for name in num_tokens]
        self.num_reads = len(reads[0])
        assert all(len(kinds) == self.num_reads for kinds in reads), f"readers of unlike numbers of sets: {readers}"
        pairs = [(kind, name) for turn in zip(*reads, strict=True) for kind, name in zip(turn, num_tokens, strict=True)]
        runs = [(kind, tuple(name for _, name in run)) for kind, run in groupby(pairs, itemgetter(0))]
        self.runs = [Run(kind, names, tuple(num_tokens[name] for name in names)) for kind, names in runs]
        numbers = [num_tokens[name] for _, name in pairs]
        self.flow_of_query = Constant([f for f, number in enumerate(numbers) for _ in range(number)], torch.int64)

    def alike(self) -> list[list[Tensor]]:
        """See `HasAlike`: Wq, Wk and Wv of all flows, in the order of runs."""
        flows = [self.flows(run.kind)[name] for run in self.runs for name in run.names]
        return [[f.query_DD for f in flows], [f.key_DD for f in flows], [f.value_DD for f in flows]]

    def forward(
        self, query_BPD: Tensor, sets: Mapping[str, TokenSet], stacked: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, dict[str, TokenSet]]:
        """What each query gets out of the sets that it reads, [B, P, D], and the sets for the next reading.

        Args:
            query_BPD: of all readers, side by side.
            sets: at least those that are read, by kind.
            stacked: what `stack_alike` makes of this module, where it has been called.
        """
        query_FDD, key_FDD, value_FDD = stack_alike(self)[0] if stacked is None else stacked
        reads_BRD, rest = [], dict(sets)
        for run, absorbed_BRD in self.absorb(query_BPD, query_FDD, key_FDD):
            read_BRD, rest[run.kind] = rest[run.kind].attend(absorbed_BRD)
            reads_BRD.append(narrowed(read_BRD))
        read_BRHD = torch.cat(reads_BRD, dim=1).unflatten(1, (-1, self.num_heads))
        value_RDHK = self._of_queries(value_FDD.unflatten(2, (self.num_heads, -1)))
        value_BRD = torch.einsum("brhd,rdhk->brhk", read_BRHD, value_RDHK).flatten(2)
        first_BPD, *others_BPD = value_BRD.unflatten(1, (self.num_reads, -1)).unbind(1)
        return sum(others_BPD, start=first_BPD), rest

    def absorb(self, query_BPD: Tensor, query_FDD: Tensor, key_FDD: Tensor) -> list[tuple[Run, Tensor]]:
        """Queries that meet raw tokens instead of keys, already divided by sqrt(K): for each run, [B, P * H, D]."""
        query_FDHK, key_FDHK = (weight.unflatten(2, (self.num_heads, -1)) for weight in (query_FDD, key_FDD))
        absorb_FDHD = torch.einsum("fdhk,fehk->fdhe", query_FDHK, key_FDHK) / math.sqrt(query_FDHK.shape[-1])
        query_BRD = torch.cat([narrowed(query_BPD)] * self.num_reads, dim=1)
        absorbed_BRD = torch.einsum("brd,rdhe->brhe", query_BRD, self._of_queries(absorb_FDHD)).flatten(1, 2)
        sizes = [sum(run.sizes(self.num_heads)) for run in self.runs]
        return list(zip(self.runs, absorbed_BRD.split(sizes, dim=1), strict=True))

    def part(self, query_BPD: Tensor, name: str) -> Tensor:
        """One reader's queries out of all of them."""
        before = list(self.num_tokens).index(name)
        first = sum(list(self.num_tokens.values())[:before])
        return query_BPD[:, first : first + self.num_tokens[name]]

    def readers(self, kind: str) -> tuple[str, ...]:
        """Who reads this kind of tokens; none where nobody does."""
        return tuple(self.flows(kind)) if kind in self.kinds else ()

    def flows(self, kind: str) -> Mapping[str, Flow]:
        """The weights of those who read this kind of tokens, by reader."""
        return cast(Mapping[str, Flow], self.get_submodule(kind))

    def _of_queries(self, weight_FDHX: Tensor) -> Tensor:
        """A copy of its flow's weights for each query: products of unlike numbers of queries become one."""
        index_R = self.flow_of_query()
        return functional.embedding(index_R, weight_FDHX.flatten(1)).view(len(index_R), *weight_FDHX.shape[1:])


def times_gate(token_BXD: Tensor, gate_BD: Tensor | None) -> Tensor:
    """Multiplies every token by its example's gate; None leaves the tokens alone."""
    return token_BXD if gate_BD is None else token_BXD * gate_BD[:, None]


def next_gate(gate_BD: Tensor | None, factor_BD: Tensor, token_XD: Tensor, num_examples: int) -> Tensor:
    """The gate of tokens that get one more factor.

    Raises:
        UserError: the factor is not one vector an example.
    """
    if factor_BD.shape != (num_examples, token_XD.shape[-1]):
        raise UserError(
            f"gate: has shape {tuple(factor_BD.shape)}; the tokens are of {num_examples} examples and of width "
            f"{token_XD.shape[-1]}: give it ({num_examples}, {token_XD.shape[-1]})"
        )
    return factor_BD if gate_BD is None else gate_BD * factor_BD


def check_query(query_BRD: Tensor, token_XD: Tensor, num_examples: int) -> None:
    """Refuses queries that do not fit the tokens.

    Raises:
        UserError: they are on another device, or of other examples or another width.
    """
    if query_BRD.device != token_XD.device:
        raise UserError(
            f"queries: are on {query_BRD.device} and the tokens on {token_XD.device}; move one to the other"
        )
    if query_BRD.dim() != 3 or query_BRD.shape[::2] != (num_examples, token_XD.shape[-1]):
        raise UserError(
            f"queries: have shape {tuple(query_BRD.shape)}; the tokens are of {num_examples} examples and of width "
            f"{token_XD.shape[-1]}: give them ({num_examples}, any number, {token_XD.shape[-1]})"
        )


def check_lengths(token_XD: Tensor, lengths_FB: Tensor, row_L: Tensor | None = None) -> None:
    """Refuses lengths that do not describe the tokens.

    On a GPU the sum is compared there, and a wrong one ends the process: to raise here, the GPU would have to be waited
    for in every step. A compiled tower does not compare it.

    Args:
        token_XD: the tokens, or the rows that they refer to.
        lengths_FB: see `Tokens`.
        row_L: see `Tokens`.

    Raises:
        UserError: they are on another device, are not [F, B], or on a CPU do not sum to L.
    """
    if lengths_FB.device != token_XD.device:
        raise UserError(
            f"lengths: are on {lengths_FB.device} and the tokens on {token_XD.device}; move one to the other"
        )
    if lengths_FB.dim() != 2 or token_XD.dim() != 2:
        raise UserError(
            f"lengths: have shape {tuple(lengths_FB.shape)}, the tokens {tuple(token_XD.shape)}; give them (sequences, "
            "examples) and (all events, width)"
        )
    num_tokens = token_XD.shape[0] if row_L is None else row_L.shape[0]
    if torch.compiler.is_compiling():
        return  # a number that decides what comes next would cut the compiled tower in two
    if is_gpu(lengths_FB.device):
        torch._assert_async(lengths_FB.sum() == num_tokens, f"lengths do not sum to the {num_tokens} rows of tokens")
    elif isinstance(lengths_FB, FakeTensor):
        return  # there is no number
    elif (total := int(lengths_FB.sum())) != num_tokens:
        raise UserError(
            f"lengths: sum to {total}; there are {num_tokens} rows of tokens: both must count the same events"
        )


def is_gpu(device: torch.device) -> bool:
    """Whether operators are launched there while others are still at work, and waiting for one is dear."""
    return device.type != "cpu" or _stands_for_gpu.get()


@contextmanager
def standing_for_gpu() -> Iterator[None]:
    """Inside, fake tensors on a CPU are treated as a GPU's would be: for counting what a GPU would be asked."""
    token = _stands_for_gpu.set(True)
    try:
        yield
    finally:
        _stands_for_gpu.reset(token)


def per_token(value_FB: Tensor, lengths_FB: Tensor, num_tokens: int) -> Tensor:
    """Repeats a number of each (sequence, example) for each of its events: [L]."""
    # With the size given, a GPU need not be waited for.
    return torch.repeat_interleave(value_FB.flatten(), lengths_FB.flatten(), output_size=num_tokens)
