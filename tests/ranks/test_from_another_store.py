"""Weights move between stores by what ids mean, or not at all; sizes that happen to agree mean nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharded_runs
from infnet_rec import cli
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.data.ingest.recipe import Recipe, load_recipe
from infnet_rec.data.run_data import open_data
from infnet_rec.data.store import Store
from infnet_rec.data.vocabulary_match import NOWHERE, feature_of_table, match_rows, table_meanings
from infnet_rec.errors import UserError
from rank_pair import RankPair
from sharded_runs import CONFIG, small_config

RECIPE = Path(__file__).parents[2] / "configs" / "datasets" / "kuairand_pure.toml"


def store_of(raw: Path, out: Path, **changes: Any) -> Path:
    """A store of the same rows under a recipe with other values."""
    recipe = load_recipe(RECIPE).model_dump(mode="json")
    recipe["splits"] |= changes.pop("splits", {})
    for feature in recipe["features"]:
        feature |= changes.get(feature["columns"][0], {})
    build_store(
        validate_model(Recipe, recipe, "test"), raw, out, BuildProgress(lambda *_: None, lambda _: None), num_threads=1
    )
    return out


@pytest.fixture(scope="module")
def later(small_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same log, trained on from a later day: other counts, so other ids of the same values."""
    return store_of(small_raw, tmp_path_factory.mktemp("later") / "store", splits={"train": "2022-04-20T00:00:00"})


def meaning_of_rows(store: Store, feature: str) -> dict[Any, int]:
    """What each id stands for, by a plain loop."""
    rows: dict[Any, int] = {"never seen": 0, "null": 1}
    for k, row in enumerate(store.vocabulary(feature).to_pylist()):
        rows[row["value"] if "value" in row else (row["low"], row["high"])] = k + 2
    return rows


def test_rows_are_matched_by_what_they_mean(small_store: Path, later: Path) -> None:
    data = open_data(small_config(str(later), []))
    there, here = Store(small_store), data.store
    differ = [t for t, m in table_meanings(here, data.schema).items() if table_meanings(there, data.schema)[t] != m]
    found = match_rows(there, here, data.schema, differ)
    assert len(found) > 10
    for table, feature in feature_of_table(data.schema).items():
        was, now = meaning_of_rows(there, feature), meaning_of_rows(here, feature)
        expected = [was.get(value, NOWHERE) for value in now]
        got = found[table].row_R if table in found else np.arange(len(expected))
        assert got.tolist() == expected, table
    assert sum(rows.num_new for rows in found.values()) > 0
    assert match_rows(there, there, data.schema, differ) == {}


def load_by_meaning(rank: int, world_size: int, store: str, folder: str) -> dict[str, Any]:
    """What a rank's tables are before and after they took the weights of another store's run."""
    from infnet_rec.trainer.build import shard_model
    from infnet_rec.trainer.continue_run import load_initial_weights
    from infnet_rec.trainer.metric_logger import MetricLogger

    config = small_config(store, ["train.seed=99"])
    data, world = open_data(config), sharded_runs.world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    before = sharded_runs.tables_of(sharded)
    load_initial_weights(folder, data, sharded, MetricLogger(None, 0))
    return {"before": before, "after": sharded_runs.tables_of(sharded)}


def save_tables(rank: int, world_size: int, store: str, folder: str) -> dict[str, Any]:
    """A rank's tables as they were saved."""
    from infnet_rec.checkpoint.saver import CheckpointSaver
    from infnet_rec.checkpoint.store import CheckpointStore
    from infnet_rec.checkpoint.train_state import TrainState
    from infnet_rec.config.checkpoint import CheckpointConfig
    from infnet_rec.trainer.build import shard_model

    config = small_config(store, ["sharding.row_wise_min_rows=50"])
    data, world = open_data(config), sharded_runs.world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    run = {
        "config": config.model_dump(mode="json"),
        "store": data.store.fingerprint,
        "world_size": world_size,
        "plan": {},
    }
    saver = CheckpointSaver(
        CheckpointStore(folder), sharded.model, sharded.optimizers, CheckpointConfig(keep_last=1), run, print
    )
    saver.save(TrainState(step=1))
    return sharded_runs.tables_of(sharded)


