"""What the loop must remember beside weights and optimizers.

The position in the data is `step`: a global batch is a function of the seed and the step. So are the learning rates.

Shapes: T tasks.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from infnet_rec.train.metrics import TaskMetrics


@dataclass(slots=True)
class Spent:
    """Time and examples so far, over all the processes that the run has had."""

    elapsed_s: float = 0.0
    train_s: float = 0.0
    train_examples: int = 0


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: updates done.
        best_step: where the mean AUC on valid was best.
        best_auc: that AUC; -inf while no step could be judged.
        best_valid: all metrics there; empty while no step could be judged.
        evaluations_since_best: what early stopping counts: evaluations that could be judged and were no better.
        judged: mean AUC (NaN if it cannot be judged) and metrics of this very step, if it was evaluated.
        losses: since the last progress line, [T] each, means over all ranks; a line is a mean over them.
        skipped: batches left out because they were not finite.
        owes_evaluation: whether this step is still to be evaluated.
        spent: time so far.
    """

    step: int = 0
    best_step: int = 0
    best_auc: float = -math.inf
    best_valid: dict[str, TaskMetrics] = field(default_factory=dict)
    evaluations_since_best: int = 0
    judged: tuple[float, dict[str, TaskMetrics]] | None = None
    losses: list[list[float]] = field(default_factory=list)
    skipped: int = 0
    owes_evaluation: bool = False
    spent: Spent = field(default_factory=Spent)

    def to_json(self) -> dict[str, Any]:
        """Everything, finite numbers as they are to the last bit."""
        auc, valid = self.judged or (None, {})
        return {
            "step": self.step,
            "best_step": self.best_step,
            "best_auc": _finite(self.best_auc),
            "best_valid": _metrics_json(self.best_valid),
            "evaluations_since_best": self.evaluations_since_best,
            "auc": _finite(auc),
            "valid": _metrics_json(valid),
            "losses": [list(loss_T) for loss_T in self.losses],
            "skipped": self.skipped,
            "owes_evaluation": self.owes_evaluation,
            "spent": asdict(self.spent),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Progress":
        """What `to_json` wrote."""
        # Earlier versions kept a best step, and counted on from it, where nothing could be judged.
        has_best, valid = data["best_auc"] is not None, metrics_from_json(data["valid"])
        return cls(
            step=data["step"],
            best_step=data["best_step"] if has_best else 0,
            best_auc=data["best_auc"] if has_best else -math.inf,
            best_valid=metrics_from_json(data["best_valid"]) if has_best else {},
            evaluations_since_best=data["evaluations_since_best"] if has_best else 0,
            judged=(math.nan if data["auc"] is None else data["auc"], valid) if valid else None,
            losses=data["losses"],
            skipped=data["skipped"],
            owes_evaluation=data["owes_evaluation"],
            spent=Spent(**data["spent"]),
        )


def metrics_from_json(data: dict[str, Any]) -> dict[str, TaskMetrics]:
    """Metrics by task, as `TaskMetrics.to_json` wrote them."""
    metrics = {}
    for task, values in data.items():
        known: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        metrics[task] = TaskMetrics(**known)
    return metrics


def _metrics_json(metrics: dict[str, TaskMetrics]) -> dict[str, Any]:
    return {task: m.to_json() for task, m in metrics.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
