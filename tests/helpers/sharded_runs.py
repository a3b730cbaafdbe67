"""Short runs of the real training path, for tests that compare them; top-level functions that the ranks can run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnet_rec.checkpoint.saver import CheckpointSaver
from infnet_rec.checkpoint.store import CheckpointStore
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.distributed.parallelize import local_shards
from infnet_rec.distributed.process_group import World
from infnet_rec.metrics import mean_over_ranks
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import Sharded, evaluation, shard_model, train_loader
from infnet_rec.trainer.continue_run import load_initial_weights
from infnet_rec.trainer.metric_logger import MetricLogger

CONFIG = Path(__file__).parents[1] / "small.toml"


def world_of(rank: int, world_size: int) -> World:
    """A CPU rank."""
    return World(rank, world_size, rank, world_size, torch.device("cpu"))


def small_config(store: str, overrides: list[str]) -> RunConfig:
    """The tests' run on a store."""
    return load_config(CONFIG, [f"data.store='{store}'", *overrides])


def train_steps(rank: int, world_size: int, store: str, overrides: list[str], num_steps: int) -> dict[str, Any]:
    """Trains some steps and returns global losses, all weights and the metrics on valid.

    Returns:
        `losses` [num_steps, T], `tables` (this rank's shards by table), `dense` (by name), `valid`, `plan`.
    """
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    losses = run_steps(config, data, world, sharded, num_steps)
    valid = evaluation(config, data, world, "valid").metrics(sharded.model, sharded.pipeline)
    return {
        "losses": losses,
        "tables": tables_of(sharded),
        "dense": dense_of(sharded),
        "valid": {task: m.to_json() for task, m in valid.items()},
        "plan": {table.name: table.sharding for table in sharded.plan.tables},
    }


def run_steps(config: RunConfig, data: RunData, world: World, sharded: Sharded, num_steps: int) -> np.ndarray:
    """Steps 0 to `num_steps` at the configured rates; the mean loss over ranks of each step and task."""
    batches = train_loader(config, data, world).batches(0, num_steps)
    sharded.model.train()
    losses = []
    for _ in range(num_steps):
        sharded.optimizers.set_lr(sparse=config.train.sparse.lr, dense=config.train.dense.lr)
        losses.append(mean_over_ranks(sharded.pipeline.progress(batches).loss_T).numpy())
    return np.stack(losses)


def tables_of(sharded: Sharded) -> dict[str, tuple[int, int, np.ndarray]]:
    """This rank's part of every table: first row, first column, values."""
    return {s.name: (s.row, s.column, s.values.detach().numpy().copy()) for s in local_shards(sharded.model)}


def dense_of(sharded: Sharded) -> dict[str, np.ndarray]:
    """Every dense parameter."""
    plain = {n: v for n, v in sharded.model.state_dict().items() if type(v) is torch.Tensor}
    return {name.removeprefix("module."): value.detach().numpy().copy() for name, value in plain.items()}


def save_small(rank: int, world_size: int, store: str, folder: str, num_steps: int) -> np.ndarray:
    """Trains, saves, and returns the valid logits on rank 0."""
    config = small_config(store, [])
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    run_steps(config, data, world, sharded, num_steps)
    run = {
        "config": config.model_dump(mode="json"),
        "store": data.store.fingerprint,
        "world_size": world_size,
        "plan": {},
    }
    saver = CheckpointSaver(
        CheckpointStore(folder), sharded.model, sharded.optimizers, CheckpointConfig(keep_last=1), run, print
    )
    saver.save(TrainState(step=num_steps))
    return valid_logits(config, data, world, sharded)


def load_small(rank: int, world_size: int, store: str, folder: str) -> np.ndarray:
    """Loads what `save_small` saved into a model with other initial weights; the valid logits on rank 0."""
    config = small_config(store, ["train.seed=99", "sharding.row_wise_min_rows=1000000"])
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    load_initial_weights(folder, data, sharded, MetricLogger(None, 0))
    return valid_logits(config, data, world, sharded)


def valid_logits(config: RunConfig, data: RunData, world: World, sharded: Sharded) -> np.ndarray:
    """Logits of the valid split in the store's order, [N, T]; empty on other ranks than 0."""
    predictions = evaluation(config, data, world, "valid").predictions(sharded.model, sharded.pipeline)
    return np.empty((0, 0)) if predictions is None else predictions.logits_NT


def initial_weights(store: str, overrides: list[str]) -> dict[str, np.ndarray]:
    """All weights of a new model on one rank, under the names of the unsharded model."""
    config = small_config(store, overrides)
    sharded = shard_model(config, open_data(config), world_of(0, 1))
    return dense_of(sharded) | {name: values for name, (_, _, values) in tables_of(sharded).items()}


def unsharded_losses(store: str, overrides: list[str], weights: dict[str, Any], num_steps: int) -> np.ndarray:
    """Losses of an unsharded model with the given initial weights, trained by hand.

    Tables are plain tensors, the update is row-wise Adagrad written out, the dense optimizer is torch's.
    """
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(0, 1)
    model = meta_model(config, data).to_empty(device="cpu")
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    tables = {n: p for n, p in model.named_parameters() if n in state and n.startswith(("bags.", "events."))}
    dense = [p for n, p in model.named_parameters() if n not in tables]
    optimizer = torch.optim.Adam(dense, lr=config.train.dense.lr)
    momentum = {name: torch.zeros(len(table)) for name, table in tables.items()}
    losses = []
    for batch in train_loader(config, data, world).batches(0, num_steps):
        for parameter in model.parameters():
            parameter.grad = None
        loss, scores = model(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dense, config.train.dense.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None, name
                momentum[name] += table.grad.pow(2).mean(1)
                table -= config.train.sparse.lr * table.grad / (momentum[name].sqrt() + 1e-8)[:, None]
        losses.append(scores.loss_T.numpy())
    return np.stack(losses)
