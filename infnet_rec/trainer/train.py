"""Where all rooms meet: configuration to store, model, plan and loop.

Read this first, then `loop.py`, then `models/infnet/model.py`.
"""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.config.train import hasty_patience
from infnet_rec.console import log_line
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.data.run_schema import unjudgeable
from infnet_rec.diagnostics.preflight import Preflight
from infnet_rec.distributed.optimizers import count_dense
from infnet_rec.distributed.process_group import World, silence_third_party_warnings, use_threads, world_from_env
from infnet_rec.errors import Interrupted, UserError
from infnet_rec.files import write_json
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.models.registry import table_width
from infnet_rec.planner.plan_file import PlanFile, write_plan
from infnet_rec.planner.run_plan import check_run, describe_tower, plan_model
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import Sharded, evaluation, shard, train_loader
from infnet_rec.trainer.continue_run import load_initial_weights, make_saver, resume_or_start
from infnet_rec.trainer.evaluator import final_metrics, keep_predictions
from infnet_rec.trainer.loop import LearningRates, RunLength, Schedule, Trainer
from infnet_rec.trainer.metric_logger import MetricLogger, format_duration
from infnet_rec.trainer.rank_log import RankLog
from infnet_rec.trainer.resume import RunDirState, inspect_run_dir, lock_run_dir, try_destinations
from infnet_rec.trainer.run_dir import default_run_dir, environment, prepare_run_dir
from infnet_rec.trainer.session import TrainingSession, make_nonfinite_monitor, training_session


