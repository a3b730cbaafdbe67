"""The training loop: read it once from top to bottom.

It does not know how the model was sharded, nor how many ranks there are.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.batch import Batch
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.train import DenseConfig, SparseConfig
from infnet_rec.data.loader import Loader
from infnet_rec.errors import Interrupted
from infnet_rec.metrics import TaskMetrics, mean_over_tasks
from infnet_rec.trainer.evaluator import Evaluation
from infnet_rec.trainer.metric_logger import MetricLogger
from infnet_rec.trainer.nonfinite import NonFiniteMonitor


@dataclass(frozen=True, slots=True)
class Schedule:
    """Up in a line to the optimizer's rate, then level, or a cosine down to `final_fraction` at `num_steps`."""

    optimizer: SparseConfig | DenseConfig
    num_steps: int

    def at(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        lr, config = self.optimizer.lr, self.optimizer.schedule
        if step < config.warmup_steps:
            return lr * (step + 1) / config.warmup_steps
        share = min(1.0, (step - config.warmup_steps) / max(1, self.num_steps - config.warmup_steps))
        match config.kind:
            case "constant":
                return lr
            case "cosine":
                down = (1.0 + math.cos(math.pi * share)) / 2
                return lr * (config.final_fraction + (1.0 - config.final_fraction) * down)
            case _:
                assert_never(config.kind)


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long, and how often what.

    Attributes:
        num_steps: of the whole run.
        steps_per_epoch: where an epoch ends, for reports and fresh tables.
        eval_every_steps: steps between evaluations.
        log_every_steps: steps between progress lines.
        patience: evaluations without improvement before training stops; 0 never stops early.
        global_batch_size: examples a step over all ranks.
        fresh_tables: whether every epoch but the first begins with new tables.
        save_every_steps: steps between checkpoints, evaluations aside; 0 saves at evaluations only.
    """

    num_steps: int
    steps_per_epoch: int
    eval_every_steps: int
    log_every_steps: int
    patience: int
    global_batch_size: int
    fresh_tables: bool
    save_every_steps: int = 0

    def next_stop(self, step: int) -> int:
        """Where the stretch from `step` on ends: at an evaluation, a checkpoint, a change of tables or with the run."""
        periods = [self.eval_every_steps, self.save_every_steps, self.steps_per_epoch if self.fresh_tables else 0]
        return min([self.num_steps, *(next_multiple(step, period) for period in periods if period)])

    def renews_at(self, step: int) -> bool:
        """Whether the step after this many is the first of an epoch that begins with fresh tables."""
        return self.fresh_tables and step > 0 and step % self.steps_per_epoch == 0

    def evaluates_at(self, step: int) -> bool:
        """Whether valid is scored after this many steps."""
        return step == self.num_steps or step % self.eval_every_steps == 0

    def saves_at(self, step: int) -> bool:
        """Whether the run is saved after this many steps."""
        return self.evaluates_at(step) or bool(self.save_every_steps and step % self.save_every_steps == 0)

    def reports_at(self, step: int) -> bool:
        """Whether there is a progress line after this many steps; when the run is saved changes none of them."""
        return step % self.log_every_steps == 0 or self.evaluates_at(step) or self.renews_at(step)


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


class _Feed:
    """Batches for the pipeline, which can be ended early; what the pipeline has taken it still trains on."""

    def __init__(self, batches: Iterator[Batch], step: int) -> None:
        """The first batch is that of `step`, counted from 0."""
        self._batches: Iterator[Batch] | None = batches
        self._step = step
        self._waited_s = 0.0

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        asked_at = time.perf_counter()
        batch = next(self._batches)
        self._waited_s += time.perf_counter() - asked_at
        self._step += 1
        return batch

    def take_wait_s(self) -> float:
        """How long the pipeline had to wait for batches since the last call."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def end(self) -> int:
        """Gives no more; returns how many steps are done when all that was given is trained on."""
        self._batches = None
        return self._step


class RenewsTables(Protocol):
    """What gives every table new weights; see `RunLength.fresh_tables`."""

    def __call__(self, *, epoch: int) -> None:
        """Draws the tables that the epoch, counted from 0, begins with."""


class SetsRates(Protocol):
    """Optimizers whose learning rates the loop moves."""

    @property
    def gradient_norm(self) -> Tensor | None:
        """Of the last step's dense gradient."""
        ...

    def set_lr(self, *, sparse: float, dense: float) -> None:
        """Sets both rates for the next step."""


class SavesRuns(Protocol):
    """What keeps a run from being lost."""

    def save(self, at: TrainState) -> None:
        """Saves the run as it stands, the pipeline being drained."""

    def load_best(self, at: TrainState) -> None:
        """Puts the weights of `at.best_step` into the model; if they are lost, others, and says so in `at`."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """Everything a run needs, built.

    Attributes:
        model: the sharded model.
        pipeline: its training pipeline; `progress` does one step, or one evaluation batch when the model is in
            evaluation mode.
        optimizers: whose rates to set before each step.
        loader: training batches of this rank.
        valid: the split that decides which weights are best.
        task_names: names of the losses, in the model's order.
        rates: learning rates.
        pace: how long, and how often what.
        report: whom to tell.
        guard: looks at every step's losses, and knows when to stop.
        saver: of checkpoints.
        renew_tables: called where an epoch begins with fresh tables.
    """

    model: nn.Module
    pipeline: TrainPipelineSparseDist
    optimizers: SetsRates
    loader: Loader
    valid: Evaluation
    task_names: Sequence[str]
    rates: LearningRates
    pace: RunLength
    report: MetricLogger
    guard: NonFiniteMonitor
    saver: SavesRuns
    renew_tables: RenewsTables

    def run(self, at: TrainState) -> Trained:
        """Trains on from `at`, evaluates on valid as it goes, stops early, and leaves the best weights in the model.

        All that decides about the next step is in `at`, the weights, the optimizers and the random state: what a
        checkpoint holds. So a run that was saved anywhere and goes on is the run that never stopped.

        Raises:
            Interrupted: somebody asked all ranks to stop; the run is saved.
        """
        pace, report = self.pace, self.report
        self.model.train()
        if at.owes_evaluation:
            self._evaluate_and_save(at)
        while at.step < pace.num_steps and not (pace.patience and at.evaluations_since_best >= pace.patience):
            if pace.renews_at(at.step):
                self.renew_tables(epoch=at.step // pace.steps_per_epoch)
            self._stretch(at, pace.next_stop(at.step))
            if self.guard.stop_agreed:
                # There may not be time for an evaluation; the run that goes on begins with it.
                at.judged, at.owes_evaluation = None, pace.evaluates_at(at.step)
                self._save(at)
                raise Interrupted(f"stopped at step {at.step} of {pace.num_steps}, and saved")
            self._evaluate_and_save(at)
        if not at.best_valid:
            # No weights could be judged: there is no best, and the last have learned most.
            at.best_step, at.best_valid = at.step, at.judged[1] if at.judged else {}
        if at.step < pace.num_steps:
            best = at.best_step
            report.say(f"stopped early: {pace.patience} evaluations without a better mean AUC than at step {best}")
        steps_done = at.step
        if at.best_step < at.step:
            self.saver.load_best(at)
        return Trained(steps_done, at.best_step, at.best_valid, report.examples_per_s)

    def _evaluate_and_save(self, at: TrainState) -> None:
        at.owes_evaluation = False
        at.judged = self._judge(at) if self.pace.evaluates_at(at.step) else None
        if self.pace.saves_at(at.step):
            self._save(at)

    def _save(self, at: TrainState) -> None:
        at.spent = self.report.settle()
        self.saver.save(at)

    def _judge(self, at: TrainState) -> tuple[float, dict[str, TaskMetrics]]:
        """Evaluates, and remembers the step if no other was as good.

        What cannot be judged is neither better nor worse: it costs no patience and is nobody's best.
        """
        metrics = self.valid.metrics(self.model, self.pipeline)
        self.report.evaluated("valid", at.step, {task: m.to_json() for task, m in metrics.items()})
        found = mean_over_tasks(metrics, "auc")
        if math.isnan(found):
            if any(m.has_both_classes for m in metrics.values()):
                self.report.say(
                    "the predictions on valid are not finite: these weights count neither as better nor worse"
                )
        elif found > at.best_auc:
            at.best_step, at.best_auc, at.best_valid, at.evaluations_since_best = at.step, found, metrics, 0
        else:
            at.evaluations_since_best += 1
        return found, metrics

    def _stretch(self, at: TrainState, stop: int) -> None:
        """Trains from `at.step` to `stop`.

        The pipeline works on several batches at once. It gets an iterator that ends at `stop`, so it is empty when
        evaluation borrows it or the run is saved.
        """
        pace, report, guard = self.pace, self.report, self.guard
        batches = _Feed(self.loader.batches(at.step, stop - at.step), at.step)
        guard.follow(at)
        with report.training(at.step):
            while at.step < stop:
                rates = self.rates.at(at.step)
                self.optimizers.set_lr(**rates)
                scores = self.pipeline.progress(batches)
                guard.step_done(scores.loss_T, self.optimizers.gradient_norm)
                at.step += 1
                report.step_done(pace.global_batch_size, scores, batches.take_wait_s())
                reports = pace.reports_at(at.step)
                if reports or guard.is_due or at.step == stop:
                    guard.look()
                    report.reached(at.step)
                    if guard.stop_agreed:
                        stop = batches.end()
                if reports:
                    report.progress(at.step, at.step / pace.steps_per_epoch, guard.mean_losses(), rates)
