"""When things happened, as the files show it: which column says so, in which unit, and where splits could lie."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb

from infnet_rec.data.parsing.instants import EARLIEST, LATEST, PER_SECOND, Clock, TimeUnit
from infnet_rec.data.sniff.sniffer import (
    MIN_ID_FILLED,
    Reason,
    SniffedColumn,
    SniffedTable,
    quantiles_of,
    words_of,
)

TIME_WORDS = ("timestamp", "time", "ts", "datetime", "date", "at", "when", "created", "unix", "day")
FEW_ROWS_OF_A_USER = 10


@dataclass(frozen=True, slots=True)
class Time:
    """The log's instant, and boundaries of its splits on the local clock."""

    columns: tuple[str, ...]
    unit: TimeUnit
    reason: str
    boundaries: tuple[datetime, datetime, datetime, datetime] | None


def time_unit(column: SniffedColumn) -> TimeUnit | None:
    """The unit in which every number of a column is an instant that can be true."""
    if not column.is_number or column.low is None or column.high is None or column.padded:
        return None
    low, high = (edge.replace(tzinfo=UTC).timestamp() for edge in (EARLIEST, LATEST))
    units: tuple[TimeUnit, ...] = ("s", "ms", "us", "ns")
    for unit in units:
        if low * PER_SECOND[unit] <= column.low and column.high < high * PER_SECOND[unit]:
            return unit if column.is_whole else "decimal_s" if unit == "s" else None
    return None


def guess_time(connection: duckdb.DuckDBPyConnection, log: SniffedTable, taken: set[str]) -> Time | None:
    """The log's time, or None where no column may be one.

    Args:
        connection: that reads the files.
        log: the table of the behaviour.
        taken: columns that are something else already.
    """
    found: list[tuple[tuple[int, ...], tuple[str, ...], TimeUnit, str]] = []
    clocks = [c for c in log.columns if c.filled and c.clocks == c.filled]
    for column in log.columns:
        if column.name in taken or column.is_list or column.filled < MIN_ID_FILLED * log.num_rows:
            continue
        words = words_of(column.name)
        named = min((k for k, word in enumerate(TIME_WORDS) if word in words), default=None)
        rank = -len(TIME_WORDS) if named is None else -named
        if column.is_instant:
            found.append(((3, rank), (column.name,), "ms", "its type in the file is a time"))
        elif (unit := time_unit(column)) is not None and (named is not None or not log.has_header):
            first, last = (_day(column, unit, end) for end in (column.low, column.high))
            reason = f"every value would be an instant from {first} to {last} in {unit}"
            found.append(((2, rank), (column.name,), unit, reason))
        elif column.filled == column.dates and (named is not None or not column.is_whole):
            if column.mean_length <= 10 and clocks:
                pair = (column.name, clocks[0].name)
                found.append(((1, rank), pair, "text", "a date and a time of day in every row"))
            else:
                found.append(
                    ((1 if column.mean_length > 10 else 0, rank), (column.name,), "text", "a date in every row")
                )
    if not found:
        return None
    _, columns, unit, reason = max(found, key=lambda f: (f[0], -log.column(f[1][0]).place))
    return Time(columns, unit, reason, _boundaries(connection, log, columns, unit))


def _day(column: SniffedColumn, unit: str, value: float | None) -> str:
    seconds = (value or 0.0) / PER_SECOND.get(unit, 1)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _boundaries(
    connection: duckdb.DuckDBPyConnection, log: SniffedTable, columns: tuple[str, ...], unit: TimeUnit
) -> tuple[datetime, datetime, datetime, datetime] | None:
    """Where splits of eight, one and one tenth of the rows begin: midnights, where the log is long enough."""
    clock = Clock(unit, 0, EARLIEST, LATEST)
    ticks = clock.sql(log.raw, columns)
    valid, test, first, last = quantiles_of(connection, log, ticks, (0.8, 0.9))
    if first is None or last is None:
        return None
    at = [datetime(1970, 1, 1) + timedelta(seconds=t / clock.ticks_per_second) for t in (first, valid, test, last)]
    if not EARLIEST <= at[0] < LATEST:
        return None
    days = [t.replace(hour=0, minute=0, second=0, microsecond=0) for t in at]
    for train, of_valid, of_test, end in (
        (days[0], days[1], days[2], days[3] + timedelta(days=1)),
        (*(t.replace(microsecond=0) for t in at[:3]), at[3].replace(microsecond=0) + timedelta(seconds=1)),
    ):
        if train < of_valid < of_test < end:
            return train, of_valid, of_test, end
    return None


def guess_splits(connection: duckdb.DuckDBPyConnection, log: SniffedTable, user: str, time: Time | None) -> Reason:
    """How rows are split: "time", "rows_of_each_user" or "random"; and why.

    Args:
        connection: that reads the files.
        log: the table of the behaviour.
        user: its column of users.
        time: what was found of it.
    """
    if time is not None and time.boundaries is not None:
        return "time", "the last tenth of the rows for test, the tenth before it for validation"
    if log.num_rows >= FEW_ROWS_OF_A_USER * max(1, log.column(user).distinct):
        return "rows_of_each_user", "there is no time, so the rows of a user must stand in order in the files"
    return "random", "there is no time and too few rows of each user"
