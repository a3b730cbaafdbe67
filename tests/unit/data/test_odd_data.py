"""Data of odd types and shapes: Parquet's types, empty columns, users that dwarf the others or did nothing."""

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import QUIET
from infnet_rec.data.ingest import timeline
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from kiosk import DAY_S, FILES, LOG, Edit, hashes, kiosk

NAMES = ("user", "item", "time", "click", "page", "mark")
Column = Callable[[list[str]], pa.Array]
TYPES: dict[str, dict[str, Column]] = {
    "floats": dict.fromkeys(NAMES[:5], lambda cells: pa.array([float(c) for c in cells])),
    "32 bits": dict.fromkeys(NAMES[:5], lambda cells: pa.array([int(c) for c in cells], pa.int32())),
    "unsigned": dict.fromkeys(NAMES[:5], lambda cells: pa.array([int(c) for c in cells], pa.uint64())),
    "decimals": dict.fromkeys(NAMES[:5], lambda cells: pa.array([Decimal(c) for c in cells], pa.decimal128(12, 2))),
    "texts": dict.fromkeys(NAMES, pa.array),
    "long texts": dict.fromkeys(NAMES, lambda cells: pa.array(cells, pa.large_string())),
    "dictionaries": dict.fromkeys(NAMES, lambda cells: pa.array(cells).dictionary_encode()),
    "a boolean label": {"click": lambda cells: pa.array([c == "1" for c in cells])},
    "a dictionary of numbers": {"user": lambda cells: pa.array([int(c) for c in cells]).dictionary_encode()},
}


