"""Runs that are cut off and go on, for tests that compare them with runs that were not; ranks can call these."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from infnet_rec.commands import continue_run, resume
from infnet_rec.commands.assemble import Sharded, evaluation, open_data, shard_model, train_loader
from infnet_rec.commands.attend import make_guard
from infnet_rec.commands.run_dir import start_anew
from infnet_rec.commands.train import pace_of, schedule_of
from infnet_rec.train.loop import LearningRates, Trained, Training
from infnet_rec.train.report import Report
from infnet_rec.train.stop import StopSignal
from sharded_runs import dense_of, small_config, tables_of, world_of


class Cut(Exception):
    """The run stops here, as if it were killed right after a checkpoint."""


def train_run(
    rank: int, world_size: int, store: str, folder: str, overrides: list[str], cut_at: int | None = None
) -> dict[str, Any]:
    """The train command without its test at the end, cut off after the checkpoint of a step if one is given."""
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(rank, world_size)
    run_dir = Path(folder)
    standing = resume.look(run_dir, config, data)
    pace = pace_of(config, data)
    torch.distributed.barrier()
    if rank == 0:
        run_dir.mkdir(exist_ok=True)
        start_anew(run_dir, config)
    said: list[str] = []
    report = Report(run_dir if rank == 0 else None, pace.num_steps)
    report.say = said.append
    sharded = shard_model(config, data, world)
    at = continue_run.go_on(config, world, run_dir, standing, sharded, report)
    started_at = at.step
    saver = continue_run.make_saver(config, data, world, run_dir, sharded, report)
    seen: list[int] = []
    loader = train_loader(config, data, world)
    original = loader.batches
    loader.batches = lambda first, num: (seen.extend(range(first, first + num)), original(first, num))[1]
    training = Training(
        model=sharded.model,
        pipeline=sharded.pipeline,
        optimizers=sharded.optimizers,
        loader=loader,
        valid=evaluation(config, data, world, "valid"),
        task_names=data.task_names,
        rates=LearningRates(schedule_of(config.train.sparse, pace), schedule_of(config.train.dense, pace)),
        pace=pace,
        report=report,
        guard=make_guard(config, data, world, run_dir, said.append, StopSignal(speaks=False)),
        saver=_CuttingSaver(saver, cut_at),
        renew_tables=sharded.renew_tables,
    )
    trained: Trained | None = None
    with suppress(Cut):
        trained = training.run(at)
    saver.close()
    return {
        "tables": tables_of(sharded),
        "dense": dense_of(sharded),
        "optim": optimizer_of(sharded),
        "lines": lines_of(run_dir),
        "trained": trained and (trained.steps_done, trained.best_step, trained.best_valid),
        "started_at": started_at,
        "steps": seen,
        "said": said,
    }


class _CuttingSaver:
    """Saves, and cuts the run off after a given step's checkpoint."""

    def __init__(self, saver: Any, cut_at: int | None) -> None:
        self._saver, self._cut_at = saver, cut_at

    def save(self, at: Any) -> None:
        self._saver.save(at)
        if at.step == self._cut_at:
            raise Cut

    def load_best(self, at: Any) -> None:
        self._saver.load_best(at)


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
    """What was logged, but for times and speeds."""
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in r.items() if k not in ("elapsed_s", "examples_per_s")} for r in records]
