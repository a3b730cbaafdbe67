"""The learning rate as a function of the step."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """Up in a line to `lr` for `warmup_steps`, then level, or a cosine down to `final_fraction` at `num_steps`."""

    lr: float
    kind: Literal["constant", "cosine"]
    warmup_steps: int
    num_steps: int
    final_fraction: float = 0.0

    def at(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.lr
        share = min(1.0, (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps))
        return self.lr * (self.final_fraction + (1.0 - self.final_fraction) * (1.0 + math.cos(math.pi * share)) / 2)
