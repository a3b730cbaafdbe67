"""Training without sharding, written out: what every way of sharding must equal.

Top-level functions, so that ranks can run those that take a rank. Tables are plain tensors, their update is a formula,
the dense optimizer is torch's.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

import sharded_runs
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.optimizers import TABLES
from infnet_rec.distributed.parallelize import local_shards
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import Sharded, shard_model, train_loader
from sharded_runs import dense_of, run_steps, small_config, world_of

EPS = 1e-8

# Of a table or its optimizer: name, first row, first column, values.
Part = tuple[str, int, int, np.ndarray]


def train_unsharded(store: str, overrides: list[str], weights: dict[str, np.ndarray], num_steps: int) -> dict[str, Any]:
    """Trains a model with the given initial weights in this process.

    Returns:
        `losses` [num_steps, T], `tables`, `state` of their optimizer, `dense` and `moments` of Adam, by name.
    """
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(0, 1)
    model = meta_model(config, data).to_empty(device="cpu")
    given = {name: torch.from_numpy(value) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    tables = {n: p for n, p in model.named_parameters() if n.startswith(TABLES)}
    dense = {n: p for n, p in model.named_parameters() if n not in tables}
    optimizer = torch.optim.Adam(dense.values(), lr=config.train.dense.lr)
    state = {name: _no_state(config.train.sparse.optimizer, table) for name, table in tables.items()}
    losses = []
    for batch in train_loader(config, data, world).batches(0, num_steps):
        model.zero_grad(set_to_none=True)
        loss, scores = model(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(dense.values()), config.train.dense.max_grad_norm)
        optimizer.step()
        for name, table in tables.items():
            assert table.grad is not None, name
            _update(config.train.sparse.optimizer, table, table.grad, state[name], config.train.sparse.lr)
        losses.append(scores.loss_T.numpy())
    return {
        "losses": np.stack(losses),
        "tables": _numpy(tables),
        "state": _numpy(state) if config.train.sparse.optimizer != "sgd" else {},
        "dense": _numpy(dense),
        "moments": {name: optimizer.state[p]["exp_avg_sq"].numpy().copy() for name, p in dense.items()},
    }


def _no_state(optimizer: str, table: Tensor) -> Tensor:
    return torch.zeros(len(table)) if optimizer == "rowwise_adagrad" else torch.zeros_like(table)


@torch.no_grad()
def _update(optimizer: str, table: Tensor, grad: Tensor, state: Tensor, lr: float) -> None:
    if optimizer == "sgd":
        table -= lr * grad
    elif optimizer == "adagrad":
        state += grad.pow(2)
        table -= lr * grad / (state.sqrt() + EPS)
    else:
        assert optimizer == "rowwise_adagrad"
        state += grad.pow(2).mean(1)
        table -= lr * grad / (state.sqrt() + EPS)[:, None]


def _numpy(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in tensors.items()}


def train_sharded(rank: int, world_size: int, store: str, overrides: list[str], num_steps: int) -> dict[str, Any]:
    """Trains the same by the real path.

    Returns:
        As `train_unsharded`, but `tables` and `state` are lists of this rank's parts; and the plan's `shardings`.
    """
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    losses = run_steps(config, data, world, sharded, num_steps)
    moments = sharded.optimizers.combined.state_dict()["state"]
    return {
        "losses": losses,
        "tables": [(s.name, s.row, s.column, s.values.detach().numpy().copy()) for s in local_shards(sharded.model)],
        "state": sparse_state(sharded),
        "dense": {name: value for name, value in dense_of(sharded).items() if not name.startswith(TABLES)},
        "moments": {
            name.removeprefix("dense."): value["exp_avg_sq"].numpy().copy()
            for name, value in moments.items()
            if name.startswith("dense.")
        },
        "shardings": {table.name: table.sharding for table in sharded.plan.tables},
    }


def sparse_state(sharded: Sharded) -> list[Part]:
    """This rank's parts of the state of the tables' optimizer."""
    found: list[Part] = []
    for name, states in sharded.optimizers.combined.state_dict()["state"].items():
        group, _, parameter = name.partition(".")
        for key, value in states.items():
            if group == "copied" and key == "sum":
                found.append((parameter, 0, 0, value.numpy().copy()))
            elif group == "sparse":
                assert isinstance(value, ShardedTensor), (name, key)
                for shard in value.local_shards():
                    row, column = [*shard.metadata.shard_offsets, 0][:2]
                    found.append((parameter, row, column, shard.tensor.numpy().copy()))
    return found


def together(parts: list[Part], whole: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parts of all ranks put together, in the shapes of `whole`; a value that no rank has stays nan."""
    joined = {name: np.full_like(value, np.nan) for name, value in whole.items()}
    for name, row, column, values in parts:
        place = joined[name]
        values = values.reshape(len(values)) if place.ndim == 1 else values
        here = (slice(row, row + len(values)), slice(column, column + values.shape[-1]))[: place.ndim]
        known = ~np.isnan(place[here])
        # A copied table comes from both ranks, which must agree.
        np.testing.assert_allclose(place[here][known], values[known], atol=1e-6, rtol=0, err_msg=name)
        place[here] = values
    return joined


def initial_weights(store: str, overrides: list[str]) -> dict[str, np.ndarray]:
    """All weights that a run with these settings starts from, under the names of the unsharded model."""
    return sharded_runs.initial_weights(store, overrides)


class Empty(NamedTuple):
    """What a rank's batch lacks: all events, and ids of these tables."""

    no_events: bool
    unread: set[str]


def empty_inputs(store: str, overrides: list[str], rank: int, num_steps: int) -> list[Empty]:
    """What each of a rank's batches lacks, of two ranks."""
    config = small_config(store, overrides)
    data = open_data(config)
    found = []
    for batch in train_loader(config, data, world_of(rank, 2)).batches(0, num_steps):
        ids = dict(zip(batch.sequences.keys(), batch.sequences.length_per_key(), strict=True))
        found.append(Empty(not batch.lengths_FB.any(), {table for table, number in ids.items() if not number}))
    return found


def renewed(rank: int, world_size: int, store: str, overrides: list[str]) -> dict[str, Any]:
    """Copied tables before and after they are renewed, and what is left of their optimizer's state."""
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    copied = {f".{table.name}." for table in sharded.plan.tables if table.sharding == "data_parallel"}

    def tables() -> dict[str, np.ndarray]:
        shards = local_shards(sharded.model)
        return {s.name: s.values.detach().numpy().copy() for s in shards if any(c in s.name for c in copied)}

    run_steps(config, data, world, sharded, 3)
    before, moved = tables(), sum(np.abs(part[3]).sum() for part in sparse_state(sharded))
    assert moved > 0
    sharded.renew_tables(epoch=1)
    left = sum(np.abs(part[3]).sum() for part in sparse_state(sharded))
    return {"before": before, "tables": tables(), "state": float(left)}
