"""Raw CSV and Parquet files: how DuckDB is told to read them.

DuckDB scans, joins and sorts out of core; this file turns its errors into faults. What DuckDB would guess (dialect,
types, first rows) is told instead.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.data.ingest.raw_folder import RawFile
from infnet_rec.data.parsing.columns import ColumnTypes, RawColumn, types_of
from infnet_rec.data.parsing.text_format import (
    CSV_FORMAT,
    TextFormat,
    column_names,
    first_line,
    is_parquet,
    looks_like_data,
    misread,
    no_header,
    refuse_damage,
)
from infnet_rec.data.parsing.values import ONLY_DUCKDB, literal, quoted
from infnet_rec.errors import Failure, UserError, did_you_mean
from infnet_rec.files import is_full

__all__ = ["literal", "quoted"]

__all__ = ["literal", "quoted"]

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
MAX_REJECTS = 1_000_000
KEPT_MIB = 64
SCAN_BYTES = 1 << 24


def connect(folder: Path, *, memory_gib: float, num_threads: int) -> duckdb.DuckDBPyConnection:
    """A database in `folder` that spills there instead of using more than `memory_gib` GiB."""
    connection = duckdb.connect(str(folder / "build.duckdb"))
    connection.execute(f"SET memory_limit = '{memory_gib:.3f}GiB'; SET threads = {num_threads}")
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}; SET preserve_insertion_order = false")
    connection.execute("SET TimeZone = 'UTC'")  # or a Parquet instant, read as a text, would be the machine's
    connection.execute("SET enable_progress_bar = true; SET enable_progress_bar_print = false")
    return connection


def release(connection: duckdb.DuckDBPyConnection) -> None:
    """Lets DuckDB put on disk what it holds in memory and no longer works on; what it may use stays the same."""
    limit = first_value(connection, "SELECT current_setting('memory_limit')")
    with suppress(duckdb.OutOfMemoryException):  # it keeps what it cannot put away
        connection.execute(f"SET memory_limit = '{KEPT_MIB}MiB'")
    connection.execute(f"SET memory_limit = {literal(limit)}")


def first_value(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The first column of a query's first row, or None; the result is drained, as DuckDB asks for."""
    rows = connection.execute(query).fetchall()
    return rows[0][0] if rows else None


@contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Turns DuckDB's complaints about the data into a UserError that says what was being read.

    Raises:
        UserError: the data do not fit.
        Failure: the disk is full.
    """
    try:
        yield
    except COMPLAINTS as error:
        detail = re.sub(r"\s*\n\s*", " ", str(error)).split(" Possible fixes")[0]
        if "state machine" in detail:
            file = re.search(r"file = (.*)", str(error))
            where = file[1].strip() if file else where
            detail = "rows end sometimes in CRLF and sometimes in LF, or a quote is not closed; mend the file"
        raise UserError(f"{where}: {detail[:500]}") from error
    except duckdb.Error as error:
        detail = re.sub(r"\s*\n\s*", " ", str(error))
        if NO_SPACE.search(detail):
            raise Failure(f"{where}: the disk is full ({detail[:200]}); free some space and run it again") from error
        if BROKEN_GZIP.search(detail):
            raise UserError(f"{where}: {detail[:200]}; the file is cut off or not gzip, fetch it again") from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise Failure(f"{where}: needs more memory ({detail[:200]}); give more with --memory-gib") from error
        raise
    except OSError as error:
        if is_full(error):
            raise Failure(f"{where}: the disk is full ({error.strerror}); free some space and run it again") from error
        raise


@dataclass(frozen=True, slots=True)
class ParquetTime:
    """What a Parquet column of times holds.

    Attributes:
        kind: "instant" on the world's clock, "local" date and time of day, "date", or "clock", a time of day;
            "mixed" where the parts of a table differ.
        nanoseconds: whether it counts nanoseconds.
    """

    kind: Literal["instant", "local", "date", "clock", "mixed"]
    nanoseconds: bool = False


@dataclass(frozen=True, slots=True)
class RawTable:
    """Files that are parts of one table; all have the same columns.

    Attributes:
        paths: the files, all text (perhaps .gz or .zst) or all Parquet.
        columns: column names, in the order of the files; those of the partitions last.
        null_values: texts that mean "missing" in any column, besides the empty field.
        types: the types of Parquet columns.
        form: how text files are written.
        partitions: columns that the names of folders give: name -> the text of each file, None where it is missing.
        instants: Parquet columns that hold times.
    """

    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    null_values: tuple[str, ...] = ()
    types: Mapping[str, ColumnTypes] = field(default_factory=dict)
    form: TextFormat = CSV_FORMAT
    partitions: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    instants: Mapping[str, ParquetTime] = field(default_factory=dict)

    @property
    def is_parquet(self) -> bool:
        return is_parquet(self.paths[0])

    @property
    def file_columns(self) -> tuple[str, ...]:
        """Columns that stand in the files themselves."""
        return tuple(column for column in self.columns if column not in self.partitions)

    @property
    def num_bytes(self) -> int:
        """What the files take on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def scan(
        self, types: dict[str, str], *, rejects: str | None = None, part: int | None = None, skip_bad: bool = False
    ) -> str:
        """A FROM clause that reads these columns in these SQL types and the other columns as text.

        Args:
            types: of the columns whose type matters.
            rejects: CSV: a new table's name, for the rows that do not parse.
            part: the number of the only file to read; all by default.
            skip_bad: CSV: leave out rows that do not parse, without a word.
        """
        paths = self.paths if part is None else self.paths[part : part + 1]
        # A path is no pattern, and says nothing of what stands in the file.
        names = "[" + ", ".join(literal(re.sub(r"([\[*?])", r"[\1]", str(path))) for path in paths) + "]"
        if self.is_parquet:
            # By name, so that a column may be empty, and then of no type, in one of the parts.
            options = "file_row_number = true, union_by_name = true, hive_partitioning = false"
            return self._with_partitions(f"read_parquet({names}, {options})", part)
        columns = ", ".join(f"{literal(c)}: {literal(types.get(c, 'VARCHAR'))}" for c in self.file_columns)
        options = f"columns = {{{columns}}}, nullstr = [''], hive_partitioning = false"
        if rejects:
            options += (
                f", store_rejects = true, rejects_table = {literal(rejects)}, rejects_limit = {MAX_REJECTS}"
                f", rejects_scan = {literal(rejects + '_scans')}"
            )
        elif skip_bad:
            options += ", ignore_errors = true"
        return self._with_partitions(f"read_csv({names}, {self.form.sql_options}, {options})", part)

    def _with_partitions(self, files: str, part: int | None) -> str:
        """A FROM clause that gives the files' rows what the names of their folders say."""
        if not self.partitions:
            return files
        added = []
        for column, texts in self.partitions.items():
            texts = texts if part is None else texts[part : part + 1]
            values = ", ".join("NULL" if text is None else literal(text) for text in texts)
            added.append(f"CAST([{values}] AS VARCHAR[])[CAST(file_index AS BIGINT) + 1] AS {quoted(column)}")
        return f"(SELECT *, file_index, {', '.join(added)} FROM {files})"

    def column(self, name: str, null_values: tuple[str, ...] = ()) -> RawColumn:
        """How a column is read; `null_values` are missing besides those of the files."""
        nulls = (*self.null_values, *null_values)
        return self.types[name].column(nulls) if name in self.types else RawColumn(name, null_values=nulls)

    def type_faults(self, values: Iterable[str], texts: Iterable[str] = ()) -> list[str]:
        """What is wrong with the types of Parquet columns: `values` hold one value a cell, `texts` may hold lists."""
        faults = [self.types[name].fault("value") for name in dict.fromkeys(values) if name in self.types]
        faults += [self.types[name].fault("text") for name in dict.fromkeys(texts) if name in self.types]
        return [fault for fault in faults if fault is not None]

    def has_odd_numbers(self) -> bool:
        """Whether the rows of text files hold anything that DuckDB's numbers may have and ours may not.

        Packed files are not looked into, and are said to.
        """
        skip = self.form.has_header
        return any(p.suffix in (".gz", ".zst") or _holds(p, ONLY_DUCKDB, skip_first_line=skip) for p in self.paths)

    def text(self, column: str) -> str:
        """SQL for the value of a column as text, null where missing; commas stand between a list's values."""
        return self.column(column).text

    def integer(self, column: str) -> str:
        """SQL for a column of whole numbers, null where there is none."""
        return self.column(column).integer


def _holds(path: Path, texts: Iterable[str], *, skip_first_line: bool) -> bool:
    """Whether a file holds one of some short texts."""
    wanted = [text.encode() for text in texts]
    longest, end = max(map(len, wanted)), b""
    with path.open("rb") as file:
        if skip_first_line:
            file.readline(SCAN_BYTES)
        while chunk := file.read(SCAN_BYTES):
            if any(text in end + chunk[:longest] or text in chunk for text in wanted):
                return True
            end = chunk[-longest:]
    return False


RESERVED = ("file_index", "file_row_number")  # DuckDB's own columns beside those of a file


def open_table(
    files: Sequence[RawFile], faults: list[str], form: TextFormat = CSV_FORMAT, null_values: tuple[str, ...] = ()
) -> RawTable | None:
    """Reads the headers.

    Args:
        files: parts of one table.
        faults: what is wrong is appended to it.
        form: how text files are written.
        null_values: texts that mean "missing".

    Returns:
        The table, or None if something is wrong.
    """
    paths = tuple(file.path for file in files)
    found = len(faults)
    faults.extend(f"{path}: is listed {k} times; its rows would count as often" for path, k in repeated(paths))
    if len({is_parquet(path) for path in paths}) > 1:
        faults.append(f"{', '.join(map(str, paths))}: parts of one table must all be CSV or all be Parquet")
    if len(faults) > found or not paths:
        return None
    columns: dict[Path, tuple[str, ...]] = {}
    schemas: dict[Path, pa.Schema] = {}
    times: dict[Path, dict[str, ParquetTime]] = {}
    for path in paths:
        try:
            refuse_damage(path)
            if is_parquet(path):
                schemas[path], times[path] = _schema(path, form)
                columns[path] = _checked_names(path, schemas[path].names)
            else:
                columns[path] = _columns(path, form)
        except UserError as fault:
            faults.append(str(fault))
    if len(faults) > found:
        return None
    first = columns[paths[0]]
    faults.extend(
        f"{path}: its columns differ from those of {paths[0]}; parts of one table must agree"
        for path in paths
        if columns[path] != first
    )
    partitions = _partitions(files, first, faults)
    if len(faults) > found:
        return None
    return RawTable(
        paths,
        _checked_names(paths[0], [*first, *partitions]),
        null_values,
        types_of(first, schemas) if schemas else {},
        form,
        partitions,
        _instants(list(times.values())),
    )


