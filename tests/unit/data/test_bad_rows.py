"""Rows that cannot be used are left out and written down; too many of them stop the build."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_fixtures import QUIET, ROOT
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from kiosk import FILES, KIOSK, LOG, add, hashes, kiosk

HEADER = FILES["log_1.csv"][0]
USER, ITEM, TIME = (f"{name} is empty or not a whole number" for name in ("user", "item", "time"))
TIME += " of s since 1970"
EARLY = "time is not between 1970-01-01 (earliest) and 2100-01-01 (latest)"
LABEL = "click is not 0 or 1"


def quarantined(store: Path) -> list[tuple[str, int, str, str]]:
    with (store / "quarantine.csv").open(newline="") as file:
        reader = csv.reader(file)
        assert next(reader) == ["file", "line", "reason", "row"]
        return [(Path(name).name, int(line), reason, row) for name, line, reason, row in reader]


# Good rows are None; the text of a bad row and what is wrong with it. Blank lines are no rows.
BAD_LINES = [
    ("bob,1,5,0,1,a", USER),
    ("1,1,5,0", "Expected Number of Columns: 6 Found: 4"),
    None,
    ("", None),
    ("1,1,5,0,1,a,b", "Expected Number of Columns: 6 Found: 7"),
    ("", None),
    ("", None),
    ("1,1.5,5,0,1,a", ITEM),
    ("1,1,5,maybe,1,a", LABEL),
    None,
    None,
    ('1,1,5,2,1,"a\n\nb"', LABEL),
    ("1,1,5.5,1,1,a", TIME),
    ('"1"2,1,5,1,1,a', "Value with unterminated quote found."),
    ("1,,5,1,1,a", ITEM),
    None,
    ("1,1,-5,1,1,", EARLY),
    ("99999999999999999999,1,5,1,1,a", USER),
    ("1,1,5,0.5,1,a", LABEL),
]


def spoil(path: Path, end: str = "\n") -> list[tuple[str, int, str, str]]:
    """Puts bad rows between those of a file and returns where they stand, counted on the text as it is written."""
    good = path.read_text().splitlines()
    lines, bad = [good.pop(0)], []
    for entry in BAD_LINES:
        if entry is None:
            lines.append(good.pop(0))
        else:
            lines.append(entry[0])
            if entry[1]:
                place = sum(1 + line.count("\n") for line in lines[:-1]) + 1
                bad.append((path.name, place, entry[1], entry[0].replace("\n", end)))
    path.write_bytes((end.join([*lines, *good]).replace("\r\n", "\n").replace("\n", end) + end).encode())
    return bad


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_every_bad_row_is_written_down_where_it_stands_and_the_others_are_used(
    end: str, tmp_path: Path, clean: dict[str, str]
) -> None:
    recipe, raw = kiosk(tmp_path)
    expected = spoil(raw / "log_1.csv", end) + spoil(raw / "log_2.csv", end)
    users = (raw / "users.csv").read_text() + "x,Rome\n7\n"
    (raw / "users.csv").write_text(users)
    expected += [("users.csv", 5, USER, "x,Rome"), ("users.csv", 6, "Expected Number of Columns: 2 Found: 1", "7")]
    (raw / "items.csv").write_text("item,price\n0,0.0\n1,1.5\n9,dear\n2,3.0\n3,4.5\n")
    expected.append(("items.csv", 4, "price is not a number", "9,dear"))
    manifest = build_store(recipe, raw, tmp_path / "store", QUIET, max_bad_fraction=0.5)
    assert quarantined(tmp_path / "store") == expected
    assert list(manifest["bad_rows"].values()) == [24, 2, 1]
    assert hashes(tmp_path / "store") == clean
    assert check_store(Store(tmp_path / "store")) == []


def test_rows_and_lines_are_found_in_a_packed_file_and_behind_a_byte_order_mark(
    tmp_path: Path, clean: dict[str, str]
) -> None:
    recipe, raw = kiosk(tmp_path, lambda raw, recipe: recipe["log"].update(files=["log_1.csv.gz", "log_2.csv"]))
    expected = [("log_1.csv.gz", *rest) for _, *rest in spoil(raw / "log_1.csv")] + spoil(raw / "log_2.csv")
    (raw / "log_1.csv.gz").write_bytes(gzip.compress((raw / "log_1.csv").read_bytes()))
    (raw / "log_2.csv").write_bytes(b"\xef\xbb\xbf" + (raw / "log_2.csv").read_bytes())
    build_store(recipe, raw, tmp_path / "store", QUIET, max_bad_fraction=0.5)
    assert quarantined(tmp_path / "store") == expected and hashes(tmp_path / "store") == clean


def test_bad_rows_of_a_parquet_log_have_the_number_of_the_row(tmp_path: Path, clean: dict[str, str]) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["log"]["files"] = ["log_1.parquet", "log_2.parquet"]
        cells = [line.split(",") for line in LOG]
        rows = [[*map(int, row[:5]), row[5]] for row in cells]
        bad = [[None, 1, 5, 0, 1, "a"], [1, None, 5, 0, 1, "a"], [1, 1, -5, 0, 1, "a"], [1, 1, 5, 2, 1, None]]
        first = [bad[0], *rows[:7], bad[1], bad[2], *rows[7:20]]
        for name, part in (("log_1", first), ("log_2", [*rows[20:], bad[3]])):
            columns = dict(zip(HEADER.split(","), zip(*part, strict=True), strict=True))
            pq.write_table(
                pa.table({n: list(c) for n, c in columns.items()}), raw / f"{name}.parquet", row_group_size=3
            )

    recipe, raw = kiosk(tmp_path, edit)
    manifest = build_store(recipe, raw, tmp_path / "store", QUIET, max_bad_fraction=0.2)
    assert quarantined(tmp_path / "store") == [
        ("log_1.parquet", 1, USER, "item=1 time=5 click=0 page=1 mark=a"),
        ("log_1.parquet", 9, ITEM, "user=1 time=5 click=0 page=1 mark=a"),
        ("log_1.parquet", 10, EARLY, "user=1 item=1 time=-5 click=0 page=1 mark=a"),
        ("log_2.parquet", 11, LABEL, "user=1 item=1 time=5 click=2 page=1"),
    ]
    assert manifest["bad_rows"] == {"the log": 4} and hashes(tmp_path / "store") == clean


def test_a_log_without_time_numbers_its_good_rows(tmp_path: Path) -> None:
    """So that a bad row changes nothing; a file that is the log and both sides lists its rows once."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        del recipe["log"]["time"], recipe["log"]["time_unit"]
        recipe["splits"] = {"by": "rows_of_each_user", "valid": 0.2, "test": 0.2}
        recipe["behaviours"].pop()
        for side in ("user", "item"):
            recipe["sides"][side] = [{"files": ["log_1.csv", "log_2.csv"], "key": side, "first_row_of_each": True}]
        recipe["features"][0]["columns"] = ["user"]
        recipe["features"][2]["columns"] = ["page"]
        recipe["features"][3]["columns"] = ["mark"]

    recipe, raw = kiosk(tmp_path / "clean", edit)
    build_store(recipe, raw, tmp_path / "clean" / "store", QUIET)
    recipe, raw = kiosk(tmp_path / "bad", edit)
    lines = (raw / "log_1.csv").read_text().splitlines()
    (raw / "log_1.csv").write_text("\n".join([lines[0], "0,0", *lines[1:9], ",9,0,1,1,a", *lines[9:]]) + "\n")
    manifest = build_store(recipe, raw, tmp_path / "bad" / "store", QUIET, max_bad_fraction=0.1)
    assert hashes(tmp_path / "bad" / "store").keys() == hashes(tmp_path / "clean" / "store").keys()
    item_files = {"items.arrow", "vocab/item.arrow"}  # item 9 is in the bad row only, and yet an item of its side
    differing = set(hashes(tmp_path / "bad" / "store").items()) ^ set(hashes(tmp_path / "clean" / "store").items())
    assert {name for name, _ in differing} <= item_files
    log = "log_1.csv, log_2.csv"
    assert manifest["bad_rows"] == {"the log": 2, f"{log} (user side)": 2, f"{log} (item side)": 1}
    assert [(line, reason) for _, line, reason, _ in quarantined(tmp_path / "bad" / "store")] == [
        (2, "Expected Number of Columns: 6 Found: 2"),
        (11, USER),
    ]