def in_parquet(columns: dict[str, Column], second: dict[str, Column] | None = None) -> Edit:
    """The kiosk's log as Parquet; `second` are the columns of the second part, where they are others."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["log"]["files"] = ["log_1.parquet", "log_2.parquet"]
        for k, lines in enumerate((LOG[:20], LOG[20:]), start=1):
            cells = dict(zip(NAMES, map(list, zip(*(line.split(",") for line in lines), strict=True)), strict=True))
            chosen = columns if second is None or k == 1 else second
            plain = {n: c if n == "mark" else [int(cell) for cell in c] for n, c in cells.items()}
            table = {n: chosen[n](cells[n]) if n in chosen else pa.array(plain[n]) for n in NAMES}
            pq.write_table(pa.table(table), raw / f"log_{k}.parquet")

    return edit


@pytest.mark.parametrize("name", TYPES)
def test_the_type_of_a_parquet_column_does_not_matter(name: str, tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, raw = kiosk(tmp_path, in_parquet(TYPES[name]))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


@pytest.mark.parametrize("order", ["empty first", "empty last"])
def test_a_parquet_column_may_be_empty_in_one_part(order: str, tmp_path: Path) -> None:
    """pyarrow gives such a column no type."""
    empty = {name: lambda cells: pa.nulls(len(cells)) for name in ("mark", "page")}
    recipe, raw = kiosk(tmp_path, in_parquet(*((empty, {}) if order == "empty first" else ({}, empty))))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert Store(tmp_path / "store").num_examples("test") == 10
    assert check_store(Store(tmp_path / "store")) == []


def test_parts_may_differ_in_width(tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, raw = kiosk(tmp_path, in_parquet(TYPES["32 bits"], TYPES["floats"]))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


WRONG_TYPES: dict[str, tuple[Column, str, str]] = {
    "dates": (
        lambda cells: pa.array([datetime.datetime.fromtimestamp(int(c), datetime.UTC) for c in cells]),
        "item",
        "30 rows: item is empty or not a whole number",
    ),
    "fractions": (lambda cells: pa.array([int(c) + 0.5 for c in cells]), "item", "item is empty or not a whole number"),
    "64 bits and more": (lambda cells: pa.array([2**63 + int(c) for c in cells], pa.uint64()), "item", "item is empty"),
    "nothing": (lambda cells: pa.nulls(len(cells)), "user", "user is empty"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_parquet_column_that_is_no_number_is_a_fault(name: str, tmp_path: Path) -> None:
    column, of, message = WRONG_TYPES[name]
    recipe, raw = kiosk(tmp_path, in_parquet({of: column}))
    recipe = recipe.model_copy(update={"behaviours": (), "sequences": None})
    with pytest.raises(UserError, match=f"(?s)the log: 30 of 30 rows are bad.*{message}"):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


def test_numbers_of_sides_may_be_of_any_type_that_is_a_number(tmp_path: Path, clean: dict[str, str]) -> None:
    prices = [0.0, 1.5, 3.0, 4.5]

    def edit(prices: pa.Array) -> Edit:
        def write(raw: Path, recipe: dict[str, Any]) -> None:
            recipe["sides"]["item"][0]["files"] = ["items.parquet"]
            pq.write_table(pa.table({"item": [0, 1, 2, 3], "price": prices}), raw / "items.parquet")

        return write

    for kind in (pa.float64(), pa.float32(), pa.string(), pa.decimal128(5, 1)):
        texts = [str(p) if kind == pa.string() else Decimal(p) if kind == pa.decimal128(5, 1) else p for p in prices]
        recipe, raw = kiosk(tmp_path / str(kind), edit(pa.array(texts, kind)))
        build_store(recipe, raw, tmp_path / str(kind) / "store", QUIET)
        assert hashes(tmp_path / str(kind) / "store") == clean, kind
    for k, values in enumerate((["0.0", "dear", "3", "4"], [datetime.date(2000, 1, 1)] * 4)):
        recipe, raw = kiosk(tmp_path / str(k), edit(pa.array(values)))
        with pytest.raises(
            UserError, match=r"(?s)items\.parquet \(item side\): (1|4) of 4 rows.*price is not a number"
        ):
            build_store(recipe, raw, tmp_path / str(k) / "store", QUIET)


def test_columns_may_be_empty_or_infinite(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        (raw / "users.csv").write_text("user,city\n0,\n1,\n2,\n")
        (raw / "items.csv").write_text("item,price,size\n0,,inf\n1,,-inf\n2,,1e400\n3,,nan\n")
        recipe["features"].append({"side": "item", "encoding": "quantile", "columns": ["size"], "buckets": 3})
        for name in ("log_1.csv", "log_2.csv"):
            lines = (raw / name).read_text().splitlines()
            (raw / name).write_text(
                "\n".join([lines[0], *(line.rpartition(",")[0] + "," for line in lines[1:])]) + "\n"
            )

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert check_store(store) == []
    assert store.user_ids[:, store.columns_of("user").index("city")].tolist() == [1, 1, 1]
    ids = dict(zip(store.columns_of("item"), store.item_ids.T.tolist(), strict=True))
    assert ids["price"] == [1, 1, 1, 1]
    assert ids["size"][0] == ids["size"][2] > ids["size"][1] > 2 and ids["size"][3] == 1
    assert set(store.examples("train").context["mark"].tolist()) == {1}


def test_one_user_may_have_most_rows_and_many_users_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In buckets of one row: some hold one large user, some nobody's rows; the store is the same."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        rows = [f"7,{k % 4},{k * 517 % (3 * DAY_S)},{k % 2},1,a" for k in range(500)]
        (raw / "log_1.csv").write_text("\n".join([FILES["log_1.csv"][0], *rows]) + "\n")
        (raw / "users.csv").write_text("user,city\n" + "".join(f"{k},c{k % 3}\n" for k in range(-3, 40)))

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "one", QUIET)
    monkeypatch.setattr(timeline, "MAX_BUCKET_ROWS", 1)
    build_store(recipe, raw, tmp_path / "many", QUIET)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "many")
    store = Store(tmp_path / "many")
    assert check_store(store) == [] and store.manifest["num_users"] == 43
    events_U = np.diff(store.starts[:, 0], append=len(store.events("click").item_E))
    assert events_U[10] == 250 and events_U.sum() == 250 + 5


def test_a_recipe_may_have_no_side_tables(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        del recipe["sides"]
        recipe["features"][0]["columns"] = ["user"]
        del recipe["features"][2]

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert check_store(Store(tmp_path / "store")) == []
    assert Store(tmp_path / "store").manifest["columns"]["user"] == ["user"]


def test_an_instant_beyond_the_calendar_is_shown_as_a_number(tmp_path: Path) -> None:
    """Milliseconds that a recipe takes for seconds, in a store that was built when such instants were taken."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["splits"] = {"by": "rows_of_each_user", "valid": 0.2, "test": 0.2}
        recipe["log"]["time_unit"] = "ms"
        for name in ("log_1.csv", "log_2.csv"):
            head, *rows = (raw / name).read_text().splitlines()
            cells = [row.split(",") for row in rows]
            rows = [",".join([*row[:2], str(1_650_000_000_000 + int(row[2])), *row[3:]]) for row in cells]
            (raw / name).write_text("\n".join([head, *rows]) + "\n")

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    manifest["recipe"]["log"]["time_unit"] = "s"
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    example = describe_example(Store(tmp_path / "store"), "test", 0, 3)
    assert example["local_time"] == f"instant {example['time']}"
