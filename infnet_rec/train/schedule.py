"""The learning rate as a function of the step."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """Up in a line for `warmup_steps`, then level, or down a cosine to `final_fraction` at `num_steps`."""

    kind: Literal["constant", "cosine"]
    warmup_steps: int
    num_steps: int
    final_fraction: float = 0.0

    def factor(self, step: int) -> float:
        """What to multiply the full learning rate by at a step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        share = min(1.0, (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps))
        return self.final_fraction + (1.0 - self.final_fraction) * (1.0 + math.cos(math.pi * share)) / 2
