"""Stores that are drawn straight into their files: they open, check and train like built ones."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import sharded_runs
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.inspect.show import local_time
from infnet_rec.data.store import SPLITS, Store, read_arrow
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.synthetic.store_writer import StoreSize, write_store

ROOT = Path(__file__).parents[3]
LARGE = ROOT / "configs" / "manifests" / "kuairand_27k.json"
SMALL = StoreSize((400, 60, 50), 700, num_users=80, most_table_rows=5000)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("drawn") / "store"
    write_store(LARGE, out, SMALL)
    return Store(out)


def test_it_passes_the_check_and_has_the_parts_of_a_built_one(drawn: Store, small_store: Path) -> None:
    assert check_store(drawn) == []
    built = Store(small_store)
    # What a build tells of raw files, which there are none of.
    missing = built.manifest.keys() - drawn.manifest.keys() - {"flat_features", "joins", "log", "warnings"}
    assert not missing
    for name in ("users.arrow", "items.arrow", "vocab/video_id.arrow", "vocab/hour.arrow", "vocab/counts.arrow"):
        ours, theirs = read_arrow(drawn.path / name).schema, read_arrow(built.path / name).schema
        assert ours.names == theirs.names, name
    for split in SPLITS:
        ours, theirs = drawn.examples(split), built.examples(split)
        assert (ours.context.keys(), ours.labels.keys()) == (theirs.context.keys(), theirs.labels.keys())
        assert ours.time_N.dtype == theirs.time_N.dtype and ours.user_N.dtype == theirs.user_N.dtype


@pytest.mark.parametrize("seed", range(4))
def test_any_size_and_seed_passes(seed: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(seed)
    splits = tuple(int(n) for n in draw.integers(1, 300, 3))
    size = StoreSize(splits, int(draw.integers(1, 400)), int(draw.integers(1, 50)), int(draw.integers(8, 2000)))
    write_store(LARGE, tmp_path / "store", size, seed=seed)
    assert check_store(Store(tmp_path / "store")) == []


def test_a_store_can_be_drawn_after_a_built_one(small_store: Path, tmp_path: Path) -> None:
    write_store(small_store, tmp_path / "store", StoreSize((100, 20, 20), 50, num_users=10))
    assert Store(tmp_path / "store").manifest["schema"] == Store(small_store).manifest["schema"]
    assert check_store(Store(tmp_path / "store")) == []


def test_a_seed_decides_every_byte(drawn: Store, tmp_path: Path) -> None:
    again = write_store(LARGE, tmp_path / "again", SMALL)
    other = write_store(LARGE, tmp_path / "other", SMALL, seed=1)
    assert again["files"] == drawn.manifest["files"] != other["files"]


def test_histories_are_as_long_as_the_manifest_says() -> None:
    """Means of the newest 50, which is what a run reads."""
    known = json.loads(LARGE.read_text())["history_lengths"]
    sizes = StoreSize((3000, 10, 10), 2000, num_users=3000, most_table_rows=3000)
    with tempfile.TemporaryDirectory() as folder:
        found = write_store(LARGE, Path(folder) / "store", sizes)["history_lengths"]
    for name, lengths in found.items():
        expected = known[name]["mean_of_newest"]["50"]
        assert lengths["mean_of_newest"]["50"] == pytest.approx(expected, rel=0.2), name


def test_ids_reach_over_the_whole_of_every_large_table(drawn: Store) -> None:
    rows = {table.name: table.num_rows for table in drawn.schema.tables}
    column = drawn.columns_of("item").index("video_id")
    ids = drawn.item_ids[:, column]
    assert ids.min() >= 2 and ids.max() < rows["video_id"] and ids.max() > 0.99 * rows["video_id"]
    assert len(np.unique(ids)) == len(ids)
    assert local_time(drawn, int(drawn.examples("train").time_N.min())).startswith("2022-04-2")


def test_it_trains(drawn: Store) -> None:
    overrides = ["train.global_batch_size=16", "data.sequence_length=3", "data.profile='safe'"]
    config = sharded_runs.small_config(str(drawn.path), overrides)
    world = sharded_runs.world_of(0, 1)
    with process_group(world):
        data = sharded_runs.open_data(config)
        sharded = sharded_runs.shard_model(config, data, world)
        losses = sharded_runs.run_steps(config, data, world, sharded, 2)
    assert np.isfinite(losses).all()


def test_what_stands_there_is_not_overwritten_and_nothing_is_left(drawn: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_store(LARGE, tmp_path / "mine", SMALL)
    with pytest.raises(UserError, match="at least one row"):
        write_store(LARGE, tmp_path / "new", StoreSize((10, 0, 1), 5))
    with pytest.raises(UserError, match=r"manifest\.json"):
        write_store(tmp_path / "none", tmp_path / "new", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_duckdb_is_not_imported() -> None:
    code = "import sys, infnet_rec.synthetic.store_writer; print('duckdb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
