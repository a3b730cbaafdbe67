"""Sharding and the number of ranks change nothing but speed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sharded_runs
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed import parallelize
from infnet_rec.distributed.parallelize import TableShard
from infnet_rec.distributed.process_group import process_group
from infnet_rec.trainer.build import shard_model
from rank_pair import RankPair

NUM_STEPS = 12
GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(sharded_runs.world_of(0, 1)):
        yield


@pytest.fixture(scope="module")
def one_rank(alone: None, small_store: Path) -> dict[str, Any]:
    """The run on one rank."""
    return sharded_runs.train_steps(0, 1, str(small_store), [], NUM_STEPS)


@pytest.fixture(scope="module")
def two_ranks(ranks: RankPair, small_store: Path) -> list[dict[str, Any]]:
    """The same run on two."""
    return ranks(sharded_runs.train_steps, str(small_store), [], NUM_STEPS)


def test_two_ranks_lose_what_one_loses(one_rank: dict[str, Any], two_ranks: list[dict[str, Any]]) -> None:
    """The same global batches give the same losses, so data, sharding and gradients agree."""
    assert np.array_equal(two_ranks[0]["losses"], two_ranks[1]["losses"])
    np.testing.assert_allclose(two_ranks[0]["losses"], one_rank["losses"], atol=1e-5, rtol=0)
    assert one_rank["losses"][-1, 0] < one_rank["losses"][0, 0]


@pytest.mark.parametrize("num_threads", [2, 5])
def test_tables_are_the_same_however_many_threads_draw_them(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any part of a table, too, is the same part of the same table."""
    monkeypatch.setattr(parallelize, "INIT_CHUNK_ROWS", 50)
    drawn = {}
    for threads in (1, num_threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        whole, part = torch.empty(333, 8), torch.empty(170, 4)
        parallelize._fill(TableShard("a", whole, 0, 0, 333, 8), key=7, std=0.5)
        parallelize._fill(TableShard("a", part, 120, 4, 333, 8), key=7, std=0.5)
        assert torch.equal(part, whole[120:290, 4:])
        drawn[threads] = whole
    assert torch.equal(drawn[1], drawn[num_threads])
    assert not drawn[1][0].any() and drawn[1][1:].std().item() == pytest.approx(0.5, rel=0.1)


def test_what_goes_wrong_while_a_thread_draws_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallelize, "INIT_CHUNK_ROWS", 50)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(RuntimeError):
        parallelize._fill(TableShard("a", torch.empty(333, 8, 2), 0, 0, 333, 8), key=7, std=0.5)


def test_two_ranks_spread_tables_both_ways(two_ranks: list[dict[str, Any]]) -> None:
    """The comparison above covers tables spread by row and tables that live on one rank."""
    assert set(two_ranks[0]["plan"].values()) == {"row_wise", "table_wise"}
    rows = [len(rank["tables"]["events.embeddings.video_id.weight"][2]) for rank in two_ranks]
    assert min(rows) > 0, rows


def test_two_ranks_end_with_the_weights_of_one(one_rank: dict[str, Any], two_ranks: list[dict[str, Any]]) -> None:
    """Tables put together from both ranks, and the dense parameters of each, are those of one rank."""
    for name, (_, _, whole) in one_rank["tables"].items():
        together = np.full_like(whole, np.nan)
        for rank in two_ranks:
            if name in rank["tables"]:
                row, column, part = rank["tables"][name]
                together[row : row + part.shape[0], column : column + part.shape[1]] = part
        np.testing.assert_allclose(together, whole, atol=2e-5, rtol=0, err_msg=name)
    for rank in two_ranks:
        for name, value in one_rank["dense"].items():
            np.testing.assert_allclose(rank["dense"][name], value, atol=2e-5, rtol=0, err_msg=name)


def test_two_ranks_evaluate_to_the_metrics_of_one(one_rank: dict[str, Any], two_ranks: list[dict[str, Any]]) -> None:
    """Every example is scored once, on whatever rank, and padding is not."""
    assert two_ranks[0]["valid"] == two_ranks[1]["valid"]
    for task, metrics in one_rank["valid"].items():
        for name in ("num_examples", "num_positives", "num_users"):
            assert two_ranks[0]["valid"][task][name] == metrics[name]
        assert two_ranks[0]["valid"][task]["log_loss"] == pytest.approx(metrics["log_loss"], abs=1e-5)
        assert two_ranks[0]["valid"][task]["auc"] == pytest.approx(metrics["auc"], abs=2e-3)


@pytest.mark.parametrize("overrides", [[], ["train.loss.embedding_l2=0.1"]], ids=["plain", "l2"])
def test_sharded_training_is_plain_training(alone: None, small_store: Path, overrides: list[str]) -> None:
    """TorchRec's lookup, fused row-wise Adagrad and pipeline do what a hand-written loop does."""
    initial = sharded_runs.initial_weights(str(small_store), overrides)
    plain = sharded_runs.unsharded_losses(str(small_store), overrides, initial, NUM_STEPS)
    sharded = sharded_runs.train_steps(0, 1, str(small_store), overrides, NUM_STEPS)["losses"]
    np.testing.assert_allclose(sharded[0], plain[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(sharded, plain, atol=1e-5, rtol=0)


def test_fresh_tables_are_new_and_forget_their_optimizer(alone: None, small_store: Path) -> None:
    """A new epoch's tables are other draws, the same for the same epoch, and their first steps are as long as ever."""
    config = sharded_runs.small_config(str(small_store), [])
    data, world = open_data(config), sharded_runs.world_of(0, 1)
    sharded = shard_model(config, data, world)
    first = sharded_runs.tables_of(sharded)
    sharded_runs.run_steps(config, data, world, sharded, 3)
    sharded.renew_tables(epoch=1)
    renewed = sharded_runs.tables_of(sharded)
    sharded.renew_tables(epoch=1)
    again = sharded_runs.tables_of(sharded)
    for name, (_, _, values) in first.items():
        assert np.array_equal(renewed[name][2], again[name][2])
        assert not np.array_equal(renewed[name][2][1:], values[1:])
        assert not renewed[name][2][0].any()
    sharded_runs.run_steps(config, data, world, sharded, 1)
    moved = [np.abs(v - again[n][2]).max() for n, (_, _, v) in sharded_runs.tables_of(sharded).items()]
    # The first step of row-wise Adagrad is lr * g / rms(g), between lr and lr * sqrt(width) in its largest value.
    assert max(moved) > 0.9 * config.train.sparse.lr


def test_weights_load_on_another_number_of_ranks_and_plan(
    ranks: RankPair, alone: None, small_store: Path, tmp_path: Path
) -> None:
    """Saved by two ranks with tables spread by row, read by one rank with whole tables."""
    saved, _ = ranks(sharded_runs.save_small, str(small_store), str(tmp_path / "best"), 4)
    loaded = sharded_runs.load_small(0, 1, str(small_store), str(tmp_path / "best"))
    np.testing.assert_allclose(loaded, saved, atol=1e-6, rtol=0)


def test_golden_losses(one_rank: dict[str, Any]) -> None:
    """A change that means to change no number changes none; INFNET_REC_WRITE_GOLDEN=1 writes the file anew."""
    if os.environ.get("INFNET_REC_WRITE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(
            json.dumps([[round(float(x), 7) for x in row] for row in one_rank["losses"]], indent=1) + "\n"
        )
    np.testing.assert_allclose(one_rank["losses"], json.loads(GOLDEN.read_text()), atol=2e-5, rtol=0)
