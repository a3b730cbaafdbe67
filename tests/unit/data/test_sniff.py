"""A first recipe from raw files alone: what is guessed, what is refused, and that it builds as it stands."""

import random
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import QUIET, ROOT
from infnet_rec import cli
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import load_recipe
from infnet_rec.data.sniff.verb import lines, sniff
from infnet_rec.data.store import SPLITS, Store
from infnet_rec.errors import UserError
from public_layouts import LAYOUTS

DOCS = ROOT / "docs" / "sniff.md"
START = 1_714_521_600


def sniffed(folder: Path, *names: str, out: str = "recipe.toml") -> dict[str, Any]:
    return sniff([str(folder / name) for name in names], folder / out, memory_gib=1.0, num_threads=1)


def log_rows(num: int = 400, seed: int = 1) -> list[dict[str, Any]]:
    """A shop's log with names for its columns."""
    draw = random.Random(seed)
    return [
        {
            "user_id": draw.randrange(1, 21),
            "item_id": draw.randrange(1, 16),
            "ts": START + draw.randrange(20 * 86_400),
            "click": draw.randrange(2),
            "dwell": round(draw.expovariate(0.1), 1),
            "tab": draw.choice("abc"),
        }
        for _ in range(num)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    text = [delimiter.join(rows[0]), *(delimiter.join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


# Files, user, item, time and its unit, tasks, keys of the side tables.
PUBLIC: dict[str, tuple[list[str], str, str, str, str, dict[str, str], list[tuple[str, str]]]] = {
    "movielens_100k": (
        ["u.item", "u.data", "u.user"],
        "user",
        "item",
        "time",
        "s",
        {"liked": "rating >= 4"},
        [("item", "item"), ("user", "user")],
    ),
    "movielens_1m": (
        ["ratings.dat", "users.dat", "movies.dat"],
        "user",
        "item",
        "time",
        "s",
        {"liked": "rating >= 4"},
        [("user", "user"), ("item", "item")],
    ),
    "recbole": (
        ["ml-100k.inter", "ml-100k.user", "ml-100k.item"],
        "user_id:token",
        "item_id:token",
        "timestamp:float",
        "decimal_s",
        {"liked": '"rating:float" >= 4'},
        [("user", "user_id:token"), ("item", "item_id:token")],
    ),
    "taobao_userbehavior": (
        ["UserBehavior.csv"],
        "user",
        "item",
        "time",
        "s",
        {kind: f"event = '{kind}'" for kind in ("buy", "cart", "fav", "pv")},
        [],
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_layouts_are_guessed_and_build(name: str, tmp_path: Path) -> None:
    files, user, item, time, unit, tasks, sides = PUBLIC[name]
    LAYOUTS[name](tmp_path)
    found = sniffed(tmp_path, *files)
    assert (found["user"], found["item"], found["time"], found["time_unit"]) == (user, item, [time], unit)
    assert found["tasks"] == tasks and [(s["side"], s["key"]) for s in found["sides"]] == sides
    manifest = build_store(load_recipe(tmp_path / "recipe.toml"), tmp_path, tmp_path / "store", QUIET)
    assert (
        manifest["log"]["rows_read"] == found["num_rows"] == sum(s["num_examples"] for s in manifest["splits"].values())
    )
    assert all(join["num_log_keys_matched"] == join["num_log_keys"] for join in manifest["joins"])
    assert not manifest["bad_rows"] and not manifest["flat_features"]
    assert all(len(line) < 200 for line in lines(found))


def test_a_category_that_stands_in_every_row_of_the_log_is_the_items(tmp_path: Path) -> None:
    LAYOUTS["taobao_userbehavior"](tmp_path)
    found = sniffed(tmp_path, "UserBehavior.csv")
    assert {"column": "column_3", "side": "item", "encoding": "index"} in found["features"]
    assert "first_row_of_each = true" in (tmp_path / "recipe.toml").read_text()


def test_rows_without_a_user_are_no_guess_and_one_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    LAYOUTS["criteo"](tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["infnet-rec", "data", "sniff", f"{tmp_path}/train.txt", f"--out={tmp_path}/x.toml"]
    )
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and not (tmp_path / "x.toml").exists()
    assert [line for line in said if "infnet-rec" in line] == [said[-1]] and "could be the user" in said[-1]


def test_what_may_be_known_only_afterwards_is_no_feature(tmp_path: Path) -> None:
    write_rows(tmp_path / "log.csv", log_rows())
    found = sniffed(tmp_path, "log.csv")
    assert found["tasks"] == {"click": "click = 1"} and found["splits"] == "time"
    assert [f["column"] for f in found["features"]] == ["user_id", "item_id", "tab"]
    assert any("dwell" in line for line in found["unused"])


UNITS: dict[str, Callable[[int], Any]] = {
    "s": lambda t: t,
    "ms": lambda t: t * 1000 + 7,
    "us": lambda t: t * 10**6 + 7,
    "ns": lambda t: t * 10**9 + 7,
    "decimal_s": lambda t: f"{t}.25",
    "text": lambda t: datetime.fromtimestamp(t, UTC).isoformat(),
}


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_a_time_is_the_one_in_which_it_can_be_true(unit: str, tmp_path: Path) -> None:
    rows = log_rows()
    write_rows(tmp_path / "log.csv", [{**row, "ts": UNITS[unit](row["ts"])} for row in rows])
    found = sniffed(tmp_path, "log.csv")
    assert (found["time"], found["time_unit"]) == (["ts"], unit)
    manifest = build_store(load_recipe(tmp_path / "recipe.toml"), tmp_path, tmp_path / "store", QUIET)
    first = min(row["ts"] for row in rows)
    assert manifest["log"]["first"] == datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%d %H:%M:%S")


def test_a_date_and_a_time_of_day_are_one_time(tmp_path: Path) -> None:
    rows = []
    for row in log_rows():
        when = datetime.fromtimestamp(row.pop("ts"), UTC)
        rows.append({**row, "date": f"{when:%Y-%m-%d}", "clock": f"{when:%H:%M:%S}"})
    write_rows(tmp_path / "log.csv", rows)
    assert sniffed(tmp_path, "log.csv")["time"] == ["date", "clock"]
    build_store(load_recipe(tmp_path / "recipe.toml"), tmp_path, tmp_path / "store", QUIET)


def test_a_value_of_the_last_row_counts(tmp_path: Path) -> None:
    """No type comes from the first rows: one id with letters, one fraction, far below them."""
    rows = log_rows(3_000)
    rows[-1] |= {"user_id": "u7", "click": 1}
    write_rows(tmp_path / "log.csv", rows)
    found = sniffed(tmp_path, "log.csv")
    assert found["id_type"] == "string" and found["tasks"] == {"click": "click = 1"}
    rows[-1]["click"] = 0.5
    write_rows(tmp_path / "log.csv", rows)
    with pytest.raises(UserError, match="no column that could be a label"):
        sniffed(tmp_path, "log.csv", out="other.toml")


def test_zeros_in_front_make_ids_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "log.csv", [{**row, "user_id": f"{row['user_id']:05d}"} for row in log_rows()])
    assert sniffed(tmp_path, "log.csv")["id_type"] == "string"


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::"])
def test_the_same_rows_in_any_order_parts_and_form_give_the_same_guess(delimiter: str, tmp_path: Path) -> None:
    rows = log_rows()
    write_rows(tmp_path / "log_1.csv", rows[:150], delimiter)
    write_rows(tmp_path / "log_2.csv", rows[150:], delimiter)
    first = sniffed(tmp_path, "log_1.csv", "log_2.csv")
    random.Random(3).shuffle(rows)
    write_rows(tmp_path / "log_1.csv", rows[:90], delimiter)
    write_rows(tmp_path / "log_2.csv", rows[90:], delimiter)
    second = sniffed(tmp_path, "log_2.csv", "log_1.csv", out="again.toml")
    texts = [(tmp_path / name).read_text().replace("again", "recipe") for name in ("recipe.toml", "again.toml")]
    assert texts[0] == texts[1] and {**first, "recipe": ""} == {**second, "recipe": ""}
    assert tomllib.loads(texts[0])["log"].get("delimiter", ",") == delimiter
    assert first["log"] == ["log_1.csv", "log_2.csv"] and first["num_rows"] == 400


def test_parquet_files_and_lists(tmp_path: Path) -> None:
    rows = log_rows()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["ts"] = [datetime.fromtimestamp(t, UTC) for t in columns["ts"]]
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    pq.write_table(
        pa.table({"item_id": list(range(1, 16)), "tags": [["a", "b"]] * 15, "price": [k / 3 for k in range(15)]}),
        tmp_path / "items.parquet",
    )
    found = sniffed(tmp_path, "log.parquet", "items.parquet")
    assert found["time"] == ["ts"] and [s["key"] for s in found["sides"]] == ["item_id"]
    assert {"column": "price", "side": "item", "encoding": "quantile"} in found["features"]
    assert any("tags" in line for line in found["unused"])
    build_store(load_recipe(tmp_path / "recipe.toml"), tmp_path, tmp_path / "store", QUIET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("one\n1\n2\n", "one cell only"),
        ("user_id,item_id,ts,click\n", "has no rows"),
        ("a,b\n1,2\n3,4\n", "could be the user"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(UserError, match=message) as fault:
        sniffed(tmp_path, "log.csv")
    assert "\n" not in str(fault.value) and not (tmp_path / "recipe.toml").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_rows(tmp_path / "log.csv", log_rows())
    (tmp_path / "recipe.toml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        sniffed(tmp_path, "log.csv")
    assert (tmp_path / "recipe.toml").read_text() == "mine"
    for files, out, message in ((["none.csv"], "a.toml", "no such file"), (["log.csv"], "a.txt", "end its name")):
        with pytest.raises(UserError, match=message):
            sniffed(tmp_path, *files, out=out)


@pytest.mark.slow
def test_the_way_of_the_documentation_works(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Every command of the page, in its order, on made-up rows in MovieLens' own layout."""
    LAYOUTS["movielens_100k"](tmp_path / "ml-100k")
    before = {path: path.read_bytes() for path in (tmp_path / "ml-100k").iterdir()}
    monkeypatch.chdir(tmp_path)
    for kind, text in re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL):
        if kind == "toml":
            (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
            continue
        for command in text.splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(command))
            try:
                cli.main()
            except SystemExit as left:
                assert not left.code, (command, capsys.readouterr())
    store = Store(tmp_path / "stores" / "movielens")
    assert sum(store.num_examples(split) for split in SPLITS) == 528
    assert (tmp_path / "runs" / "movielens" / "result.json").is_file()
    assert {path: path.read_bytes() for path in (tmp_path / "ml-100k").iterdir()} == before