def test_the_fraction_that_may_be_bad_is_of_the_rows_of_one_table(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, add("log_1.csv", "0,0,5,2,1,a"))
    with pytest.raises(
        UserError, match=r"1 of 31 rows are bad .3\.2258%., more than --max-bad-fraction 0\.03225 allows"
    ):
        build_store(recipe, raw, tmp_path / "store", QUIET, max_bad_fraction=0.03225)
    assert build_store(recipe, raw, tmp_path / "store", QUIET, max_bad_fraction=1 / 31)["bad_rows"] == {"the log": 1}


def test_many_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rows = ["0,0,5,2,1,a"] * 1200 + ["x,0,5,1,1,a"] * 1300
    recipe, raw = kiosk(tmp_path, add("log_1.csv", "\n".join(rows)))
    with pytest.raises(UserError, match=rf"(?s)2,500 of 2,530 rows.*1,300 rows: {USER}\n  1,200 rows: {LABEL}$"):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    recipe, raw = kiosk(tmp_path / "other", add("log_2.csv", "\n".join(["0,0", *["0,0,5,maybe,1,a"] * 4])))
    with pytest.raises(UserError, match=r"(?s)line 12: Expected.*4 rows: click is not 0 or 1\n  1 rows: Expected"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_the_command_reports_bad_rows_and_stops_with_exit_2_at_too_many(tmp_path: Path) -> None:
    kiosk(tmp_path, add("log_2.csv", "0,0,5,2,1,a"))
    (tmp_path / "kiosk.toml").write_text(_toml(KIOSK))
    command = [sys.executable, "-m", "infnet_rec.cli", "data", "build", "kiosk.toml", "--raw", "raw", "--out", "store"]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    fault = [line for line in done.stderr.splitlines() if "infnet-rec:" in line]
    assert len(fault) == 1 and fault[0].startswith("infnet-rec: fault: the log: 1 of 31 rows are bad")
    assert done.stderr.endswith('  raw/log_2.csv, line 12: click is not 0 or 1 (it is "2")\n')
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "kiosk.toml"}
    command += ["--max-bad-fraction", "0.05"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "  1 bad rows of the log left out; see store/quarantine.csv" in done.stdout.splitlines()


def _toml(value: dict[str, Any]) -> str:
    """Inline tables and JSON scalars are TOML."""

    def inline(part: Any) -> str:
        if isinstance(part, dict):
            return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in part.items()) + "}"
        return "[" + ", ".join(map(inline, part)) + "]" if isinstance(part, list | tuple) else json.dumps(part)

    splits = ", ".join(f"{name} = {date}" for name, date in value["splits"].items())
    return "\n".join(
        f"{key} = {{{splits}}}" if key == "splits" else f"{key} = {inline(part)}" for key, part in value.items()
    )


