"""A run that is stopped and goes on is the run that never stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resumed_runs
from infnet_rec.shard.world import joined
from rank_pair import RankPair
from sharded_runs import world_of

# 12 steps in two epochs of 6: evaluations at 5, 10 and 12, progress lines at 3, 6, 9 and 12.
SHORT = [
    "train.global_batch_size=512",
    "train.num_epochs=2",
    "train.eval_every_steps=5",
    "train.log_every_steps=3",
    "train.eval_batch_size=512",
    "model.dropout=0.2",
    "train.dense.optimizer=adamw",
    "train.dense.weight_decay=0.01",
    "train.dense.schedule.kind=cosine",
    "checkpoint.every_steps=1",
    "checkpoint.keep_last=3",
]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with joined(world_of(0, 1)):
        yield


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for kind in ("tables", "dense", "optim"):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            for a, b in zip(found[kind][name], value, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
    assert found["lines"] == expected["lines"]
    assert found["trained"] == expected["trained"]


@pytest.mark.parametrize("cut_at", [1, 4, 5, 6, 11, 12])
def test_alone(alone: None, small_store: Path, tmp_path: Path, cut_at: int) -> None:
    whole = resumed_runs.train_run(0, 1, str(small_store), str(tmp_path / "whole"), SHORT)
    resumed_runs.train_run(0, 1, str(small_store), str(tmp_path / "cut"), SHORT, cut_at)
    on = resumed_runs.train_run(0, 1, str(small_store), str(tmp_path / "cut"), SHORT)
    assert on["started_at"] == cut_at
    assert_same(on, whole)


def test_two(ranks: RankPair, small_store: Path, tmp_path: Path) -> None:
    whole = ranks(resumed_runs.train_run, str(small_store), str(tmp_path / "whole"), SHORT)
    ranks(resumed_runs.train_run, str(small_store), str(tmp_path / "cut"), SHORT, 4)
    on = ranks(resumed_runs.train_run, str(small_store), str(tmp_path / "cut"), SHORT)
    for a, b in zip(on, whole, strict=True):
        assert_same(a, b)
