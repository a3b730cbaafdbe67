"""INFNet as the paper writes it, with the parameters of the package's own: what every saving is measured against.

Every token is projected to a key and a value in every flow, every token is multiplied by its gate, every event is
projected before it is pooled, and sequences are padded to the longest. What nothing reads after the last block is left
out here too, since it would need parameters that the package does not have.

Shapes: B examples, M categorical tokens, F sequences, E events of the longest sequence, L sequence tokens of the whole
batch, P queries, X tokens an example, H heads, K = D / H, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor

from infnet_rec.models.infnet.attention import Flow, Readings
from infnet_rec.models.infnet.model import Block, Infnet
from infnet_rec.models.infnet.proxies import SequenceProxies
from infnet_rec.models.layers import read_tokens
from infnet_rec.models.tokens import Tokens


@dataclass(frozen=True, slots=True)
class PaddedTokens:
    """Tokens that are written anew by every gate.

    Attributes:
        token_BXD: zeros where there is none.
        present_BX1: 1 where there is a token, 0 elsewhere; None where all are there.
    """

    token_BXD: Tensor
    present_BX1: Tensor | None = None

    def gated(self, factor_BD: Tensor) -> Self:
        """Every token multiplied by its example's factor: X * G."""
        return replace(self, token_BXD=self.token_BXD * factor_BD[:, None])

    def mean(self) -> Tensor:
        """[B, 1, D]; 0 for an example without tokens."""
        if self.present_BX1 is None:
            return self.token_BXD.mean(dim=1, keepdim=True)
        return self.token_BXD.sum(dim=1, keepdim=True) / self.present_BX1.sum(dim=1, keepdim=True).clamp(min=1)


class LiteralInfnet(Infnet):
    """The same parameters and the same logits as `Infnet`, by the paper's equations, token by token."""

    def forward(self, tokens: Tokens) -> Tensor:
        """Returns logits_BT, one for each example and task."""
        # Where towers have a precision of their own, the literal one keeps to it.
        if getattr(self, "precision", "fp32") == "bf16":
            with torch.autocast(tokens.lengths_FB.device.type, torch.bfloat16):
                return self._logits(tokens).float()
        return self._logits(tokens)

    def _logits(self, tokens: Tokens) -> Tensor:
        event_BXD, present_BX1 = pad_sequences(tokens.sequence_LD, tokens.lengths_FB)
        num_sequences = tokens.lengths_FB.shape[0]
        query_BPD = {
            name: project_and_pool(cast(SequenceProxies, start), event_BXD, present_BX1, num_sequences)
            if name == "sequence_proxy"
            else start(tokens)
            for name, start in self.start.items()
        }
        sets = {
            "categorical": PaddedTokens(tokens.categorical_BMD),
            "sequence": PaddedTokens(event_BXD, present_BX1),
        }
        for block in self.blocks:
            query_BPD, sets = literal_block(cast(Block, block), query_BPD, sets)
        config = self.config
        if config.ablation == "no_cross_attention":
            means = sets["categorical"].mean(), sets["sequence"].mean()
            return self.heads(read_tokens(query_BPD["task"], *means, config.ablation_head))
        return self.heads(self._read_out(query_BPD, {}))


def literal_block(
    block: Block, query_BPD: Mapping[str, Tensor], sets: Mapping[str, PaddedTokens]
) -> tuple[dict[str, Tensor], dict[str, PaddedTokens]]:
    """CA for every flow on its own, then X * sigmoid(MLP(flatten X~')) for every kind."""
    keys = {**sets, "task": PaddedTokens(query_BPD["task"])} if "task" in query_BPD else sets
    terms_BPD: dict[str, list[Tensor]] = {name: [query_BPD[name]] if block.adds_query else [] for name in block.norms}
    for kind in block.readings.kinds if block.readings else ():
        for name, flow in cast(Readings, block.readings).flows(kind).items():
            terms_BPD[name].append(cross_attention(flow, query_BPD[name], keys[kind]))
    updated_BPD = dict(query_BPD)
    for name, norm in block.norms.items():
        updated_BPD[name] = norm(sum(terms_BPD[name][1:], start=terms_BPD[name][0]))

    gated = dict(sets)
    for kind, gate in block.gates.items():
        factor_BD = block.gate_offset + torch.sigmoid(gate(updated_BPD[f"{kind}_proxy"].flatten(1)))
        if kind == "task":
            updated_BPD["task"] = updated_BPD["task"] * factor_BD[:, None]
        else:
            gated[kind] = sets[kind].gated(factor_BD)
    return updated_BPD, gated


