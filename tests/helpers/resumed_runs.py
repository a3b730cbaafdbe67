"""Runs that are cut off and go on, for tests that compare them with runs that were not; ranks can call these."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from infnet_rec.checkpoint.store import CheckpointStore, checkpoint_name
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.data.run_data import open_data
from infnet_rec.data.sampler import local_slice
from infnet_rec.metrics import TaskMetrics
from infnet_rec.trainer import continue_run, resume
from infnet_rec.trainer.build import Sharded, evaluation, shard_model, train_loader
from infnet_rec.trainer.loop import LearningRates, Schedule, Trainer
from infnet_rec.trainer.metric_logger import OF_THE_MACHINE, MetricLogger
from infnet_rec.trainer.run_dir import prepare_run_dir
from infnet_rec.trainer.session import make_nonfinite_monitor
from infnet_rec.trainer.signals import GracefulStop
from infnet_rec.trainer.train import pace_of
from sharded_runs import dense_of, small_config, tables_of, world_of


class ScriptedValid:
    """Gives the AUC that a script has for the step."""

    def __init__(self, aucs: Mapping[int, float], at: TrainState) -> None:
        self._aucs, self._at = aucs, at

    def metrics(self, model: object, pipeline: object) -> dict[str, TaskMetrics]:
        auc = self._aucs[self._at.step]
        return {"click": TaskMetrics(10, 5, auc, auc, auc, 2, 0.5, 1.0, float("nan"))}


class WatchedLoader:
    """Remembers which examples this rank was given, step by step."""

    def __init__(self, loader: Any, rank: int, world_size: int) -> None:
        self._loader, self._rank, self._world_size = loader, rank, world_size
        self.examples: list[list[int]] = []

    def batches(self, first_step: int, num_steps: int) -> Iterator[Any]:
        for step, batch in enumerate(self._loader.batches(first_step, num_steps), first_step):
            mine = local_slice(self._loader._order.global_batch(step), self._rank, self._world_size)
            self.examples.append(mine.tolist())
            yield batch


def train_run(
    rank: int, world_size: int, store: str, folder: str, overrides: list[str], aucs: dict[int, float] | None = None
) -> dict[str, Any]:
    """What the train command does but for the test at the end; goes on with what the folder holds."""
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(rank, world_size)
    run_dir = Path(folder)
    standing = resume.inspect_run_dir(run_dir, config, data)
    torch.distributed.barrier()
    if rank == 0:
        run_dir.mkdir(exist_ok=True)
        prepare_run_dir(run_dir, config)
    pace, said = pace_of(config, data), []
    report = MetricLogger(run_dir if rank == 0 else None, pace.num_steps)
    report.say = said.append
    sharded = shard_model(config, data, world)
    at = continue_run.resume_or_start(config, world, run_dir, standing, sharded, report)
    started_at = at.step
    saver = continue_run.make_saver(config, data, world, run_dir, sharded, report)
    loader: Any = WatchedLoader(train_loader(config, data, world), rank, world_size)
    valid: Any = evaluation(config, data, world, "valid") if aucs is None else ScriptedValid(aucs, at)
    trained = Trainer(
        model=sharded.model,
        pipeline=sharded.pipeline,
        optimizers=sharded.optimizers,
        loader=loader,
        valid=valid,
        task_names=data.task_names,
        rates=LearningRates(
            Schedule(config.train.sparse, pace.num_steps), Schedule(config.train.dense, pace.num_steps)
        ),
        pace=pace,
        report=report,
        guard=make_nonfinite_monitor(config, data, world, run_dir, said.append, GracefulStop(speaks=False)),
        saver=saver,
        renew_tables=sharded.renew_tables,
    ).run(at)
    saver.close()
    best_valid = {task: m.to_json() for task, m in trained.best_valid.items()}
    return {
        "tables": tables_of(sharded),
        "dense": dense_of(sharded),
        "optim": optimizer_of(sharded),
        "lines": lines_of(run_dir),
        "trained": (trained.steps_done, trained.best_step, best_valid),
        "started_at": started_at,
        "examples": loader.examples,
        "said": said,
    }


def optimizer_of(sharded: Sharded) -> dict[str, list[np.ndarray]]:
    """This rank's part of every optimizer state, and what the kernels have counted."""
    state = {}
    for parameter, values in sharded.optimizers.state_dict().items():
        for name, value in values.items():
            parts = [s.tensor for s in value.local_shards()] if isinstance(value, ShardedTensor) else [value]
            state[f"{parameter}.{name}"] = [part.detach().numpy().copy() for part in parts]
    state["kernel_steps"] = [np.array(sharded.optimizers.kernel_steps())]
    return state


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    """What was logged, but for times, memory, and what the last steps before a stop had to do with it."""
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in r.items() if k not in OF_THE_MACHINE} for r in records]


def cut_off(run_dir: Path, step: int, to: Path) -> Path:
    """A run as it would be, had it been killed when the checkpoint of a step was the newest; later lines are there."""
    shutil.copytree(run_dir, to)
    shelf = CheckpointStore(to / "checkpoints")
    assert step in {c.step for c in shelf.commits()}
    for commit in shelf.commits():
        if commit.step > step:
            shutil.rmtree(shelf.path(checkpoint_name(commit.step)))
    return to
