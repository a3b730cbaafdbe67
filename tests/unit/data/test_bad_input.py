"""Raw files that cannot be read, in part or at all: one fault that names the file, and nothing is left behind."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import QUIET
from infnet_rec.data.ingest import bad_rows
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.parsing.text_format import CSV_FORMAT
from infnet_rec.errors import UserError
from kiosk import FILES, Edit, hashes, kiosk, rewrite, swap


def _folder(raw: Path, recipe: dict[str, Any]) -> None:
    (raw / "users.csv").unlink()
    (raw / "users.csv").mkdir()


WRONG_FILES: dict[str, tuple[Edit, str]] = {
    "CRLF, then LF": (rewrite(lambda text: text.replace(b"\n", b"\r\n", 8), "log_2.csv"), r"^\S*log_2\.csv: rows end"),
    "LF, then CRLF": (
        rewrite(lambda text: text[:70] + text[70:].replace(b"\n", b"\r\n"), "log_1.csv"),
        "log_1.csv: rows",
    ),
    "CR": (rewrite(lambda text: text.replace(b"\n", b"\r"), "users.csv"), r"users\.csv: .*must end in LF or CRLF"),
    "an empty file": (rewrite(lambda _: b"", "users.csv"), r"users\.csv: has no header"),
    "an empty log": (rewrite(lambda _: b"", "log_1.csv"), r"log_1\.csv: has no header"),
    "a blank first line": (rewrite(lambda text: b"\n" + text, "users.csv"), r"users\.csv: has no header"),
    "a repeated column": (swap("page", "user", "log*"), r"log_1\.csv: column user stands in the header more than once"),
    "columns that differ by case": (
        swap("page", "User", "log*"),
        r"log_1\.csv: columns user, User differ by case only",
    ),
    "a column of DuckDB's": (swap("page", "file_index", "log*"), r"column file_index has a name that DuckDB uses"),
    "a folder for a file": (_folder, r"users\.csv: is a folder that holds no file"),
    "a file twice": (
        lambda raw, recipe: recipe["log"].update(files=["log_1.csv"] * 2),
        r"log_1\.csv: is listed 2 times",
    ),
    "UTF-16": (rewrite(lambda text: text.decode().encode("utf-16"), "users.csv"), r"users\.csv: .*not UTF-8"),
    "semicolons": (
        rewrite(lambda text: text.replace(b",", b";"), "users.csv"),
        r"users\.csv, line 1: the header 'user;city' .* write delimiter = \";\"",
    ),
    "a header that never ends": (
        rewrite(lambda text: b'"' + b"x" * 200_000, "users.csv"),
        r"users\.csv: the header is no",
    ),
    "an open quote": (swap("20,", '"20,', "log_1.csv"), r"(?s)rows are bad.*log_1\.csv"),
    "a sqlite file": (rewrite(lambda _: b"SQLite format 3\0" + bytes(range(256)) * 9, "users.csv"), r"users\.csv: "),
    "no Parquet": (
        lambda raw, recipe: (
            (raw / "u.parquet").write_bytes(b"PAR1" * 9),
            recipe["sides"]["user"][0].update(files=["u.parquet"]),
        ),
        r"u\.parquet: not a Parquet file",
    ),
    "CSV and Parquet": (
        lambda raw, recipe: ((raw / "u.parquet").touch(), recipe["log"].update(files=["log_1.csv", "u.parquet"])),
        r"must all be CSV or all be Parquet",
    ),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_one_fault_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    edit, message = WRONG_FILES[name]
    recipe, raw = kiosk(tmp_path, edit)
    with pytest.raises(UserError, match=message):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made up."""

    def refuse(path: Path, encoding: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    recipe, raw = kiosk(tmp_path)
    monkeypatch.setattr("infnet_rec.data.parsing.text_format.open_bytes", refuse)
    with pytest.raises(UserError, match=r"users\.csv: cannot be read \(Permission denied\)"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def test_a_log_of_headers_only_is_refused(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["sides"] = {}
        recipe["features"] = [{"side": "user", "encoding": "index", "columns": ["user"]}, recipe["features"][-1]]
        del recipe["behaviours"], recipe["sequences"]
        for name in ("log_1.csv", "log_2.csv"):
            (raw / name).write_text(FILES["log_1.csv"][0] + "\n")

    recipe, raw = kiosk(tmp_path, edit)
    with pytest.raises(UserError, match=r"log_2\.csv: the log holds a header and no rows"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


def packed(change: Callable[[bytes], bytes]) -> Edit:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["log"]["files"][1] = "log_2.csv.gz"
        (raw / "log_2.csv.gz").write_bytes(change(gzip.compress((raw / "log_2.csv").read_bytes())))
        (raw / "log_2.csv").unlink()

    return edit


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 15, 60, -9, -8, -4, -1])
def test_a_cut_gzip_file_is_a_fault_that_names_it(cut: int, tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, packed(lambda text: text[:cut]))
    with pytest.raises(UserError, match=r"log_2\.csv\.gz.*(cut off|no header)"):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


def test_a_whole_gzip_file_is_read_and_another_is_refused(tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, raw = kiosk(tmp_path / "whole", packed(lambda text: text))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean
    recipe, raw = kiosk(tmp_path / "plain", packed(gzip.decompress))
    with pytest.raises(UserError, match=r"log_2\.csv\.gz: cut off or not gzip"):
        build_store(recipe, raw, tmp_path / "store", QUIET, replace=True)


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    """Quotes that only stand within a field open nothing; doubled ones close nothing; a field may have many lines."""
    text = 'a,b\n\n1,2\n"x\n\ny",3\nq"q,4\n"d""\n""",5\n\n\n6,"\n"\n7,8'
    (tmp_path / "a.csv").write_text(text)
    with (tmp_path / "a.csv").open("rb") as file:
        found = [(line, row.decode()) for _, line, row in bad_rows.rows(file, CSV_FORMAT) if row]
    expected = [
        (1, "a,b"),
        (3, "1,2"),
        (4, '"x\n\ny",3'),
        (7, 'q"q,4'),
        (8, '"d""\n""",5'),
        (12, '6,"\n"'),
        (14, "7,8"),
    ]
    assert found == expected
    with (tmp_path / "a.csv").open("rb") as file:
        assert all(text[offset:].startswith(row.decode()) for offset, _, row in bad_rows.rows(file, CSV_FORMAT))
