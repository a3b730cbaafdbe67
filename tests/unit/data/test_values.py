"""What a raw cell means: the written rule against a slow one, and the whole build on cells that are easily misread."""

import random
import string
from pathlib import Path
from typing import Any

import duckdb
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

import slow_values
from data_fixtures import QUIET
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.raw_files import RawTable
from infnet_rec.data.parsing import values
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from kiosk import DAY_S, LOG, Edit, hashes, kiosk, swap
from properties import num_examples
from slow_values import BadCell

CONNECTION = duckdb.connect(config={"threads": 1})
NULLS = ("-9", "\\N")
_texts = st.one_of(
    st.text(alphabet="0123456789+-.eE_ xnaifNAIF", max_size=8),
    st.from_regex(values.NUMBER, fullmatch=True),
    st.integers(-(2**64), 2**64).map(str),
    st.floats().map(repr),
    st.floats(width=32).map(lambda x: str(np.float32(x))),
    st.sampled_from(["-9.0", "\\N", "true", "FALSE", "nan(1)", "nan(", "007.0", "[1, 2]", "[null, nan]", "['a', 'b']"]),
    st.sampled_from(['["a,b", "c"]', "[a]", "[]", "{}", '{"a": 1}', "[[1]]", '[1, "a"]', "[true]", "[1,]", "[,]"]),
)


@settings(max_examples=num_examples(60), deadline=None)
@given(st.lists(_texts, min_size=1, max_size=40))
def test_texts_are_read_as_the_slow_rule_reads_them(texts: list[str]) -> None:
    CONNECTION.register("cells", pa.table({"x": pa.array(texts, pa.string())}))
    number, truth = values.number_sql("x", NULLS), values.truth_sql("x", NULLS)
    columns = [values.value_sql("x", NULLS), number, values.no_number_sql("x", number, NULLS), truth]
    columns += [values.integer_sql("x", NULLS), values.nested_sql("x"), values.list_sql("x", ",")]
    found = CONNECTION.execute(f"SELECT {', '.join(columns)} FROM cells").fetchall()
    assert found == [_slowly(text) for text in texts]


