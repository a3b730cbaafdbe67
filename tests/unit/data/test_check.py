"""`infnet-rec data check` finds what hashes cannot: whole files that hold something else than the manifest says."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_fixtures import Dataset
from infnet_rec import cli
from infnet_rec.data.inspect import check
from infnet_rec.data.inspect.check import bytes_to_read, check_store, reference_differences
from infnet_rec.data.store import Store, as_numpy, hash_files, read_arrow, write_arrow

Edit = Callable[[dict[str, np.ndarray]], object]


@pytest.fixture
def store(shop: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop.store.path, tmp_path / "store"))


def rewrite(store: Path, name: str, edit: Edit) -> None:
    """Changes columns of a file, and its hash in the manifest with it."""
    batch = read_arrow(store / name)
    columns = {column: batch.column(column) for column in batch.schema.names}
    numbers = {c: as_numpy(batch, c).copy() for c in columns if c != "key" and c != "value"}
    edit(numbers)
    del batch
    (store / name).unlink()
    write_arrow(store / name, columns | numbers)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["files"] |= hash_files(store, [name])
    (store / "manifest.json").write_text(json.dumps(manifest))


def put(column: str, row: Any, value: int) -> Edit:
    return lambda columns: columns[column].__setitem__(row, value)


def shorten(columns: dict[str, np.ndarray]) -> None:
    for name in columns:
        columns[name] = columns[name][:-1]


def blind_to_time(columns: dict[str, np.ndarray]) -> None:
    """Every example sees one event more, where its user has one more; most of them are not earlier."""
    columns["seen_look"][0] += 1


EDITS: dict[str, tuple[str, Edit, str]] = {
    "a row less": ("events/look.arrow", shorten, r"has 207 rows, the manifest says 208"),
    "an example less": ("examples/test.arrow", shorten, r"has 83 rows, the manifest says 84"),
    "an item that is not there": ("events/buy.arrow", put("item", 3, 22), r"has items 0 to 22, there are 22"),
    "starts that fall": ("users.arrow", put("starts", (2, 1), 200), r"starts of 'look' fall after row 2"),
    "starts that begin late": ("users.arrow", put("starts", (0, 0), 1), r"starts of 'buy' run from 1 to \d+"),
    "starts beyond the end": ("users.arrow", put("starts", (-1, 0), 140), r"run from 0 to 140, .* has 139 events"),
    "a user that is not there": (
        "examples/valid.arrow",
        put("user", slice(-2, None), 15),
        r"2 examples name a user that users\.arrow has no row for, the first is row 99",
    ),
    "an example of no item": (
        "examples/train.arrow",
        put("item", 7, -1),
        r"1 examples name an item that items\.arrow has no row for, the first is row 7",
    ),
    "more seen than there is": (
        "examples/test.arrow",
        put("seen_buy", 5, 90),
        r"1 examples have seen more events of 'buy' than their user has, the first is row 5",
    ),
    "the future": (
        "examples/train.arrow",
        blind_to_time,
        r"1 examples have seen an event of 'look' that is not earlier than they are, the first is row 0",
    ),
    "a label of two": (
        "examples/test.arrow",
        put("label_buy", 0, 2),
        r"1 examples have a label 'buy' that is neither 0 nor 1, the first is row 0",
    ),
    "an id without a row": ("items.arrow", put("ids", (0, 2), 77), r"brand: has ids \d to 77, but table 'brand' has"),
    "a context id without a row": (
        "examples/valid.arrow",
        put("context_hour", 4, 26),
        r"hour: has ids \d+ to 26, but table 'hour' has rows 0 to 25",
    ),
}


@pytest.mark.parametrize("chunk_rows", [5, 1 << 18])
@pytest.mark.parametrize("name", EDITS)
def test_a_whole_file_with_something_else_in_it_is_named(
    store: Path, name: str, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CHUNK_ROWS", chunk_rows)
    file, edit, message = EDITS[name]
    rewrite(store, file, edit)
    found = check_store(Store(store))
    assert [fault.split(":")[0] for fault in found] == [file], found

    assert re.search(message, found[0]), found


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("num_users",), 16, "users.arrow: has 15 rows, the manifest says 16"),
        (("num_items",), 21, "items.arrow: has 22 rows, the manifest says 21"),
        (
            ("splits", "train", "label_rates", "save"),
            0.5,
            "examples/train.arrow: label 'save' is 1 in 40 examples, the",
        ),
        (("schema", "tables", 0, "num_rows"), 13, "vocab/customer.arrow: has 12 rows, the manifest says 11"),
    ],
)
def test_a_manifest_that_says_otherwise_is_contradicted(store: Path, path: Any, value: Any, fault: str) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    at = manifest
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (store / "manifest.json").write_text(json.dumps(manifest))
    found = check_store(Store(store))
    assert len(found) == 1 and found[0].startswith(fault), found


def test_all_bytes_are_heard_of(shop: Dataset) -> None:
    heard: list[int] = []
    assert not list(reference_differences(shop.store, heard.append))
    assert sum(heard) == bytes_to_read(shop.store) > sum(f.stat().st_size for f in shop.store.path.rglob("*.arrow"))


def test_people_get_the_first_difference_and_json_all(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("items.arrow", "events/buy.arrow", "vocab/sku.arrow"):
        file = store / name
        file.write_bytes(file.read_bytes()[::-1])
    outputs = []
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["infnet-rec", "data", "check", str(store), *options])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 3
        outputs.append(capsys.readouterr().out)
    first, second = outputs[0].splitlines()
    assert first == f"{store} is not what its manifest says" and second.startswith("  events/buy.arrow: sha256 is ")
    faults = json.loads(outputs[1])["faults"]
    assert [fault.split(":")[0] for fault in faults] == ["events/buy.arrow", "items.arrow", "vocab/sku.arrow"]
