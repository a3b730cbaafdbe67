"""What raw files say of themselves: how they are written, and what every column holds, over all of their rows.

The first rows say how a file is cut into cells (delimiter, quotes, header line); DuckDB then reads every row of every
file once, and each count here is over all of them. `roles.py` guesses from these facts what the columns mean.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb

from infnet_rec.data.ingest.build import BuildProgress, watched
from infnet_rec.data.ingest.raw_files import RawTable, faults_of, first_value, open_table
from infnet_rec.data.ingest.raw_folder import RawFile, find_raw
from infnet_rec.data.parsing.instants import DATE_AND_CLOCK
from infnet_rec.data.parsing.text_format import TextEncoding, TextFormat, is_parquet, open_bytes, refuse_damage
from infnet_rec.data.parsing.values import NOTHING, literal
from infnet_rec.errors import UserError

HEAD_LINES, MAX_LINE_BYTES = 1_000, 1 << 20
# Of equals the first: a text may hold commas and blanks, and hardly ever a tab or two colons.
DELIMITERS = ("\t", "::", "\x01", "|", ";", ",", " ")
MOST_AGREE = 0.95
FEW = 24  # distinct values that are looked at one by one
INTEGER = r"[+-]?[0-9]{1,19}"
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
CLOCK = r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?"
RECBOLE = re.compile(r"(.+):(token|token_seq|float|float_seq)")
MIN_ID_FILLED = 0.999
# What was guessed, and why.
Reason = tuple[str, str]
NAME = re.compile(r"[A-Za-z_À-￿][\w .:/()#-]*")
TRUE_FALSE = frozenset(["true", "false"])
NULLS = sorted({text.lower() for text in (*NOTHING, "nan")})


@dataclass(frozen=True, slots=True)
class SniffedColumn:
    r"""What all rows of a column hold; numbers count rows.

    Attributes:
        name: of the column.
        place: among the columns of its table, from 0.
        filled: rows with a value; those that only say that there is none are not among them.
        integers: of those, whole numbers.
        numbers: numbers of any kind.
        padded: whole numbers with zeros in front, such as 00042.
        dates: texts that are a date, perhaps with a time of day.
        clocks: texts that are a time of day.
        low: smallest number.
        high: largest number.
        distinct: distinct values, exactly where there are few, else within some percent.
        mean_length: of the texts.
        nulls: texts that stand for "missing", such as \\N.
        few: the values in order, where there are few.
        is_list: whether it holds lists, by the type of its file.
        is_instant: whether it holds times, by the type of its file.
    """

    name: str
    place: int
    filled: int
    integers: int
    numbers: int
    padded: int
    dates: int
    clocks: int
    low: float | None
    high: float | None
    distinct: int
    mean_length: float
    nulls: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    is_list: bool = False
    is_instant: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every value is a whole number."""
        return 0 < self.filled == self.integers

    @property
    def is_number(self) -> bool:
        """Whether every value is a number."""
        return 0 < self.filled == self.numbers

    @property
    def is_flag(self) -> bool:
        """Whether it holds zeros and ones, or true and false, and nothing else."""
        values = {value.lower() for value in self.few}
        plain = {value.removesuffix(".0") for value in values}
        return len(plain) == 2 and (plain <= {"0", "1"} or values == TRUE_FALSE)


@dataclass(frozen=True, slots=True)
class SniffedTable:
    """Files with the same columns, which are parts of one table.

    Attributes:
        files: names relative to the common folder.
        raw: how they are read.
        num_rows: of all files.
        num_broken: rows that do not parse.
        has_header: whether the first line names the columns.
        columns: in the order of the files.
    """

    files: tuple[str, ...]
    raw: RawTable
    num_rows: int
    num_broken: int
    has_header: bool
    columns: tuple[SniffedColumn, ...]

    def column(self, name: str) -> SniffedColumn:
        """The column of this name."""
        return next(column for column in self.columns if column.name == name)

    @property
    def title(self) -> str:
        """The files, for comments."""
        return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all files, for `--raw`.

    Raises:
        UserError: a file is missing.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: no such file")
    parents = [path.absolute().parent for path in paths]
    shared = parents[0]
    while not all(parent.is_relative_to(shared) for parent in parents):
        shared = shared.parent
    return shared