def _slowly(text: str) -> tuple[Any, ...]:
    def tried(read: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return read(*arguments, **options)
        except BadCell:
            return BadCell

    number = tried(slow_values.number, text, NULLS)
    truth = tried(slow_values.number, text, NULLS, words=True)
    parts = tried(slow_values.texts, text, ",")
    return (
        slow_values.value(text, NULLS),
        None if number in (None, BadCell) else float(number),
        number is BadCell,
        None if truth in (None, BadCell) else float(truth),
        number if isinstance(number, int) else None,
        slow_values.is_nested(text),
        None if parts is BadCell else [part or None for part in parts] if text[:1] == "[" else parts,
    )


def with_seconds(first: list[str], second: list[str], where: str = "seconds >= 30") -> Edit:
    """Another column in the kiosk's log, which the first behaviour reads."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        for name, cells in (("log_1.csv", first), ("log_2.csv", second)):
            head, *rows = (raw / name).read_text().splitlines()
            rows = [f"{row},{cell}" for row, cell in zip(rows, cells, strict=True)]
            (raw / name).write_text("\n".join([f"{head},seconds", *rows]) + "\n")
        recipe["behaviours"][0]["where"] = where

    return edit


def clicks(folder: Path, edit: Edit) -> int:
    recipe, raw = kiosk(folder, edit)
    build_store(recipe, raw, folder / "store", QUIET)
    return len(Store(folder / "store").events("click").item_E)


def in_parquet(kinds: dict[str, Any], cells: dict[str, list[Any]] | None = None) -> Edit:
    """The kiosk's log in Parquet: the types of each of its two parts, and the cells of further columns."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["log"]["files"] = ["log_1.parquet", "log_2.parquet"]
        names = ("user", "item", "time", "click", "page", "mark")
        table = dict(zip(names, map(list, zip(*(line.split(",") for line in LOG), strict=True)), strict=True))
        whole: dict[str, list[Any]] = {n: c if n == "mark" else [int(x) for x in c] for n, c in table.items()}
        whole |= cells or {}
        for part, rows in ((0, slice(0, 20)), (1, slice(20, 30))):
            columns = {}
            for name, mine in whole.items():
                kind = kinds[name][part] if name in kinds else None
                cast = str if kind == pa.string() else bool if kind == pa.bool_() else (lambda x: x)
                columns[name] = pa.array([None if x is None else cast(x) for x in mine[rows]], kind)
            pq.write_table(pa.table(columns), raw / f"log_{part + 1}.parquet", row_group_size=7)

    return edit


MISSING = ("nan", "NaN", "-nan", "", "\\N")


@pytest.mark.parametrize("where", ["seconds >= 30", "NOT seconds < 30", "seconds <> 5", "seconds = 60"])
def test_what_is_missing_is_neither_large_nor_small_in_any_form(where: str, tmp_path: Path) -> None:
    texts = [(*MISSING, "60", "5", "60.0", "5", "5")[k % 10] for k in range(30)]
    edit = with_seconds(texts[:20], texts[20:], where)

    def declared(raw: Path, recipe: dict[str, Any]) -> None:
        edit(raw, recipe)
        recipe["log"]["null_values"] = ["\\N"]

    assert clicks(tmp_path / "csv", declared) == 6
    numbers = [None if text in ("", "\\N") else float(text) for text in texts]
    for kind in (pa.float64(), pa.float32()):
        edit = in_parquet({"seconds": (kind, kind)}, {"seconds": numbers})

        def asked(raw: Path, recipe: dict[str, Any], edit: Edit = edit) -> None:
            edit(raw, recipe)
            recipe["behaviours"][0]["where"] = where

        assert clicks(tmp_path / str(kind), asked) == 6


def test_a_number_is_no_less_exact_for_the_rows_before_it(tmp_path: Path) -> None:
    """Whole seconds in the older part of the log, tenths in the newer one; in both orders of the files."""
    edit = with_seconds(["30"] * 20, ["29.6"] * 10)
    assert clicks(tmp_path / "one", edit) == 20

    def turned(raw: Path, recipe: dict[str, Any]) -> None:
        edit(raw, recipe)
        recipe["log"]["files"].reverse()

    assert clicks(tmp_path / "other", turned) == 20
    assert hashes(tmp_path / "one" / "store") == hashes(tmp_path / "other" / "store")


def test_a_text_among_the_numbers_of_a_predicate_is_a_bad_row_that_says_what_to_write(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, with_seconds(["30"] * 19 + ["\\N"], ["1_000"] + ["5"] * 9))
    with pytest.raises(UserError) as raised:
        build_store(recipe, raw, tmp_path / "store", QUIET)
    lines = str(raised.value).splitlines()
    assert lines[1].endswith(
        r'log_1.csv, line 21: seconds is not a number (it is "\\N"; if that means missing, write null_values = ["\\N"] '
        "next to the files)"
    )
    assert lines[2].endswith('log_2.csv, line 2: seconds is not a number (it is "1_000")')


def test_ids_beyond_64_bits_say_what_to_write_and_build_as_texts(tmp_path: Path) -> None:
    def hashed(raw: Path, recipe: dict[str, Any]) -> None:
        for name in ("log_1.csv", "log_2.csv", "users.csv"):
            head, *rows = (raw / name).read_text().splitlines()
            rows = [f"{2**64 - 1 - int(row.split(',')[0])},{row.split(',', 1)[1]}" for row in rows]
            (raw / name).write_text("\n".join([head, *rows]) + "\n")

    recipe, raw = kiosk(tmp_path / "bad", hashed)
    with pytest.raises(
        UserError, match=r'user is empty or not.*it is "18446744073709551615"; log\.id_type = "string" reads'
    ):
        build_store(recipe, raw, tmp_path / "store", QUIET)

    def as_texts(raw: Path, recipe: dict[str, Any]) -> None:
        hashed(raw, recipe)
        recipe["log"]["id_type"] = "string"

    recipe, raw = kiosk(tmp_path / "good", as_texts)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert Store(tmp_path / "store").user_keys.to_pylist() == [str(2**64 - 1 - k) for k in (2, 1, 0)]


def test_leading_zeros_survive_in_texts_and_whole_floats_are_whole(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["log"]["id_type"] = "string"
        for name in ("log_1.csv", "log_2.csv"):
            head, *rows = (raw / name).read_text().splitlines()
            cells = [row.split(",") for row in rows]
            rows = [",".join([("007", "7.0", "7")[int(c[0])], *c[1:]]) for c in cells]
            (raw / name).write_text("\n".join([head, *rows]) + "\n")
        (raw / "users.csv").write_text("user,city\n007,Oslo\n7,Rome\n")

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert Store(tmp_path / "store").user_keys.to_pylist() == ["007", "7"]


TAGS = [[3, 1, 7], [2, 5, 4], [8, 6, 3], [1, 2, 3]]
LISTS: dict[str, Any] = {
    "list": pa.list_(pa.int64()),
    "large list": pa.large_list(pa.int16()),
    "fixed list": pa.list_(pa.int64(), 3),
    "list view": pa.list_view(pa.int64()),
    "list of floats": pa.list_(pa.float64()),
    "list of texts": pa.list_(pa.string()),
    "numbers in brackets": str,
    "texts in brackets": lambda tags: str([str(tag) for tag in tags]),
    "JSON": lambda tags: str([str(tag) for tag in tags]).replace("'", '"'),
    "separated": lambda tags: ",".join(map(str, tags)),
}


def with_tags(tags: pa.Array, encoding: str = "multi") -> Edit:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["sides"]["item"][0]["files"] = ["items.parquet"]
        recipe["features"].append({"side": "item", "encoding": encoding, "columns": ["tags"]})
        table = {"item": [0, 1, 2, 3], "price": [0.0, 1.5, 3.0, 4.5], "tags": tags}
        pq.write_table(pa.table(table), raw / "items.parquet")

    return edit


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_a_list_whatever_it_is_written_as(name: str, tmp_path: Path) -> None:
    kind = LISTS[name]
    tags = [list(map(str, row)) for row in TAGS] if name == "list of texts" else TAGS
    array = pa.array([kind(row) for row in TAGS]) if callable(kind) else pa.array(tags, kind)
    recipe, raw = kiosk(tmp_path, with_tags(array))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert sorted(Store(tmp_path / "store").vocabulary("tags").column("value").to_pylist()) == list("12345678")


NO_LISTS: dict[str, tuple[str, pa.Array, str]] = {
    "structs": ("multi", pa.array([{"a": 1}] * 4), r"items\.parquet: column tags is struct<a: int64>, which is no"),
    "structs as one value": ("index", pa.array([{"a": 1}] * 4), "column tags is struct"),
    "maps": ("index", pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())), "column tags is map"),
    "lists of lists": ("multi", pa.array([[[1]]] * 4), "column tags is list<element: list"),
    "lists as numbers": ("quantile", pa.array(TAGS), r"column tags is list.*one value is wanted"),
    "lists in texts": (
        "index",
        pa.array(["[3, 1, 7]"] * 4),
        r"tags is a list or an.*encoding = \"multi\"",
    ),
    "objects in texts": ("multi", pa.array(['{"a": 1}'] * 4), "tags stands in brackets and is no list"),
    "lists of lists in texts": ("multi", pa.array(["[[1], [2]]"] * 4), "tags stands in brackets and is no list"),
    "words in brackets": ("multi", pa.array(["[a, b]"] * 4), r"tags stands in brackets.*write JSON"),
}


