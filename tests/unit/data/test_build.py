"""Building a store: what is refused and how, what is left behind, and that equal rows give equal bytes."""

import random
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pytest

from data_fixtures import QUIET, Dataset, build_shop, shop_recipe, shop_rows, write_shop
from infnet_rec.data.ingest import build as build_module
from infnet_rec.data.ingest import entities, timeline
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.store import Store, read_arrow
from infnet_rec.errors import UserError
from kiosk import FILES, Edit, add, hashes, history, kiosk, rewrite, swap, where

FAULTS: dict[str, tuple[Edit, str]] = {
    "a missing file": (lambda raw, recipe: (raw / "log_2.csv").unlink(), r"log_2\.csv: no such file"),
    "two missing files": (
        lambda raw, recipe: [(raw / name).unlink() for name in ("log_1.csv", "items.csv")],
        r"(?s)log_1\.csv: no such file.*items\.csv: no such file",
    ),
    "a missing column of the log": (
        swap("page", "pages", "log*"),
        r"log_1\.csv: no column 'page' \(did you mean 'pages",
    ),
    "a missing key": (swap("user", "usr", "users.csv"), r"users\.csv: no column 'user' \(did you mean 'usr'\?\)"),
    "a missing side column": (swap("city", "cty", "users.csv"), r"'city': no such column in users\.csv \(did you mean"),
    "parts that differ": (
        swap("mark", "tag", "log_2.csv"),
        r"log_2\.csv: its columns differ from those of .*log_1\.csv",
    ),
    "a label of 2": (
        add("log_2.csv", "0,0,5,2,1,a"),
        r"31 rows are bad.*--max-bad-fraction 0\.001.*log_2\.csv, line 12: click is not 0 or 1",
    ),
    "a label of 0.5": (add("log_2.csv", "0,0,5,0.5,1,a"), r"log_2\.csv, line 12: click is not 0 or 1"),
    "an empty label": (add("log_2.csv", "0,0,5,,1,a"), r"log_2\.csv, line 12: click is not 0 or 1"),
    "a label in words": (
        add("log_2.csv", "0,0,5,yes,1,a"),
        r'log_2\.csv, line 12: click is not 0 or 1 \(it is "yes"\)',
    ),
    "a time in words": (
        add("log_2.csv", "0,0,noon,1,1,a"),
        r"log_2\.csv, line 12: time is empty or not a whole number of s since 1970",
    ),
    "a fractional time": (
        add("log_2.csv", "0,0,5.5,1,1,a"),
        r"log_2\.csv, line 12: time is empty or not a whole number",
    ),
    "a time before 1970": (
        add("log_2.csv", "0,0,-5,1,1,a"),
        r"log_2\.csv, line 12: time is not between 1970-01-01",
    ),
    "an empty time": (add("log_2.csv", "0,0,,1,1,a"), r"log_2\.csv, line 12: time is empty"),
    "an empty user": (add("log_2.csv", ",0,5,1,1,a"), r"log_2\.csv, line 12: user is empty or not a whole number"),
    "a fractional item": (
        add("log_2.csv", "0,1.5,5,1,1,a"),
        r"log_2\.csv, line 12: item is empty or not a whole number",
    ),
    "a bad row in an earlier part": (add("log_1.csv", "0,1.5,5,1,1,a"), r"log_1\.csv, line 22: item is empty"),
    "a user in words": (add("log_2.csv", "bob,0,5,1,1,a"), r"log_2\.csv, line 12: user is empty or not a whole number"),
    "a side key in words": (add("items.csv", "nut,2"), r"items\.csv, line 6: item is empty or not a whole number"),
    "a number in words": (add("items.csv", "9,cheap"), r'items\.csv, line 6: price is not a number \(it is "cheap"\)'),
    "a repeated side key": (add("users.csv", "1,Rome"), r"users\.csv: user 1 stands in more than one row"),
    "empty side keys": (add("users.csv", ",\n,"), r"(?s)users\.csv, line 5: user is empty.*users\.csv, line 6: user"),
    "a short row": (add("log_2.csv", "0,0,5"), r"log_2\.csv, line 12: Expected Number of Columns: 6 Found: 3"),
    "a long row": (add("log_2.csv", "0,0,5,1,1,a,b"), r"log_2\.csv, line 12: Expected Number of Columns: 6 Found: 7"),
    "a line above the header": (swap("user,city", "made today\nuser,city", "users.csv"), r"users\.csv"),
    "a file that is not text": (rewrite(lambda text: text + b"\xff\xfe\n", "users.csv"), r"users\.csv"),
    "an unknown column in a predicate": (
        where("clik = 1"),
        r"behaviour click, where = 'clik = 1'.*\"clik\".*\"click\"",
    ),
    "an unknown function in a predicate": (where("foo(click)"), r"behaviour click, where = 'foo\(click\)'.*foo"),
    "half a predicate": (where("click ="), r"behaviour click, where = 'click ='"),
    "a history without a time": (history(who=[1], until=[None], what=[[2]]), r"h\.parquet: until is empty"),
    "a history without a column": (history(who=[1], until=[5], wat=[[2]]), r"h\.parquet: no column 'what' .*'wat'"),
    "a history without lists": (
        history(who=[1], until=[5], what=[2]),
        r"history h\.parquet: column what is int64, not a list",
    ),
    "empty splits": (
        lambda raw, recipe: recipe["splits"].update(test="1970-02-01T00:00:00", end="1970-02-02T00:00:00"),
        r"no row of the log falls into test; move the boundaries",
    ),
    "no rows": (
        rewrite(lambda text: text.split(b"\n")[0] + b"\n", "log*"),
        r"log_2\.csv: the log holds a header and no rows",
    ),
    "no folder": (lambda raw, recipe: shutil.rmtree(raw), r"raw: no such folder.*such as log_1\.csv"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_does_not_fit_is_one_fault_that_names_it_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    edit, message = FAULTS[name]
    recipe, raw = kiosk(tmp_path, edit)
    with pytest.raises(UserError, match=f"(?s){message}"):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert {path.name for path in tmp_path.iterdir()} <= {"raw"}


def test_the_kiosk_builds(tmp_path: Path) -> None:
    """So that each fault above is the doing of its edit; nothing is taken for a comment, no behaviour is too rare."""
    recipe, raw = kiosk(tmp_path)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert [store.num_examples(split) for split in ("train", "valid", "test")] == [10, 10, 10]
    assert set(store.vocabulary("mark").column("value").to_pylist()) == {"a", "#1"}
    assert store.vocabulary("city").column("value").to_pylist() == ["Oslo", "Paris, France"]
    assert len(store.events("never").item_E) == 0 and check_store(store) == []


AS_FLOATS = {name: [c for c in lines[0].split(",") if c not in ("city", "mark")] for name, lines in FILES.items()}
HARMLESS: dict[str, Edit] = {
    "CRLF": rewrite(lambda text: text.replace(b"\n", b"\r\n")),
    "a byte order mark": rewrite(lambda text: b"\xef\xbb\xbf" + text),
    "integers printed as floats": lambda raw, recipe: [
        pd.read_csv(raw / name, dtype=dict.fromkeys(columns, float)).to_csv(raw / name, index=False)
        for name, columns in AS_FLOATS.items()
    ],
    "everything quoted": lambda raw, recipe: [
        pd.read_csv(path, dtype=str, keep_default_na=False).to_csv(path, index=False, quoting=1)
        for path in raw.glob("*")
    ],
    "rows in another order": lambda raw, recipe: [
        pd.read_csv(path, dtype=str).sample(frac=1, random_state=3).to_csv(path, index=False) for path in raw.glob("*")
    ],
    "columns in another order": lambda raw, recipe: [
        pd.read_csv(path, dtype=str).iloc[:, ::-1].to_csv(path, index=False) for path in raw.glob("*")
    ],
    "parts in another order": lambda raw, recipe: recipe["log"]["files"].reverse(),
    "a column that nothing reads": lambda raw, recipe: [
        pd.read_csv(path, dtype=str).assign(note='"x", y').to_csv(path, index=False) for path in raw.glob("*")
    ],
}


def test_the_same_rows_written_otherwise_give_the_same_store(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path / "plain")
    build_store(recipe, raw, tmp_path / "plain" / "store", QUIET)
    for name, edit in HARMLESS.items():
        recipe, raw = kiosk(tmp_path / name, edit)
        build_store(recipe, raw, tmp_path / name / "store", QUIET)
        assert hashes(tmp_path / name / "store") == hashes(tmp_path / "plain" / "store"), name


def test_neither_threads_nor_chunks_nor_the_order_of_rows_show_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shop has many ties and near twins, and users with more rows than a bucket has room for."""
    rows, found = shop_rows(5_000), []
    for num_threads in (1, 2):
        out = tmp_path / f"store_{num_threads}"
        write_shop(tmp_path / "raw", rows)
        manifest = build_store(shop_recipe(), tmp_path / "raw", out, QUIET, num_threads=num_threads)
        found.append({key: value for key, value in manifest.items() if key != "made_at"})
        random.Random(num_threads).shuffle(rows)
        monkeypatch.setattr(timeline, "MAX_BUCKET_ROWS", 500)
        monkeypatch.setattr(entities, "RANGE_ROWS", 3)
    assert found[0] == found[1]
    assert len(found[0]["files"]) == 2 + 2 + 3 + 10, "users and items, events, examples, vocabularies"


def test_text_ids_that_look_like_numbers_stay_text(tmp_path: Path) -> None:
    """`01` and `1` are two users."""
    recipe, raw = kiosk(tmp_path, swap("Paris, France", "Nice", "users.csv"))
    recipe = recipe.model_copy(update={"log": recipe.log.model_copy(update={"id_type": "string"})})
    with (raw / "log_1.csv").open("a") as log, (raw / "users.csv").open("a") as users:
        log.write("01,3,7,1,1,a\n")
        users.write("01,Bonn\n")
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert store.user_keys.to_pylist() == ["0", "01", "1", "2"]
    assert store.examples("train").user_N.tolist().count(1) == 1


@pytest.mark.parametrize("left_out", ["no behaviours", "no user features", "no item features"])
def test_a_store_may_lack_a_kind_of_column(left_out: str, tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        if left_out != "no user features":
            del recipe["behaviours"], recipe["sequences"]
        side = left_out.removeprefix("no ").removesuffix(" features")
        recipe["features"] = [f for f in recipe["features"] if f["side"] != side]

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert store.starts.shape == (3, len(recipe.behaviours))
    assert store.user_ids.shape == (3, len(store.columns_of("user")))
    assert store.item_ids.shape == (4, len(store.columns_of("item")))
    assert check_store(store) == []


def test_files_are_one_batch_that_pandas_polars_and_duckdb_read(shop: Dataset) -> None:
    paths = sorted(shop.store.path.rglob("*.arrow"))
    assert len(paths) == len(shop.store.manifest["files"])
    for path in paths:
        with pa.memory_map(str(path)) as source:
            assert pa.ipc.open_file(source).num_record_batches == 1
        ours = read_arrow(path)
        assert pd.read_feather(path).columns.tolist() == ours.schema.names
        assert polars.read_ipc(path).rows() == [tuple(row.values()) for row in ours.to_pylist()]
        table = pa.Table.from_batches([ours])
        assert duckdb.from_arrow(table).to_arrow_table().to_pylist() == table.to_pylist()


def test_an_existing_store_is_replaced_when_asked_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays until the new one is whole."""
    shop = build_shop(tmp_path)
    before = hashes(shop.store.path)
    with pytest.raises(UserError, match=r"store: exists already; use --replace"):
        build_store(shop_recipe(), shop.raw, shop.store.path, QUIET)
    write_shop(shop.raw, shop_rows(seed=5))

    def fail(*_: object, **__: object) -> None:
        assert hashes(shop.store.path) == before
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "hash_files", fail)
        with pytest.raises(RuntimeError, match="full"):
            build_store(shop_recipe(), shop.raw, shop.store.path, QUIET, replace=True)
    assert hashes(shop.store.path) == before and check_store(Store(shop.store.path)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "store"}
    build_store(shop_recipe(), shop.raw, shop.store.path, QUIET, replace=True)
    assert hashes(shop.store.path) != before and check_store(Store(shop.store.path)) == []
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "store"}


