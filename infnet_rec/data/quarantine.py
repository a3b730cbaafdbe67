"""Rows that cannot be used: counted, written down with file, line and reason, and too many of them stop the build.

A row is bad if it does not parse (wrong number of columns, text where a number must be) or if it parses to something
impossible (no user, a fractional id, a label that is neither 0 nor 1). DuckDB keeps the lines of the first kind; for
the second, the files that have any are read once more, in order, to find their lines.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import duckdb

from infnet_rec.data.raw import RawTable, faults_of, first_value, literal, quoted
from infnet_rec.faults import Fault

SHOWN, FEW = 3, 1_000
FIRST_LINE = 2  # below the header


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """Where a bad row stands, what is wrong, and its text (or what identifies it)."""

    file: str
    line: int
    reason: str
    row: str


@dataclass(slots=True)
class Quarantine:
    """All bad rows of a build.

    Attributes:
        max_fraction: of the rows of one table (the log, the parts of one side table) that may be bad.
        rows: the bad rows so far.
        counts: table -> number of bad rows.
    """

    max_fraction: float
    rows: list[BadRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, table: str, bad: list[BadRow], num_rows: int) -> None:
        """Takes the bad rows of one table.

        Raises:
            Fault: they are too many.
        """
        bad = sorted(bad)
        if len(bad) > self.max_fraction * num_rows:
            first = "".join(f"\n  {b.file}, line {b.line}: {b.reason}" for b in islice(bad, SHOWN))
            raise Fault(
                f"{table}: {len(bad):,} of {num_rows:,} rows are bad ({len(bad) / num_rows:.4%}), more than "
                f"--max-bad-fraction {self.max_fraction:g} allows; mend them, or the recipe. The first:{first}"
            )
        if bad:
            self.counts[table] = len(bad)
            self.rows += bad

    def write(self, path: Path) -> None:
        """A CSV file: file, line, reason, row."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file", "line", "reason", "row"))
            writer.writerows((b.file, b.line, b.reason, b.row) for b in self.rows)


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
        view: SQL that goes before the scan of the files, to give their columns other types and names.
        derived: more columns of the new table: name -> SQL over the columns above (of `r`) and those of `join`.
        join: SQL that joins other tables to the rows, which are named `r`.
        nulls: texts that mean "missing".
        keep: SQL condition over the new columns; other rows are left out, bad or not.
        ordered: whether the table has a column `time` with the row's number in the files.
    """

    name: str
    what: str
    source: RawTable
    types: Mapping[str, str]
    columns: Mapping[str, str]
    checks: Mapping[str, str]
    view: str = "SELECT *, file_index FROM"
    derived: Mapping[str, str] = field(default_factory=dict)
    join: str = ""
    nulls: tuple[str, ...] = ()
    keep: str = "TRUE"
    ordered: bool = False

    def query(self, part: int | None, rejects: str | None) -> str:
        """All rows of the files (or one of them) with the new columns and `bad`, 0 or the number of a check."""
        rows = self.source.scan(dict(self.types), rejects=rejects, nulls=self.nulls, part=part)
        columns = [f"{sql} AS {quoted(name)}" for name, sql in self.columns.items()]
        if self.ordered:
            columns.append("row_number() OVER () AS time")
        columns.append("file_index AS file_")
        columns.append("file_row_number AS line_" if self.source.is_parquet else "0 AS line_")
        cases = "".join(f" WHEN {sql} THEN {k}" for k, sql in enumerate(self.checks.values(), start=1))
        bad = f"CASE{cases} ELSE 0 END" if cases else "0"
        derived = "".join(f", {sql} AS {quoted(name)}" for name, sql in self.derived.items())
        columns = ", ".join(columns)
        selected = f"(SELECT {columns} FROM ({self.view} {rows})) AS r {self.join}"
        return f"SELECT r.*{derived}, CAST({bad} AS UTINYINT) AS bad_ FROM {selected}"

    def run(self, connection: duckdb.DuckDBPyConnection, quarantine: Quarantine) -> int:
        """Creates the table (with three more columns: file_, line_, bad_) and returns its number of rows.

        Raises:
            Fault: the files cannot be read, or too many rows are bad.
        """
        rejects = f"rejects_{self.name}"
        with faults_of(self.what):
            connection.execute(f"SET preserve_insertion_order = {str(self.ordered).lower()}")
            connection.execute(
                f"CREATE TABLE {self.name} AS SELECT * FROM ({self.query(None, rejects)}) WHERE {self.keep} OR bad_ > 0"
            )
            connection.execute("SET preserve_insertion_order = false")
        num_rows = first_value(connection, f"SELECT count(*) FROM {self.name}")
        bad = [] if self.source.is_parquet else _rejected(connection, rejects)
        num_all = num_rows + len(bad)
        if first_value(connection, f"SELECT 1 FROM {self.name} WHERE bad_ > 0 LIMIT 1"):
            bad += self._impossible(connection, quarantine, num_rows)
            connection.execute(f"DELETE FROM {self.name} WHERE bad_ > 0")
        quarantine.add(self.what, bad, num_all)
        return first_value(connection, f"SELECT count(*) FROM {self.name}")

    def _impossible(self, connection: duckdb.DuckDBPyConnection, quarantine: Quarantine, num_rows: int) -> list[BadRow]:
        """The rows that parse to something impossible, with their lines."""
        total = first_value(connection, f"SELECT count(*) FROM {self.name} WHERE bad_ > 0")
        reasons = list(self.checks)
        if total > max(quarantine.max_fraction * num_rows, FEW):
            # Too many to be worth the search for their lines: the build stops.
            counts = connection.execute(f"SELECT bad_, count(*) FROM {self.name} WHERE bad_ > 0 GROUP BY 1 ORDER BY 2")
            most = [(reasons[k - 1], count) for k, count in reversed(counts.fetchall())]
            listed = "".join(f"\n  {count:,} rows: {reason}" for reason, count in most)
            raise Fault(
                f"{self.what}: {total:,} of {num_rows:,} rows are bad, more than --max-bad-fraction "
                f"{quarantine.max_fraction:g} allows; mend them, or the recipe:{listed}"
            )
        found = []
        shown = ", ".join(f"CAST({quoted(name)} AS VARCHAR)" for name in self.columns)
        parts = [p for (p,) in connection.execute(f"SELECT DISTINCT file_ FROM {self.name} WHERE bad_ > 0").fetchall()]
        for part in parts:
            path, rejects = str(self.source.paths[part]), f"rejects_{self.name}_{part}"
            connection.execute("SET preserve_insertion_order = true")
            rows = connection.execute(
                f"""SELECT number, bad_, line_, [{shown}] FROM (SELECT *, row_number() OVER () AS number
                FROM ({self.query(part, rejects)})) WHERE bad_ > 0"""
            ).fetchall()
            connection.execute("SET preserve_insertion_order = false")
            skipped = [] if self.source.is_parquet else sorted(b.line for b in _rejected(connection, rejects))
            for number, bad, line, values in rows:
                place = line + 1 if self.source.is_parquet else _line(number, skipped)
                text = " ".join(f"{n}={v}" for n, v in zip(self.columns, values, strict=True) if v is not None)
                found.append(BadRow(path, place, reasons[bad - 1], text))
        return found


def _line(number: int, skipped: list[int]) -> int:
    """The line of the row that is the `number`th of those that parse, from 1, given the lines that do not."""
    line = number + FIRST_LINE - 1
    for other in skipped:
        if other > line:
            break
        line += 1
    return line


def _rejected(connection: duckdb.DuckDBPyConnection, table: str) -> list[BadRow]:
    """The rows that DuckDB could not parse, one each however much is wrong with it."""
    if not first_value(connection, f"SELECT 1 FROM duckdb_tables() WHERE table_name = {literal(table)}"):
        return []
    rows = connection.execute(
        f"""SELECT file_path, line, min(error_message), any_value(csv_line) FROM {table} JOIN {table}_scans
        USING (scan_id, file_id) GROUP BY file_path, line, line_byte_position"""
    ).fetchall()
    return [BadRow(path, line, " ".join(reason.split()), row or "") for path, line, reason, row in rows]
