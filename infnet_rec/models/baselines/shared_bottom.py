"""Shared-Bottom: one network under all tasks, a tower for each on top.

Reference: Caruana, Multitask Learning, Machine Learning 28, 1997. As FuxiCTR has it (`ShareBottom`).

With x the fields side by side (sequences averaged), z = MLP(x), ReLU after its last layer too; logit of task t =
tower_t(z), whose last layer is linear.

Shapes: B examples, N fields, D width, X = N * D, H outputs of the bottom, T tasks.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from infnet_rec.errors import UserError
from infnet_rec.models.baselines.fields import DeepMlp, fields_BND, for_every_task
from infnet_rec.models.layers import TaskHeads
from infnet_rec.models.options import option_faults
from infnet_rec.models.precision import in_its_precision
from infnet_rec.models.tokens import TokenLayout, Tokens


@dataclass(frozen=True, slots=True)
class SharedBottomOptions:
    """Sizes.

    Attributes:
        bottom_hidden: layers of the bottom.
        head_hidden: hidden layers of each task's tower.
        dropout: on all of these.
    """

    bottom_hidden: tuple[int, ...] = (512, 256, 128)
    head_hidden: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if faults := option_faults(self):
            raise UserError("\n".join(f"shared_bottom: {fault}" for fault in faults))


class SharedBottom(nn.Module):
    """Tokens in, one logit a task out."""

    def __init__(self, layout: TokenLayout, width: int, options: SharedBottomOptions) -> None:
        super().__init__()
        num_inputs = layout.num_fields * width
        self.num_tasks = layout.num_tasks
        self.bottom = DeepMlp(num_inputs, options.bottom_hidden, dropout=options.dropout)
        self.heads = TaskHeads(layout.num_tasks, self.bottom.num_outputs, options.head_hidden, options.dropout)

    @in_its_precision
    def forward(self, tokens: Tokens) -> Tensor:
        """logits_BT."""
        bottom_BH = self.bottom(fields_BND(tokens).flatten(1))
        return self.heads(for_every_task(bottom_BH, self.num_tasks))
