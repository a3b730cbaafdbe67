r"""How a time is read: what a recipe says of it, and SQL that makes it a whole number of ticks, exactly.

| time_unit   | what is read                                                          | a store's tick |
|-------------|-----------------------------------------------------------------------|----------------|
| "s"         | a whole number of seconds since 1970 UTC                              | a second       |
| "ms"        | of milliseconds                                                       | a millisecond  |
| "us", "ns"  | of microseconds, of nanoseconds                                       | a millisecond  |
| "decimal_s" | seconds since 1970 UTC, perhaps with a fraction (also 1.7145216005E9) | a millisecond  |
| "text"      | a date and perhaps a time of day, see below                           | a millisecond  |

A finer time belongs to the tick that it lies in, before 1970 too: nothing is rounded. Texts: 2024-05-01, 2024/05/01 or
20240501, then perhaps T or a space and 10:15, 10:15:30, 10:15:30.25, 1015 or 101530, then perhaps Z, UTC, GMT or an
offset such as +02:00; without one they are on the local clock of the recipe, and so are Parquet's timestamps without
a time zone and its dates. A date is its first instant.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Literal

from infnet_rec.data.parsing.values import literal, quoted

if TYPE_CHECKING:
    from infnet_rec.data.ingest.raw_files import RawTable  # DuckDB is not everywhere where instants are read

TimeUnit = Literal["s", "ms", "us", "ns", "decimal_s", "text"]
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
WRITTEN_AS = {
    **{unit: f"a whole number of {unit} since 1970" for unit in PER_SECOND},
    "decimal_s": "a number of seconds since 1970",
    "text": "a date and a time of day",
}
EARLIEST, LATEST = datetime(1990, 1, 1), datetime(2100, 1, 1)
EPOCH = datetime(1970, 1, 1)
# Twelve digits of a fraction are kept, which is finer than any clock; digits behind them would be rounded.
DECIMAL = r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?\s*"
LONG_FRACTION = r"^(\s*[+-]?[0-9]*\.[0-9]{12})[0-9]+"
MAX_DECIMAL_S = 10**13
DATE = r"([0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}/[0-9]{2}/[0-9]{2}|[0-9]{8}(?:\.0+)?)"
SECONDS, MINUTES = r"([0-9]{1,2}:[0-9]{2}:[0-9]{2}|[0-9]{6})(?:[.,]([0-9]+))?", r"([0-9]{1,2}:[0-9]{2}|[0-9]{4})"
OFFSET = r"(Z|z|UTC|GMT|[+-](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?)"
DATE_AND_CLOCK = rf"^\s*{DATE}(?:(?:[Tt]|\s+)?(?:{SECONDS}|{MINUTES})\s*{OFFSET}?)?\s*$"
GROUPS = ("date", "seconds", "fraction", "minutes", "shift")
MIDNIGHT = r"[T ]00:00:00(\.0+)?$"


def ticks_per_second(unit: str) -> int:
    """Of a store whose recipe has this time_unit."""
    return 1 if unit == "s" else 1000


@dataclass(frozen=True, slots=True)
class Clock:
    """How the times of a log are written, and which of them can be true.

    Attributes:
        unit: the recipe's time_unit.
        utc_offset_hours: how far the local clock is ahead of UTC.
        earliest: local; what lies before it is no instant of this log.
        latest: local; what lies there or after it is none either.
    """

    unit: TimeUnit
    utc_offset_hours: int
    earliest: datetime
    latest: datetime

    @property
    def ticks_per_second(self) -> int:
        """How many of the store's ticks a second has."""
        return ticks_per_second(self.unit)

    def ticks(self, local: datetime) -> int:
        """A date and time of day on the local clock, in ticks since 1970 UTC."""
        since_1970 = local - EPOCH - timedelta(hours=self.utc_offset_hours)
        return since_1970 // timedelta(microseconds=1) * self.ticks_per_second // 10**6

    def sql(self, table: "RawTable", columns: Sequence[str]) -> str:
        """SQL of the ticks since 1970 UTC, null where there is no time.

        Args:
            table: the columns' own.
            columns: one, or a date and a time of day.
        """
        if len(columns) == 2:
            date, clock = (_text(table, column) for column in columns)
            return self._text_sql(f"regexp_replace({date}, {literal(MIDNIGHT)}, '') || 'T' || {clock}")
        (column,) = columns
        if (found := table.instants.get(column)) is not None and found.kind != "clock":
            value = f"CAST({quoted(column)} AS TIMESTAMP)" if found.kind == "date" else quoted(column)
            name, per_second = ("epoch_ns", 10**9) if found.nanoseconds else ("epoch_us", 10**6)
            ticks = _floor(f"{name}({value})", per_second // self.ticks_per_second)
            ahead = 0 if found.kind == "instant" else self.utc_offset_hours * 3600 * self.ticks_per_second
            return f"({ticks} - {ahead})"
        if self.unit in PER_SECOND:
            return _floor(table.integer(column), PER_SECOND[self.unit] // self.ticks_per_second)
        text = _text(table, column)
        return self._text_sql(text) if self.unit == "text" else self._decimal_sql(text)

    def _decimal_sql(self, text: str) -> str:
        kept = rf"regexp_replace({text}, {literal(LONG_FRACTION)}, '\1')"
        number = f"TRY_CAST({kept} AS DECIMAL(38, 12))"
        ticks = f"CAST(floor({number} * {self.ticks_per_second}) AS BIGINT)"
        # Most are digits, a point and a few digits, and read sooner so.
        seconds, fraction = (f"split_part({text}, '.', {k})" for k in (1, 2))
        whole, digits = f"TRY_CAST({seconds} AS BIGINT)", f"'1' || {fraction}"
        plain = (
            f"CAST({whole} AS VARCHAR) = {seconds} AND {whole} BETWEEN 0 AND {MAX_DECIMAL_S} AND "
            f"CAST(TRY_CAST({digits} AS BIGINT) AS VARCHAR) = {digits} AND "
            f"{text} IN ({seconds}, {seconds} || '.' || {fraction})"
        )
        soon = f"{whole} * 1000 + CAST(rpad(({fraction})[1:3], 3, '0') AS BIGINT)"
        return (
            f"CASE WHEN {plain} THEN {soon} "
            f"WHEN regexp_full_match({text}, {literal(DECIMAL)}) AND abs({number}) < {MAX_DECIMAL_S} THEN {ticks} END"
        )

    def _text_sql(self, text: str) -> str:
        names = ", ".join(map(literal, GROUPS))
        parts = f"regexp_extract({text}, {literal(DATE_AND_CLOCK)}, [{names}])"
        day = "replace(replace(p.date, '-', ''), '/', '')"
        date = f"TRY_CAST({day}[1:4] || '-' || {day}[5:6] || '-' || {day}[7:8] AS DATE)"
        clock = (
            "CASE WHEN p.seconds != '' THEN lpad(replace(p.seconds, ':', ''), 6, '0') "
            "ELSE lpad(replace(p.minutes, ':', ''), 4, '0') || '00' END"
        )
        hour, minute, second = (f"CAST(({clock})[{k}:{k + 1}] AS BIGINT)" for k in (1, 3, 5))
        thousandths = "CAST(rpad(p.fraction[1:3], 3, '0') AS BIGINT)"
        shift = "replace(p.shift, ':', '')"
        ahead_s = (
            f"CASE WHEN p.shift = '' THEN {self.utc_offset_hours * 3600} WHEN p.shift[1:1] NOT IN ('+', '-') THEN 0 "
            f"ELSE CAST({shift}[1:1] || '1' AS BIGINT) * (CAST({shift}[2:3] AS BIGINT) * 3600 "
            f"+ CAST(rpad({shift}[4:5], 2, '0') AS BIGINT) * 60) END"
        )
        ms = f"epoch_ms({date}) + (({hour} * 60 + {minute}) * 60 + {second} - ({ahead_s})) * 1000 + {thousandths}"
        valid = f"p.date != '' AND {hour} < 24 AND {minute} < 60 AND {second} < 60"
        slow = f"list_transform([{parts}], lambda p: CASE WHEN {valid} THEN {ms} END)[1]"
        # Most are written as DuckDB prints a timestamp, but for the T and Z of ISO 8601, and read sooner so.
        plain = f"({text})[1:10] || ' ' || ({text})[12:19]"
        instant, rest = f"TRY_CAST({plain} AS TIMESTAMP)", f"({text})[20:]"
        is_plain = f"CAST({instant} AS VARCHAR) = {plain} AND ({text})[11:11] IN (' ', 'T') AND {rest} IN ('', 'Z')"
        soon = f"epoch_ms({instant}) - CASE WHEN {rest} = '' THEN {self.utc_offset_hours * 3_600_000} ELSE 0 END"
        return _floor(f"(CASE WHEN {is_plain} THEN {soon} ELSE {slow} END)", 1000 // self.ticks_per_second)

    def checks(self, columns: Sequence[str], table: "RawTable") -> dict[str, str]:
        """Reason -> SQL condition over the ticks `time`, of rows whose time cannot be true."""
        what = " and ".join(columns)
        found = table.instants.get(columns[0]) if len(columns) == 1 else None
        typed = found is not None and found.kind != "clock"
        written = "a finite time" if typed else WRITTEN_AS["text" if len(columns) == 2 else self.unit]
        low, high = self.ticks(self.earliest), self.ticks(self.latest)
        return {
            f"{what} is empty or not {written}": "time IS NULL",
            f"{what} is {self.range_text}": f"time < {low} OR time >= {high}",
        }

    @property
    def range_text(self) -> str:
        """What is wrong with an instant that cannot be true."""
        return f"not between {_date(self.earliest)} (earliest) and {_date(self.latest)} (latest)"

    def advice(self, value: str) -> str:
        """What to write in the recipe for a time that was not understood or cannot be true; "" if that is unknown."""
        if (number := _whole(value)) is not None:
            for unit, per_second in PER_SECOND.items():
                if unit != self.unit and (when := self._when(number, per_second)) is not None:
                    return f'it would be {when} if time_unit = "{unit}"'
        elif (number := _decimal(value)) is not None and (when := self._when(number, 1)) is not None:
            return f'it would be {when} if time_unit = "decimal_s"' if self.unit != "decimal_s" else ""
        if self.unit != "text" and re.match(DATE_AND_CLOCK, value):
            return 'write time_unit = "text"'
        if self.unit in PER_SECOND and number is not None and 0 < number < 2**62:
            return "if the log counts from a start of its own, write earliest = 1970-01-01"
        return ""

    def _when(self, number: int | Decimal, per_second: int) -> str | None:
        """The local day of an instant, if it can be true."""
        zone = timezone(timedelta(hours=self.utc_offset_hours))
        try:
            local = datetime.fromtimestamp(int(number // per_second), UTC).astimezone(zone).replace(tzinfo=None)
        except (ValueError, OverflowError, OSError):
            return None
        return _date(local) if self.earliest <= local < self.latest else None


def _text(table: "RawTable", column: str) -> str:
    """SQL of a time as it is written; a text that means missing is none."""
    read = table.column(column)
    return read.text if read.null_values else read.raw


def _floor(value: str, divisor: int) -> str:
    """SQL of a whole number divided by another and rounded down; DuckDB's // rounds toward zero."""
    return value if divisor == 1 else f"({value} // {divisor} - CAST({value} % {divisor} < 0 AS BIGINT))"


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", text) else None


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.strip()) if re.fullmatch(DECIMAL, text) else None
    except InvalidOperation:
        return None


def _date(local: datetime) -> str:
    return f"{local:%Y-%m-%d}"