@pytest.mark.parametrize("name", NO_LISTS)
def test_what_is_no_single_value_and_no_list_is_a_fault_that_names_the_column(name: str, tmp_path: Path) -> None:
    encoding, tags, message = NO_LISTS[name]
    recipe, raw = kiosk(tmp_path, with_tags(tags, encoding))
    with pytest.raises(UserError, match=f"(?s){message}"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_words_in_brackets_are_words_where_one_is_wanted(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, with_tags(pa.array(["[deleted]", "[a, b]", "[", "x]"]), "index"))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert set(Store(tmp_path / "store").vocabulary("tags").column("value").to_pylist()) == {
        "[deleted]",
        "[a, b]",
        "[",
        "x]",
    }


PARTS: dict[str, tuple[Any, Any, str | None]] = {
    "widths": (pa.int8(), pa.int64(), None),
    "signs": (pa.uint64(), pa.int32(), None),
    "small integers and floats": (pa.int64(), pa.float64(), None),
    "texts and integers": (pa.string(), pa.int64(), None),
    "dictionaries": (pa.dictionary(pa.int8(), pa.int64()), pa.int64(), None),
    "booleans and integers": (
        pa.bool_(),
        pa.int64(),
        r"page is int64, and bool in .*log_1\.parquet; .*write it in one type",
    ),
    "floats of two widths": (pa.float32(), pa.float64(), "page is double, and float in"),
    "decimals and floats": (pa.decimal128(9, 2), pa.float64(), "page is double, and decimal"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_other_types_agree_by_value_or_are_a_fault(name: str, tmp_path: Path, clean: dict[str, str]) -> None:
    first, second, message = PARTS[name]
    recipe, raw = kiosk(tmp_path, in_parquet({"page": (first, second)}))
    if message is None:
        build_store(recipe, raw, tmp_path / "store", QUIET)
        assert hashes(tmp_path / "store") == clean
    else:
        with pytest.raises(UserError, match=f"(?s)log_2.parquet: column {message}"):
            build_store(recipe, raw, tmp_path / "store", QUIET)


def test_large_integers_and_floats_in_parts_are_a_fault_not_a_rounding(tmp_path: Path) -> None:
    users = [2**53 + 1] * 20 + [1] * 10
    recipe, raw = kiosk(tmp_path, in_parquet({"user": (pa.int64(), pa.float64())}, {"user": users}))
    with pytest.raises(UserError, match="column user is double, and int64 in"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_a_task_may_be_a_predicate(tmp_path: Path, clean: dict[str, str]) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["tasks"] = [{"name": "click", "where": "page >= 0.5 AND mark IS NULL OR click"}]

    recipe, raw = kiosk(tmp_path / "where", edit)
    build_store(recipe, raw, tmp_path / "where" / "store", QUIET)
    assert hashes(tmp_path / "where" / "store") == clean

    def unknown(raw: Path, recipe: dict[str, Any]) -> None:
        swap("0,0,0,0,0,a", "0,0,0,0,,a")(raw, recipe)
        recipe["tasks"] = [{"name": "click", "where": "page = 1"}]

    recipe, raw = kiosk(tmp_path / "null", unknown)
    with pytest.raises(
        UserError, match=r"log_1\.csv, line 2: task click, where = 'page = 1': is neither true nor false"
    ):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    for task in ({"name": "click"}, {"name": "click", "label": "click", "where": "click"}):
        with pytest.raises(UserError, match="a task has either label"):
            kiosk(tmp_path / str(len(task)), lambda raw, recipe, task=task: recipe.update(tasks=[task]))


def test_numbers_of_sides_are_strict_in_files_with_and_without_what_duckdb_alone_would_read(tmp_path: Path) -> None:
    """The second row is good in both files; underscores in other columns change nothing."""
    for name, city in (("plain", "Oslo"), ("underscored", "Os_lo")):
        (tmp_path / f"{name}.csv").write_text(f"item,price,city\n1,1e3,{city}\n")
        assert RawTable((tmp_path / f"{name}.csv",), ("item", "price", "city")).has_odd_numbers() == (city == "Os_lo")
    for cell in ("1_000", "+-1", "0x10", "true", " ", "1,5"):
        recipe, raw = kiosk(tmp_path / cell.replace(" ", "blank"))
        (raw / "items.csv").write_text(f'item,price\n0,1\n1,"{cell}"\n')
        with pytest.raises(UserError, match=r"items\.csv, line 3: price is not a number \(it is \""):
            build_store(recipe, raw, tmp_path / "store", QUIET)


def test_history_items_are_read_exactly(tmp_path: Path) -> None:
    def edit(items: pa.Array) -> Edit:
        def write(raw: Path, recipe: dict[str, Any]) -> None:
            pq.write_table(pa.table({"who": [0], "until": [DAY_S], "what": items}), raw / "h.parquet")
            recipe["history"] = [
                {"file": "h.parquet", "user": "who", "time": "until", "behaviour": "click", "items": "what"}
            ]

        return write

    kinds = {
        "ints": [[1, 2]],
        "floats": [[1.0, 2.0, float("nan"), None]],
        "texts": [["1", "2.0", ""]],
        "text": ["[1, 2]"],
    }
    found = set()
    for name, items in kinds.items():
        recipe, raw = kiosk(tmp_path / name, edit(pa.array(items)))
        build_store(recipe, raw, tmp_path / name / "store", QUIET)
        found.add(str(sorted(hashes(tmp_path / name / "store").items())))
    assert len(found) == 1
    recipe, raw = kiosk(tmp_path / "half", edit(pa.array([[1.5]])))
    with pytest.raises(UserError, match=r"history h\.parquet: what holds '1\.5', which is no whole number"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_random_texts_survive_as_they_stand(tmp_path: Path) -> None:
    """Any category that is no printed float keeps its spelling."""
    draw = random.Random(1)
    words = {"".join(draw.choices(string.printable[:94], k=draw.randrange(1, 6))) for _ in range(30)}
    kept = [w for w in words if slow_values.plain(w) == w and slow_values.value(w) and not slow_values.is_nested(w)]
    marks = [kept[k % len(kept)] for k in range(30)]
    recipe, raw = kiosk(tmp_path, in_parquet({}, {"mark": marks}))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    found = Store(tmp_path / "store").vocabulary("mark").column("value").to_pylist()
    assert len(kept) > 20 and set(found) <= set(kept) and len(found) >= 5
