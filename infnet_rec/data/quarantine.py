"""Rows that cannot be used: counted, written down with file, line and reason, and too many of them stop the build.

A row is bad if it does not parse (wrong number of columns, text where a number must be) or if it parses to something
impossible (no user, a fractional id, a label that is neither 0 nor 1). DuckDB keeps the places of the first kind; for
the second, the files that have any are read once more, in order. The line of a row in a Parquet file is its number.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import duckdb

from infnet_rec.data.places import find_rows
from infnet_rec.data.raw import MAX_REJECTS, RawTable, faults_of, first_value, literal, quoted
from infnet_rec.data.text_format import toml_text
from infnet_rec.faults import Fault

SHOWN, FEW = 3, 1_000
MAX_TEXT = 4_096  # of a row that is written down
MAX_SHOWN = 60  # characters of a value in a message
# What programs write for a missing value.
NULL_TEXTS = frozenset(["\\N", "\\\\N", "-", "?", "null", "na", "n/a", "#n/a", "none", "nan"])
UNREAD_CELL = re.compile(r'Could not convert string "(.*)" to ')


@dataclass(frozen=True, slots=True, order=True)
class BadRow:
    """Where a bad row stands, what is wrong, and its text; for a message also the value and what to do about it."""

    file: str
    line: int
    reason: str
    row: str
    value: str = field(default="", compare=False)
    advice: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Remedy:
    """What a message says besides a reason.

    Attributes:
        columns: raw columns whose values are shown.
        advice: from such a value to what a person can write in the recipe; "" if nothing helps.
    """

    columns: tuple[str, ...]
    advice: Callable[[str], str]


@dataclass(slots=True)
class Quarantine:
    """All bad rows of a build.

    Attributes:
        max_fraction: of the rows of one table (the log, the parts of one side table) that may be bad.
        rows: the bad rows so far.
        counts: table -> number of bad rows.
        shown: path of a file that was fetched -> what a person calls it.
    """

    max_fraction: float
    rows: list[BadRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)

    def add(self, table: str, bad: list[BadRow], num_rows: int) -> None:
        """Takes the bad rows of one table.

        Raises:
            Fault: they are too many.
        """
        bad = sorted(replace(row, file=self.shown.get(row.file, row.file)) for row in bad)
        if len(bad) > self.max_fraction * num_rows:
            first = _first_lines(bad)
            # DuckDB's reasons quote the value that does not fit.
            reasons = Counter(b.reason.partition(". Could not")[0] for b in bad)
            raise self.too_many(table, len(bad), num_rows, reasons, first)
        if bad:
            self.counts[table] = self.counts.get(table, 0) + len(bad)
            self.rows += bad

    def too_many(self, table: str, num_bad: int, num_rows: int, reasons: Counter[str], first: str = "") -> Fault:
        """The end of the build; `reasons` are counted, `first` are lines about the first rows."""
        counts = "".join(f"\n  {count:,} rows: {reason}" for reason, count in reasons.most_common())
        return Fault(
            f"{table}: {num_bad:,} of {num_rows:,} rows are bad ({num_bad / num_rows:.4%}), more than "
            f"--max-bad-fraction {self.max_fraction:g} allows; mend them, or the recipe."
            + (f" The first:{first}" if first else "")
            + (f"\nAll of them:{counts}" if num_bad > SHOWN or not first else "")
        )

    def write(self, path: Path) -> None:
        """A CSV file: file, line, reason, row. A file that is two tables (the log and a side) has its rows once."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("file", "line", "reason", "row"))
            writer.writerows((b.file, b.line, b.reason, b.row) for b in dict.fromkeys(self.rows))


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
        remedies: reason -> what a message says besides; by default the value of the column that the reason begins with.
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
    view: str = "SELECT *, file_index FROM"
    derived: Mapping[str, str] = field(default_factory=dict)
    remedies: Mapping[str, Remedy] = field(default_factory=dict)
    join: str = ""
    keep: str = "TRUE"
    ordered: bool = False

    def query(self, part: int | None, rejects: str | None) -> str:
        """All rows of the files with the new columns, and `bad_`, 0 or the number of a check.

        Of one part only, if `part` is given: then `line_` numbers its rows, from 1.
        """
        rows = self.source.scan(dict(self.types), rejects=rejects, part=part)
        columns = [f"{sql} AS {quoted(name)}" for name, sql in self.columns.items()]
        if self.ordered:
            columns.append("row_number() OVER () AS time")
        columns.append("file_index AS file_")
        number = "0" if part is None else "row_number() OVER ()"
        columns.append(f"{'file_row_number + 1' if self.source.is_parquet else number} AS line_")
        if part is not None:
            columns += [
                f"CAST({self.source.text(c)} AS VARCHAR) AS {quoted(_shown_name(c))}" for c in self._shown_columns()
            ]
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
            broken = self._broken(connection, rejects)
            total = first_value(connection, f"SELECT count(*) FROM {self.name} WHERE bad_ > 0")
            if total > max(quarantine.max_fraction * num_rows, FEW):
                # Too many to be worth the search for all their lines.
                counts = connection.execute(f"SELECT bad_, count(*) FROM {self.name} GROUP BY 1 HAVING bad_ > 0")
                reasons = list(self.checks)
                counted = Counter({reasons[k - 1]: count for k, count in counts.fetchall()})
                first = _first_lines(sorted(self._bad_rows(connection, broken, most=SHOWN)))
                raise quarantine.too_many(self.what, total, num_rows, counted, first)
            bad = self._bad_rows(connection, broken)
            if total:
                connection.execute(f"DELETE FROM {self.name} WHERE bad_ > 0")
                if self.ordered:
                    self._number_anew(connection)
        quarantine.add(self.what, bad, num_rows + sum(map(len, broken.values())))
        return num_rows - total

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
            raise Fault(f"{self.what}: {MAX_REJECTS:,} rows or more do not parse; mend the files")
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

    def _remedy(self, reason: str) -> Remedy | None:
        """What a message says besides a reason."""
        if reason in self.remedies:
            return self.remedies[reason]
        named = [column for column in self.source.columns if reason.startswith(f"{column} is ")]
        return Remedy((max(named, key=len),), self._null_advice) if named else None

    def _shown_columns(self) -> list[str]:
        """Raw columns that messages show the values of."""
        remedies = [remedy for reason in self.checks if (remedy := self._remedy(reason)) is not None]
        return list(dict.fromkeys(column for remedy in remedies for column in remedy.columns))

    def _null_advice(self, value: str) -> str:
        if value.strip() not in NULL_TEXTS and value.strip().lower() not in NULL_TEXTS:
            return ""
        section = "[log]" if self.name == "log" else f"[[sides.{self.name.split('_')[1]}]]"
        return f"write null_values = [{toml_text(value)}] in {section} if it means missing"

    def _told(self, reason: str, values: Mapping[str, str | None]) -> tuple[str, str]:
        """The offending value of a row, and what to write in the recipe."""
        if (unread := UNREAD_CELL.search(reason)) is not None:
            return "", self._null_advice(unread[1])  # DuckDB's reason quotes the value
        if (remedy := self._remedy(reason)) is None:
            return "", ""
        shown = [values.get(column) for column in remedy.columns]
        advice = next(filter(None, (remedy.advice(value) for value in shown if value)), "")
        return " and ".join("nothing" if value is None else f"'{_short(value)}'" for value in shown), advice

    def _bad_rows(
        self,
        connection: duckdb.DuckDBPyConnection,
        broken: dict[str, dict[int, tuple[str, str]]],
        most: int | None = None,
    ) -> list[BadRow]:
        """The rows that do not parse, and those that parse to something impossible, with their lines.

        With `most`, about the first so many of the first file that has any of the second kind.
        """
        reasons, bad, shown = list(self.checks), [], self._shown_columns()
        impossible = connection.execute(f"SELECT DISTINCT file_ FROM {self.name} WHERE bad_ > 0 ORDER BY 1").fetchall()
        parts = {str(self.source.paths[part]): part for (part,) in impossible}
        if most is not None:
            parts = dict(list(parts.items())[:1])
            broken = {path: rows for path, rows in broken.items() if path in parts}
        for path in dict.fromkeys([*broken, *parts]):
            numbers: dict[int, tuple[int, dict[str, str | None]]] = {}
            if path in parts:
                connection.execute("SET preserve_insertion_order = true")
                rejects = f"rejects_{self.name}_{parts[path]}"
                values = "".join(f", {quoted(_shown_name(column))}" for column in shown)
                again = f"SELECT line_, bad_{values} FROM ({self.query(parts[path], rejects)}) WHERE bad_ > 0"
                rows = connection.execute(again + (f" LIMIT {most}" if most else "")).fetchall()
                numbers = {row[0]: (row[1], dict(zip(shown, row[2:], strict=True))) for row in rows}
                connection.execute("SET preserve_insertion_order = false")
            lines, found = self._lines(connection, path, broken.get(path, {}), numbers)
            for offset, (reason, text) in broken.get(path, {}).items():
                bad.append(BadRow(path, lines.get(offset, 0), reason, text[:MAX_TEXT], *self._told(reason, {})))
            for number, (check, cells) in numbers.items():
                line, text = found.get(number, (0, ""))
                reason = reasons[check - 1]
                bad.append(BadRow(path, line, reason, text[:MAX_TEXT], *self._told(reason, cells)))
        return bad

    def _lines(
        self, connection: duckdb.DuckDBPyConnection, path: str, broken: Iterable[int], numbers: Collection[int]
    ) -> tuple[dict[int, int], dict[int, tuple[int, str]]]:
        """The line of each byte offset, and line and text of each row, of one file; see `find_rows`."""
        if self.source.is_parquet:
            paths = list(map(str, self.source.paths))
            return {}, self._parquet_rows(connection, paths.index(path), numbers)
        source = self.source
        return find_rows(Path(path), source.form, broken, numbers, num_columns=len(source.file_columns))

    def _parquet_rows(
        self, connection: duckdb.DuckDBPyConnection, part: int, numbers: Collection[int]
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


def _first_lines(bad: list[BadRow]) -> str:
    """Lines about the first rows; what to do is said once for each reason."""
    lines, told = [], set()
    for row in islice(bad, SHOWN):
        value = f": {row.value}" if row.value else ""
        advice = f"; {row.advice}" if row.advice and row.reason not in told else ""
        lines.append(f"\n  {row.file}, line {row.line}: {row.reason}{value}{advice}")
        told.add(row.reason)
    return "".join(lines)


def _shown_name(column: str) -> str:
    return f"{column} as shown"


def _short(value: str) -> str:
    """A value on one line of a message."""
    value = "".join(c if c.isprintable() else " " for c in value)
    return value if len(value) <= MAX_SHOWN else value[: MAX_SHOWN - 3] + "..."