def _instants(times: Sequence[Mapping[str, ParquetTime]]) -> dict[str, ParquetTime]:
    """The columns of times of a table, from those of its parts."""
    found = {}
    for column in dict.fromkeys(name for part in times for name in part):
        parts = [part[column] for part in times if column in part]
        kind = parts[0].kind if len({part.kind for part in parts}) == 1 else "mixed"
        found[column] = ParquetTime(kind, any(part.nanoseconds for part in parts))
    return found


def _partitions(
    files: Sequence[RawFile], columns: Sequence[str], faults: list[str]
) -> Mapping[str, tuple[str | None, ...]]:
    """What the names of folders say; a column that stands in the files too is taken from there."""
    names = [tuple(file.partitions) for file in files]
    if odd := next((k for k, name in enumerate(names) if name != names[0]), 0):
        told = " and ".join(f"{'/'.join(f'{n}=' for n in names[k]) or 'none'} ({files[k].path})" for k in (0, odd))
        faults.append(f"the folders of parts of one table must name the same columns: {told}")
        return {}
    return {name: tuple(file.partitions[name] for file in files) for name in names[0] if name not in columns}


def repeated(names: Iterable[Hashable]) -> list[tuple[Hashable, int]]:
    """What stands there more than once, and how often."""
    return [(name, count) for name, count in Counter(names).items() if count > 1]


def _columns(path: Path, form: TextFormat) -> tuple[str, ...]:
    """Column names of a text file."""
    names = column_names(path, form)
    line = first_line(path, form.encoding)
    if form.has_header and (repeated(names) or repeated(map(str.lower, names))) and looks_like_data(names):
        raise UserError(f"{path}, line 1: {no_header(line, len(names))}")
    return _checked_names(path, names)


def _checked_names(path: Path, columns: list[str]) -> tuple[str, ...]:
    """Raises a UserError if DuckDB would take two of the columns for one."""
    if twice := repeated(columns):
        names = ", ".join(str(name) for name, _ in twice)
        raise UserError(f"{path}: column {names} stands in the header more than once; rename one")
    if twice := repeated(name.lower() for name in columns):
        names = ", ".join(name for name in columns if name.lower() == twice[0][0])
        raise UserError(f"{path}: columns {names} differ by case only, which DuckDB takes for one; rename one")
    if reserved := [name for name in columns if name.lower() in RESERVED]:
        raise UserError(f"{path}: column {reserved[0]} has a name that DuckDB uses for its own; rename it")
    return tuple(columns)


def _schema(path: Path, form: TextFormat) -> tuple[pa.Schema, dict[str, ParquetTime]]:
    """The types of a Parquet file's columns, and which of them are times."""
    if form != CSV_FORMAT:
        raise UserError(f"{path}: is Parquet, which has no delimiter, header, quote or encoding; leave those keys out")
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from error
    # An INT96 is an instant by convention, though nothing in the file says so.
    physical = [file.schema.column(k) for k in range(len(file.schema))]
    old = {column.path for column in physical if column.physical_type == "INT96"}
    return schema, {f.name: time for f in schema if (time := _time(f.type, is_old=f.name in old)) is not None}


def _time(kind: pa.DataType, *, is_old: bool) -> ParquetTime | None:
    """What a column of times holds; an `is_old` one is an INT96, which DuckDB reads in microseconds."""
    if pa.types.is_timestamp(kind):
        is_instant = is_old or kind.tz is not None
        return ParquetTime("instant" if is_instant else "local", kind.unit == "ns" and not is_old)
    if pa.types.is_date(kind):
        return ParquetTime("date")
    return ParquetTime("clock") if pa.types.is_time(kind) else None


def misreading(table: RawTable, wanted: Iterable[str]) -> str:
    """The line that says why text files lack columns, if they are written otherwise than the recipe says; or ""."""
    wanted = list(wanted)
    if table.is_parquet or all(name in table.columns for name in wanted):
        return ""
    return misread(table.paths[0], table.form, table.file_columns, wanted)


def missing_columns(table: RawTable, wanted: Iterable[str]) -> list[str]:
    """One line for each column that the files do not have, or the one line that says why they have none of them."""
    wanted = list(wanted)
    if why := misreading(table, wanted):
        return [why]
    missing = [name for name in wanted if name not in table.columns]
    return [f"{table.paths[0]}: no column {name!r}{did_you_mean(name, table.columns)}" for name in missing]
