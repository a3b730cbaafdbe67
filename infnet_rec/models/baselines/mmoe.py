"""MMoE and OMoE: experts that all tasks share, mixed by a gate of each task's own, or by one gate for all.

Reference: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts, KDD 2018.
As FuxiCTR has them (`MMoE`) and the fork of STEM's authors (`OMoE`): gates are MLPs; the paper's are linear, which
`gate_hidden = []` gives.

With x the fields side by side (sequences averaged), f_e = MLP_e(x), ReLU after the last layer too, and the gate
g_t = softmax(MLP_t(x)): h_t = sum_e g_te f_e, logit of task t = tower_t(h_t). OMoE has one g for every t.

Shapes: B examples, N fields, D width, X = N * D, E experts, H outputs of an expert, T tasks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infnet_rec.errors import UserError
from infnet_rec.models.baselines.experts import Experts, Gate
from infnet_rec.models.baselines.fields import fields_BND
from infnet_rec.models.layers import TaskHeads
from infnet_rec.models.options import option_faults
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.tokens import TokenLayout, Tokens


@dataclass(frozen=True, slots=True)
class MmoeOptions:
    """Sizes.

    Attributes:
        num_experts: E.
        expert_hidden: layers of each expert.
        gate_hidden: hidden layers of each gate.
        head_hidden: hidden layers of each task's tower.
        dropout: on all of these.
    """

    num_experts: int = 8
    expert_hidden: tuple[int, ...] = (512, 256, 128)
    gate_hidden: tuple[int, ...] = (128, 64)
    head_hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if faults := option_faults(self):
            raise UserError("\n".join(f"mmoe: {fault}" for fault in faults))


class Mmoe(nn.Module):
    """Tokens in, one logit a task out."""

    def __init__(self, layout: TokenLayout, width: int, options: MmoeOptions, *, num_gates: int | None = None) -> None:
        """Builds the network; on the meta device too.

        Args:
            layout: of the tokens.
            width: of every token.
            options: everything else.
            num_gates: one a task where None; 1 gives all tasks the same mixture.
        """
        super().__init__()
        num_inputs = layout.num_fields * width
        self.num_tasks = layout.num_tasks
        self.experts = Experts(options.num_experts, num_inputs, options.expert_hidden, options.dropout)
        self.gates = nn.ModuleList(
            Gate(num_inputs, options.gate_hidden, options.num_experts, options.dropout)
            for _ in range(num_gates or layout.num_tasks)
        )
        num_outputs = (num_inputs, *options.expert_hidden)[-1]
        self.heads = TaskHeads(layout.num_tasks, num_outputs, options.head_hidden, options.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        input_BX = fields_BND(tokens).flatten(1)
        expert_BEH = self.experts(input_BX)
        mixed_BTH = torch.stack([gate(input_BX, expert_BEH) for gate in self.gates], dim=1)
        return self.heads(mixed_BTH.expand(-1, self.num_tasks, -1))


class Omoe(Mmoe):
    """MMoE with one gate for all tasks; towers stay apart."""

    def __init__(self, layout: TokenLayout, width: int, options: MmoeOptions) -> None:
        super().__init__(layout, width, options, num_gates=1)
