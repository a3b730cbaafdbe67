"""DIEN: interests that evolve along each history, towards the candidate.

For each behaviour, with q the candidate's attributes side by side and k_t the same attributes of event t:

    h_t = GRU(k_t, h_{t-1})
    a_t = softmax over the example's events of (h_t W) . q             W starts as the identity
    s_t = s_{t-1} + a_t u_t * (n_t - s_{t-1})                          AUGRU: u_t and n_t are update gate and candidate
                                                                       state of a GRU that reads h_t

The last s, cut into one field a sequence, stands for the sequences; it is 0 without events. A sequence whose attribute
the candidate lacks gives its mean event instead. A body MLP reads the categorical tokens and then one field a sequence;
a head reads the body. With several tasks each has a head of its own on the same vector.

Auxiliary loss, while training: h_t must tell the next event from a random one,

    mean over t of  -log sigmoid(MLP([h_t, k_{t+1}])) - log(1 - sigmoid(MLP([h_t, k'_{t+1}])))

with k' drawn from the same behaviour's events of all other examples of the batch; the mean is over all events that have
a next one, then over behaviours, and the loss has a weight. The paper leaves the network open; this one has ReLUs.

Reference: Zhou et al., Deep Interest Evolution Network, AAAI 2019; weight 1 and sizes as in the authors' code.

Shapes: B examples, M categorical tokens, F sequences, N events of one behaviour in the whole batch, P pairs of
neighbouring events, X = attributes * D values of an event, A = N + 1, C = B + 1, T tasks, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from infnet_rec.config.baselines import DienConfig
from infnet_rec.models.auxiliary import carry_loss
from infnet_rec.models.baselines.fields import DeepMlp, for_every_task
from infnet_rec.models.baselines.histories import behaviours_of, histories
from infnet_rec.models.baselines.packed import Packing, walk
from infnet_rec.models.layers import Mlp, TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


class Evolution(nn.Module):
    """One behaviour's histories to what they have become."""

    def __init__(self, num_values: int, config: DienConfig) -> None:
        super().__init__()
        self.gru = nn.GRUCell(num_values, num_values)
        self.attention_XX = nn.Parameter(torch.empty(num_values, num_values))
        self.augru = nn.GRUCell(num_values, num_values)
        self.tells_next: Mlp | None = None
        if config.auxiliary_weight:
            self.tells_next = Mlp(2 * num_values, config.auxiliary_hidden, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Attention starts as an inner product; the rest draws itself."""
        nn.init.eye_(self.attention_XX)

    def forward(self, query_BX: Tensor, event_NX: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last state of each example [B, X], and while training the auxiliary loss."""
        # One more example with one event: a batch without events then needs no other path, and every weight learns.
        query_CX, padded_AX = functional.pad(query_BX, (0, 0, 0, 1)), functional.pad(event_NX, (0, 0, 0, 1))
        packing = Packing.of(functional.pad(lengths_B, (0, 1), value=1), len(padded_AX))
        packed_AX = packing.pack(padded_AX)
        state_AX = torch.cat(walk(self.gru, packed_AX, packing.sizes))
        # (h W) . q = h . (W q), and there are fewer examples than events.
        reader_AX = (query_CX @ self.attention_XX.t()).index_select(0, packing.example_N)
        attention_A = packing.softmax((state_AX * reader_AX).sum(dim=1))
        last_BX = packing.last_BX(walk(self.augru, state_AX, packing.sizes, attention_A))[:-1]
        if self.tells_next is None or not self.training:
            return last_BX, None
        before_P, next_P = packing.pairs()
        other_PX, weight_P = _others(event_NX, lengths_B, packing.example_N[next_P])
        state_PX = state_AX.index_select(0, before_P)
        next_logit_P1 = self.tells_next(torch.cat([state_PX, packed_AX[packing.sizes[0] :]], dim=1))
        other_logit_P1 = self.tells_next(torch.cat([state_PX, other_PX], dim=1))
        loss_P = (functional.softplus(-next_logit_P1) + functional.softplus(other_logit_P1)).squeeze(1)
        return last_BX, (loss_P * weight_P).sum() / weight_P.sum().clamp(min=1)


def _others(event_NX: Tensor, lengths_B: Tensor, example_P: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair an event drawn from those of all other examples, and weight 0 where no other example has any."""
    start_P = (lengths_B.cumsum(dim=0) - lengths_B)[example_P]
    own_P = lengths_B[example_P]
    others_P = len(event_NX) - own_P
    drawn_P = (torch.rand(len(own_P), device=own_P.device) * others_P).long()
    # Rounding may give the number itself. Rows of the example's own events are stepped over.
    drawn_P = drawn_P.minimum(others_P - 1).clamp(min=0)
    drawn_P = drawn_P + own_P * (drawn_P >= start_P)
    has_others_P = others_P > 0
    return event_NX.index_select(0, drawn_P * has_others_P), has_others_P.to(event_NX.dtype)


@register(DienConfig)
class Dien(nn.Module):
    """See the module."""

    def __init__(self, layout: TokenLayout, config: DienConfig) -> None:
        super().__init__()
        self.num_tasks, self.auxiliary_weight = layout.num_tasks, config.auxiliary_weight
        self.behaviours = behaviours_of(layout)
        # A behaviour that is only pooled has no weights.
        self.evolutions = nn.ModuleDict(
            {
                str(b): Evolution(len(behaviour.attended) * config.width, config)
                for b, behaviour in enumerate(self.behaviours)
                if behaviour.attended
            }
        )
        num_inputs = layout.num_fields * config.width
        self.deep = DeepMlp(num_inputs, config.deep_hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.heads = TaskHeads(layout.num_tasks, self.deep.num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT; while training they carry the auxiliary loss, see `carry_loss`."""
        width = tokens.categorical_BMD.shape[2]
        field_BD: dict[int, Tensor] = {}
        losses: list[Tensor] = []
        for b, (behaviour, history) in enumerate(zip(self.behaviours, histories(tokens, self.behaviours), strict=True)):
            if behaviour.attended:
                query_BX = torch.cat([tokens.categorical_BMD[:, m] for m in behaviour.targets], dim=1)
                event_NX = history.events_NX(behaviour.attended)
                last_BX, loss = self.evolutions[str(b)](query_BX, event_NX, history.lengths_B)
                field_BD |= zip(behaviour.attended, last_BX.split(width, dim=1), strict=True)
                losses += [] if loss is None else [loss]
            field_BD |= {f: history.mean_BX(history.rows_ND[f]) for f in behaviour.pooled}
        fields_BX = [tokens.categorical_BMD.flatten(1), *(field_BD[f] for f in sorted(field_BD))]
        logits_BT = self.heads(for_every_task(self.deep(torch.cat(fields_BX, dim=1)), self.num_tasks))
        return carry_loss(logits_BT, self.auxiliary_weight * torch.stack(losses).mean()) if losses else logits_BT
