"""HSTU: one attention over the example's fields, its history and the candidate, without a softmax.

Tokens, in this order:
    context    every categorical token that is not an attribute of the candidate that some sequence lists too
    history    one token an event: a linear layer on its attributes side by side, a layer of its own for each behaviour.
               Behaviours follow each other in the layout's order, each with its oldest event first: `Tokens` does not
               say how the events of two behaviours interleave in time
    target     a linear layer on the candidate's attributes side by side

They are as wide as the tables. With `transducer_width` they have a width of their own: event and target layers map to
it, one more linear layer takes every context token there, and all that follows is as wide.

Each of the layers is, with Nmax a fixed number and not the example's own number of tokens,

    [U, V, Q, K] = SiLU(LayerNorm(X) W + b)
    A = SiLU(Q K^T / sqrt(K's width)) / Nmax * mask        head by head
    X' = (LayerNorm(A V) * U) O + X                        O without a bias; dropout on what it multiplies

The mask: an event sees the context, itself and what stands before it in the history; context sees context and history;
the target sees everything; nobody else sees the target. There are no positions or times in it. A head for each task
reads the LayerNorm of the target's last token.

The last layer is computed for the target only, because nothing reads the others. Without a softmax a token that is not
there is one whose value is 0, so padding needs no mask of its own.

Reference: Zhai et al., Actions Speak Louder than Words, ICML 2024; the mask of contextual features and of one target is
that of the authors' ranking model, and so is a width that is not the tables' (its hstu_transducer_embedding_dim, beside
its hstu_embedding_table_dim). Our adaptation: which tokens there are, the heads, and how tokens get their width. There
every context token has a linear layer of its own, and events and target have an MLP.

Shapes: B examples, M categorical tokens, C context tokens, E event slots of an example, N = C + E + 1 tokens, Q tokens
that are updated, H heads, K width of a head, L sequence tokens of the whole batch, T tasks, D width: the tables', and
from the first layer on that of the layers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from infnet_rec.config.baselines import HstuConfig
from infnet_rec.errors import UserError
from infnet_rec.models.baselines.histories import behaviours_of, histories
from infnet_rec.models.layers import Linear, TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens

# Scores that are formed at once; the backward pass forms them again. On a CPU they should stay in its cache.
SCORES_AT_ONCE = {"cpu": 2**20, "cuda": 2**28}


class HstuLayer(nn.Module):
    """One layer."""

    def __init__(self, width: int, config: HstuConfig) -> None:
        super().__init__()
        self.num_heads, self.max_tokens = config.num_heads, config.max_tokens
        self.norm_in = nn.LayerNorm(width)
        self.gate_and_query = Linear(width, 2 * width)
        self.key_and_value = Linear(width, 2 * width)
        self.norm_out = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.out = Linear(width, width, bias=False)

    def forward(self, token_BND: Tensor, present_BN: Tensor, sees_QN: Tensor) -> Tensor:
        """The last Q tokens, updated: [B, Q, D].

        Args:
            token_BND: all tokens.
            present_BN: 1 where there is a token.
            sees_QN: 1 where one of the last Q tokens sees another.
        """
        num_updated = len(sees_QN)
        normed_BND = self.norm_in(token_BND)
        gate_BQD, query_BQD = functional.silu(self.gate_and_query(normed_BND[:, -num_updated:])).chunk(2, dim=2)
        key_BND, value_BND = functional.silu(self.key_and_value(normed_BND)).chunk(2, dim=2)
        value_BND = value_BND * present_BN[..., None]
        heads = [self._heads(x) for x in (query_BQD, key_BND, value_BND)]
        at_once = SCORES_AT_ONCE.get(token_BND.device.type, SCORES_AT_ONCE["cuda"])
        num_examples = max(1, at_once // (self.num_heads * sees_QN.numel()))
        read_BHQK = torch.cat(
            [
                checkpoint(self._read, *parts, sees_QN, use_reentrant=False, preserve_rng_state=False)
                for parts in zip(*(x.split(num_examples) for x in heads), strict=True)
            ]
        )
        read_BQD = read_BHQK.transpose(1, 2).flatten(2)
        return self.out(self.dropout(self.norm_out(read_BQD) * gate_BQD)) + token_BND[:, -num_updated:]

    def _heads(self, token_BND: Tensor) -> Tensor:
        return token_BND.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _read(self, query_BHQK: Tensor, key_BHNK: Tensor, value_BHNK: Tensor, sees_QN: Tensor) -> Tensor:
        """A V, [B, H, Q, K]."""
        score_BHQN = (query_BHQK / math.sqrt(query_BHQK.shape[3])) @ key_BHNK.transpose(2, 3)
        return functional.silu(score_BHQN).mul_(sees_QN) @ (value_BHNK / self.max_tokens)


@register(HstuConfig)
class Hstu(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, config: HstuConfig) -> None:
        """Builds the model.

        Raises:
            UserError: the heads do not divide the width, or no sequence has an attribute of the candidate.
        """
        super().__init__()
        targets = sorted({m for m in layout.target_of_sequence if m is not None})
        faults = []
        width = config.width
        own_width = config.transducer_width or width
        if own_width % config.num_heads:
            name = "transducer_width" if config.transducer_width else "width"
            divisors = [heads for heads in range(1, own_width + 1) if own_width % heads == 0]
            faults.append(f"num_heads is {config.num_heads}; it must divide {name} {own_width}: take one of {divisors}")
        if not targets:
            faults.append("no sequence has an attribute that the candidate has too, so there is no target token")
        if faults:
            raise UserError("\n".join(f"hstu: {fault}" for fault in faults))
        self.num_tasks = layout.num_tasks
        self.targets = tuple(targets)
        self.context = tuple(m for m in range(len(layout.feature_names)) if m not in targets)
        self.behaviours = behaviours_of(layout)
        self.target = Linear(len(targets) * width, own_width)
        self.event = nn.ModuleList(Linear(len(b.sequences) * width, own_width) for b in self.behaviours)
        self.layers = nn.ModuleList(HstuLayer(own_width, config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(own_width)
        self.heads = TaskHeads(layout.num_tasks, own_width, config.head_hidden, config.dropout)
        # Without a context there is nothing that it could learn from.
        self.context_layer = Linear(width, own_width) if self.context and own_width != width else None

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        categorical_BMD = tokens.categorical_BMD
        context_B1D = [categorical_BMD[:, m : m + 1] for m in self.context]
        if self.context_layer is not None:
            context_B1D = [self.context_layer(torch.cat(context_B1D, dim=1))]
        target_BX = torch.cat([categorical_BMD[:, m] for m in self.targets], dim=1)
        event_BED, present_BE = self._events(tokens)
        token_BND = torch.cat([*context_B1D, event_BED, self.target(target_BX)[:, None]], dim=1)
        present_BN = functional.pad(present_BE, (len(self.context), 1), value=1.0)
        sees_NN = what_sees_what(len(self.context), event_BED.shape[1], token_BND)
        *inner, last = self.layers
        for layer in inner:
            token_BND = layer(token_BND, present_BN, sees_NN)
        token_BD = self.norm(last(token_BND, present_BN, sees_NN[-1:]))
        return self.heads(token_BD.expand(-1, self.num_tasks, -1))

    def _events(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Event tokens, each behaviour padded to its longest history in the batch; and 1 where there is one."""
        found = histories(tokens, self.behaviours)
        firsts = [behaviour.sequences[0] for behaviour in self.behaviours]
        # On a GPU this waits for the lengths: they say how much has to be padded.
        longest = tokens.lengths_FB.amax(dim=1).tolist()
        num_slots = sum(longest[f] for f in firsts)
        places_N, tokens_ND, start = [], [], 0
        for behaviour, first, history, layer in zip(self.behaviours, firsts, found, self.event, strict=True):
            tokens_ND.append(layer(history.events_NX(behaviour.sequences)))
            before_B = history.lengths_B.cumsum(dim=0) - history.lengths_B
            row_N = torch.arange(len(history.example_N), device=history.example_N.device)
            places_N.append(history.example_N * num_slots + start + row_N - before_B[history.example_N])
            start += longest[first]
        token_ND, place_N = torch.cat(tokens_ND), torch.cat(places_N)
        num_examples, width = len(tokens.categorical_BMD), token_ND.shape[1]
        event_XD = token_ND.new_zeros(num_examples * num_slots, width).index_copy(0, place_N, token_ND)
        present_X = token_ND.new_zeros(num_examples * num_slots).index_fill(0, place_N, 1.0)
        return event_XD.view(num_examples, num_slots, width), present_X.view(num_examples, num_slots)


def what_sees_what(num_context: int, num_events: int, like: Tensor) -> Tensor:
    """1 where the token of a row sees that of a column; context, history, target."""
    num_tokens = num_context + num_events + 1
    sees_NN = like.new_ones(num_tokens, num_tokens).tril()
    sees_NN[:num_context, : num_tokens - 1] = 1
    return sees_NN
