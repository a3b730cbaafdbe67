"""Cross attention from a few queries to many tokens, with projections and gates moved onto the queries.

The paper projects every token to a key and a value in every flow, and multiplies every token by a gate in every block.
Neither has to be formed. With tokens X, weights Wq, Wk, Wv and a gate G (one vector an example),

    softmax((Q Wq) (X Wk)^T) (X Wv)  =  (softmax((Q (Wq Wk^T)) X^T) X) Wv
    softmax(A (X * G)^T) (X * G)     =  (softmax((A * G) X^T) X) * G

so tokens are only ever read, by a handful of queries, and queries that share a token set read it together.

Shapes: B examples, P queries of one flow, R = absorbed queries of all flows and heads together, X tokens an example,
L sequence tokens of the whole batch, F sequences, H heads, K = D / H, D width.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from infnet_rec.faults import Fault


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
        check_query(query_BRD, self.token_BXD, self.token_BXD.shape[0])
        score_BRX = times_gate(query_BRD, self.gate_BD) @ self.token_BXD.transpose(1, 2)
        return times_gate(score_BRX.softmax(dim=-1) @ self.token_BXD, self.gate_BD), self

    def gated(self, factor_BD: Tensor) -> Self:
        """See `TokenSet.gated`. Costs B x D, whatever the number of tokens."""
        return replace(self, gate_BD=next_gate(self.gate_BD, factor_BD, self.token_BXD, self.token_BXD.shape[0]))


class Flow(nn.Module):
    """CA(Q, X) = softmax(Q Wq (X Wk)^T / sqrt(K)) (X Wv), head by head: one flow of information, in two halves.

    No biases and no output projection. Weights act from the right: Q Wq.

    Reference: INFNet, heterogeneous flows, cross attention.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.query_DD = nn.Parameter(torch.empty(width, width))
        self.key_DD = nn.Parameter(torch.empty(width, width))
        self.value_DD = nn.Parameter(torch.empty(width, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the three weights anew."""
        for weight_DD in (self.query_DD, self.key_DD, self.value_DD):
            nn.init.xavier_normal_(weight_DD)

    def absorb(self, query_BPD: Tensor) -> Tensor:
        """Queries that meet raw tokens instead of keys: [B, P * H, D], already divided by sqrt(K)."""
        query_DHK, key_DHK = self._heads(self.query_DD), self._heads(self.key_DD)
        absorbed_DHD = torch.einsum("dhk,ehk->dhe", query_DHK, key_DHK) / math.sqrt(self.width // self.num_heads)
        num_examples, num_queries, _ = query_BPD.shape
        return (query_BPD @ absorbed_DHD.flatten(1)).reshape(num_examples, num_queries * self.num_heads, self.width)

    def project(self, read_BRD: Tensor) -> Tensor:
        """What the absorbed queries read of raw tokens, made values: [B, P, D].

        Args:
            read_BRD: the rows of this flow only, R = P * H.
        """
        read_BPHD = read_BRD.unflatten(1, (-1, self.num_heads))
        return torch.einsum("bphd,dhk->bphk", read_BPHD, self._heads(self.value_DD)).flatten(2)

    def _heads(self, weight_DD: Tensor) -> Tensor:
        return weight_DD.unflatten(1, (self.num_heads, -1))


class Reading(nn.ModuleDict):
    """All flows that start from one token set, by the name of who reads; the set is read once for all of them."""

    def __init__(self, readers: Iterable[str], width: int, num_heads: int) -> None:
        super().__init__({name: Flow(width, num_heads) for name in readers})

    def forward(self, query_BPD: Mapping[str, Tensor], tokens: TokenSet) -> tuple[dict[str, Tensor], TokenSet]:
        """What each reader gets out of the tokens, and the tokens for the next reading.

        Args:
            query_BPD: at least the readers' queries, [B, P, D] each.
            tokens: the set that all of them read.
        """
        flows = cast(Mapping[str, Flow], self)
        absorbed_BRD = [flow.absorb(query_BPD[name]) for name, flow in flows.items()]
        read_BRD, rest = tokens.attend(torch.cat(absorbed_BRD, dim=1))
        parts_BRD = read_BRD.split([part.shape[1] for part in absorbed_BRD], dim=1)
        return {n: flow.project(part) for (n, flow), part in zip(flows.items(), parts_BRD, strict=True)}, rest


def times_gate(token_BXD: Tensor, gate_BD: Tensor | None) -> Tensor:
    """Multiplies every token by its example's gate; None leaves the tokens alone."""
    return token_BXD if gate_BD is None else token_BXD * gate_BD[:, None]


def next_gate(gate_BD: Tensor | None, factor_BD: Tensor, token_XD: Tensor, num_examples: int) -> Tensor:
    """The gate of tokens that get one more factor.

    Raises:
        Fault: the factor is not one vector an example.
    """
    if factor_BD.shape != (num_examples, token_XD.shape[-1]):
        raise Fault(
            f"gate: has shape {tuple(factor_BD.shape)}; the tokens are of {num_examples} examples and of width "
            f"{token_XD.shape[-1]}: give it ({num_examples}, {token_XD.shape[-1]})"
        )
    return factor_BD if gate_BD is None else gate_BD * factor_BD


def check_query(query_BRD: Tensor, token_XD: Tensor, num_examples: int) -> None:
    """Refuses queries that do not fit the tokens.

    Raises:
        Fault: they are on another device, or of other examples or another width.
    """
    if query_BRD.device != token_XD.device:
        raise Fault(f"queries: are on {query_BRD.device} and the tokens on {token_XD.device}; move one to the other")
    if query_BRD.dim() != 3 or query_BRD.shape[::2] != (num_examples, token_XD.shape[-1]):
        raise Fault(
            f"queries: have shape {tuple(query_BRD.shape)}; the tokens are of {num_examples} examples and of width "
            f"{token_XD.shape[-1]}: give them ({num_examples}, any number, {token_XD.shape[-1]})"
        )


def check_lengths(token_LD: Tensor, lengths_FB: Tensor) -> None:
    """Refuses lengths that do not describe the tokens.

    On a GPU the sum is compared there, and a wrong one ends the process: to raise here, the GPU would have to be waited
    for in every step. A compiled tower does not compare it.

    Raises:
        Fault: they are on another device, are not [F, B], or on a CPU do not sum to L.
    """
    if lengths_FB.device != token_LD.device:
        raise Fault(f"lengths: are on {lengths_FB.device} and the tokens on {token_LD.device}; move one to the other")
    if lengths_FB.dim() != 2 or token_LD.dim() != 2:
        raise Fault(
            f"lengths: have shape {tuple(lengths_FB.shape)}, the tokens {tuple(token_LD.shape)}; give them (sequences, "
            "examples) and (all events, width)"
        )
    num_tokens = token_LD.shape[0]
    if torch.compiler.is_compiling() or isinstance(lengths_FB, FakeTensor):
        return  # a number that decides what comes next would cut the compiled tower in two; a fake one is not there
    if lengths_FB.device.type != "cpu":
        torch._assert_async(lengths_FB.sum() == num_tokens, f"lengths do not sum to the {num_tokens} rows of tokens")
    elif (total := int(lengths_FB.sum())) != num_tokens:
        raise Fault(f"lengths: sum to {total}; there are {num_tokens} rows of tokens: both must count the same events")


def per_token(value_FB: Tensor, lengths_FB: Tensor, num_tokens: int) -> Tensor:
    """Repeats a number of each (sequence, example) for each of its events: [L]."""
    # With the size given, a GPU need not be waited for.
    return torch.repeat_interleave(value_FB.flatten(), lengths_FB.flatten(), output_size=num_tokens)
