"""PLE: layers of experts of each task's own and of experts for all, each layer's mixtures the next one's inputs.

Reference: Tang et al., Progressive Layered Extraction (PLE), RecSys 2020.

With x the fields side by side (sequences averaged), task t's stream s_t and the shared stream s start as x. A layer
(CGC, customised gate control) makes, with e_t = MLPs_t(s_t), the task's own experts, and e = MLPs(s), the shared ones,
each with ReLU after its last layer too,

    s_t' = sum of [e_t ; e] weighted by softmax(MLP_t(s_t))
    s'   = sum of [e_1 ; ... ; e_T ; e] weighted by softmax(MLP(s))

and after the last layer the logit of task t is tower_t(s_t).

The shared gate mixes the experts of all tasks, as in the paper; FuxiCTR's and STEM's mix the shared ones only. Nothing
reads what the shared gate of the last layer makes, so it is left out: with 117 fields of width 16, 3 tasks and the
defaults, FuxiCTR counts 13,423,974 dense parameters, of which 248,520 are that gate, and we 13,175,454. With two layers
it counts 16,058,313: we 16,033,220, without the last shared gate (25,288) and with one of 11 outputs in the place of 8
below it (195).

Shapes: B examples, N fields, D width, X = N * D, E experts, H outputs of an expert, T tasks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import PleConfig
from infnet_rec.models.baselines.experts import Experts, Gate
from infnet_rec.models.baselines.fields import fields_BND
from infnet_rec.models.layers import TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


class CgcLayer(nn.Module):
    """One layer of experts and gates; the last one makes no shared stream."""

    def __init__(self, num_tasks: int, num_inputs: int, config: PleConfig, *, is_last: bool) -> None:
        super().__init__()
        own, shared, dropout = config.num_specific_experts, config.num_shared_experts, config.dropout
        self.shared_experts = Experts(shared, num_inputs, config.expert_hidden, dropout)
        self.task_experts = nn.ModuleList(
            Experts(own, num_inputs, config.expert_hidden, dropout) for _ in range(num_tasks)
        )
        self.task_gates = nn.ModuleList(
            Gate(num_inputs, config.gate_hidden, own + shared, dropout) for _ in range(num_tasks)
        )
        self.shared_gate = None
        if not is_last:
            self.shared_gate = Gate(num_inputs, config.gate_hidden, num_tasks * own + shared, dropout)

    def forward(self, task_BX: Sequence[Tensor], shared_BX: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The streams after this layer: T of [B, H], and the shared one of [B, H] unless it is the last.

        Args:
            task_BX: each task's stream.
            shared_BX: the stream that belongs to all.
        """
        shared_BEH = self.shared_experts(shared_BX)
        own_BEH = [experts(stream_BX) for experts, stream_BX in zip(self.task_experts, task_BX, strict=True)]
        task_BH = [
            gate(stream_BX, torch.cat([expert_BEH, shared_BEH], dim=1))
            for gate, stream_BX, expert_BEH in zip(self.task_gates, task_BX, own_BEH, strict=True)
        ]
        if self.shared_gate is None:
            return task_BH, None
        return task_BH, self.shared_gate(shared_BX, torch.cat([*own_BEH, shared_BEH], dim=1))


@register(PleConfig)
class Ple(nn.Module):
    """Tokens in, one logit a task out."""

    def __init__(self, layout: TokenLayout, config: PleConfig) -> None:
        super().__init__()
        self.num_tasks = layout.num_tasks
        num_inputs, last = layout.num_fields * config.width, config.num_layers - 1
        num_outputs = (num_inputs, *config.expert_hidden)[-1]
        self.layers = nn.ModuleList(
            CgcLayer(layout.num_tasks, num_outputs if i else num_inputs, config, is_last=i == last)
            for i in range(config.num_layers)
        )
        self.heads = TaskHeads(layout.num_tasks, num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        shared_BX = fields_BND(tokens).flatten(1)
        task_BX = [shared_BX] * self.num_tasks
        for layer in self.layers:
            task_BX, shared_BX = layer(task_BX, shared_BX)
        return self.heads(torch.stack(task_BX, dim=1))
