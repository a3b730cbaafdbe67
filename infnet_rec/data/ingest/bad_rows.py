"""Rows that cannot be used: counted, written down with file, line and reason, and too many of them stop the build.

A row is bad if it does not parse (wrong number of columns, text where a number must be) or if it parses to something
impossible (no user, a fractional id, a label that is neither 0 nor 1). DuckDB keeps the places of the first kind; for
the second, the files that have any are read once more, in order. The line of a row in a Parquet file is its number.
"""

import codecs
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO

import duckdb

from infnet_rec.data.ingest.raw_files import MAX_REJECTS, RawTable, faults_of, first_value
from infnet_rec.data.parsing.text_format import TextFormat, open_bytes
from infnet_rec.data.parsing.values import literal, quoted, remedy
from infnet_rec.errors import UserError

SHOWN, FEW = 3, 1_000
UNWANTED = 255  # in the place of the number of a check
MAX_TEXT = 4_096  # of a row that is written down
MAX_CELL = 60  # of a cell that is shown
NO_NUMBER = (
    r"""Error when converting column "(.*)"\. Could not convert string "(.*)" to 'DOUBLE'"""  # as DuckDB says it
)

BOM = codecs.BOM_UTF8
MAX_ROW_BYTES = 2_000_000  # as DuckDB has it: an unclosed quote ends there


def rows(file: IO[bytes], form: TextFormat) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line (from 1) and text of every row, a header among them; blank lines have no text."""
    quote, begins = form.quote.encode(), rb"(?:^|(?<=" + re.escape(form.delimiter.encode()) + rb"))"
    closed = re.compile(begins + b'"(?:[^"]|"")*+"'.replace(b'"', re.escape(quote or b"\0")))
    opened = re.compile(begins + re.escape(quote))
    offset, line = 0, 1
    for text in file:
        if not offset and text.startswith(BOM):
            offset, text = len(BOM), text.removeprefix(BOM)
        num_lines = 1
        if quote and quote in text:
            while len(text) < MAX_ROW_BYTES and opened.search(closed.sub(b"x", text)) and (more := file.readline()):
                text += more
                num_lines += 1
        yield offset, line, text.rstrip(b"\r\n")
        offset += len(text)
        line += num_lines


def find_rows(
    path: Path, form: TextFormat, broken_at: Iterable[int], numbers: Iterable[int], *, num_columns: int
) -> tuple[dict[int, int], dict[int, tuple[int, str]]]:
    """Lines of some rows of a file.

    Args:
        path: a text file.
        form: how it is written.
        broken_at: byte offsets of all rows that do not parse.
        numbers: wanted rows, by their number (from 1) among those that parse.
        num_columns: of the file. A blank line is a row where there is one column only.

    Returns:
        The line of each offset, and the line and text of each number.
    """
    broken, wanted = set(broken_at), set(numbers)
    lines: dict[int, int] = {}
    found: dict[int, tuple[int, str]] = {}
    number = 0
    with open_bytes(path, form.encoding) as file:
        of_rows = rows(file, form)
        if form.has_header:
            next(of_rows, None)
        for offset, line, text in of_rows:
            if line == 1 and offset == len(BOM) and 0 in broken:
                offset = 0  # of a row behind a byte order mark DuckDB says either
            if offset in broken:
                lines[offset] = line
            elif text or num_columns == 1:
                number += 1
                if number in wanted:
                    found[number] = (line, text.decode("utf-8", "replace"))
            if len(lines) == len(broken) and len(found) == len(wanted):
                break
    return lines, found


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """Where a bad row stands, what is wrong, its text, and the cell that is wrong with what to do about it."""

    file: str
    line: int
    reason: str
    row: str
    cell: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}{self.cell}"


@dataclass(slots=True)
class Quarantine:
    """All bad rows of a build.

    Attributes:
        max_fraction: of the rows of one table (the log, the parts of one side table) that may be bad.
        rows: the bad rows so far.
        counts: table -> number of bad rows.
        rows_read: table -> number of rows of its files, bad ones included.
        left_out: table -> number of good rows that the recipe does not want.
        shown: path of a file that was fetched -> what a person calls it.
    """

    max_fraction: float
    rows: list[BadRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rows_read: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)

    def add(self, table: str, bad: list[BadRow], num_rows: int) -> None:
        """Takes the bad rows of one table.

        Raises:
            UserError: they are too many.
        """
        bad = sorted(replace(row, file=self.shown.get(row.file, row.file)) for row in bad)
        if len(bad) > self.max_fraction * num_rows:
            first = "".join(f"\n  {b}" for b in islice(bad, SHOWN))
            # DuckDB's reasons quote the value that does not fit.
            reasons = Counter(b.reason.partition(". Could not")[0] for b in bad)
            raise self.too_many(table, len(bad), num_rows, reasons, first)
        if bad:
            self.counts[table] = self.counts.get(table, 0) + len(bad)
            self.rows += bad

    def too_many(self, table: str, num_bad: int, num_rows: int, reasons: Counter[str], first: str = "") -> UserError:
        """The end of the build; `reasons` are counted, `first` are lines about the first rows."""
        counts = "".join(f"\n  {count:,} rows: {reason}" for reason, count in reasons.most_common())
        return UserError(
            f"{table}: {num_bad:,} of {num_rows:,} rows are bad ({num_bad / num_rows:.4%}), more than "
            f"--max-bad-fraction {self.max_fraction:g} allows; mend them, or the recipe."
            + (f" The first:{first}" if first else "")
            + (f"\nAll of them:{counts}" if num_bad > SHOWN else "")
        )

    def write(self, path: Path) -> None:
        """A CSV file: file, line, reason, row. A file that is two tables (the log and a side) has its rows once."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file", "line", "reason", "row"))
            writer.writerows((b.file, b.line, b.reason, b.row) for b in dict.fromkeys(self.rows))


