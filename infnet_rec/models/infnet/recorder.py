"""What INFNet's last block attends to, and how wide its gates open, seen from outside.

The forward pass reads tokens with absorbed queries and keeps no probability of a sequence token. Whoever wants to see
them opens `recording`: hooks then note what the last block's readings are given, and form the probabilities from it
once more, in float32. A tower that nobody records has no hook and is what it was.

Shapes: B examples, Q queries (task tokens, then shared task tokens), R = absorbed queries Q * H, H heads, M categorical
tokens, F sequences, S slots of the longest sequence, L sequence tokens of the whole batch, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from infnet_rec.errors import UserError
from infnet_rec.models.batched import stack_alike
from infnet_rec.models.infnet.attention import DenseTokens, Readings, times_gate
from infnet_rec.models.infnet.fused_attention import FusedTokens
from infnet_rec.models.infnet.jagged_attention import JaggedTokens
from infnet_rec.models.infnet.model import Block, Infnet, Kind, Query
from infnet_rec.models.layers import Gates
from infnet_rec.models.precision import widened
from infnet_rec.models.tokens import Tokens

# Whose attention is recorded, in the order of Q: T and T~.
RECORDED: tuple[Query, ...] = ("task", "task_proxy")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One forward pass.

    Attributes:
        field_BQM: attention of the last block's queries to the categorical tokens, the mean over heads; sums to 1.
        event_BQFS: to the sequence tokens, likewise, the newest event in the last slot; 0 where there is no event. Sums
            to 1 over all sequences together, and to 0 for an example without events.
        lengths_FB: number of events of each sequence.
        gates_BD: by block, counted from 0, and kind of token: the sigmoid of every proxy gated unit. What tokens are
            multiplied by is this, or 1 more: see `InfnetConfig.residual`.
    """

    field_BQM: Tensor
    event_BQFS: Tensor
    lengths_FB: Tensor
    gates_BD: Mapping[tuple[int, Kind], Tensor]


@dataclass(slots=True)
class _Draft:
    """What hooks have found of the forward pass that is under way."""

    tokens: Tokens
    attention: dict[Kind, Tensor] = field(default_factory=dict)
    gates_BD: dict[tuple[int, Kind], Tensor] = field(default_factory=dict)


@contextmanager
def recording(tower: Infnet, take: Callable[[Recorded], None]) -> Iterator[None]:
    """Calls `take` at the end of every forward pass inside; meant for evaluation, and for towers that are not compiled.

    Args:
        tower: whose last block is recorded, and whose gates.
        take: is given what was found.

    Raises:
        UserError: the last block has no task tokens that read others.
    """
    blocks = [cast(Block, block) for block in tower.blocks]
    readings = blocks[-1].readings
    if readings is None or any("task" not in readings.readers(kind) for kind in ("categorical", "sequence")):
        raise UserError(
            f'model.ablation is "{tower.config.ablation}": no task token attends to anything in the last block'
        )
    draft: list[_Draft] = []

    def begin(_: nn.Module, args: tuple[Tokens]) -> None:
        draft[:] = [_Draft(args[0])]

    def end(*_: object) -> None:
        found = draft.pop()
        fields, events = found.attention["categorical"], found.attention["sequence"]
        take(Recorded(fields, events, found.tokens.lengths_FB, found.gates_BD))

    def note_reading(last: nn.Module, args: tuple[Tensor, Mapping[str, Any], Any], _: object) -> None:
        query_BPD, sets, _stacked = args
        for kind in ("categorical", "sequence"):
            attention = _attention(cast(Readings, last), query_BPD, kind, sets[kind], draft[0].tokens)
            draft[0].attention[kind] = attention

    def note_gates(number: int) -> Callable[..., None]:
        def note(gates: nn.Module, _args: object, output_GBD: Tensor) -> None:
            for kind, output_BD in zip(cast(Gates, gates), output_GBD, strict=True):
                draft[0].gates_BD[number, cast(Kind, kind)] = torch.sigmoid(widened(output_BD.detach()))

        return note

    handles = [tower.register_forward_pre_hook(begin), tower.register_forward_hook(end)]
    try:
        handles.append(readings.register_forward_hook(note_reading))
        for number, block in enumerate(blocks):
            handles.append(block.gates.register_forward_hook(note_gates(number)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _attention(
    readings: Readings,
    query_BPD: Tensor,
    kind: Kind,
    token_set: DenseTokens | JaggedTokens | FusedTokens,
    tokens: Tokens,
) -> Tensor:
    """Probabilities of what the recorded queries read of one kind of tokens, [B, Q, M] or [B, Q, F, S]."""
    with torch.autocast(tokens.lengths_FB.device.type, enabled=False):
        # Weights are of their own precision here, and queries are made so, whatever autocast made of them.
        (stacked,) = stack_alike(readings)
        parts_BRD = readings.absorb(query_BPD.to(stacked[0].dtype), *stacked[:2])
        found = {
            name: part_BRD
            for run, absorbed_BRD in parts_BRD
            if run.kind == kind
            for name, part_BRD in zip(run.names, absorbed_BRD.split(run.sizes(readings.num_heads), dim=1), strict=True)
        }
        absorbed_BRD = torch.cat([found[name] for name in RECORDED if name in found], dim=1)
        query_BRD = times_gate(absorbed_BRD, token_set.gate_BD)
        if isinstance(token_set, DenseTokens):
            score_BRM = query_BRD @ token_set.token_BXD.to(query_BRD.dtype).transpose(1, 2)
            probability = score_BRM.softmax(dim=-1)
        else:
            probability = event_attention(query_BRD, replace(tokens, distinct_XD=token_set.distinct_XD))
    # R counts a query's heads one after the other.
    return probability.unflatten(1, (-1, readings.num_heads)).mean(dim=2)


def event_attention(query_BRD: Tensor, tokens: Tokens) -> Tensor:
    """The softmax of inner products with an example's sequence tokens: [B, R, F, S], newest event in the last slot.

    Every token has its own place, those that the example has several times too.

    Args:
        query_BRD: absorbed, and gated as the tokens would be.
        tokens: of the same examples.
    """
    distinct_XD, lengths_FB, row_L = tokens.distinct_XD, tokens.lengths_FB, tokens.row_L
    # A GPU is waited for, here and where the rows are moved to the host: nobody is in a hurry who looks at pictures.
    num_slots = max(1, int(lengths_FB.max()))
    if not len(distinct_XD if row_L is None else row_L):
        return query_BRD.new_zeros(*query_BRD.shape[:2], len(lengths_FB), num_slots)
    end_BF = lengths_FB.flatten().cumsum(dim=0).view_as(lengths_FB).t()
    age_S = torch.arange(num_slots, device=lengths_FB.device).flip(0)
    present_BFS = age_S < lengths_FB.t()[..., None]
    row_BFS = torch.where(present_BFS, end_BF[..., None] - 1 - age_S, 0)
    token_BFSD = distinct_XD[row_BFS if row_L is None else row_L[row_BFS]].to(query_BRD.dtype)
    score_BRFS = torch.einsum("brd,bfsd->brfs", query_BRD, token_BFSD)
    score_BRFS.masked_fill_(~present_BFS[:, None], -torch.inf)
    # An example without events has no largest score: its row is NaN until the slots without an event are emptied.
    probability_BRFS = score_BRFS.flatten(2).softmax(dim=-1).view_as(score_BRFS)
    return probability_BRFS.where(present_BFS[:, None], 0.0)
