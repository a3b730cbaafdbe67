"""What the loop must remember beside weights and optimizers.

The position in the data is `step`: a global batch is a function of the seed and the step. So are the learning rates.

Shapes: T tasks.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from infnet_rec.config.toml import read_fields
from infnet_rec.errors import UserError
from infnet_rec.metrics import TaskMetrics


@dataclass(slots=True)
class TimeSpent:
    """Time and examples so far, over all the processes that the run has had."""

    elapsed_s: float = 0.0
    train_s: float = 0.0
    train_examples: int = 0


@dataclass(slots=True)
class TrainState:
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
    spent: TimeSpent = field(default_factory=TimeSpent)

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
    def from_json(cls, data: dict[str, Any]) -> "TrainState":
        """What `to_json` wrote, in this version or an earlier one.

        Raises:
            UserError: it lacks what training cannot go on without.
        """
        valid = metrics_from_json(data.get("valid", {}))
        read: dict[str, Any] = {
            "best_auc": -math.inf if data.get("best_auc") is None else data["best_auc"],
            "best_valid": metrics_from_json(data.get("best_valid", {})),
            "judged": (math.nan if data.get("auc") is None else data["auc"], valid) if valid else None,
            "spent": read_fields(TimeSpent, data.get("spent", {}), "progress of a checkpoint, spent"),
        }
        if data.get("best_auc") is None:
            # Earlier versions kept a best step, and counted on from it, where nothing could be judged.
            read |= {"best_step": 0, "best_valid": {}, "evaluations_since_best": 0}
        if "step" not in data:
            raise UserError("progress of a checkpoint: lacks step; it is damaged, so go on from another checkpoint")
        return read_fields(cls, {**data, **read}, "progress of a checkpoint")


def metrics_from_json(data: dict[str, Any]) -> dict[str, TaskMetrics]:
    """Metrics by task, as `TaskMetrics.to_json` wrote them; what an earlier version did not measure is NaN."""
    unknown = {field.name: math.nan for field in fields(TaskMetrics)}
    return {
        task: read_fields(
            TaskMetrics,
            {name: math.nan if value is None else value for name, value in values.items()},
            f"metrics of {task}",
            **unknown,
        )
        for task, values in data.items()
    }


def _metrics_json(metrics: dict[str, TaskMetrics]) -> dict[str, Any]:
    return {task: m.to_json() for task, m in metrics.items()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
