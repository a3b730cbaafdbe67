"""Shares of rows, halves of logs, and that neither the format of the raw files nor memory shows in a store."""

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from data_fixtures import QUIET, Dataset
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest import entities, timeline
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe
from kiosk import hashes
from raw_cells import read_rows


def test_the_shop_in_csv_is_the_shop_in_parquet(rich_shop: Dataset, shop_in_csv: Dataset) -> None:
    """Lists, floats and nulls are written otherwise, and one part of the log is packed."""
    assert hashes(rich_shop.store.path) == hashes(shop_in_csv.store.path)


def test_users_of_one_half_only_are_in_the_store(kuairand_27k: Dataset) -> None:
    """An inner join over the parts, or over the halves of the month, would lose them."""
    store, reference = kuairand_27k.store, kuairand_27k.reference
    files: dict[str, set[int]] = defaultdict(set)
    for file in reference.log["files"]:
        for (user,) in read_rows(kuairand_27k.raw / file, ["user_id"]):
            files[file].add(int(user))
    events_U = np.diff(store.starts[:, 0], append=len(store.events("click").item_E))
    everyone = set(store.user_keys.to_pylist())
    for pattern in ("part1", "part2", "_4_08_", "_4_22_"):
        half = set().union(*(users for file, users in files.items() if pattern in file))
        only_here = half - set().union(*(users for file, users in files.items() if pattern not in file))
        assert only_here and half <= everyone, pattern
        for user in only_here:
            clicks = events_U[store.user_keys.to_pylist().index(user)]
            assert clicks == len(reference.events["click"].get(user, ())) and reference.by_user[user]


def test_shares_are_those_of_the_recipe(random_shop: Dataset, last_rows_shop: Dataset) -> None:
    rows = len(random_shop.reference.rows)
    assert random_shop.store.num_examples("test") / rows == pytest.approx(0.29, abs=0.05)
    assert random_shop.store.num_examples("valid") / rows == pytest.approx(0.2, abs=0.05)
    for mine in last_rows_shop.reference.by_user.values():
        splits = Counter(row.split for row in mine)
        assert splits["test"] == len(mine) * 29 // 100 and splits["valid"] == len(mine) * 15 // 100
        latest = {split: max(row.time for row in mine if row.split == split) for split in splits}
        assert latest["train"] <= latest.get("valid", latest["train"]) <= latest.get("test", math.inf)
    assert last_rows_shop.store.num_examples("test") == sum(
        len(mine) * 29 // 100 for mine in last_rows_shop.reference.by_user.values()
    )


@pytest.mark.parametrize("name", ["kuairand_27k", "qb_video"])
def test_neither_memory_nor_threads_nor_buckets_show_in_the_store(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Dataset = request.getfixturevalue(name)
    recipe = validate_model(Recipe, data.recipe, name)
    monkeypatch.setattr(timeline, "MAX_BUCKET_ROWS", 300)
    monkeypatch.setattr(entities, "RANGE_ROWS", 100)
    build_store(recipe, data.raw, tmp_path / "store", QUIET, memory_gib=0.5, num_threads=3)
    assert hashes(tmp_path / "store") == hashes(data.store.path)