def cross_attention(flow: Flow, query_BPD: Tensor, tokens: PaddedTokens) -> Tensor:
    """softmax(Q Wq (X Wk)^T / sqrt(K)) (X Wv), head by head.

    Reference: INFNet, heterogeneous flows, cross attention.
    """
    query_BHPK = _heads(query_BPD @ flow.query_DD, flow.num_heads)
    key_BHXK = _heads(tokens.token_BXD @ flow.key_DD, flow.num_heads)
    value_BHXK = _heads(tokens.token_BXD @ flow.value_DD, flow.num_heads)
    score_BHPX = query_BHPK @ key_BHXK.transpose(-1, -2) / query_BHPK.shape[-1] ** 0.5
    if tokens.present_BX1 is None:
        weight_BHPX = score_BHPX.softmax(dim=-1)
    else:
        present_B11X = tokens.present_BX1.transpose(1, 2)[:, None]
        # Not minus infinity: an example without tokens has no softmax, and gets 0.
        weight_BHPX = score_BHPX.masked_fill(present_B11X == 0, -1e30).softmax(dim=-1) * present_B11X
    return (weight_BHPX @ value_BHXK).transpose(1, 2).flatten(2)


def project_and_pool(start: SequenceProxies, event_BXD: Tensor, present_BX1: Tensor, num_sequences: int) -> Tensor:
    """S~ [B, G, D]: one shared projection of every event, then the sum or mean over each group's events.

    Reference: INFNet, proxy tokens, phi_seq.
    """
    group_F = torch.tensor(start.group_of_sequence, device=event_BXD.device)
    member_GF = (torch.arange(max(start.group_of_sequence) + 1, device=event_BXD.device)[:, None] == group_F).float()
    projected_BXD = start.projection(event_BXD) * present_BX1
    sum_BFD = projected_BXD.unflatten(1, (num_sequences, -1)).sum(dim=2)
    proxy_BGD = member_GF @ sum_BFD
    if start.pooling == "sum":
        return proxy_BGD
    count_BG1 = member_GF @ present_BX1.unflatten(1, (num_sequences, -1)).sum(dim=2)
    return proxy_BGD / count_BG1.clamp(min=1)


def pad_sequences(token_LD: Tensor, lengths_FB: Tensor) -> tuple[Tensor, Tensor]:
    """Feature-major tokens as [B, F * E, D], zeros after the last event of each sequence, and where events are."""
    num_sequences, num_examples = lengths_FB.shape
    # Waits for a GPU, as padding to the longest does everywhere.
    longest = max(1, int(lengths_FB.max()))
    place_E = torch.arange(longest, device=token_LD.device)
    present_FBE = place_E < lengths_FB[..., None]
    slot_FBE = torch.arange(num_sequences * num_examples * longest, device=token_LD.device).view(present_FBE.shape)
    padded_XD = token_LD.new_zeros(slot_FBE.numel(), token_LD.shape[1]).index_copy(0, slot_FBE[present_FBE], token_LD)
    event_FBED = padded_XD.view(num_sequences, num_examples, longest, -1)
    event_BXD = event_FBED.transpose(0, 1).flatten(1, 2)
    present_BX1 = present_FBE.transpose(0, 1).flatten(1).to(token_LD.dtype)[..., None]
    return event_BXD, present_BX1


def _heads(x_BXD: Tensor, num_heads: int) -> Tensor:
    return x_BXD.unflatten(-1, (num_heads, -1)).transpose(1, 2)