# How a number may be written. The store is that of the plain numbers, or the row is bad.
WRITTEN: dict[str, tuple[str, str, str | None]] = {
    "a label of 1.0": ("0,0,60480,1,1,a", "0,0,60480,1.0,1,a", None),
    "a label after a space": ("0,0,60480,1,1,a", "0,0,60480, 1,1,a", None),
    "leading zeros": ("0,0,60480,1,1,a", "00,000,060480,01,1,a", None),
    "a plus sign": ("0,0,60480,1,1,a", "+0,+0,+60480,+1,1,a", None),
    "whole floats": ("0,0,60480,1,1,a", "0.0,0.,60480.000,1.00,1,a", None),
    "spaces": ("0,0,60480,1,1,a", " 0,0 , 60480 ,1 ,1,a", None),
    "quotes": ("0,0,60480,1,1,a", '"0","0","60480","1",1,"a"', None),
    "a label of true": ("0,0,60480,1,1,a", "0,0,60480,true,1,a", None),
    "a label of TRUE": ("0,0,60480,1,1,a", "0,0,60480,TRUE,1,a", None),
    "a label of false": ("0,0,60480,0,1,a", "0,0,60480,False,1,a", None),
    "a label of yes": ("", "0,0,60480,yes,1,a", LABEL),
    "a label with an exponent": ("0,0,60480,1,1,a", "0,0,60480,10e-1,1,a", None),
    "a label with an underscore": ("", "0,0,60480,0_1,1,a", LABEL),
    "a label of infinity": ("", "0,0,60480,inf,1,a", LABEL),
    "a user that is true": ("", "true,0,60480,1,1,a", USER),
    "an item of infinity": ("", "0,inf,60480,1,1,a", ITEM),
    "a label of nan": ("", "0,0,60480,nan,1,a", LABEL),
    "a label of -1": ("", "0,0,60480,-1,1,a", LABEL),
    "a hexadecimal id": ("", "0x1,0,60480,1,1,a", USER),
    "a binary id": ("", "0,0b1,60480,1,1,a", ITEM),
    "an id with an underscore": ("", "1_0,0,60480,1,1,a", USER),
    "whole numbers with an exponent": ("0,2,60480,1,1,a", "0e5,20e-1,6.048E+4,1e0,1,a", None),
    "an id that DuckDB would round": ("", "0,15e-1,60480,1,1,a", ITEM),
    "a time that DuckDB would round": ("", "0,0,604809e-1,1,1,a", TIME),
    "an id beyond 64 bits": ("", "9223372036854775808,0,60480,1,1,a", USER),
    "an id of nan": ("", "nan,0,60480,1,1,a", USER),
    "an id with a NUL byte": ("", "0\0,0,60480,1,1,a", USER),
    "a row of nothing": ("", ",,,,,", USER),
    "a line of three million bytes": ("", f"0,0,60480,1,1,{'x' * 3_000_000}", "Maximum line size"),
}