def test_what_is_not_a_store_is_never_replaced(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    with pytest.raises(UserError, match="precious: exists already; it is not a store; name another folder"):
        build_store(recipe, raw, tmp_path / "precious", QUIET, replace=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_check_finds_what_has_changed(tmp_path: Path) -> None:
    store = build_shop(tmp_path).store.path
    events = store / "events" / "look.arrow"
    whole = events.read_bytes()
    events.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    assert [line.split(":")[0] for line in check_store(Store(store))] == ["events/look.arrow"]
    events.write_bytes(whole[:-1])
    shutil.copy(store / "items.arrow", store / "vocab" / "more.arrow")
    (store / "examples" / "test.arrow").unlink()
    found = check_store(Store(store))
    assert found[0] == "examples/test.arrow: missing"
    assert found[1] == "vocab/more.arrow: not in the manifest"
    assert found[2].startswith(f"events/look.arrow: bytes is {len(whole) - 1}, the manifest says {len(whole)}")
    assert len(found) == 3


def test_a_store_of_another_version_or_none_is_refused(tmp_path: Path) -> None:
    manifest = build_shop(tmp_path).store.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"store_version": 3', '"store_version": 2'))
    with pytest.raises(UserError, match=r"has store_version 2, this package reads 3"):
        Store(manifest.parent)
    manifest.write_text(manifest.read_text()[:500])
    with pytest.raises(UserError, match=r"manifest\.json: not a JSON file"):
        Store(manifest.parent)
    with pytest.raises(UserError, match=r"nowhere: holds no manifest\.json; make a store with 'infnet-rec data build'"):
        Store(tmp_path / "nowhere")
