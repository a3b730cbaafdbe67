"""Raw CSV and Parquet files: what stands in them, and how DuckDB is told to read them.

DuckDB scans, joins and sorts out of core; this file checks that the raw files are what the recipe says before any of it
starts, and turns DuckDB's errors into faults. What DuckDB would guess (dialect, types, first rows) is told instead.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.faults import Failure, Fault, did_you_mean

# What DuckDB raises for data or predicates that do not fit; anything else is a bug or a failure of the machine.
COMPLAINTS = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.BinderException,
    duckdb.ParserException,
    duckdb.CatalogException,
)
NO_SPACE = re.compile(r"no space left|disk quota|file too large", re.IGNORECASE)
BROKEN_GZIP = re.compile(r"gzip", re.IGNORECASE)
CSV_FORMAT = "auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', comment = ''"
MAX_REJECTS = 1_000_000
SNIFFED_ROWS = 20_480


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


def connect(folder: Path, *, memory_gib: float, num_threads: int) -> duckdb.DuckDBPyConnection:
    """A database in `folder` that spills there instead of using more than `memory_gib` GiB."""
    connection = duckdb.connect(str(folder / "build.duckdb"))
    connection.execute(f"SET memory_limit = '{memory_gib:.3f}GiB'; SET threads = {num_threads}")
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}; SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
    return connection


def first_value(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The first column of a query's first row, or None; the result is drained, as DuckDB asks for."""
    rows = connection.execute(query).fetchall()
    return rows[0][0] if rows else None


@contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Turns DuckDB's complaints about the data into a Fault that says what was being read.

    Raises:
        Fault: the data do not fit.
        Failure: the disk is full.
    """
    try:
        yield
    except COMPLAINTS as error:
        detail = re.sub(r"\s*\n\s*", " ", str(error)).split(" Possible fixes")[0]
        if "state machine" in detail:
            detail = "rows end sometimes in CRLF and sometimes in LF, or a quote is not closed"
        raise Fault(f"{where}: {detail[:500]}") from error
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        detail = re.sub(r"\s*\n\s*", " ", str(error))
        if NO_SPACE.search(detail):
            raise Failure(f"{where}: the disk is full ({detail[:200]}); free some space and run it again") from error
        if BROKEN_GZIP.search(detail):
            raise Fault(f"{where}: {detail[:200]}; the file is cut off or not gzip, fetch it again") from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise Failure(f"{where}: needs more memory ({detail[:200]}); give more with --memory-gib") from error
        raise


@dataclass(frozen=True, slots=True)
class RawTable:
    """Files that are parts of one table; all have the same columns.

    Attributes:
        paths: the files, all CSV (perhaps .gz) or all Parquet.
        columns: column names, in the order of the files.
        lists: Parquet columns that hold lists.
        integers: Parquet columns that hold whole numbers.
    """

    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    lists: frozenset[str] = frozenset()
    integers: frozenset[str] = frozenset()

    @property
    def is_parquet(self) -> bool:
        return self.paths[0].suffix == ".parquet"

    @property
    def num_bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in self.paths)

    def scan(
        self, types: dict[str, str], *, rejects: str | None = None, nulls: Iterable[str] = (), part: int | None = None
    ) -> str:
        """A FROM clause that reads these columns in these SQL types and the other columns as text.

        Args:
            types: of the columns whose type matters.
            rejects: CSV: a new table's name, for the rows that do not parse.
            nulls: CSV: texts that mean "missing", besides the empty field.
            part: the number of the only file to read; all by default.
        """
        paths = self.paths if part is None else self.paths[part : part + 1]
        names = "[" + ", ".join(literal(str(path)) for path in paths) + "]"
        if self.is_parquet:
            return f"read_parquet({names}, file_row_number = true)"
        columns = ", ".join(f"{literal(c)}: {literal(types.get(c, 'VARCHAR'))}" for c in self.columns)
        options = f"columns = {{{columns}}}, nullstr = [{', '.join(map(literal, ['', *nulls]))}]"
        if rejects:
            options += (
                f", store_rejects = true, rejects_table = {literal(rejects)}, rejects_limit = {MAX_REJECTS}"
                f", rejects_scan = {literal(rejects + '_scans')}"
            )
        return f"read_csv({names}, {CSV_FORMAT}, {options})"

    def text(self, column: str, separator: str = ",") -> str:
        """SQL for a column as text, null where missing; between a list's values stands the separator."""
        if column in self.lists:
            return f"array_to_string({quoted(column)}, {literal(separator)})"
        return f"CAST({quoted(column)} AS VARCHAR)" if self.is_parquet else quoted(column)

    def integer(self, column: str) -> str:
        """SQL for a column of whole numbers, null where there is none: DuckDB alone would round 1.5."""
        if column in self.integers:
            return f"TRY_CAST({quoted(column)} AS BIGINT)"
        text = self.text(column)
        return (
            f"CASE WHEN contains({text}, '.') AND coalesce(TRY_CAST({text} AS DOUBLE) % 1 <> 0, TRUE) THEN NULL "
            f"ELSE TRY_CAST({text} AS BIGINT) END"
        )


