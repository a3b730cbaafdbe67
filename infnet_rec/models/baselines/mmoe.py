"""MMoE and OMoE: experts that all tasks share, mixed by a gate of each task's own, or by one gate for all.

Reference: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.
As FuxiCTR has them (`MMoE`) and the fork of STEM's authors (`OMoE`): gates are MLPs; the paper's are linear, which
`gate_hidden = []` gives.

With x the fields side by side (sequences averaged), f_e = MLP_e(x), ReLU after the last layer too, and the gate
g_t = softmax(MLP_t(x)): h_t = sum_e g_te f_e, logit of task t = tower_t(h_t). OMoE has one g for every t.

Shapes: B examples, N fields, D width, X = N * D, E experts, H outputs of an expert, T tasks.
"""

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import MmoeConfig
from infnet_rec.models.baselines.experts import Experts, Gate
from infnet_rec.models.baselines.fields import fields_BND
from infnet_rec.models.layers import TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


@register(MmoeConfig)
class Mmoe(nn.Module):
    """Tokens in, one logit a task out; its towers stay apart where one gate serves them all."""

    def __init__(self, layout: TokenLayout, config: MmoeConfig) -> None:
        super().__init__()
        num_inputs = layout.num_fields * config.width
        self.num_tasks = layout.num_tasks
        self.experts = Experts(config.num_experts, num_inputs, config.expert_hidden, config.dropout)
        self.gates = nn.ModuleList(
            Gate(num_inputs, config.gate_hidden, config.num_experts, config.dropout)
            for _ in range(1 if config.name == "omoe" else layout.num_tasks)
        )
        num_outputs = (num_inputs, *config.expert_hidden)[-1]
        self.heads = TaskHeads(layout.num_tasks, num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        input_BX = fields_BND(tokens).flatten(1)
        expert_BEH = self.experts(input_BX)
        mixed_BTH = torch.stack([gate(input_BX, expert_BEH) for gate in self.gates], dim=1)
        return self.heads(mixed_BTH.expand(-1, self.num_tasks, -1))
