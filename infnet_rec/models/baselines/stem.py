"""STEM: embeddings of each task's own beside shared ones, and gates through which no task teaches another's experts.

Reference: Su et al., STEM: Unleashing the Power of Embeddings for Multi-task Recommendation, AAAI 2024.

A row of a table holds T + 1 embeddings one after the other: E_1 .. E_T of the tasks, then E_s of all. With x_t and x_s
the fields side by side (sequences averaged) in each of these, e_t = MLPs_t(x_t) and e = MLPs(x_s), each with ReLU after
its last layer too,

    h_t = sum of [stop(e_1) ; ... ; e_t ; ... ; stop(e_T) ; e] weighted by softmax(MLP_t(x_t + x_s))

where `stop` lets no gradient through, and the logit of task t is tower_t(h_t).

So STEM has T + 1 times the table parameters of every other model of the same width. The authors' code has a gate for a
shared stream that nothing reads after its only layer; it is left out: with 117 fields of width 16, 3 tasks and the
defaults theirs counts 13,424,559 dense parameters, of which 248,715 are that gate, and ours 13,175,844.

Shapes: B examples, N fields, D width of one embedding, X = N * D, S = T + 1 embeddings, E experts, H outputs of an
expert, T tasks.
"""

import torch
from torch import Tensor, nn

from infnet_rec.config.baselines import StemConfig
from infnet_rec.models.baselines.experts import Experts, Gate
from infnet_rec.models.baselines.fields import fields_BND
from infnet_rec.models.layers import TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


@register(StemConfig)
class Stem(nn.Module):
    """Tokens of width (T + 1) * D in, one logit a task out."""

    def __init__(self, layout: TokenLayout, config: StemConfig) -> None:
        """Builds the network; on the meta device too.

        Args:
            layout: of the tokens.
            config: its `width` is D, that of one embedding; the tokens are `table_width` wide.
        """
        super().__init__()
        self.num_tasks, self.width = layout.num_tasks, config.width
        num_inputs, tasks = layout.num_fields * config.width, range(layout.num_tasks)
        own, shared, dropout = config.num_specific_experts, config.num_shared_experts, config.dropout
        self.shared_experts = Experts(shared, num_inputs, config.expert_hidden, dropout)
        self.task_experts = nn.ModuleList(Experts(own, num_inputs, config.expert_hidden, dropout) for _ in tasks)
        num_experts = layout.num_tasks * own + shared
        self.gates = nn.ModuleList(Gate(num_inputs, config.gate_hidden, num_experts, dropout) for _ in tasks)
        num_outputs = (num_inputs, *config.expert_hidden)[-1]
        self.heads = TaskHeads(layout.num_tasks, num_outputs, config.head_hidden, dropout)

    @staticmethod
    def table_width(layout: TokenLayout, width: int) -> int:
        """How wide tables are: an embedding of each task's own, and the shared one."""
        return (layout.num_tasks + 1) * width

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        field_BNSD = fields_BND(tokens).unflatten(2, (self.num_tasks + 1, self.width))
        *task_BX, shared_BX = field_BNSD.transpose(1, 2).flatten(2).unbind(dim=1)
        shared_BEH = self.shared_experts(shared_BX)
        own_BEH = [experts(stream_BX) for experts, stream_BX in zip(self.task_experts, task_BX, strict=True)]
        stopped_BEH = [expert_BEH.detach() for expert_BEH in own_BEH]
        mixed_BH = []
        for t, gate in enumerate(self.gates):
            expert_BEH = [*stopped_BEH[:t], own_BEH[t], *stopped_BEH[t + 1 :], shared_BEH]
            mixed_BH.append(gate(task_BX[t] + shared_BX, torch.cat(expert_BEH, dim=1)))
        return self.heads(torch.stack(mixed_BH, dim=1))
