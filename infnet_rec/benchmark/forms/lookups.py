"""Lookups a second, and bytes between ranks, of the two embedding collections.

Shapes: K unpooled tokens, X looked-up rows, D width, B examples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.benchmark.exchange import Exchange
from infnet_rec.benchmark.samples import alternate_together, middle

REPEATS = 3


@dataclass(frozen=True, slots=True)
class Lookup:
    """One way from ids to embeddings.

    Attributes:
        collection: sharded, with its optimizer fused into the backward pass.
        ids: its input on this rank.
        spread_K: for each token its row among what is looked up; None where they are the same.
        num_tokens: embeddings that come out on this rank.
    """

    collection: nn.Module
    ids: KeyedJaggedTensor
    spread_K: Tensor | None
    num_tokens: int

    def forward(self) -> Tensor:
        """All embeddings of this rank's batch, in one tensor."""
        found: Any = self.collection(self.ids)
        found = found.wait() if hasattr(found, "wait") else found
        if not isinstance(found, Mapping):
            return found.values()
        rows_XD = torch.cat([value.values() for value in found.values()])
        return rows_XD if self.spread_K is None else functional.embedding(self.spread_K, rows_XD)


def measure_lookups(
    lookups: Mapping[str, Lookup], device: torch.device, rank: int, world_size: int, *, num_rounds: int
) -> dict[str, dict[str, Any]]:
    """Times them side by side; on several ranks all call it together.

    Returns:
        By name: `ids` looked up, `tokens` that come out, seconds of the forward pass and of forward and backward with
        the update of the tables (those of each round in `samples_s`), bytes sent to other ranks in each pass; of this
        rank.
    """
    facts: dict[str, dict[str, Any]] = {}
    forwards: dict[str, Callable[[], object]] = {}
    trainings: dict[str, Callable[[], object]] = {}
    for name, lookup in lookups.items():
        with Exchange(rank, world_size) as there:
            out = lookup.forward()
        gradient = torch.full_like(out, 1e-3)
        with Exchange(rank, world_size) as back:
            out.backward(gradient)
        facts[name] = {
            "ids": lookup.ids.values().numel(),
            "tokens": lookup.num_tokens,
            "forward_sent_bytes": there.sent_bytes,
            "backward_sent_bytes": back.sent_bytes,
        }
        forwards[name] = lookup.forward
        trainings[name] = lambda lookup=lookup, gradient=gradient: lookup.forward().backward(gradient)
    with torch.no_grad():
        forward = alternate_together(forwards, device, num_rounds=num_rounds, repeats=REPEATS)
    training = alternate_together(trainings, device, num_rounds=num_rounds, repeats=REPEATS)
    for name, fact in facts.items():
        fact |= {"forward_s": middle(forward[name]).wall_s, "forward_backward_s": middle(training[name]).wall_s}
        fact["samples_s"] = [one.wall_s for one in training[name]]
    return facts