def whole_tables(parts: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Tables put together from all ranks' shards."""
    tables: dict[str, np.ndarray] = {}
    for part in parts:
        for parameter, (row, column, values) in part.items():
            name = parameter.removesuffix(".weight").rpartition(".")[2]
            end_row, end_column = row + values.shape[0], column + values.shape[1]
            old = tables.get(name, np.zeros((0, 0)))
            new = np.full((max(old.shape[0], end_row), max(old.shape[1], end_column)), np.nan, np.float32)
            new[: old.shape[0], : old.shape[1]] = old
            new[row:end_row, column:end_column] = values
            tables[name] = new
    return tables


def test_two_ranks_take_each_value_s_own_weights(
    ranks: RankPair, small_store: Path, later: Path, tmp_path: Path
) -> None:
    saved = whole_tables(ranks(save_tables, str(small_store), str(tmp_path / "best")))
    loaded = ranks(load_by_meaning, str(later), str(tmp_path / "best"))
    before, after = (whole_tables([part[when] for part in loaded]) for when in ("before", "after"))
    data, there = open_data(small_config(str(later), [])), Store(small_store)
    num_fresh = 0
    for table, feature in feature_of_table(data.schema).items():
        was, now = meaning_of_rows(there, feature), meaning_of_rows(data.store, feature)
        for value, row in now.items():
            expected = saved[table][was[value]] if value in was else before[table][row]
            num_fresh += value not in was
            np.testing.assert_array_equal(after[table][row], expected, err_msg=f"{table} {value}")
    assert num_fresh > 0


@pytest.mark.slow
def test_a_hashed_table_must_have_its_buckets_and_an_encoding_must_stay(small_raw: Path, tmp_path: Path) -> None:
    hashed = {"encoding": "hash", "buckets": 50, "null_values": []}
    one = Store(store_of(small_raw, tmp_path / "one", tab=hashed))
    two = Store(store_of(small_raw, tmp_path / "two", tab=hashed | {"buckets": 60}))
    three = Store(store_of(small_raw, tmp_path / "three"))
    with pytest.raises(UserError, match=r"'tab': is hashed into 60 buckets in store .* and into 50 in"):
        match_rows(one, two, two.schema, ["tab"])
    with pytest.raises(UserError, match=r"'tab': is encoded by 'index' in store .* and by 'hash' in"):
        match_rows(one, three, three.schema, ["tab"])
    assert match_rows(one, Store(tmp_path / "one"), one.schema, ["tab"]) == {}


def run_cli(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """A command line in this process, and how it ends."""
    monkeypatch.setattr("sys.argv", ["infnet-rec", *words])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.slow
def test_train_and_eval_tell_what_moved_or_refuse(
    small_store: Path, later: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line: matched and counted, scored, and refused once the first store is gone."""
    first, copy = tmp_path / "first", tmp_path / "store"
    shutil.copytree(small_store, copy)
    assert (
        run_cli(monkeypatch, "train", str(CONFIG), "--set", f"data.store={str(copy)!r}", "--run-dir", str(first)) == 0
    )
    capfd.readouterr()
    words = ["train", str(CONFIG), "--set", f"data.store={str(later)!r}", "--from", str(first)]
    assert run_cli(monkeypatch, *words, "--run-dir", str(tmp_path / "second")) == 0
    err = capfd.readouterr().err
    assert "rows were matched by what their ids mean" in err and "start afresh" in err

    same = tmp_path / "same"
    shutil.copytree(copy, same)
    assert run_cli(monkeypatch, "eval", str(first), "--store", str(same), "--json") == 0
    same_scores = json.loads(capfd.readouterr().out)["metrics"]
    assert run_cli(monkeypatch, "eval", str(first), "--store", str(later), "--json") == 0
    shown = capfd.readouterr()
    assert "are scored as never seen" in shown.err
    for task, metrics in json.loads(shown.out)["metrics"].items():
        assert metrics["num_examples"] == same_scores[task]["num_examples"]

    shutil.rmtree(copy)
    assert run_cli(monkeypatch, *words, "--run-dir", str(tmp_path / "third")) == 2
    err = capfd.readouterr().err
    assert "may mean something else in this run's store" in err and "holds no manifest.json" in err
    assert "Traceback" not in err
    assert run_cli(monkeypatch, "eval", str(first), "--store", str(later)) == 2
