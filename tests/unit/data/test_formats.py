"""Raw files in the forms that people have them: what is read is the same, and bad rows are listed where they stand."""

import gzip
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_fixtures import QUIET
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.bad_rows import Intake, Quarantine
from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.data.ingest.raw_files import connect, open_table
from infnet_rec.data.ingest.raw_folder import RawFile, find_raw
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.parsing.text_format import TextEncoding, TextFormat
from infnet_rec.data.remote import CACHE_VARIABLE
from infnet_rec.errors import UserError
from kiosk import FILES, KIOSK, Edit, hashes, kiosk
from properties import num_examples
from test_bad_rows import quarantined


def zstd(text: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as file:
        file.write(text)
    return out.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {"": lambda text: text, ".gz": gzip.compress, ".zst": zstd}


@dataclass(frozen=True)
class Written:
    """A way to write a table as text."""

    form: TextFormat
    ending: str = "\n"
    packing: str = ""
    mark: bytes = b""

    def line(self, cells: list[str]) -> str:
        quote, risky = self.form.quote, {*self.form.delimiter, *self.form.quote, "\n"}
        if quote:
            cells = [quote + c.replace(quote, quote * 2) + quote if risky & set(c) else c for c in cells]
        return self.form.delimiter.join(cells).replace("\n", self.ending)

    def bytes(self, lines: list[str]) -> bytes:
        text = self.ending.join([*lines, ""]).encode(self.form.encoding)
        return PACKED[self.packing](self.mark + text)


NAMES = ("a", "b", "c")
ENCODINGS: dict[str, TextEncoding] = {"utf-8": "utf-8", "latin-1": "latin-1"}
FORMS = [
    Written(TextFormat(delimiter, quote, columns, ENCODINGS[encoding]), ending, packing, mark)
    for delimiter, quote, columns, encoding, ending, packing, mark in (
        (",", '"', (), "utf-8", "\n", "", b""),
        ("\t", '"', NAMES, "utf-8", "\n", ".gz", b""),
        ("::", '"', NAMES, "utf-8", "\r\n", "", b"\xef\xbb\xbf"),
        ("::", "", NAMES, "utf-8", "\n", ".zst", b""),
        (";", "'", (), "utf-8", "\r\n", ".zst", b"\xef\xbb\xbf"),
        ("|", '"', NAMES, "latin-1", "\n", "", b""),
        ("|", "", (), "latin-1", "\r\n", ".gz", b""),
        ("\x01", "", NAMES, "utf-8", "\n", "", b""),
        (";;;;", '"', (), "utf-8", "\n", "", b""),
        ("é", '"', NAMES, "utf-8", "\n", ".gz", b""),
    )
]
A_IS_BAD = "a is empty or not a whole number"


def rows_of(form: TextFormat) -> st.SearchStrategy[list[list[str]]]:
    """Rows of three cells, some with too few or too many, some with a first cell that is no number."""
    # Without quotes nothing can hold what cuts a file.
    odd = "".join({*"ab ü:;|'\t,", *(form.delimiter + form.quote + "\n" if form.quote else "")})
    if not form.quote:
        odd = "".join(set(odd) - set(form.delimiter)) + '"'
    text = st.text(odd, max_size=6)
    first = st.one_of(st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(["x", "", "1.5", "0x1"]))
    good = st.tuples(first, text, text).map(list)
    return st.lists(
        st.one_of(good, good, good, st.lists(text.map(lambda t: "b" + t), min_size=2, max_size=5)), max_size=12
    )


def reason_of(cells: list[str]) -> str | None:
    """What is wrong with a row."""
    if len(cells) != 3:
        return f"Expected Number of Columns: 3 Found: {min(len(cells), 4)}"  # DuckDB counts no further
    return A_IS_BAD if not cells[0].lstrip("-").isdigit() else None


@pytest.mark.slow(smoke=["',' utf-8 ", "'|' latin-1 .gz"])
@pytest.mark.parametrize("written", FORMS, ids=lambda w: f"{w.form.delimiter!r} {w.form.encoding} {w.packing}")
@settings(max_examples=num_examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_are_read_as_written_and_bad_ones_are_listed_where_they_stand(
    written: Written, data: st.DataObject, tmp_path: Path
) -> None:
    form, folder = written.form, tmp_path / "table"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    parts, lines, expected, good = 2, [], [], Counter()
    for part in range(parts):
        rows = data.draw(rows_of(form))
        lines = [written.line(list(NAMES))] if form.has_header else []
        path = folder / f"{part}.dat{written.packing}"
        for cells in rows:
            lines += [""] * data.draw(st.integers(0, 1))
            at = 1 + sum(1 + line.count("\n") for line in lines)
            if (reason := reason_of(cells)) is None:
                b, c = (cell.replace("\n", written.ending) or None for cell in cells[1:])
                good[int(cells[0]), b, c] += 1
            elif written.line(cells):
                expected.append((str(path), at, reason, written.line(cells)))
            lines.append(written.line(cells))
        path.write_bytes(written.bytes(lines))
    faults: list[str] = []
    table = open_table([RawFile(folder / f"{k}.dat{written.packing}", "") for k in range(parts)], faults, form)
    assert table is not None and not faults
    columns = {"a": table.integer("a"), "b": table.text("b"), "c": table.text("c")}
    intake = Intake("rows", "the rows", table, {}, columns, {A_IS_BAD: "a IS NULL"})
    quarantine = Quarantine(1.0)
    with connect(folder, memory_gib=0.5, num_threads=1) as connection:
        intake.run(connection, quarantine)
        found = Counter(connection.execute("SELECT a, b, c FROM rows").fetchall())
    assert found == good
    assert [(b.file, b.line, b.reason, b.row) for b in quarantine.rows] == sorted(expected)


def rewritten(form: TextFormat, ending: str, pack: Callable[[bytes], bytes] = bytes) -> Edit:
    """Writes the kiosk's files anew, and says so in the recipe."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        told = {"delimiter": form.delimiter, "quote": form.quote, "encoding": form.encoding}
        header = ""
        for table in (recipe["log"], recipe["sides"]["user"][0], recipe["sides"]["item"][0]):
            names = []
            for name in table["files"]:
                header, *lines = (raw / name).read_text().splitlines()
                # The only quoted cell of the kiosk.
                rows = [[c.replace(";", ", ") for c in x.replace(", ", ";").replace('"', "").split(",")] for x in lines]
                text = Written(form)
                lines = [text.line(row) for row in rows]
                if not form.columns:
                    lines = [text.line(header.split(",")), *lines]
                names.append(name.replace(".csv", ending))
                (raw / name).unlink()
                (raw / names[-1]).write_bytes(pack("\n".join([*lines, ""]).encode(form.encoding)))
            table |= told | {"files": names}
            if form.columns:
                table |= {"header": False, "columns": header.split(",")}

    return edit


@pytest.mark.parametrize(
    ("form", "ending", "pack"),
    [
        (TextFormat("\t"), ".tsv", bytes),
        (TextFormat("::", "", ("-",)), ".dat", bytes),
        (TextFormat(";", '"', ("-",)), ".txt.gz", gzip.compress),
        (TextFormat("|", "", (), "latin-1"), ".user.zst", zstd),
    ],
    ids=["tabs", "::, no header", "gz", "zst"],
)
def test_a_store_does_not_show_how_its_files_were_written(
    form: TextFormat, ending: str, pack: Callable[[bytes], bytes], tmp_path: Path, clean: dict[str, str]
) -> None:
    recipe, raw = kiosk(tmp_path, rewritten(form, ending, pack))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


def with_files(*files: str, **keys: Any) -> Edit:
    return lambda raw, recipe: recipe["log"].update(files=list(files), **keys)


@pytest.mark.parametrize(
    "files", [["log_*.csv"], ["*_[12].csv", "log_2.csv"], ["log_2.csv", "log_?.csv"], ["**/log_*"]], ids=repr
)
def test_patterns_mean_files_each_once(files: list[str], tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, raw = kiosk(tmp_path, with_files(*files))
    (raw / ".log_3.csv").write_text("hidden")
    (raw / "_log_4.csv").write_text("hidden too")
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


def test_a_name_that_looks_like_a_pattern_is_a_file(tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, raw = kiosk(tmp_path, with_files("log_[1].csv", "log_2.csv"))
    (raw / "log_1.csv").rename(raw / "log_[1].csv")
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


def test_files_of_a_pattern_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    """It shows in a log without a time."""
    for name in ("b/1.csv", "a/2.csv", "a/10.csv", "c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = find_raw(tmp_path, ["**/*.csv", "c.csv", "a"], lambda *_: None, lambda _: None)
    assert [file.name for file in folder.of(["**/*.csv"])] == ["a/10.csv", "a/2.csv", "b/1.csv", "c.csv"]
    assert [file.name for file in folder.of(["c.csv", "**/*.csv"])] == ["c.csv", "a/10.csv", "a/2.csv", "b/1.csv"]
    assert [file.name for file in folder.of(["a"])] == ["a/10.csv", "a/2.csv"]


def partitioned(raw: Path, recipe: dict[str, Any], *, ending: str) -> None:
    """Cuts the log into folders by its columns click and mark, which its files then lack."""
    header, *rows = [*FILES["log_1.csv"], *FILES["log_2.csv"][1:]]
    names, cut = header.split(","), {}
    for row in rows:
        cells = dict(zip(names, row.split(","), strict=True))
        mark = {"": "__HIVE_DEFAULT_PARTITION__", "#1": "%231"}.get(cells["mark"], cells["mark"])
        cut.setdefault(f"log/click={cells.pop('click')}/mark={mark}", []).append(cells)
        del cells["mark"]
    for folder, part in cut.items():
        (raw / folder).mkdir(parents=True)
        table = {name: [int(cells[name]) for cells in part] for name in part[0]}
        if ending == ".parquet":
            pq.write_table(pa.table(table), raw / folder / "part-0.parquet")
        else:
            lines = [",".join(map(str, line)) for line in zip(*table.values(), strict=True)]
            (raw / folder / "part-0.csv").write_text("\n".join([",".join(table), *lines, ""]))
    (raw / "log" / "_SUCCESS").touch()
    (raw / "log" / ".part-0.crc").write_bytes(b"crc")


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
@pytest.mark.parametrize("files", ["log", "log/click=*/*/*", "log/*"])
def test_names_of_folders_are_columns(ending: str, files: str, tmp_path: Path, clean: dict[str, str]) -> None:
    """Only below the raw folder: what stands above it is no column, even where it looks so."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        partitioned(raw, recipe, ending=ending)
        recipe["log"]["files"] = [files]

    recipe, raw = kiosk(tmp_path / "user=7" / "page=9", edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


def test_a_bad_row_of_a_partition_is_listed(tmp_path: Path, clean: dict[str, str]) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        partitioned(raw, recipe, ending=".csv")
        recipe["log"]["files"] = ["log"]
        with (raw / "log" / "click=0" / "mark=a" / "part-0.csv").open("a") as file:
            file.write("0,noon,5,0\nx,1,5,0,1,2\n")
        (raw / "log" / "click=7").mkdir()
        (raw / "log" / "click=7" / "mark=a").mkdir()
        (raw / "log" / "click=7" / "mark=a" / "p.csv").write_text("user,item,time,page\n0,0,5,1\n")

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET, max_bad_fraction=0.2)
    assert hashes(tmp_path / "store") == clean
    assert [(file, line, reason.partition(" or")[0]) for file, line, reason, _ in quarantined(tmp_path / "store")] == [
        ("part-0.csv", 7, "item is empty"),
        ("part-0.csv", 8, "Expected Number of Columns: 4 Found: 5"),
        ("p.csv", 2, "click is not 0"),
    ]


def _lonely(raw: Path, recipe: dict[str, Any]) -> None:
    recipe["log"]["files"] = ["day=1", "log_2.csv"]
    (raw / "day=1").mkdir()
    (raw / "log_1.csv").rename(raw / "day=1" / "log.csv")


def _zst(change: Callable[[bytes], bytes]) -> Edit:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["log"]["files"][1] = "log_2.csv.zst"
        (raw / "log_2.csv.zst").write_bytes(change(zstd((raw / "log_2.csv").read_bytes())))

    return edit


def _bytes(name: str, text: bytes, **keys: Any) -> Edit:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        (raw / name).write_bytes(text)
        recipe["log"] |= {"files": [name], **keys}

    return edit


ROWS = "\n".join([*FILES["log_1.csv"][1:], ""])
WRONG: dict[str, tuple[Edit, str]] = {
    "a pattern of nothing": (with_files("log_*.txt"), r"log_\*\.txt: no file fits this pattern"),
    "no such file": (with_files("log.csv"), r"raw/log\.csv: no such file"),
    "a folder of nothing": (lambda raw, recipe: ((raw / "log").mkdir(), with_files("log")(raw, recipe)), "no file"),
    "a part without a partition": (_lonely, r"must name the same columns: day= \(.*none \("),
    "a zip": (_bytes("log.zip", b"PK"), r"log\.zip: \.zip is not read; unpack it, or pack it as \.gz or \.zst"),
    "another name for Parquet": (_bytes("log", b"PAR1"), r"log: is a Parquet file; its name must end in \.parquet"),
    "tabs": (
        _bytes("t.csv", b"user\titem\ttime\tclick\tpage\tmark\n1\t1\t5\t1\t1\ta\n"),
        r't\.csv, line 1: the header .*user\\titem.* is cut at "," into 1 column; write delimiter = "\\t"',
    ),
    "semicolons and decimal commas": (
        _bytes("t.csv", b"user;item;time;click;page;mark,x\n"),
        r'is cut at "," into 2 columns; write delimiter = ";"',
    ),
    "no header": (
        _bytes("t.csv", ROWS.encode()),
        r"t\.csv, line 1: '0,0,0,0,0,a' is a row, not a header; write header",
    ),
    "no header, and tabs": (
        _bytes("t.csv", ROWS.replace(",", "\t").encode()),
        r'write header = false and columns = \[\.\.\.\] with the names of its 6 columns, delimiter = "\\t"',
    ),
    "no header, another delimiter": (
        _bytes("t.csv", ROWS.replace(",", "::").encode(), header=False, columns=FILES["log_1.csv"][0].split(",")),
        r"t\.csv, line 1: '0::0::0::0::0::a' is one cell where columns names 6; write delimiter = \"::\"",
    ),
    "a header and no rows": (
        _bytes("t.csv", b"user,item,time,click,page,mark\n"),
        r"t\.csv: the log holds a header and no rows",
    ),
    "nothing, without a header": (
        _bytes("t.csv", b"", header=False, columns=FILES["log_1.csv"][0].split(",")),
        r"t\.csv: the log holds no rows",
    ),
    "latin-1": (
        _bytes("t.csv", "user,item,time,click,page,märk\n".encode("latin-1")),
        r't\.csv: its first line is not UTF-8 text; convert it, or write encoding = "latin-1"',
    ),
    "a delimiter for Parquet": (
        lambda raw, recipe: (
            pq.write_table(pa.table({"user": [1]}), raw / "log.parquet"),
            with_files("log.parquet", delimiter="\t")(raw, recipe),
        ),
        r"log\.parquet: is Parquet, which has no delimiter",
    ),
    "no zstd": (_zst(lambda text: b"x" * 40), r"log_2\.csv\.zst: cut off or not zstd"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_another_form_is_one_fault_that_says_what_to_write(name: str, tmp_path: Path) -> None:
    edit, message = WRONG[name]
    recipe, raw = kiosk(tmp_path, edit)
    with pytest.raises(UserError, match=message):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {"raw"}


@pytest.mark.parametrize("cut", [1, 5, 12, 40, -9, -5, -4, -1])
def test_a_cut_zst_file_is_a_fault_that_names_it(cut: int, tmp_path: Path) -> None:
    """DuckDB alone takes what is left for the whole file."""
    recipe, raw = kiosk(tmp_path, _zst(lambda text: text[:cut]))
    with pytest.raises(UserError, match=r"log_2\.csv\.zst: cut off or not zstd"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


WRONG_KEYS = {
    '"delimiter": ""': ("delimiter", "", "log.delimiter = '': String should have at least 1 character"),
    "a long delimiter": ("delimiter", ":::::", "log.delimiter: ':::::': a delimiter has at most 4 bytes"),
    "four letters, eight bytes": ("delimiter", "éééé", "a delimiter has at most 4 bytes"),
    "a quote": ("delimiter", '"', "a delimiter holds no double quote"),
    "a line end": ("delimiter", "\n", "a delimiter holds no double quote and no end of a line"),
    "no names": ("header", False, "log: header = false needs columns"),
    "names twice": ("columns", ["a"], "log: columns names what the first line names already; write header = false"),
    "a half time": ("time", ["day"], "log.time"),
    "a time twice": ("time", ["time", "time"], "log: time_unit = 's': a date and a time of day are of time_unit"),
    "no range": ("latest", "1960-01-01T00:00:00", "log: earliest = 1970-01-01 00:00:00 must be before"),
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_a_key_that_cannot_be_is_refused(name: str) -> None:
    key, value, message = WRONG_KEYS[name]
    with pytest.raises(UserError) as caught:
        validate_model(Recipe, KIOSK | {"log": KIOSK["log"] | {key: value}}, "kiosk.toml")
    assert message in str(caught.value)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kiosk's raw files at a URL, and a cache of one's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    _, raw = kiosk(tmp_path / "here")
    url = f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").put(str(raw), tmp_path.name, recursive=True)
    return url


@pytest.mark.parametrize("files", [["log_1.csv", "log_2.csv"], ["log_*.csv"], ["**/log_?.csv"]], ids=repr)
def test_files_at_a_url_are_read_as_those_in_a_folder(
    files: list[str], bucket: str, tmp_path: Path, clean: dict[str, str]
) -> None:
    recipe, _ = kiosk(tmp_path / "recipe", with_files(*files))
    stages: list[tuple[str, int, str]] = []
    done: list[int] = []
    build_store(recipe, bucket, tmp_path / "store", BuildProgress(lambda *stage: stages.append(stage), done.append))
    assert hashes(tmp_path / "store") == clean
    size = sum(len("\n".join(lines)) + 1 for lines in FILES.values())
    assert sum(total for text, total, unit in stages if text.startswith("fetching")) == size
    stages.clear()
    build_store(recipe, bucket, tmp_path / "again", BuildProgress(lambda *stage: stages.append(stage), done.append))
    assert not [text for text, _, _ in stages if text.startswith("fetching")]


def test_a_file_that_changes_at_its_url_is_fetched_anew(bucket: str, tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, _ = kiosk(tmp_path / "recipe")
    files = fsspec.filesystem("memory")
    log = f"/{tmp_path.name}/log_2.csv"
    whole = files.cat_file(log)
    files.pipe_file(log, whole + b"0,0,5,noon,1,a\n")
    build_store(recipe, bucket, tmp_path / "bad", QUIET, max_bad_fraction=0.1)
    with (tmp_path / "bad" / "quarantine.csv").open() as file:
        assert f"{bucket}/log_2.csv,12," in file.read()
    with pytest.raises(UserError, match=f"{bucket}/log_2.csv, line 12: .*noon") as caught:
        build_store(recipe, bucket, tmp_path / "none", QUIET)
    assert str(tmp_path / "cache") not in str(caught.value)
    files.pipe_file(log, whole)
    build_store(recipe, bucket, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


def test_folders_at_a_url_are_columns(bucket: str, tmp_path: Path, clean: dict[str, str]) -> None:
    recipe, raw = kiosk(tmp_path / "cut", lambda raw, recipe: partitioned(raw, recipe, ending=".parquet"))
    fsspec.filesystem("memory").put(str(raw / "log"), f"{tmp_path.name}/", recursive=True)
    recipe = recipe.model_copy(update={"log": recipe.log.model_copy(update={"files": ("log",)})})
    build_store(recipe, bucket, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


@pytest.mark.parametrize("ending", ["early", "with an error"])
def test_a_url_that_ends_midway_is_one_line_and_leaves_nothing(
    ending: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = MemoryFileSystem._open

    class Short:
        def __init__(self, file: Any) -> None:
            self.left, self.file = 100, file

        def __enter__(self) -> "Short":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, size: int) -> bytes:
            if not self.left and ending == "with an error":
                raise ConnectionResetError("Connection reset by peer\nand more")
            text = self.file.read(min(size, self.left))
            self.left -= len(text)
            return text

    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, path, mode: Short(opened(self, path, mode)))
    recipe, _ = kiosk(tmp_path / "recipe")
    message = {"early": r"log_1\.csv ended after 100 of \d+ bytes", "with an error": r"log_1\.csv cannot be read"}
    with pytest.raises(UserError, match=message[ending]) as caught:
        build_store(recipe, bucket, tmp_path / "store", QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()
    assert not [name for _, _, names in os.walk(tmp_path / "cache") for name in names if not name.startswith(".")]


def test_what_is_not_at_a_url_is_named(bucket: str, tmp_path: Path) -> None:
    recipe, _ = kiosk(tmp_path / "recipe", with_files("log_1.csv", "log_9.csv", "x*.csv"))
    with pytest.raises(UserError) as caught:
        build_store(recipe, bucket, tmp_path / "store", QUIET)
    assert f"{bucket}/log_9.csv: no such file" in str(caught.value)
    assert f"{bucket}/x*.csv: no file fits this pattern" in str(caught.value)
    recipe = recipe.model_copy(update={"log": replace_files(recipe, "../../other.csv")})
    with pytest.raises(UserError, match="lies outside of it"):
        build_store(recipe, bucket, tmp_path / "store", QUIET)
    with pytest.raises(UserError, match=r"--raw nosuch://b: cannot be opened"):
        build_store(recipe, "nosuch://b", tmp_path / "store", QUIET)


def replace_files(recipe: Recipe, *files: str) -> Any:
    return recipe.log.model_copy(update={"files": files})


def test_a_store_that_exists_stops_a_build_before_anything_is_fetched(bucket: str, tmp_path: Path) -> None:
    recipe, _ = kiosk(tmp_path / "recipe")
    (tmp_path / "store").mkdir()
    with pytest.raises(UserError, match="exists already"):
        build_store(recipe, bucket, tmp_path / "store", QUIET)
    assert not (tmp_path / "cache").exists()


def test_forms_are_compared_by_value() -> None:
    assert replace(TextFormat(), delimiter="\t") == TextFormat("\t") != TextFormat()