def train(
    config_path: Path, overrides: Sequence[str], run_dir: Path | None, weights_from: str | None = None
) -> dict[str, Any] | None:
    """Trains the run that a file describes; under torchrun, as one of its ranks.

    A run that stands in `run_dir` already goes on where it was saved last.

    Args:
        config_path: a run's TOML file.
        overrides: laid on it, see `load_config`.
        run_dir: where to write; None makes `runs/<config>-<time>`.
        weights_from: a new run starts with the weights of this checkpoint or run.

    Returns:
        What stands in `result.json`, on rank 0.

    Raises:
        UserError: anything a person can mend, before any process group is made.
    """
    config = load_config(config_path, overrides)
    world, data = world_from_env(), open_data(config)
    check_run(config, data, world)
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    if run_dir is None:
        if world.world_size > 1:
            raise UserError(
                "--run-dir: is needed under torchrun, so that all ranks write to one folder; name a new one"
            )
        run_dir = default_run_dir(config_path)
    standing = inspect_run_dir(run_dir, config, data)
    if standing.result is not None:
        if world.is_first:
            print(f"{run_dir} is finished; nothing is left to train, so here are its results again", file=sys.stderr)
        return standing.result if world.is_first else None
    if world.is_first:
        try_destinations(config, run_dir)
    rank_log = RankLog(run_dir, world.rank, log_line if world.is_first else lambda _: None)
    # Nobody writes to the folder before all ranks have looked at it, and the group is joined by all of them.
    with (
        lock_run_dir(run_dir) if world.is_first else nullcontext(),
        training_session(config, world, rank_log) as attendants,
    ):
        try:
            start = Start(run_dir, standing, weights_from, rank_log)
            return run_training(config, data, plan_training(config, data, world, start), start, attendants)
        except Interrupted as stopped:
            raise Interrupted(f"{stopped}; the same command with --run-dir {run_dir} goes on from there") from stopped


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run and this rank write, what stands there, and whose weights a new run takes."""

    run_dir: Path
    standing: RunDirState
    weights_from: str | None
    rank_log: RankLog


@dataclass(frozen=True, slots=True)
class PlannedTraining:
    """A run as it is known before any table is allocated.

    Attributes:
        world: all ranks.
        pace: how long it is.
        report: whom it tells.
        preflight: what the ranks found of each other.
        model: on the meta device.
        plan: where its tables go.
    """

    world: World
    pace: RunLength
    report: MetricLogger
    preflight: Preflight
    model: RankingModel
    plan: PlanFile


def plan_training(config: RunConfig, data: RunData, world: World, start: Start) -> PlannedTraining:
    """Looks at all ranks and plans; the process group is open, and nothing is allocated.

    Args:
        config: of the run.
        data: of the run.
        world: all ranks.
        start: where it writes.

    Raises:
        UserError: the ranks do not agree, or cannot do what the plan asks of them.
        Refusal: the tables do not fit.
    """
    pace = pace_of(config, data)
    report = MetricLogger(start.run_dir if world.is_first else None, pace.num_steps, start.rank_log)
    preflight = Preflight(config, data, world)
    model = meta_model(config, data)
    plan = plan_model(model, config, data, world)
    preflight.before_tables(plan)
    return PlannedTraining(world, pace, report, preflight, model, plan)


def run_training(
    config: RunConfig, data: RunData, planned: PlannedTraining, start: Start, attendants: TrainingSession
) -> dict[str, Any] | None:
    """Trains and tests; the process group is open and the run directory is there."""
    settings, run_dir, world = config.train, start.run_dir, planned.world
    pace, report, preflight = planned.pace, planned.report, planned.preflight
    sharded = shard(planned.model, planned.plan, config, world)
    tables = data.schema.bag_tables + data.schema.sequence_tables
    num_sparse = sum(t.num_rows for t in tables) * table_width(config, data.schema)
    num_dense = count_dense(sharded.model)
    if world.is_first:
        prepare_run_dir(run_dir, config)
        write_json(run_dir / "environment.json", environment(world, data.store) | {"preflight": preflight.to_json()})
        write_plan(run_dir / "plan.json", planned.plan)
    size = f"{len(tables)} tables with {num_sparse:,} parameters, {num_dense:,} dense parameters"
    for line in (*preflight.lines(), f"{describe_work(data, pace, world)}; {size}", describe_tower(config, world)):
        report.say(line)
    for doubt in (hasty_patience(settings, data.store.num_examples("train")), unjudgeable(data.store, data.schema)):
        if doubt is not None:
            report.say(f"warning: {doubt}")
    at = resume_or_start(config, world, run_dir, start.standing, sharded, report)
    if start.weights_from is not None and at.step == 0:
        load_initial_weights(start.weights_from, data, sharded, report)
    saver = make_saver(config, data, world, run_dir, sharded, report)
    guard = make_nonfinite_monitor(config, data, world, run_dir, report.say, attendants.stop)
    training = Trainer(
        model=sharded.model,
        pipeline=sharded.pipeline,
        optimizers=sharded.optimizers,
        loader=train_loader(config, data, world),
        valid=evaluation(config, data, world, "valid"),
        task_names=data.task_names,
        rates=LearningRates(Schedule(settings.sparse, pace.num_steps), Schedule(settings.dense, pace.num_steps)),
        pace=pace,
        report=report,
        guard=guard,
        saver=saver,
        renew_tables=sharded.renew_tables,
    )
    with attendants.around(saver, at, sharded.forward):
        trained = training.run(at)
    tested = test_at_end(config, data, world, sharded, run_dir)
    if not world.is_first:
        return None
    log_final_metrics(report, trained.best_step, tested["metrics"])
    result = {
        "run_dir": str(run_dir),
        "steps_done": trained.steps_done,
        "best_step": trained.best_step,
        "num_ranks": world.world_size,
        "num_sparse_parameters": num_sparse,
        "num_dense_parameters": num_dense,
        "examples_per_s": trained.examples_per_s,
        "wall_s": report.settle().elapsed_s,
        "scoring": tested["scoring"],
        "metrics": {"valid": {task: m.to_json() for task, m in trained.best_valid.items()}, **tested["metrics"]},
    }
    write_json(run_dir / "result.json", result)
    return result


def describe_work(data: RunData, pace: RunLength, world: World) -> str:
    """How much is to be done, and by whom."""
    ranks = f"{world.world_size} rank{'s' * (world.world_size > 1)} ({world.device.type})"
    num_examples = data.store.num_examples("train")
    return f"{num_examples:,} training examples, {pace.num_steps:,} steps of {pace.global_batch_size:,} on {ranks}"


def test_at_end(config: RunConfig, data: RunData, world: World, sharded: Sharded, run_dir: Path) -> dict[str, Any]:
    """Metrics on test and how fast it was scored, and metrics on the store's further tests, on rank 0.

    Nothing where `train.test` leaves them unread.
    """
    nothing: dict[str, Any] = {"metrics": {}, "scoring": None}
    if config.train.test == "skip":
        return nothing
    started_at, batch_size = time.perf_counter(), config.train.eval_batch_size
    predictions = evaluation(config, data, world, "test").predictions(sharded.model, sharded.pipeline)
    elapsed_s = time.perf_counter() - started_at
    further = {
        split: evaluation(config, data, world, split).predictions(sharded.model, sharded.pipeline)
        for split in data.store.further_tests
    }
    if predictions is None:
        return nothing
    metrics = {}
    for split, found in {"test": predictions, **further}.items():
        assert found is not None
        if config.train.test == "keep":
            name = "predictions.npz" if split == "test" else f"predictions-{split}.npz"
            keep_predictions(found, data.task_names, run_dir / name)
        metrics[split] = final_metrics(found, data.task_names)
    num_batches = math.ceil(data.store.num_examples("test") / batch_size)
    return {
        "metrics": metrics,
        "scoring": {"batch_size": batch_size, "ms_per_batch": 1000 * elapsed_s / max(1, num_batches)},
    }


def log_final_metrics(report: MetricLogger, step: int, metrics_by_split: dict[str, dict[str, Any]]) -> None:
    """The last evaluations; then all that was said is put on disk."""
    for split, metrics in metrics_by_split.items():
        report.evaluated(split, step, metrics)
    report.close()


def pace_of(config: RunConfig, data: RunData) -> RunLength:
    """How long the run is, in steps."""
    settings = config.train
    steps_per_epoch = data.store.num_examples("train") // settings.global_batch_size
    return RunLength(
        num_steps=max(1, math.floor(settings.num_epochs * steps_per_epoch)),
        steps_per_epoch=steps_per_epoch,
        eval_every_steps=settings.eval_every_steps or steps_per_epoch,
        log_every_steps=settings.log_every_steps,
        patience=settings.patience,
        global_batch_size=settings.global_batch_size,
        fresh_tables=settings.sparse.each_epoch == "fresh",
        save_every_steps=config.checkpoint.every_steps,
    )


def metrics_table(result: dict[str, Any]) -> str:
    """The closing table for people."""
    lines = [f"{'task':<12}{'valid AUC':>11}{'valid gAUC':>12}{'test AUC':>11}{'test gAUC':>12}{'test log loss':>15}"]
    valid, test = result["metrics"]["valid"], result["metrics"].get("test", {})
    for task in valid:
        cells = [
            valid[task]["auc"],
            valid[task]["gauc"],
            *(test.get(task, {}).get(m) for m in ("auc", "gauc", "log_loss")),
        ]
        text = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        lines.append(f"{task:<12}{text[0]:>11}{text[1]:>12}{text[2]:>11}{text[3]:>12}{text[4]:>15}")
    for split, metrics in result["metrics"].items():
        if split not in ("valid", "test"):
            lines += ["", f"{split:<35}{'AUC':>11}{'gAUC':>12}{'log loss':>15}"]
            for task, m in metrics.items():
                text = ["-" if m[name] is None else f"{m[name]:.4f}" for name in ("auc", "gauc", "log_loss")]
                lines.append(f"{task:<35}{text[0]:>11}{text[1]:>12}{text[2]:>15}")
    lines.append("")
    weights = "best" if any(task["auc"] is not None for task in valid.values()) else "last weights,"
    lines.append(
        f"{weights} at step {result['best_step']} of {result['steps_done']}; {result['examples_per_s']:,.0f} "
        f"examples/s on {result['num_ranks']} rank{'s' * (result['num_ranks'] > 1)}; "
        f"{format_duration(result['wall_s'])} in all"
    )
    lines.append(f"results: {result['run_dir']}")
    return "\n".join(lines)
