"""What the loop and its parts do with the settings that a person gives them."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import sharded_runs
from infnet_rec.checkpoint.saver import CheckpointSaver
from infnet_rec.checkpoint.store import CheckpointStore
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.train import DenseConfig, ScheduleConfig
from infnet_rec.data.run_data import open_data
from infnet_rec.data.sampler import TimeOrder
from infnet_rec.data.store import as_numpy, read_arrow, write_arrow
from infnet_rec.distributed.optimizers import count_dense
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import Failure, UserError
from infnet_rec.metrics import TaskMetrics
from infnet_rec.trainer.build import shard_model, train_loader, train_order
from infnet_rec.trainer.loop import LearningRates, RunLength, Schedule, Trainer
from infnet_rec.trainer.metric_logger import MetricLogger
from infnet_rec.trainer.nonfinite import NonFiniteMonitor


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(sharded_runs.world_of(0, 1)):
        yield


@dataclass
class ScriptedValid:
    """Gives AUCs from a list, and remembers one weight of the model at each evaluation."""

    aucs: list[float]
    sharded: Any
    seen: list[np.ndarray] = field(default_factory=list)

    def metrics(self, model: object, pipeline: object) -> dict[str, TaskMetrics]:
        """The next AUC."""
        self.seen.append(sharded_runs.dense_of(self.sharded)["tower.heads.towers.0.layers.0.weight"])
        auc = self.aucs[len(self.seen) - 1]
        return {"click": TaskMetrics(10, 5, auc, auc, auc, 2, 0.5, 1.0, 1.0)}


def training(
    store: Path, folder: Path, pace: RunLength, aucs: list[float], lr: float = 0.01
) -> tuple[Trainer, list[int]]:
    """A real model and loader with a scripted validation; the list collects the epochs that renewed the tables."""
    config = sharded_runs.small_config(str(store), [])
    data, world = open_data(config), sharded_runs.world_of(0, 1)
    sharded = shard_model(config, data, world)
    renewed: list[int] = []
    constant = Schedule(DenseConfig(lr=lr), pace.num_steps)
    built = Trainer(
        model=sharded.model,
        pipeline=sharded.pipeline,
        optimizers=sharded.optimizers,
        loader=train_loader(config, data, world),
        valid=ScriptedValid(aucs, sharded),
        task_names=data.task_names,
        rates=LearningRates(constant, constant),
        pace=pace,
        report=MetricLogger(None, pace.num_steps),
        guard=NonFiniteMonitor(
            data.task_names, 0, 1, "stop", 0, lambda bad: "kept", str, SimpleNamespace(wanted=False)
        ),
        saver=CheckpointSaver(
            CheckpointStore(folder),
            sharded.model,
            sharded.optimizers,
            CheckpointConfig(),
            {"plan": {}, "world_size": 1},
            print,
        ),
        renew_tables=lambda *, epoch: renewed.append(epoch),
    )
    return built, renewed


def test_training_stops_early_and_keeps_the_best_weights(alone: None, small_store: Path, tmp_path: Path) -> None:
    """Two evaluations without a better AUC end it; the model then holds the weights of the best one."""
    pace = RunLength(20, 50, 2, 10, patience=2, global_batch_size=64, fresh_tables=False)
    built, _ = training(small_store, tmp_path, pace, [0.6, 0.7, 0.65, 0.66, 0.9])
    trained = built.run(TrainState())
    assert (trained.steps_done, trained.best_step) == (8, 4)
    assert trained.best_valid["click"].auc == 0.7
    held = sharded_runs.dense_of(built.valid.sharded)["tower.heads.towers.0.layers.0.weight"]
    assert np.array_equal(held, built.valid.seen[1]) and not np.array_equal(held, built.valid.seen[3])


def test_an_evaluation_without_an_answer_is_no_best(alone: None, small_store: Path, tmp_path: Path) -> None:
    """NaN first: any later answer is better."""
    pace = RunLength(4, 50, 2, 10, patience=0, global_batch_size=64, fresh_tables=False)
    trained = training(small_store, tmp_path, pace, [float("nan"), 0.5])[0].run(TrainState())
    assert trained.best_step == 4


def test_every_epoch_but_the_first_begins_with_fresh_tables(alone: None, small_store: Path, tmp_path: Path) -> None:
    """Once each, where the epoch begins, and only if asked for."""
    for fresh, expected in ((True, [1, 2]), (False, [])):
        pace = RunLength(8, 3, 8, 10, patience=0, global_batch_size=64, fresh_tables=fresh)
        built, renewed = training(small_store, tmp_path, pace, [0.5])
        built.run(TrainState())
        assert renewed == expected


def test_a_loss_that_is_not_finite_ends_the_run(alone: None, small_store: Path, tmp_path: Path) -> None:
    """One line that says what to do."""
    pace = RunLength(20, 50, 20, 5, patience=0, global_batch_size=64, fresh_tables=False)
    with pytest.raises(Failure, match="lower the learning rates"):
        training(small_store, tmp_path, pace, [0.5], lr=1e30)[0].run(TrainState())


def test_rates_reach_both_optimizers(alone: None, small_store: Path) -> None:
    """At rate 0 a step changes nothing; at the configured rate it changes tables and dense part."""
    config = sharded_runs.small_config(str(small_store), [])
    data, world = open_data(config), sharded_runs.world_of(0, 1)
    sharded = shard_model(config, data, world)
    batches = train_loader(config, data, world).batches(0, 2)
    states = [(sharded_runs.tables_of(sharded), sharded_runs.dense_of(sharded))]
    for sparse, dense in ((0.0, 0.0), (0.1, 0.1)):
        sharded.optimizers.set_lr(sparse=sparse, dense=dense)
        sharded.pipeline.progress(batches)
        states.append((sharded_runs.tables_of(sharded), sharded_runs.dense_of(sharded)))
    for kind in ("tables", "dense"):
        start, still, moved = (flat(state[kind == "dense"]) for state in states)
        assert np.array_equal(start, still) and not np.array_equal(still, moved)


def flat(state: dict[str, Any]) -> np.ndarray:
    """All values of `tables_of` or `dense_of` in one array."""
    return np.concatenate([(v[-1] if isinstance(v, tuple) else v).reshape(-1) for v in state.values()])


def test_the_dense_gradient_is_clipped(alone: None, small_store: Path) -> None:
    """Its norm after a step is the limit, or what it was if that is smaller."""
    norms = {}
    for limit in (1e-4, 1e4):
        config = sharded_runs.small_config(str(small_store), [f"train.dense.max_grad_norm={limit}"])
        data, world = open_data(config), sharded_runs.world_of(0, 1)
        sharded = shard_model(config, data, world)
        sharded_runs.run_steps(config, data, world, sharded, 1)
        gradients = [p.grad for p in sharded.model.parameters() if p.grad is not None]
        assert sum(g.numel() for g in gradients) == count_dense(sharded.model)
        norms[limit] = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item()
    assert norms[1e-4] == pytest.approx(1e-4, rel=1e-3)
    assert 1e-3 < norms[1e4] < 1e4


def test_settings_arrive_where_they_act(alone: None, small_store: Path) -> None:
    """Time order, task weights, schedules, dropout seeds."""
    overrides = ["train.order=time", "train.loss.task_weights.like=5", "model.dropout=0.5"]
    overrides += ["train.dense.schedule.kind=cosine", "train.dense.schedule.warmup_steps=3"]
    config = sharded_runs.small_config(str(small_store), overrides)
    data, world = open_data(config), sharded_runs.world_of(0, 1)
    order = train_order(config, data)
    assert isinstance(order, TimeOrder)
    times = data.store.examples("train").time_N
    first = times[order.global_batch(0)]
    assert first.max() <= np.sort(times)[len(first) - 1]
    assert config.train.dense.schedule == ScheduleConfig(kind="cosine", warmup_steps=3)
    assert config.train.sparse.schedule == ScheduleConfig()
    sharded = shard_model(config, data, world)
    batch = next(iter(train_loader(config, data, world).batches(0, 1)))
    loss, scores = sharded.model.train()(batch)
    assert loss.item() == pytest.approx((scores.loss_T * torch.tensor([1.0, 5.0, 1.0])).sum().item(), rel=1e-5)
    again = [shard_model(config, data, world).model.train()(batch)[0].item() for _ in range(2)]
    assert again[0] == again[1]


def test_an_id_outside_its_table_is_a_fault_that_names_the_feature(small_store: Path, tmp_path: Path) -> None:
    """A sharded lookup would take it for row 0 without a word."""
    store = tmp_path / "store"
    shutil.copytree(small_store, store)
    batch = read_arrow(store / "users.arrow")
    ids = as_numpy(batch, "ids").copy()
    ids[3, 2] = 77
    columns: dict[str, np.ndarray | pa.Array] = {
        "key": batch.column("key"),
        "ids": ids,
        "starts": as_numpy(batch, "starts"),
    }
    write_arrow(store / "users.arrow", columns)
    config = sharded_runs.small_config(str(store), [])
    with pytest.raises(
        UserError, match=r"is_live_streamer: has ids .* to 77, but table 'is_live_streamer' has rows 0 to"
    ):
        open_data(config)