@pytest.mark.slow(smoke=["spaces", "whole floats", "an id of nan", "a label of -1", "a label of true"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_number_is_read_as_it_is_or_its_row_is_bad(name: str, tmp_path: Path, clean: dict[str, str]) -> None:
    plain, written, reason = WRITTEN[name]
    recipe, raw = kiosk(tmp_path / "written", lambda raw, recipe: _insert(raw / "log_1.csv", written))
    build_store(recipe, raw, tmp_path / "written" / "store", QUIET, max_bad_fraction=0.1)
    found = hashes(tmp_path / "written" / "store")
    if reason is None:
        recipe, raw = kiosk(tmp_path / "plain", lambda raw, recipe: _insert(raw / "log_1.csv", plain))
        build_store(recipe, raw, tmp_path / "plain" / "store", QUIET)
        assert found == hashes(tmp_path / "plain" / "store") != clean
    else:
        assert found == clean
        ((_, line, why, row),) = quarantined(tmp_path / "written" / "store")
        assert line == 9 and len(row) < 5_000
        assert why.startswith(reason)


def _insert(path: Path, row: str) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:8], row, *lines[8:]]) + "\n")


def test_ids_may_be_negative_and_use_all_64_bits(tmp_path: Path) -> None:
    low, high = -(2**63), 2**63 - 1
    recipe, raw = kiosk(tmp_path, add("log_1.csv", f"{low},{high},60480,1,1,a\n-1,{high - 1},60480,1,1,a"))
    (raw / "users.csv").write_text(f"user,city\n{low},Nome\n-1,Rome\n")
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert store.user_keys.to_pylist() == [low, -1, 0, 1, 2]
    assert store.item_keys.to_pylist() == [0, 1, 2, 3, high - 1, high]
    assert store.vocabulary("city").column("value").to_pylist() == ["Nome", "Rome"]
