"""Experiments without training: what stands in the place of training processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiment_files import written
from infnet_rec.data.store import Store
from infnet_rec.experiments import runner as command
from infnet_rec.experiments import search
from infnet_rec.experiments.process import Job, Judge, RunEnded
from infnet_rec.experiments.runner import ExperimentArgs
from infnet_rec.files import write_json


@dataclass
class FakeTrainer:
    """In the place of training processes: a higher learning rate gives a higher AUC; remembers what it was asked."""

    store: str
    jobs: list[Job] = field(default_factory=list)
    ends: Callable[[Job], RunEnded | None] = lambda _: None

    def __call__(self, job: Job, wants_stop: object, is_hopeless: Judge | None = None) -> RunEnded:
        self.jobs.append(job)
        if (ended := self.ends(job)) is not None:
            return ended
        job.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(job.run_dir / "environment.json", {"store": Store(Path(self.store)).fingerprint, "versions": {}})
        rates = [float(o.partition("=")[2]) for o in job.overrides if o.startswith("train.dense.lr=")]
        auc = 0.5 + (rates[-1] if rates else 0.1)
        task = {"auc": auc, "gauc": auc, "gauc_unweighted": auc}
        if is_hopeless is not None and is_hopeless(10, {"click": task}):
            return RunEnded("pruned")
        metrics = {"valid": {"click": task}} | ({} if "train.test=skip" in job.overrides else {"test": {"click": task}})
        counts = dict.fromkeys(("steps_done", "best_step", "num_sparse_parameters", "num_dense_parameters"), 1)
        rest = {"num_ranks": 1, "examples_per_s": 1.0, "wall_s": 1.0, "scoring": None, "metrics": metrics}
        return RunEnded("done", {**counts, **rest})

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> "FakeTrainer":
        """Itself, from now on in the place of processes."""
        monkeypatch.setattr(command, "train_in_a_process", self)
        monkeypatch.setattr(search, "train_in_a_process", self)
        return self


def run(folder: Path, text: str, trainer: FakeTrainer, *overrides: str, **asked: Any) -> dict[str, Any]:
    path = written(folder, text)
    return command.run_experiment(
        path, [f"data.store={trainer.store}", *overrides], folder / "out", ExperimentArgs(**asked)
    )
