"""A trained run's metrics on any split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infnet_rec.checkpoint.loader import load_weights
from infnet_rec.checkpoint.locate import run_checkpoints
from infnet_rec.checkpoint.store import best_checkpoint
from infnet_rec.config.run import RunConfig
from infnet_rec.console import log_line
from infnet_rec.data.run_data import open_data
from infnet_rec.data.store import Store
from infnet_rec.distributed.process_group import (
    check_gpus,
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.metrics import Predictions
from infnet_rec.trainer.build import evaluation, shard_model
from infnet_rec.trainer.continue_run import moved_lines, rows_that_moved
from infnet_rec.trainer.evaluator import final_metrics
from infnet_rec.trainer.resume import read_run_config


@dataclass(frozen=True, slots=True)
class ScoredSplit:
    """What a run's best weights say of one split.

    Attributes:
        step: at which the weights were saved.
        task_names: T names, in the order of the columns.
        predictions: of every example; None on all ranks but the first.
    """

    step: int
    task_names: list[str]
    predictions: Predictions | None


def evaluate_run(run_dir: Path, split: str, store: Path | str | None = None) -> dict[str, Any] | None:
    """A run's metrics on a split; under torchrun on any number of ranks, alone on one.

    Args:
        run_dir: what `train` left.
        split: train, valid, test or a further test of the store.
        store: folder or URL where the run's store is now; None where it was.

    Returns:
        Metrics by task, on rank 0.

    Raises:
        UserError: see `score_run`.
    """
    scored = score_run(run_dir, split, store)
    if scored.predictions is None:
        return None
    return {
        "run_dir": str(run_dir),
        "step": scored.step,
        "split": split,
        "metrics": final_metrics(scored.predictions, scored.task_names),
    }


def score_run(run_dir: Path, split: str, store: Path | str | None = None) -> ScoredSplit:
    """Scores a split with a run's best weights; under torchrun on any number of ranks, alone on one.

    Args:
        run_dir: what `train` left.
        split: train, valid, test or a further test of the store.
        store: folder or URL where the run's store is now; None where it was.

    Raises:
        UserError: no such run, checkpoint or split, or a store whose ids cannot be matched with those that the run
            learned.
    """
    config = read_run_config(run_dir)
    shelf = run_checkpoints(config.checkpoint, run_dir)
    commits = shelf.commits()
    if not commits:
        raise UserError(f"{shelf.where}: holds no whole checkpoint; a run writes one at its first evaluation")
    best = best_checkpoint(commits) or commits[-1]
    if store is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"store": str(store)})})
    config = for_scoring(config)
    world, data = world_from_env(), open_data(config)
    check_split(split, data.store)
    check_gpus(world)
    moved = rows_that_moved(shelf, best, data)
    if world.is_first:
        for line in moved_lines(moved, "are scored as never seen"):
            log_line(line)
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    with process_group(world):
        sharded = shard_model(config, data, world)
        load_weights(shelf, best, sharded.model, {table: rows.or_unseen().row_R for table, rows in moved.items()})
        predictions = evaluation(config, data, world, split).predictions(sharded.model, sharded.pipeline)
    return ScoredSplit(best.step, data.task_names, predictions)


def check_split(split: str, store: Store) -> None:
    """Refuses a name that is none of a split of the store.

    Raises:
        UserError: it is none.
    """
    if split not in store.splits:
        raise UserError(f"--split {split!r}: is one of {', '.join(store.splits)}{did_you_mean(split, store.splits)}")


def for_scoring(config: RunConfig) -> RunConfig:
    """The run without what only training needs."""
    # Scoring updates nothing: SGD keeps no state and runs on every device, whatever the run was trained with.
    sparse = config.train.sparse.model_copy(update={"optimizer": "sgd"})
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"sparse": sparse}),
            "sharding": config.sharding.for_scoring(),
        }
    )


def metrics_lines(result: dict[str, Any]) -> list[str]:
    """The metrics for people."""
    text = [f"{'task':<12}{'AUC':>9}{'gAUC':>9}{'95 % interval':>18}{'users':>9}{'log loss':>10}{'NE':>8}{'calib.':>8}"]
    for task, m in result["metrics"].items():
        low, high = m["gauc_interval"]
        interval = "-" if low is None else f"{low:.4f} to {high:.4f}"
        auc, gauc = ("-" if m[name] is None else f"{m[name]:.4f}" for name in ("auc", "gauc"))
        log_loss = "-" if m["log_loss"] is None else f"{m['log_loss']:.4f}"
        ne, calibration = ("-" if m[name] is None else f"{m[name]:.3f}" for name in ("ne", "calibration"))
        text.append(
            f"{task:<12}{auc:>9}{gauc:>9}{interval:>18}{m['num_users']:>9,}{log_loss:>10}{ne:>8}{calibration:>8}"
        )
    return text
