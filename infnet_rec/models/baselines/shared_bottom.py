"""Shared-Bottom: one network under all tasks, a tower for each on top.

Reference: Caruana, Multitask Learning, Machine Learning 28, 1997. As FuxiCTR has it (`ShareBottom`).

With x the fields side by side (sequences averaged), z = MLP(x), ReLU after its last layer too; logit of task t =
tower_t(z), whose last layer is linear.

Shapes: B examples, N fields, D width, X = N * D, H outputs of the bottom, T tasks.
"""

from torch import Tensor, nn

from infnet_rec.config.baselines import SharedBottomConfig
from infnet_rec.models.baselines.fields import DeepMlp, fields_BND, for_every_task
from infnet_rec.models.layers import TaskHeads
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.registry import register
from infnet_rec.models.tokens import TokenLayout, Tokens


@register(SharedBottomConfig)
class SharedBottom(nn.Module):
    """Tokens in, one logit a task out."""

    def __init__(self, layout: TokenLayout, config: SharedBottomConfig) -> None:
        super().__init__()
        num_inputs = layout.num_fields * config.width
        self.num_tasks = layout.num_tasks
        self.bottom = DeepMlp(num_inputs, config.bottom_hidden, dropout=config.dropout)
        self.heads = TaskHeads(layout.num_tasks, self.bottom.num_outputs, config.head_hidden, config.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        bottom_BH = self.bottom(fields_BND(tokens).flatten(1))
        return self.heads(for_every_task(bottom_BH, self.num_tasks))
