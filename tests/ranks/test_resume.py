"""A run that is stopped and goes on is the run that never stopped."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

import resumed_runs
from infnet_rec.checkpoint.dcp_files import Snapshot
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.parallelize import local_shards
from infnet_rec.distributed.process_group import process_group
from infnet_rec.trainer.build import shard_model
from rank_pair import RankPair
from resumed_runs import cut_off
from sharded_runs import small_config, tables_of, world_of

# 14 steps in two epochs of 7: evaluations at 5, 10 and 14, progress lines at 3, 6, 9 and 12, new tables at 7.
RUN = [
    "train.global_batch_size=500",
    "train.num_epochs=2",
    "train.eval_every_steps=5",
    "train.log_every_steps=3",
    "train.eval_batch_size=512",
    "train.dense.optimizer=adamw",
    "train.dense.weight_decay=0.01",
    "train.dense.schedule.kind=cosine",
    "train.sparse.each_epoch=fresh",
    "checkpoint.every_steps=0",
    "checkpoint.keep_last=100",
]
EVERY_STEP, EVERY_OTHER, EVERY_THIRD = (f"checkpoint.every_steps={n}" for n in (1, 2, 3))
DROPOUT = [*RUN, "model.dropout=0.2"]
NUM_STEPS = 14
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with process_group(world_of(0, 1)):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def one(alone: None, small_store: Path, folder: Path) -> Results:
    return [resumed_runs.train_run(0, 1, str(small_store), str(folder / "one"), [*DROPOUT, EVERY_STEP])]


@pytest.fixture(scope="module")
def two(ranks: RankPair, small_store: Path, folder: Path) -> Results:
    return ranks(
        resumed_runs.train_run, str(small_store), str(folder / "two"), [*DROPOUT, EVERY_OTHER, "checkpoint.mode=async"]
    )


@pytest.fixture(scope="module")
def two_without_dropout(ranks: RankPair, small_store: Path, folder: Path) -> Results:
    return ranks(resumed_runs.train_run, str(small_store), str(folder / "plain"), [*RUN, EVERY_OTHER])


def assert_same(found: dict[str, Any], expected: dict[str, Any], cut_at: int) -> None:
    """To the bit: weights, optimizer state, log, what was best; and each example was read where it should be.

    The run that goes on is saved at evaluations only, so this also says that saving changes nothing.
    """
    assert found["started_at"] == cut_at
    for kind in ("tables", "dense", "optim"):
        assert found[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            for a, b in zip(found[kind][name], value, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
    assert found["lines"] == expected["lines"]
    assert found["trained"] == expected["trained"]
    assert found["examples"] == expected["examples"][cut_at:]


@pytest.mark.slow(smoke=["4"])
# The first step; inside a log interval; before, at and after an evaluation; where new tables come; the last step.
@pytest.mark.parametrize("cut_at", [1, 4, 5, 6, 7, NUM_STEPS])
def test_one_rank_goes_on_to_the_bit(
    one: Results, small_store: Path, folder: Path, tmp_path: Path, cut_at: int
) -> None:
    run_dir = cut_off(folder / "one", cut_at, tmp_path / "run")
    assert_same(resumed_runs.train_run(0, 1, str(small_store), str(run_dir), DROPOUT), one[0], cut_at)
    dropped = (run_dir / "metrics.dropped.jsonl").read_text().splitlines() if cut_at < NUM_STEPS else []
    assert len(dropped) == sum(line["step"] > cut_at for line in one[0]["lines"])


@pytest.mark.slow(smoke=["4"])
@pytest.mark.parametrize("cut_at", [4, 10])
def test_two_ranks_go_on_to_the_bit(
    two: Results, ranks: RankPair, small_store: Path, folder: Path, tmp_path: Path, cut_at: int
) -> None:
    """What was written while training went on is what stood when it was asked for."""
    run_dir = cut_off(folder / "two", cut_at, tmp_path / "run")
    for found, expected in zip(
        ranks(resumed_runs.train_run, str(small_store), str(run_dir), DROPOUT), two, strict=True
    ):
        assert_same(found, expected, cut_at)


def global_batches(ranks: Results) -> list[list[int]]:
    """The examples of each step, in rank order."""
    return [list(chain(*batch)) for batch in zip(*(rank["examples"] for rank in ranks), strict=True)]


def assert_close(found: Results, expected: Results, cut_at: int) -> None:
    """The same global batches, losses to float tolerance, and the same decisions."""
    assert global_batches(found) == global_batches(expected)[cut_at:]
    lines, others = found[0]["lines"], expected[0]["lines"]
    assert [(r["kind"], r["step"]) for r in lines] == [(r["kind"], r["step"]) for r in others]
    for line, other in zip(lines, others, strict=True):
        if line["kind"] == "train":
            assert line["lr"] == other["lr"]
            assert line["loss"] == pytest.approx(other["loss"], abs=2e-5)
        else:
            for task, metrics in line["metrics"].items():
                assert metrics["log_loss"] == pytest.approx(other["metrics"][task]["log_loss"], abs=2e-5)
    assert found[0]["trained"][0] == expected[0]["trained"][0]


@pytest.mark.slow
def test_one_rank_goes_on_for_two(
    two_without_dropout: Results, alone: None, small_store: Path, folder: Path, tmp_path: Path
) -> None:
    """Tables of two ranks, two of them spread by row, come together; losses in flight are averaged."""
    run_dir = cut_off(folder / "plain", 4, tmp_path / "run")
    found = [resumed_runs.train_run(0, 1, str(small_store), str(run_dir), RUN)]
    assert_close(found, two_without_dropout, 4)
    assert any("written by 2 ranks, now 1" in line for line in found[0]["said"])


@pytest.mark.slow
def test_two_ranks_go_on_for_one_under_another_plan(
    two_without_dropout: Results, alone: None, ranks: RankPair, small_store: Path, tmp_path: Path
) -> None:
    """Whole tables of one rank are spread by row over two."""
    whole = [*RUN, EVERY_OTHER, "sharding.row_wise_min_rows=1000000"]
    resumed_runs.train_run(0, 1, str(small_store), str(tmp_path / "one"), whole)
    run_dir = cut_off(tmp_path / "one", 8, tmp_path / "run")
    found = ranks(resumed_runs.train_run, str(small_store), str(run_dir), RUN)
    assert_close(found, two_without_dropout, 8)
    assert "goes on with another setting: sharding.row_wise_min_rows = 300, was 1000000" in found[0]["said"]


def test_a_snapshot_takes_the_memory_of_the_state_once(alone: None, small_store: Path) -> None:
    """TorchRec's tables are views of one storage; torch's own stager copies all of it for each of them."""
    config = small_config(str(small_store), [])
    sharded = shard_model(config, open_data(config), world_of(0, 1))
    state = {"model": sharded.model.state_dict(), "optim": sharded.optimizers.state_dict()}
    snapshot = Snapshot()
    copies = snapshot.take(state)
    parts = [c.local_shards()[0].tensor if isinstance(c, ShardedTensor) else c for c in copies.values()]
    tables = tables_of(sharded)
    assert sum(p.untyped_storage().nbytes() for p in parts) == sum(p.nbytes for p in parts)
    assert sum(v.nbytes for _, _, v in tables.values()) < sum(p.nbytes for p in parts)
    for name, (_, _, values) in tables.items():
        np.testing.assert_array_equal(copies[f"model.{name}"].local_shards()[0].tensor, values)
    with torch.no_grad():
        for shard in local_shards(sharded.model):
            shard.values.fill_(3.0)
    assert not np.allclose(copies[f"model.{name}"].local_shards()[0].tensor, 3.0)
    again = snapshot.take(state)[f"model.{name}"].local_shards()[0].tensor
    assert np.allclose(again, 3.0) and again.data_ptr() in {p.data_ptr() for p in parts}


@pytest.mark.slow
@pytest.mark.parametrize("cut_at", [9, 10, 12, 15])
def test_early_stopping_goes_on_counting(alone: None, small_store: Path, tmp_path: Path, cut_at: int) -> None:
    """Best at 5, stopped at 15 after two worse; cut before, at or after the first of them or at the end."""
    overrides = [*RUN, "train.num_epochs=3", "train.patience=2", EVERY_THIRD]
    aucs = {5: 0.7, 10: 0.6, 15: 0.65}
    whole = resumed_runs.train_run(0, 1, str(small_store), str(tmp_path / "whole"), overrides, aucs)
    assert whole["trained"][:2] == (15, 5)
    run_dir = cut_off(tmp_path / "whole", cut_at, tmp_path / "run")
    assert_same(resumed_runs.train_run(0, 1, str(small_store), str(run_dir), overrides, aucs), whole, cut_at)
