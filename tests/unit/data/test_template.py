"""The template recipe, on the made-up shop that it describes: in CSV, in Parquet, and against counting by hand."""

import random
import tomllib
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import QUIET, ROOT
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.store import Store
from kiosk import hashes

TEMPLATE = ROOT / "configs" / "datasets" / "template.toml"
MAY = datetime(2024, 5, 1) - datetime(1970, 1, 1) - timedelta(hours=1)  # midnight where the shop is
TAGS = ["new", "cheap", "green", "blue", "heavy", "late"]


def shop() -> dict[str, list[dict[str, Any]]]:
    """Two months of a shop, as rows of its files."""
    draw = random.Random(7)
    log = [
        {
            "customer": f"c{draw.randrange(15)}",
            "sku": f"{draw.randrange(40):03d}",
            "shown_at": int(MAY.total_seconds()) + 600 * draw.randrange(61 * 144),
            "bought": int(draw.random() < 0.3),
            "seconds": draw.choice([None, 3, 30, 200]),
            "device": draw.choice(["phone", "desk", None]),
        }
        for _ in range(1_500)
    ]
    customers = [{"id": f"c{k}", "country": ["fr", "?", None][k % 3], "age": 20.5 + k} for k in range(14)]
    products = [
        {
            "sku": f"{k:03d}",
            "brand": f"b{k % 7}",
            "price": None if k == 3 else k * 1.25,
            "supplier": f"s{k % 11}",
            "tags": draw.sample(TAGS, draw.randrange(len(TAGS))),
        }
        for k in range(41)
    ]
    june = int((MAY + timedelta(days=31)).total_seconds())
    return {
        "log_may.csv": [row for row in log if row["shown_at"] < june],
        "log_june.csv": [row for row in log if row["shown_at"] >= june],
        "customers.csv": customers,
        "products.csv": products,
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """The shop from CSV, with its tags as texts, and from Parquet, with lists."""
    folder, recipe = tmp_path_factory.mktemp("template"), tomllib.loads(TEMPLATE.read_text(encoding="utf-8"))
    for name, rows in shop().items():
        (folder / "csv").mkdir(exist_ok=True)
        (folder / "parquet").mkdir(exist_ok=True)
        frame = pd.DataFrame([{k: "|".join(v) if k == "tags" else v for k, v in row.items()} for row in rows])
        frame["seconds"] = frame["seconds"].astype("Int64") if "seconds" in frame else None
        frame.to_csv(folder / "csv" / name, index=False)
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "parquet" / name.replace(".csv", ".parquet"))
    build_store(validate_model(Recipe, recipe, "template.toml"), folder / "csv", folder / "csv store", QUIET)
    text = TEMPLATE.read_text(encoding="utf-8").replace('.csv"', '.parquet"')
    build_store(
        validate_model(Recipe, tomllib.loads(text), "template"), folder / "parquet", folder / "parquet store", QUIET
    )
    return Store(folder / "csv store"), Store(folder / "parquet store")


def test_csv_and_parquet_make_the_same_store(stores: tuple[Store, Store]) -> None:
    assert hashes(stores[0].path) == hashes(stores[1].path)
    assert check_store(stores[0]) == []


def test_the_store_is_what_counting_by_hand_says(stores: tuple[Store, Store]) -> None:
    store, files = stores[0], shop()
    log = [*files["log_may.csv"], *files["log_june.csv"]]
    bounds = [int((MAY + timedelta(days=days)).total_seconds()) for days in (7, 54, 57, 61)]
    split_of = {
        name: [row for row in log if low <= row["shown_at"] < high]
        for name, low, high in zip(("train", "valid", "test"), bounds[:3], bounds[1:], strict=True)
    }
    assert {name: len(rows) for name, rows in split_of.items()} == {name: store.num_examples(name) for name in split_of}
    looks: dict[str, list[int]] = defaultdict(list)
    for row in log:
        if (row["seconds"] or 0) >= 30:
            looks[row["customer"]].append(row["shown_at"])
    examples = store.examples("test")
    users = store.user_keys.take(examples.user_N).to_pylist()
    for user, time, seen in zip(users, examples.time_N, examples.seen["look"], strict=True):
        assert seen == sum(happened < time for happened in looks[user])
    lookups = Counter(row["sku"] for row in split_of["train"])
    early = [row for row in log if row["shown_at"] < bounds[0]]
    lookups.update(row["sku"] for row in early if row["bought"] or (row["seconds"] or 0) >= 30)
    tags: Counter[str] = Counter()
    for product in files["products.csv"]:
        tags.update(dict.fromkeys(product["tags"][:4], lookups[product["sku"]]))
    vocabulary = store.vocabulary("tags").to_pydict()
    assert dict(zip(vocabulary["value"], vocabulary["count"], strict=True)) == {t: n for t, n in tags.items() if n}
    columns = store.columns_of("item")
    first, names = columns.index("tags"), ["", "", *vocabulary["value"]]
    for product, ids in zip(files["products.csv"], store.item_ids.tolist(), strict=True):
        found = [names[id_] for id_ in ids[first : first + 4] if id_ > 1]
        assert found == product["tags"][:4] and (found or ids[first] == 1), product
    assert store.item_ids[:, columns.index("supplier")].min() >= 2
    assert store.item_ids[:, columns.index("supplier")].max() < 1_002
