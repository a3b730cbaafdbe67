"""DIN: each event of a history is weighed by a small network that sees the candidate next to it.

For each behaviour, q is the candidate's attributes side by side, k_t the same attributes of event t:

    a_t = MLP([q, k_t, q - k_t, q * k_t])      hidden layers end in Dice, the output is one number; no softmax
    out = sum_t a_t k_t                        cut back into one field a sequence; 0 without events

A sequence whose attribute the candidate lacks gives its mean event instead. A body MLP reads the categorical tokens and
then one field a sequence; a head reads the body. With several tasks each has a head of its own on the same vector.

The weights of a_t are those of its equation, but W [q, k, q - k, q * k] is computed as (W1 + W3) q, once an example,
plus (W2 - W3) k + W4 (q * k): half the work and no four-fold copy of the events. Only events that exist are looked at,
so Dice takes its statistics from them alone.

Reference: Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018.

Shapes: B examples, M categorical tokens, F sequences, N events of one behaviour in the whole batch, X = attributes * D
values of an event, R rows, H hidden units, T tasks, D width.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from infnet_rec.config.baselines import DinConfig
from infnet_rec.models.baselines.fields import BatchNorm, DeepMlp, for_every_task
from infnet_rec.models.baselines.histories import History, behaviours_of, histories
from infnet_rec.models.layers import Linear, TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


class Dice(nn.Module):
    """p x + (1 - p) alpha x, with p = sigmoid of the normalised x: a PReLU whose corner follows the data."""

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.norm = BatchNorm(num_units, eps=1e-9, momentum=0.01, affine=False)
        self.alpha_H = nn.Parameter(torch.empty(num_units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts as a smooth ReLU; the norm resets itself."""
        nn.init.zeros_(self.alpha_H)

    def forward(self, input_RH: Tensor) -> Tensor:
        """[R, H] -> [R, H]."""
        p_RH = torch.sigmoid(self.norm(input_RH))
        return input_RH * (self.alpha_H + (1 - self.alpha_H) * p_RH)


class TargetAttention(nn.Module):
    """Events of one behaviour added up, each weighed by what a network thinks of it next to the candidate."""

    def __init__(self, num_values: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise((4 * num_values, *hidden, 1)))
        self.dices = nn.ModuleList(Dice(units) for units in hidden)

    def forward(self, query_BX: Tensor, history: History, event_NX: Tensor) -> Tensor:
        """[B, X]; 0 for an example without events."""
        first, *others = cast(Sequence[Linear], self.layers)
        query_HX, key_HX, difference_HX, product_HX = first.weight.chunk(4, dim=1)
        hidden_BH = functional.linear(query_BX, query_HX + difference_HX, first.bias)
        query_NX, hidden_NH = query_BX.index_select(0, history.example_N), hidden_BH.index_select(0, history.example_N)
        hidden_NH = hidden_NH + functional.linear(event_NX, key_HX - difference_HX)
        hidden_NH = hidden_NH + functional.linear(query_NX * event_NX, product_HX)
        for dice, layer in zip(self.dices, others, strict=True):
            hidden_NH = layer(dice(hidden_NH))
        return history.sum_BX(hidden_NH * event_NX)


@register(DinConfig)
class Din(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, config: DinConfig) -> None:
        super().__init__()
        self.num_tasks = layout.num_tasks
        self.behaviours = behaviours_of(layout)
        # A behaviour that is only pooled has no weights.
        self.attention = nn.ModuleDict(
            {
                str(b): TargetAttention(len(behaviour.attended) * config.width, config.attention_hidden)
                for b, behaviour in enumerate(self.behaviours)
                if behaviour.attended
            }
        )
        num_inputs = layout.num_fields * config.width
        self.deep = DeepMlp(num_inputs, config.deep_hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.heads = TaskHeads(layout.num_tasks, self.deep.num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        width = tokens.categorical_BMD.shape[2]
        field_BD: dict[int, Tensor] = {}
        for b, (behaviour, history) in enumerate(zip(self.behaviours, histories(tokens, self.behaviours), strict=True)):
            if behaviour.attended:
                query_BX = torch.cat([tokens.categorical_BMD[:, m] for m in behaviour.targets], dim=1)
                read_BX = self.attention[str(b)](query_BX, history, history.events_NX(behaviour.attended))
                field_BD |= zip(behaviour.attended, read_BX.split(width, dim=1), strict=True)
            field_BD |= {f: history.mean_BX(history.rows_ND[f]) for f in behaviour.pooled}
        fields_BX = [tokens.categorical_BMD.flatten(1), *(field_BD[f] for f in sorted(field_BD))]
        return self.heads(for_every_task(self.deep(torch.cat(fields_BX, dim=1)), self.num_tasks))