def open_table(raw: Path, files: Iterable[str], faults: list[str]) -> RawTable | None:
    """Reads the headers; appends to `faults` what is wrong and returns None then."""
    paths = tuple(raw / file for file in files)
    found = len(faults)
    faults.extend(f"{path}: no such file" for path in paths if not path.is_file())
    if len({path.suffix == ".parquet" for path in paths}) > 1:
        faults.append(f"{', '.join(map(str, paths))}: parts of one table must all be CSV or all be Parquet")
    if len(faults) > found:
        return None
    tables = []
    for path in paths:
        try:
            tables.append(_parquet(path) if path.suffix == ".parquet" else RawTable((path,), _header(path)))
        except Fault as fault:
            faults.append(str(fault))
    if len(faults) > found:
        return None
    first = tables[0]
    for table in tables:
        if table.columns != first.columns:
            faults.append(
                f"{table.paths[0]}: its columns differ from those of {paths[0]}; parts of one table must agree"
            )
    return RawTable(paths, first.columns, first.lists, frozenset.intersection(*(t.integers for t in tables)))


def _header(path: Path) -> tuple[str, ...]:
    """Column names of a CSV file; a byte order mark and CRLF are no part of them."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            text = file.readline(1 << 20).decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Fault(f"{path}: cut off or not gzip ({error}); fetch the file again") from error
    except UnicodeDecodeError as error:
        raise Fault(f"{path}: the header is not UTF-8 text; convert the file") from error
    columns = next(csv.reader([text]), [])
    if not any(columns):
        raise Fault(f"{path}: has no header; the first line must hold the column names")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise Fault(f"{path}: column {', '.join(twice)} stands in the header more than once; rename one")
    return tuple(columns)


def _parquet(path: Path) -> RawTable:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise Fault(f"{path}: not a Parquet file ({error})") from error
    lists = frozenset(f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_large_list(f.type))
    integers = frozenset(f.name for f in schema if pa.types.is_integer(f.type))
    return RawTable((path,), tuple(schema.names), lists, integers)


def sniffed(connection: duckdb.DuckDBPyConnection, table: RawTable, columns: Iterable[str]) -> dict[str, str]:
    """SQL types of CSV columns as DuckDB guesses them from the first rows; nothing for Parquet, which has types."""
    wanted = list(columns)
    if table.is_parquet or not wanted:
        return {}
    rows = f"(SELECT * FROM {table.scan({}, part=0, rejects=None)} LIMIT {SNIFFED_ROWS})"
    kinds = {}
    for column in wanted:
        text = quoted(column)
        for kind in ("BIGINT", "DOUBLE"):
            bad = f"{text} IS NOT NULL AND TRY_CAST({text} AS {kind}) IS NULL"
            if kind == "BIGINT":
                bad += f" OR contains({text}, '.')"
            with faults_of(str(table.paths[0])):
                if not first_value(connection, f"SELECT count(*) FROM {rows} WHERE {bad}"):
                    kinds[column] = kind
                    break
    return kinds


def missing_columns(table: RawTable, wanted: Iterable[str]) -> list[str]:
    """One line for each column that the files do not have."""
    return [
        f"{table.paths[0]}: no column {w!r}{did_you_mean(w, table.columns)}" for w in wanted if w not in table.columns
    ]
