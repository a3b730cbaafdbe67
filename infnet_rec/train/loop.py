"""The training loop: read it once from top to bottom.

It does not know how the model was sharded, nor how many ranks there are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.batch import Batch
from infnet_rec.data.loader import Loader
from infnet_rec.faults import Interrupted
from infnet_rec.train.checkpoint import load_weights, save_weights
from infnet_rec.train.evaluate import Evaluation
from infnet_rec.train.guard import Guard
from infnet_rec.train.metrics import TaskMetrics
from infnet_rec.train.report import Report
from infnet_rec.train.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Pace:
    """How long, and how often what.

    Attributes:
        num_steps: of the whole run.
        steps_per_epoch: where an epoch ends, for reports and fresh tables.
        eval_every_steps: steps between evaluations.
        log_every_steps: steps between progress lines.
        patience: evaluations without improvement before training stops; 0 never stops early.
        global_batch_size: examples a step over all ranks.
        fresh_tables: whether every epoch but the first begins with new tables.
    """

    num_steps: int
    steps_per_epoch: int
    eval_every_steps: int
    log_every_steps: int
    patience: int
    global_batch_size: int
    fresh_tables: bool

    def next_stop(self, step: int) -> int:
        """Where the stretch from `step` on ends: at an evaluation, at a change of tables or with the run."""
        stops = [self.num_steps, next_multiple(step, self.eval_every_steps)]
        return min([*stops, next_multiple(step, self.steps_per_epoch)] if self.fresh_tables else stops)

    def evaluates_at(self, step: int) -> bool:
        """Whether valid is scored after this many steps."""
        return step == self.num_steps or step % self.eval_every_steps == 0


def next_multiple(step: int, period: int) -> int:
    """The first multiple of `period` above `step`."""
    return (step // period + 1) * period


@dataclass(frozen=True, slots=True)
class LearningRates:
    """The schedules of both optimizers."""

    sparse: Schedule
    dense: Schedule

    def at(self, step: int) -> dict[str, float]:
        """Both rates at a step, counted from 0."""
        return {"sparse": self.sparse.at(step), "dense": self.dense.at(step)}


@dataclass(frozen=True, slots=True)
class Trained:
    """How training ended: the step whose weights were best on valid, and its metrics; the model holds those weights."""

    steps_done: int
    best_step: int
    best_valid: dict[str, TaskMetrics]
    examples_per_s: float


def mean_auc(metrics: Mapping[str, TaskMetrics]) -> float:
    """What early stopping watches: the mean over tasks, leaving out tasks that have one class only."""
    known = [m.auc for m in metrics.values() if not math.isnan(m.auc)]
    return sum(known) / len(known) if known else math.nan


class _Feed:
    """Batches for the pipeline, which can be ended early; what the pipeline has taken it still trains on."""

    def __init__(self, batches: Iterator[Batch], step: int) -> None:
        """The first batch is that of `step`, counted from 0."""
        self._batches: Iterator[Batch] | None = batches
        self._step = step

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        batch = next(self._batches)
        self._step += 1
        return batch

    def end(self) -> int:
        """Gives no more; returns how many steps are done when all that was given is trained on."""
        self._batches = None
        return self._step


class RenewsTables(Protocol):
    """What gives every table new weights; see `Pace.fresh_tables`."""

    def __call__(self, *, epoch: int) -> None:
        """Draws the tables that the epoch, counted from 0, begins with."""


class SetsRates(Protocol):
    """Optimizers whose learning rates the loop moves."""

    @property
    def gradient_norm(self) -> Tensor | None:
        """Of the last step's dense gradient."""

    def set_lr(self, *, sparse: float, dense: float) -> None:
        """Sets both rates for the next step."""


@dataclass(frozen=True, slots=True)
class Training:
    """Everything a run needs, built.

    Attributes:
        model: the sharded model, in training mode.
        pipeline: its training pipeline; `progress` does one step, or one evaluation batch when the model is in
            evaluation mode.
        optimizers: whose rates to set before each step.
        loader: training batches of this rank.
        valid: the split that decides which weights are best.
        task_names: names of the losses, in the model's order.
        rates: learning rates.
        pace: how long, and how often what.
        report: whom to tell.
        guard: looks at every step's losses.
        best: folder of the best weights.
        renew_tables: called where an epoch begins with fresh tables.
    """

    model: nn.Module
    pipeline: TrainPipelineSparseDist
    optimizers: SetsRates
    loader: Loader
    valid: Evaluation
    task_names: Sequence[str]
    rates: LearningRates
    pace: Pace
    report: Report
    guard: Guard
    best: Path
    renew_tables: RenewsTables

    def run(self) -> Trained:
        """Trains, evaluates on valid as it goes, stops early, and leaves the best weights in the model."""
        pace, report = self.pace, self.report
        step, best_step, best_auc, evaluations_since_best = 0, 0, -math.inf, 0
        best_valid: dict[str, TaskMetrics] = {}
        self.model.train()
        while step < pace.num_steps and not (pace.patience and evaluations_since_best >= pace.patience):
            if pace.fresh_tables and step and step % pace.steps_per_epoch == 0:
                self.renew_tables(epoch=step // pace.steps_per_epoch)
            step = self._stretch(step, pace.next_stop(step))
            if self.guard.stop_agreed:
                raise Interrupted(f"stopped at step {step} of {pace.num_steps}")
            if not pace.evaluates_at(step):
                continue
            metrics = self.valid.metrics(self.model, self.pipeline)
            report.evaluated("valid", step, {task: m.to_json() for task, m in metrics.items()})
            evaluations_since_best += 1
            found = mean_auc(metrics)
            if math.isnan(found):
                report.say("valid has one class only in every task: these weights cannot be judged")
                found = -math.inf
            if found > best_auc or not best_valid:
                save_weights(self.model, self.best)
                best_step, best_auc, best_valid, evaluations_since_best = step, found, metrics, 0
        if step < pace.num_steps:
            report.say(f"stopped early: {pace.patience} evaluations without a better mean AUC than at step {best_step}")
        if best_step < step:
            load_weights(self.model, self.best)
        return Trained(step, best_step, best_valid, report.examples_per_s)

    def _stretch(self, step: int, stop: int) -> int:
        """Trains from `step` to `stop`.

        The pipeline works on several batches at once. It gets an iterator that ends at `stop`, so it is empty when
        evaluation borrows it.
        """
        pace, report, guard = self.pace, self.report, self.guard
        batches = _Feed(self.loader.batches(step, stop - step), step)
        guard.resumed(step)
        report.training_resumed()
        while step < stop:
            rates = self.rates.at(step)
            self.optimizers.set_lr(**rates)
            guard.step_done(self.pipeline.progress(batches).loss_T, self.optimizers.gradient_norm)
            step += 1
            report.step_done(pace.global_batch_size)
            logs = step % pace.log_every_steps == 0 or step == stop
            if logs or guard.is_due:
                guard.look()
            if guard.stop_agreed:
                stop = batches.end()
            if logs:
                report.progress(step, step / pace.steps_per_epoch, guard.mean_losses(), rates)
        report.training_paused()
        return step