def read_tables(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], folder: Path, progress: BuildProgress
) -> list[SniffedTable]:
    """Reads every row of all files.

    Args:
        connection: a database that may spill to disk.
        paths: the files, or folders of Parquet files.
        folder: that holds all of them.
        progress: whom to tell.

    Raises:
        UserError: a file cannot be read as a table.
    """
    names = list(dict.fromkeys(str(path.absolute().relative_to(folder)) for path in paths))
    found = find_raw(folder, names, lambda *_: None, lambda _: None)
    groups: list[tuple[list[str], list[RawFile], TextFormat]] = []
    for name in names:
        files = found.of([name])
        form = TextFormat() if is_parquet(files[0].path) else text_format(files[0].path)
        key = _shape(files[0].path, form)
        same = next((g for g in groups if _shape(g[1][0].path, g[2]) == key and _alike(g[0][0], name)), None)
        if same is None:
            groups.append(([name], list(files), form))
        else:
            same[0].append(name)
            same[1].extend(files)
    return [_profile(connection, tuple(sorted(n)), files, form, progress) for n, files, form in groups]


def _alike(name: str, other: str) -> bool:
    """Whether names of files differ by what counts parts, such as dates and numbers."""
    plain = (re.sub(r"\d+", "#", Path(text).name) for text in (name, other))
    return len(set(plain)) == 1


def _shape(path: Path, form: TextFormat) -> tuple[object, ...]:
    """What parts of one table have in common."""
    if is_parquet(path):
        return ("parquet",)
    with open_bytes(path, form.encoding) as file:
        first = file.readline(MAX_LINE_BYTES) if form.has_header else b""
    return (form.delimiter, form.quote, form.columns, form.encoding, first.strip())


def text_format(path: Path) -> TextFormat:
    """How a text file is written, from its first rows.

    Raises:
        UserError: it cannot be read, is empty, or is no table.
    """
    refuse_damage(path)
    lines, encoding = _head(path)
    if not lines:
        raise UserError(f"{path}: is empty; name files with rows")
    if '"' in lines[0] + "".join(lines[1:50]) and any(line.count('"') % 2 for line in lines):
        quotes = ("", '"')
    else:
        quotes = ('"', "")
    best: tuple[tuple[float, float], TextFormat] | None = None
    for quote in quotes:
        for delimiter in DELIMITERS:
            form = TextFormat(delimiter, quote, (), encoding)
            counts = Counter(map(len, (cells for line in lines if (cells := _cells(form, line)))))
            if not counts:
                continue
            width, agreeing = counts.most_common(1)[0]
            share = agreeing / len(lines)
            score = (1.0 if share >= MOST_AGREE else share, 0.0 + (width > 1))
            if width > 1 and (best is None or score > best[0]):
                best = (score, form)
        if best is not None and best[0][0] == 1.0:
            break
    if best is None:
        raise UserError(f"{path}: its lines have one cell only, whatever they are cut at; a table has several columns")
    form = best[1]
    rows = [cells for line in lines if (cells := _cells(form, line))]
    if _is_header(rows):
        return form
    width = Counter(map(len, rows)).most_common(1)[0][0]
    return replace(form, columns=tuple(f"column_{k}" for k in range(1, width + 1)))


