"""Short runs with a bad batch in them; top-level functions that the ranks can run."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

from infnet_rec.batch import Batch
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import make_deterministic
from infnet_rec.errors import Failure
from infnet_rec.trainer.build import shard_model, train_loader, train_order
from infnet_rec.trainer.nonfinite import NonFiniteBatches, NonFiniteMonitor
from sharded_runs import dense_of, small_config, tables_of, world_of

RATES = {"sparse": 0.02, "dense": 0.001}


def planted(batches: Iterator[Batch], bad_steps: set[int], first: int = 0) -> Iterator[Batch]:
    """The same batches, where those of some steps, counted from 0, have a label that is NaN."""
    for step, batch in enumerate(batches, first):
        if step in bad_steps:
            batch.labels_BT[3, 1] = math.nan
        yield batch


def without(batches: Iterator[Batch], left_out: set[int]) -> Iterator[Batch]:
    """The same batches but for some steps."""
    return (batch for step, batch in enumerate(batches) if step not in left_out)


def state_of(sharded: Any) -> dict[str, Any]:
    """All weights and all optimizer state of this rank, as arrays."""
    found: dict[str, Any] = {f"table {k}": v[-1] for k, v in tables_of(sharded).items()}
    found |= {f"dense {k}": v for k, v in dense_of(sharded).items()}
    for name, states in sharded.optimizers.combined.state_dict()["state"].items():
        for key, value in states.items():
            if isinstance(value, ShardedTensor):
                for i, shard in enumerate(value.local_shards()):
                    found[f"optimizer {name} {key} {i}"] = shard.tensor.numpy().copy()
            elif isinstance(value, torch.Tensor):
                found[f"optimizer {name} {key}"] = value.detach().numpy().copy()
            else:
                found[f"optimizer {name} {key}"] = value
    return found


def run_with(rank: int, world_size: int, store: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Trains `num_steps` steps under a guard.

    `bad` are the planted steps, `bad_rank` the rank that has them; `left_out` the steps whose batches are not given to
    the model at all; `look_at` the steps at which the guard looks.
    """
    overrides = [f"train.on_nonfinite={options.get('policy', 'skip')}", "model.dropout=0.0"]
    config = small_config(store, [*overrides, *options.get("overrides", [])])
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    batches = train_loader(config, data, world).batches(0, options["num_steps"])
    if rank == options.get("bad_rank", 0):
        batches = planted(batches, options.get("bad", set()))
    batches = without(batches, options.get("left_out", set()))
    said: list[str] = []
    record = NonFiniteBatches(data.store, train_order(config, data), world_size, Path(folder) if rank == 0 else None)
    stop = SimpleNamespace(wanted=rank == options.get("stop_rank"))
    policy, most = config.train.on_nonfinite, options.get("max_skipped", 10)
    guard = NonFiniteMonitor(data.task_names, rank, world_size, policy, most, record, said.append, stop)
    sharded.model.train()
    at = TrainState()
    guard.follow(at)
    failure = None
    try:
        for step in range(options["num_steps"] - len(options.get("left_out", ()))):
            sharded.optimizers.set_lr(**RATES)
            guard.step_done(sharded.pipeline.progress(batches).loss_T, sharded.optimizers.gradient_norm)
            at.step += 1
            if step + 1 in options["look_at"]:
                guard.look()
    except Failure as error:
        failure = str(error)
    return {
        "state": state_of(sharded),
        "failure": failure,
        "said": said,
        "losses": at.losses,
        "skipped": at.skipped,
        "stop_agreed": guard.stop_agreed,
    }


def run_deterministic(rank: int, world_size: int, store: str, folder: str) -> list[dict[str, Any]]:
    """The states that the same run leaves twice, in deterministic mode and with dropout."""
    options = {"num_steps": 4, "look_at": {4}, "overrides": ["model.dropout=0.2"]}
    try:
        make_deterministic()
        return [run_with(rank, world_size, store, folder, options)["state"] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