@dataclass(frozen=True, slots=True)
class Cell:
    """The raw column that a check is about, and what a recipe may say where its values are right.

    Attributes:
        column: its name.
        remedy: the end of a message about any of its values.
        also: another column that is shown with it.
        advice: from the value to what a person can write in the recipe, or "".
    """

    column: str
    remedy: str = ""
    also: str = ""
    advice: Callable[[str], str] | None = None

    def raw(self, source: RawTable) -> str:
        """SQL of the text that is shown."""
        cell = source.column(self.column).raw
        return f"concat_ws(' ', {cell}, {source.column(self.also).raw})" if self.also else cell

    def shown(self, value: str | None) -> str:
        """The end of a message about one value."""
        if value is None:
            return ""
        advice = self.advice(value) if self.advice is not None else ""
        more = remedy(value) or (f"; {advice}" if advice else self.remedy)
        return f" (it is {json.dumps(value[:MAX_CELL], ensure_ascii=False)}{more})"


@dataclass(frozen=True, slots=True)
class Intake:
    """How the rows of raw files become rows of a table.

    Attributes:
        name: of the DuckDB table.
        what: of the files, for messages.
        source: the files.
        types: SQL types of the columns whose type matters.
        columns: of the new table: name -> SQL over the raw columns.
        checks: reason -> SQL condition over the new columns; a row that meets one is bad.
        raw_checks: reason -> SQL condition over the raw columns, likewise.
        cells: reason -> the raw cell that it is about.
        derived: more columns of the new table: name -> SQL over the columns above (of `r`) and those of `join`.
        join: SQL that joins other tables to the rows, which are named `r`.
        keep: SQL condition over the new columns; other good rows are left out.
        ordered: whether the table has a column `time` with the row's number among the good rows of all the files.
    """

    name: str
    what: str
    source: RawTable
    types: Mapping[str, str]
    columns: Mapping[str, str]
    checks: Mapping[str, str]
    raw_checks: Mapping[str, str] = field(default_factory=dict)
    cells: Mapping[str, Cell] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    join: str = ""
    keep: str = "TRUE"
    ordered: bool = False

    def query(self, part: int | None, rejects: str | None) -> str:
        """All rows of the files with the new columns, and `bad_`, 0 or the number of a check.

        Of one part only, if `part` is given: then `line_` numbers its rows, from 1, and `cell_` is the raw cell that
        the check of a bad row is about.
        """
        rows = self.source.scan(dict(self.types), rejects=rejects, part=part)
        columns = [f"{sql} AS {quoted(name)}" for name, sql in self.columns.items()]
        if self.ordered:
            columns.append("row_number() OVER () AS time")
        columns.append("file_index AS file_")
        number = "0" if part is None else "row_number() OVER ()"
        columns.append(f"{'file_row_number + 1' if self.source.is_parquet else number} AS line_")
        columns.append(f"{_first_of(self.raw_checks, len(self.checks) + 1, '0')} AS odd_")
        bad = _first_of(self.checks, 1, "odd_")
        derived = "".join(f", {sql} AS {quoted(name)}" for name, sql in self.derived.items())
        if part is not None:
            cells = {k: self.cells[reason] for k, reason in enumerate(self.reasons, start=1) if reason in self.cells}
            columns += [f"{cell.raw(self.source)} AS cell_{k}" for k, cell in cells.items()]
            found = "".join(f" WHEN {k} THEN cell_{k}" for k in cells)
            derived += f", CASE {bad}{found} ELSE NULL END AS cell_" if cells else ", NULL AS cell_"
        selected = f"(SELECT {', '.join(columns)} FROM (SELECT *, file_index FROM {rows})) AS r {self.join}"
        return f"SELECT r.* EXCLUDE (odd_){derived}, CAST({bad} AS UTINYINT) AS bad_ FROM {selected}"

    @property
    def reasons(self) -> list[str]:
        """What `bad_` numbers, from 1."""
        return [*self.checks, *self.raw_checks]

    def run(self, connection: duckdb.DuckDBPyConnection, quarantine: Quarantine) -> int:
        """Creates the table (with three more columns: file_, line_, bad_) and returns its number of rows.

        Raises:
            UserError: the files cannot be read, or too many rows are bad.
        """
        rejects = f"rejects_{self.name}"
        with faults_of(self.what):
            connection.execute(f"SET preserve_insertion_order = {str(self.ordered).lower()}")
            connection.execute(f"CREATE TABLE {self.name} AS {self._kept(self.query(None, rejects))}")
            connection.execute("SET preserve_insertion_order = false")
            left_out = self._leave_out(connection)
            num_rows = first_value(connection, f"SELECT count(*) FROM {self.name}")
            broken = self._broken(connection, rejects)
            total = first_value(connection, f"SELECT count(*) FROM {self.name} WHERE bad_ > 0")
            num_broken = sum(map(len, broken.values()))
            quarantine.rows_read[self.what] = num_rows + num_broken + left_out
            quarantine.left_out[self.what] = left_out
            if total > max(quarantine.max_fraction * num_rows, FEW):
                # Too many to be worth the search for their lines.
                counts = connection.execute(f"SELECT bad_, count(*) FROM {self.name} GROUP BY 1 HAVING bad_ > 0")
                counted = Counter({self.reasons[k - 1]: count for k, count in counts.fetchall()})
                (first,) = self._bad_rows(connection, broken, only_first=True)
                raise quarantine.too_many(self.what, total, num_rows, counted, f"\n  {first}")
            bad = self._bad_rows(connection, broken)
            if total:
                connection.execute(f"DELETE FROM {self.name} WHERE bad_ > 0")
                if self.ordered:
                    self._number_anew(connection)
        quarantine.add(self.what, bad, num_rows + num_broken)
        return num_rows - total

    def _kept(self, rows: str) -> str:
        """SQL of all rows; those that are good and not wanted are marked, so that they can be counted."""
        if self.keep == "TRUE":
            return rows
        marked = f"CASE WHEN bad_ > 0 OR ({self.keep}) THEN bad_ ELSE {UNWANTED} END AS bad_"
        return f"SELECT * REPLACE ({marked}) FROM ({rows})"

    def _leave_out(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Removes the good rows that are not wanted, and returns their number."""
        if self.keep == "TRUE":
            return 0
        return first_value(connection, f"DELETE FROM {self.name} WHERE bad_ = {UNWANTED}")

    def _number_anew(self, connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute(
            f"""CREATE TABLE numbered AS SELECT * REPLACE (row_number() OVER (ORDER BY time) AS time)
            FROM {self.name}"""
        )
        connection.execute(f"DROP TABLE {self.name}")
        connection.execute(f"ALTER TABLE numbered RENAME TO {self.name}")

    def _broken(self, connection: duckdb.DuckDBPyConnection, rejects: str) -> dict[str, dict[int, tuple[str, str]]]:
        """File -> byte offset -> reason and text of each row that DuckDB could not parse."""
        found: dict[str, dict[int, tuple[str, str]]] = defaultdict(dict)
        if not first_value(connection, f"SELECT 1 FROM duckdb_tables() WHERE table_name = {literal(rejects)}"):
            return found
        if first_value(connection, f"SELECT count(*) FROM {rejects}") >= MAX_REJECTS:
            raise UserError(f"{self.what}: {MAX_REJECTS:,} rows or more do not parse; mend the files")
        # The text may begin with the blank lines before the row, or with half a line end.
        text = "ltrim(coalesce(csv_line, ''), chr(13) || chr(10))"
        offset = f"line_byte_position - 1 + length(coalesce(csv_line, '')) - length({text})"
        rows = connection.execute(
            f"""SELECT file_path, {offset}, min(error_message), any_value({text})
            FROM {rejects} JOIN {rejects}_scans USING (scan_id, file_id) GROUP BY 1, 2"""
        ).fetchall()
        for path, offset, reason, text in rows:
            found[path][offset] = (" ".join(reason.split()), text.rstrip("\r\n"))
        return found

    def _bad_rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        broken: dict[str, dict[int, tuple[str, str]]],
        *,
        only_first: bool = False,
    ) -> list[BadRow]:
        """The rows that do not parse, and those that parse to something impossible, with their lines."""
        bad = []
        impossible = connection.execute(f"SELECT DISTINCT file_ FROM {self.name} WHERE bad_ > 0 ORDER BY 1").fetchall()
        parts = {str(self.source.paths[part]): part for (part,) in impossible[: 1 if only_first else None]}
        for path in parts if only_first else dict.fromkeys([*broken, *parts]):
            numbers: dict[int, tuple[int, str | None]] = {}
            if path in parts:
                connection.execute("SET preserve_insertion_order = true")
                rejects = f"rejects_{self.name}_{parts[path]}"
                again = f"SELECT line_, bad_, cell_ FROM ({self.query(parts[path], rejects)}) WHERE bad_ > 0"
                found = connection.execute(again + " LIMIT 1" * only_first).fetchall()
                numbers = {line: (check, cell) for line, check, cell in found}
                connection.execute("SET preserve_insertion_order = false")
            if self.source.is_parquet:
                lines, found = {}, self._parquet_rows(connection, parts[path], numbers)
            else:
                source, at = self.source, broken.get(path, ())
                num_columns = len(source.file_columns)
                lines, found = find_rows(Path(path), source.form, at, numbers, num_columns=num_columns)
            for offset, (reason, text) in () if only_first else broken.get(path, {}).items():
                shown = ""
                if number := re.match(NO_NUMBER, reason):
                    reason, shown = f"{number[1]} is not a number", Cell(number[1]).shown(number[2])
                bad.append(BadRow(path, lines.get(offset, 0), reason, text[:MAX_TEXT], shown))
            for number, (check, cell) in numbers.items():
                line, text = found.get(number, (0, ""))
                reason = self.reasons[check - 1]
                shown = self.cells[reason].shown(cell) if reason in self.cells else ""
                bad.append(BadRow(path, line, reason, text[:MAX_TEXT], shown))
        return bad

    def _parquet_rows(
        self, connection: duckdb.DuckDBPyConnection, part: int, numbers: Iterable[int]
    ) -> dict[int, tuple[int, str]]:
        """Number and text of some rows, by their number from 1."""
        wanted = ", ".join(str(number - 1) for number in numbers)
        cells = ", ".join(f"CAST({quoted(column)} AS VARCHAR)" for column in self.source.columns)
        rows = connection.execute(
            f"""SELECT file_row_number + 1, [{cells}] FROM {self.source.scan({}, part=part)}
            WHERE file_row_number IN ({wanted})"""
        ).fetchall()
        texts = {
            n: " ".join(f"{c}={v}" for c, v in zip(self.source.columns, cells, strict=True) if v is not None)
            for n, cells in rows
        }
        return {number: (number, text) for number, text in texts.items()}


def _first_of(checks: Mapping[str, str], start: int, otherwise: str) -> str:
    """SQL of the number of the first check that a row meets."""
    cases = "".join(f" WHEN {sql} THEN {k}" for k, sql in enumerate(checks.values(), start=start))
    return f"CASE{cases} ELSE {otherwise} END" if cases else otherwise