def _head(path: Path) -> tuple[list[str], TextEncoding]:
    """The first lines that are not blank, and the encoding that reads them."""
    with open_bytes(path) as file:
        raw = [line for line in islice(iter(lambda: file.readline(MAX_LINE_BYTES), b""), HEAD_LINES) if line.strip()]
    if raw and raw[0].startswith(b"PAR1"):
        raise UserError(f"{path}: is a Parquet file; its name must end in .parquet")
    if raw and raw[0][:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: is UTF-16 text; convert the file to UTF-8")
    try:
        return [line.decode("utf-8-sig").rstrip("\r\n") for line in raw], "utf-8"
    except UnicodeDecodeError:
        return [line.decode("latin-1").rstrip("\r\n") for line in raw], "latin-1"


def _cells(form: TextFormat, line: str) -> list[str]:
    try:
        return form.cells(line)
    except csv.Error:
        return []


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first row names the columns: no number in it, no name twice, and not like the rows below it."""
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if all(RECBOLE.fullmatch(cell) for cell in first):
        return True
    names = [cell for cell in first if cell]
    if not names or len(set(names)) < len(names) or not all(NAME.fullmatch(cell) for cell in names):
        return False
    columns = list(zip(*below, strict=True))
    if any(cells and all(re.fullmatch(NUMBER, cell.strip()) for cell in cells if cell) for cells in columns):
        return True
    return not any(name in cells for name, cells in zip(first, columns, strict=False))


def _profile(
    connection: duckdb.DuckDBPyConnection,
    names: tuple[str, ...],
    files: list[RawFile],
    form: TextFormat,
    progress: BuildProgress,
) -> SniffedTable:
    """Counts what every column of a table holds."""
    faults: list[str] = []
    table = open_table(files, faults, form)
    if table is None:
        raise UserError("; ".join(faults))
    rejects = f"rejects_sniffed_{first_value(connection, 'SELECT count(*) FROM duckdb_tables()')}"
    scan = table.scan({}, rejects=rejects)
    plain = [column for column in table.columns if not _is_nested(table, column)]
    counts = ", ".join(_counts_sql(table.column(column).raw) for column in plain)
    with watched(connection, progress, f"reading {names[0]}", table.num_bytes), faults_of(", ".join(names)):
        row = connection.execute(f"SELECT count(*){', ' + counts if counts else ''} FROM {scan}").fetchall()[0]
        num_broken = _broken(connection, rejects)
    num_rows, found = row[0], row[1:]
    if not num_rows:
        raise UserError(f"{', '.join(names)}: has no rows; name files with rows")
    width = len(found) // max(1, len(plain))
    columns = []
    for place, name in enumerate(table.columns):
        if name not in plain:
            columns.append(SniffedColumn(name, place, num_rows, 0, 0, 0, 0, 0, None, None, 0, 0.0, is_list=True))
            continue
        at = plain.index(name) * width
        columns.append(_column(name, place, found[at : at + width], is_instant=name in table.instants))
    few = _few(connection, table, [c.name for c in columns if not c.is_list and 0 < c.distinct <= 2 * FEW])
    columns = [replace(c, few=few[c.name], distinct=len(few[c.name])) if c.name in few else c for c in columns]
    return SniffedTable(names, table, num_rows, num_broken, form.has_header or table.is_parquet, tuple(columns))


def _column(name: str, place: int, counts: Sequence[Any], *, is_instant: bool) -> SniffedColumn:
    filled, integers, numbers, padded, dates, clocks, low, high, distinct, mean_length, nulls = counts
    return SniffedColumn(
        name,
        place,
        filled,
        integers,
        numbers,
        padded,
        dates,
        clocks,
        low,
        high,
        distinct,
        mean_length or 0.0,
        nulls=tuple(sorted(nulls or ())),
        is_instant=is_instant,
    )


def _is_nested(table: RawTable, column: str) -> bool:
    return table.column(column).kind in ("list", "nested")


def _counts_sql(text: str) -> str:
    """SQL of what `SniffedColumn` counts, in its order."""
    nulls = ", ".join(literal(value) for value in NULLS)
    is_null = f"lower(trim({text})) IN ({nulls})"
    is_value = f"{text} IS NOT NULL AND trim({text}) != '' AND NOT {is_null}"
    integer = f"(regexp_full_match(trim({text}), {literal(INTEGER)}) AND TRY_CAST({text} AS BIGINT) IS NOT NULL)"
    number = f"regexp_full_match(trim({text}), {literal(NUMBER)})"
    return f"""count(*) FILTER ({is_value}), count(*) FILTER ({integer}), count(*) FILTER ({number}),
        count(*) FILTER ({integer} AND regexp_full_match(trim({text}), '0[0-9]+')),
        count(*) FILTER ({is_value} AND regexp_matches({text}, {literal(DATE_AND_CLOCK)})),
        count(*) FILTER ({is_value} AND regexp_full_match(trim({text}), {literal(CLOCK)})),
        min(CASE WHEN {number} THEN TRY_CAST({text} AS DOUBLE) END),
        max(CASE WHEN {number} THEN TRY_CAST({text} AS DOUBLE) END),
        approx_count_distinct({text}) FILTER ({is_value}), avg(length({text})) FILTER ({is_value}),
        list(DISTINCT {text}) FILTER ({is_null})"""


def _few(connection: duckdb.DuckDBPyConnection, table: RawTable, names: list[str]) -> dict[str, tuple[str, ...]]:
    """The values of columns that have few of them, in order."""
    if not names:
        return {}
    nulls = ", ".join(literal(value) for value in NULLS)
    is_value = "{0} IS NOT NULL AND trim({0}) != '' AND lower(trim({0})) NOT IN ({1})"
    lists = ", ".join(
        f"list_sort(list(DISTINCT {text}) FILTER ({is_value.format(text, nulls)}))"
        for text in (table.column(name).raw for name in names)
    )
    row = connection.execute(f"SELECT {lists} FROM {table.scan({}, skip_bad=True)}").fetchall()[0]
    return {name: tuple(values or ()) for name, values in zip(names, row, strict=True) if len(values or ()) <= FEW}


def _broken(connection: duckdb.DuckDBPyConnection, rejects: str) -> int:
    if not first_value(connection, f"SELECT 1 FROM duckdb_tables() WHERE table_name = {literal(rejects)}"):
        return 0
    return first_value(connection, f"SELECT count(DISTINCT (file_id, line)) FROM {rejects}")


def matched_share(
    connection: duckdb.DuckDBPyConnection, log: SniffedTable, column: str, other: SniffedTable, key: str
) -> tuple[int, int, int]:
    """Distinct values of a column of the log, of another table's, and those that both have; as numbers if both are."""
    whole = log.column(column).is_whole and other.column(key).is_whole
    texts = (f"trim({log.raw.column(column).raw})", f"trim({other.raw.column(key).raw})")
    left, right = (f"TRY_CAST({text} AS BIGINT)" if whole else text for text in texts)
    a = f"SELECT DISTINCT {left} AS k FROM {log.raw.scan({}, skip_bad=True)}"
    b = f"SELECT DISTINCT {right} AS k FROM {other.raw.scan({}, skip_bad=True)}"
    query = f"""WITH a AS ({a}), b AS ({b}) SELECT (SELECT count(k) FROM a), (SELECT count(k) FROM b),
        (SELECT count(*) FROM a JOIN b USING (k))"""
    return connection.execute(query).fetchall()[0]


def is_unique(connection: duckdb.DuckDBPyConnection, table: SniffedTable, column: str) -> bool:
    """Whether a column is never empty and no value of it stands in two rows."""
    if table.column(column).filled < table.num_rows:
        return False
    text = table.raw.column(column).raw
    scan = table.raw.scan({}, skip_bad=True)
    return first_value(connection, f"SELECT count(DISTINCT {text}) = count(*) FROM {scan}")


def fixed_by(connection: duckdb.DuckDBPyConnection, table: SniffedTable, key: str, columns: Sequence[str]) -> list[str]:
    """The columns that have one value only for each value of `key`: they say something of it, not of the row."""
    if not columns:
        return []
    texts = {name: f"coalesce({table.raw.column(name).raw}, '')" for name in columns}
    ends = ", ".join(f"min({t}) != max({t}) AS c{k}" for k, t in enumerate(texts.values()))
    varied = ", ".join(f"coalesce(bool_or(c{k}), FALSE)" for k in range(len(texts)))
    scan = table.raw.scan({}, skip_bad=True)
    row = connection.execute(
        f"SELECT {varied} FROM (SELECT {ends} FROM {scan} GROUP BY {table.raw.column(key).raw})"
    ).fetchall()[0]
    return [name for name, differs in zip(columns, row, strict=True) if not differs]


def quantiles_of(
    connection: duckdb.DuckDBPyConnection, table: SniffedTable, ticks: str, shares: Sequence[float]
) -> list[int]:
    """Values of an SQL expression that occur, below which these shares of the rows lie; then the first and the last."""
    listed = ", ".join(str(share) for share in shares)
    row = connection.execute(
        f"""SELECT quantile_disc(t, [{listed}]), min(t), max(t)
        FROM (SELECT {ticks} AS t FROM {table.raw.scan({}, skip_bad=True)})"""
    ).fetchall()[0]
    return [*(row[0] or []), row[1], row[2]]


def parts_of(
    connection: duckdb.DuckDBPyConnection, table: SniffedTable, column: str, separator: str
) -> tuple[int, int, int]:
    """Rows with the separator, distinct values between separators, and the most values of a row."""
    text = table.raw.column(column).raw
    split = f"string_split({text}, {literal(separator)})"
    scan = table.raw.scan({}, skip_bad=True)
    query = f"""SELECT (SELECT count(*) FROM {scan} WHERE contains({text}, {literal(separator)})),
        (SELECT count(DISTINCT trim(p)) FROM (SELECT unnest({split}) AS p FROM {scan})),
        (SELECT max(len({split})) FROM {scan})"""
    return connection.execute(query).fetchall()[0]


def words_of(name: str) -> list[str]:
    """The words of a name: user_id, userId and User ID are two."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain_name(name))
    return [word for word in re.split(r"[^a-z0-9]+", apart.lower()) if word]


def plain_name(name: str) -> str:
    """A name without the type that RecBole's atomic files put behind it."""
    match = RECBOLE.fullmatch(name)
    return match[1] if match else name
