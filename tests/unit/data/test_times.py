"""Times in every form that people have: exact instants, a range in which they can be true, no costs by span."""

import csv
import json
import tracemalloc
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_fixtures import QUIET
from infnet_rec.config.toml import read_json, read_toml
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.raw_files import RawTable, open_table
from infnet_rec.data.ingest.raw_folder import RawFile
from infnet_rec.data.ingest.vocabulary import clock_ids
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.inspect.counters import MAX_PERIODS, Periods
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.data.inspect.stats import store_stats
from infnet_rec.data.parsing.instants import EARLIEST, LATEST, PER_SECOND, Clock
from infnet_rec.data.store import Store, as_numpy, read_arrow, write_arrow
from infnet_rec.errors import UserError
from kiosk import FILES, Edit, add, hashes, kiosk
from properties import num_examples
from test_bad_rows import quarantined

S_NS, MS_NS = 10**9, 10**6
EPOCH = datetime(1970, 1, 1)
# From 1960 to 2150, to the nanosecond.
INSTANTS = st.one_of(
    st.integers(-315_619_200 * S_NS, 5_680_281_600 * S_NS),
    st.integers(-315_619_200, 5_680_281_600).map(lambda s: s * S_NS),
    st.sampled_from([0, -1, 1, -MS_NS, -MS_NS - 1, S_NS - 1, 951_782_400 * S_NS, 68_169_599_999_999_999]),
)
OFFSETS = st.integers(-12, 14)


def ticks(unit: Any, offset: int, table: RawTable, columns: tuple[str, ...], source: str) -> list[int | None]:
    """What the build's SQL makes of some rows, in order."""
    clock = Clock(unit, offset, EARLIEST, LATEST)
    with duckdb.connect() as connection:
        return [row[0] for row in connection.execute(f"SELECT {clock.sql(table, columns)} FROM {source}").fetchall()]


def of_texts(unit: Any, offset: int, rows: list[tuple[str, ...]]) -> list[int | None]:
    """The same of cells of a text file."""
    columns = ("day", "clock")[: len(rows[0])]
    table = RawTable((Path("log.csv"),), columns)
    values = ", ".join("(" + ", ".join("'" + cell.replace("'", "''") + "'" for cell in row) + ")" for row in rows)
    return ticks(unit, offset, table, columns, f"(VALUES {values}) AS t({', '.join(columns)})")


@settings(max_examples=num_examples(60), deadline=None)
@given(instants=st.lists(INSTANTS, min_size=1, max_size=8), unit=st.sampled_from(sorted(PER_SECOND)), offset=OFFSETS)
def test_whole_numbers_of_any_unit_are_the_tick_that_they_lie_in(instants: list[int], unit: str, offset: int) -> None:
    numbers = [ns * PER_SECOND[unit] // S_NS for ns in instants]
    tick_ns = S_NS if unit == "s" else MS_NS
    expected = [number * (S_NS // PER_SECOND[unit]) // tick_ns for number in numbers]
    assert of_texts(unit, offset, [(str(number),) for number in numbers]) == expected


@settings(max_examples=num_examples(60), deadline=None)
@given(instants=st.lists(st.tuples(INSTANTS, st.integers(0, 5)), min_size=1, max_size=8), offset=OFFSETS)
def test_decimal_seconds_are_exact(instants: list[tuple[int, int]], offset: int) -> None:
    def written(ns: int, form: int) -> str:
        seconds = Decimal(ns) / S_NS
        return (
            f"{seconds:f}",
            f"{seconds:f}".rstrip("0").rstrip(".") if "." in f"{seconds:f}" else f"{seconds:f}",
            f"{seconds:E}",
            f" {seconds:f} ",
            f"{seconds:.15f}",
            f"{seconds:f}".replace("0.", ".", 1) if f"{seconds:f}".startswith("0.") else f"{seconds:f}",
        )[form]

    expected = [ns // MS_NS for ns, _ in instants]
    assert of_texts("decimal_s", offset, [(written(*pair),) for pair in instants]) == expected


SHIFTS = ["", "Z", "z", " UTC", "GMT", "+00:00", "-0330", "+14:00", "+05", " +05:45", "-1200"]


def shift_of(text: str, offset: int) -> timedelta:
    """How far a clock is ahead of UTC."""
    digits = text.strip().replace(":", "")
    if not digits:
        return timedelta(hours=offset)
    if digits[0] not in "+-":
        return timedelta(0)
    sign = -1 if digits[0] == "-" else 1
    return sign * timedelta(hours=int(digits[1:3]), minutes=int(digits[3:] or 0))


@settings(max_examples=num_examples(80), deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.datetimes(datetime(1960, 1, 1), datetime(2150, 1, 1)),
            st.sampled_from(["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d"]),
            st.sampled_from(["%H:%M:%S.%f", "%H:%M:%S", "%H:%M", "%H%M%S", "%H%M", "%H:%M:%S,%f", ""]),
            st.sampled_from(SHIFTS),
            st.sampled_from(["T", " ", "t", "  "]),
        ),
        min_size=1,
        max_size=8,
    ),
    offset=OFFSETS,
    columns=st.integers(1, 2),
)
def test_dates_and_times_of_day_are_those_of_the_calendar(
    rows: list[tuple[datetime, str, str, str, str]], offset: int, columns: int
) -> None:
    texts, expected = [], []
    for local, day, clock, shift, between in rows:
        if not clock and columns == 2:
            clock = "%H:%M:%S"
        shift = shift if clock else ""
        kept = datetime.strptime(local.strftime(f"%Y-%m-%d {clock}"), f"%Y-%m-%d {clock}")
        instant = kept - EPOCH - shift_of(shift, offset)
        expected.append(instant // timedelta(milliseconds=1))
        date_text, clock_text = local.strftime(day), local.strftime(clock) + shift
        texts.append((date_text, clock_text) if columns == 2 else (date_text + (between + clock_text) * bool(clock),))
    assert of_texts("text", offset, texts) == expected


NO_TIMES = {
    "s": ["", " ", "1e", "0x10", "1_0", "1.5", "nan", "inf", "noon", "2024-05-01", "99999999999999999999"],
    "ns": ["1.5", "1e-3", "9223372036854775808", "true"],
    "decimal_s": ["", "nan", "inf", "1_0.5", "1.5.2", "0x1", "1,5", "1e20", "--1", "2024-05-01"],
    "text": [
        "",
        "2024-02-30",
        "2024-13-01",
        "2024-05-01 24:00:00",
        "2024-05-01 10:60",
        "2024-05-01 10:00:61",
        "2024-05-01 10",
        "2024-05-01T10:15.5",
        "2024-05-01T10:15:30+15:00",
        "2024-05-01T10:15:30ZZ",
        "2024-05-01x10:15:30",
        "2024-05-01 10:15:30 PM",
        "2024-05-01 10:15:30 Europe/Berlin",
        "24-05-01",
        "01.05.2024",
        "1714521600",
        "1714521600000",
        "now",
    ],
}


@pytest.mark.parametrize("unit", NO_TIMES)
def test_what_is_no_time_is_none(unit: str) -> None:
    found = of_texts(unit, 3, [(text,) for text in NO_TIMES[unit]])
    assert found == [None] * len(found), [t for t, ms in zip(NO_TIMES[unit], found, strict=True) if ms is not None]


@settings(max_examples=num_examples(30), deadline=None)
@given(
    instants=st.lists(st.one_of(INSTANTS, st.none()), min_size=1, max_size=6),
    unit=st.sampled_from(["s", "ms", "us", "ns"]),
    zone=st.sampled_from([None, "UTC", "Asia/Kolkata"]),
    ticks_unit=st.sampled_from(["s", "ms", "ns", "decimal_s", "text"]),
    offset=OFFSETS,
)
def test_timestamps_of_parquet_are_read_by_their_type(
    instants: list[int | None], unit: str, zone: str | None, ticks_unit: str, offset: int, tmp_path_factory: Any
) -> None:
    """Whatever time_unit says; without a zone they are on the local clock."""
    path = tmp_path_factory.mktemp("times") / "t.parquet"
    counted = [None if ns is None else ns * PER_SECOND[unit] // S_NS for ns in instants]
    pq.write_table(pa.table({"t": pa.array(counted, pa.int64()).cast(pa.timestamp(unit, zone))}), path)
    tick_ns = S_NS if ticks_unit == "s" else MS_NS
    ahead_ns = 0 if zone else offset * 3600 * S_NS
    expected = [None if n is None else (n * (S_NS // PER_SECOND[unit]) - ahead_ns) // tick_ns for n in counted]
    assert parquet_ticks(path, ticks_unit, offset) == expected


def parquet_ticks(path: Path, unit: str, offset: int, columns: tuple[str, ...] = ("t",)) -> list[int | None]:
    faults: list[str] = []
    table = open_table([RawFile(path, "")], faults)
    assert table is not None and not faults
    return ticks(unit, offset, table, columns, table.scan({}))


def test_other_types_of_parquet(tmp_path: Path) -> None:
    """Dates, old timestamps, dates with a time of day in another column, floats and decimals of seconds."""
    path, day, noon = tmp_path / "t.parquet", date(2024, 5, 1), time_of_day(12, 30, 0, 250_000)
    days = [(datetime(2024, 5, 1) - EPOCH).days * 86_400_000] * 2
    ms = days[0] + 45_000_250
    for kind in (pa.date32(), pa.date64()):
        pq.write_table(pa.table({"t": pa.array([day, day], kind)}), path)
        assert parquet_ticks(path, "ms", 2) == [d - 7_200_000 for d in days]
    at = datetime(2024, 5, 1, 12, 30, 0, 250_999)
    pq.write_table(pa.table({"t": pa.array([at], pa.timestamp("ns"))}), path, use_deprecated_int96_timestamps=True)
    assert parquet_ticks(path, "ms", 2) == [ms]
    for kind in (pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        for dates in (pa.array([day]), pa.array(["20240501"]), pa.array([20240501]), pa.array([datetime(2024, 5, 1)])):
            pq.write_table(pa.table({"d": dates, "c": pa.array([noon]).cast(kind)}), path)
            assert parquet_ticks(path, "text", 2, ("d", "c")) == [ms - 7_200_000], dates.type
    for seconds in (pa.array([ms / 1000]), pa.array([Decimal(ms) / 1000]), pa.array([f"{ms / 1000}"])):
        pq.write_table(pa.table({"t": seconds}), path)
        assert parquet_ticks(path, "decimal_s", 2) == [ms]


def test_parts_may_differ_in_the_unit_of_their_timestamps_and_not_in_what_they_mean(tmp_path: Path) -> None:
    at, paths = pa.array([1_714_521_600_123]), [tmp_path / f"{k}.parquet" for k in range(3)]
    pq.write_table(pa.table({"t": at.cast(pa.timestamp("ms", "UTC"))}), paths[0])
    pq.write_table(pa.table({"t": at.cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("ns", "UTC"))}), paths[1])
    pq.write_table(pa.table({"t": at.cast(pa.timestamp("ms"))}), paths[2])
    for chosen in (paths[:2], paths[1::-1], [paths[1]]):
        table = open_table([RawFile(path, "") for path in chosen], [])
        assert table is not None
        assert ticks("ms", 5, table, ("t",), table.scan({})) == [1_714_521_600_123] * len(chosen)
    recipe, raw = kiosk(tmp_path, lambda raw, recipe: recipe["log"].update(files=["1.parquet", "2.parquet"]))
    for k, zone in ((1, "UTC"), (2, None)):
        columns = {name: pa.array([k]) for name in FILES["log_1.csv"][0].split(",")}
        columns["time"] = columns["time"].cast(pa.timestamp("s", zone))
        pq.write_table(pa.table(columns), raw / f"{k}.parquet")
    with pytest.raises(UserError, match=r"1\.parquet, .*2\.parquet: column time holds times of more than one type"):
        build_store(recipe, raw, tmp_path / "store", QUIET)


@settings(max_examples=num_examples(60), deadline=None)
@given(instants=st.lists(INSTANTS, min_size=1), offset=OFFSETS, per_second=st.sampled_from([1, 1000]))
def test_hours_and_days_are_those_of_the_calendar_before_1970_too(
    instants: list[int], offset: int, per_second: int
) -> None:
    time = np.array([ns * per_second // S_NS for ns in instants])
    local = [EPOCH + timedelta(seconds=int(t) // per_second, hours=offset) for t in time]
    assert clock_ids("hour_of_day", time, per_second, offset).tolist() == [2 + at.hour for at in local]
    assert clock_ids("day_of_week", time, per_second, offset).tolist() == [2 + at.weekday() for at in local]


OFFSET = 5


def in_form(unit: str, parquet: pa.DataType | None = None, **keys: Any) -> Edit:
    """The kiosk a day earlier, so that some of it is before 1970, with its times in one of the forms.

    Args:
        unit: the recipe's time_unit.
        parquet: type of the column of times in Parquet files; text files by default.
        keys: of the recipe's log.
    """

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        log, zone = recipe["log"], timezone(timedelta(hours=OFFSET))
        log |= {"utc_offset_hours": OFFSET, "earliest": "1960-01-01T00:00:00", "time_unit": unit, **keys}
        recipe["splits"] = {"by": "rows_of_each_user", "valid": 0.2, "test": 0.2}
        recipe["behaviours"][1]["where"] = "click = 2"
        column = log["time"] if isinstance(log["time"], str) else log["time"][1]
        for name, encoding in (("hour", "hour_of_day"), ("weekday", "day_of_week")):
            recipe["features"].append({"side": "context", "encoding": encoding, "columns": [column], "name": name})
        for name in log["files"]:
            rows: list[dict[str, Any]] = list(csv.DictReader((raw / name).read_text().splitlines()))
            for k, row in enumerate(rows):
                us = (int(row["time"]) - 86_400) * 10**6 + 1_001 * k
                local = datetime(1970, 1, 1, tzinfo=zone) + timedelta(microseconds=us, hours=OFFSET)
                cells = {"ms": us // 1000, "us": us, "ns": us * 1000 + 999, "decimal_s": Decimal(us) / 10**6}
                row["time"] = cells.get(unit, local.replace(tzinfo=None).isoformat(" "))
                row |= {"day": local.strftime("%Y%m%d"), "clock": local.strftime("%H:%M:%S.%f")}
                if parquet is not None:
                    row["time"] = local if parquet.tz else local.replace(tzinfo=None)
            _write_rows(raw / name, rows, parquet)
        if parquet is not None:
            log["files"] = [f"{name}.parquet" for name in log["files"]]

    return edit


def _write_rows(path: Path, rows: list[dict[str, Any]], parquet: pa.DataType | None) -> None:
    if parquet is not None:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        typed = pa.array(columns.pop("time"), parquet)
        pq.write_table(pa.table(columns | {"time": typed}), f"{path}.parquet")
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


TIME_FORMS: dict[str, Edit] = {
    "us": in_form("us"),
    "ns": in_form("ns"),
    "decimal seconds": in_form("decimal_s"),
    "text": in_form("text"),
    "a date and a clock": in_form("text", time=["day", "clock"]),
    "timestamps with a zone": in_form("ns", pa.timestamp("us", "Europe/Oslo")),
    "timestamps without one": in_form("ms", pa.timestamp("us")),
}


@pytest.mark.slow(smoke=["timestamps with a zone", "decimal seconds"])
@pytest.mark.parametrize("name", TIME_FORMS)
def test_a_store_does_not_show_how_its_times_were_written(name: str, tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path / "ms", in_form("ms"))
    build_store(recipe, raw, tmp_path / "ms" / "store", QUIET)
    recipe, raw = kiosk(tmp_path / "other", TIME_FORMS[name])
    build_store(recipe, raw, tmp_path / "other" / "store", QUIET)
    assert hashes(tmp_path / "other" / "store") == hashes(tmp_path / "ms" / "store")
    store = Store(tmp_path / "other" / "store")
    examples = store.examples("train")
    assert min(examples.time_N) < 0
    for instant, hour, day in zip(examples.time_N, *(examples.context[n] for n in ("hour", "weekday")), strict=True):
        local = EPOCH + timedelta(milliseconds=int(instant), hours=OFFSET)
        assert (hour, day) == (2 + local.hour, 2 + local.weekday())
    example = describe_example(store, "train", 0, 3)
    local = EPOCH + timedelta(seconds=int(examples.time_N[0]) // 1000, hours=OFFSET)
    assert example["local_time"] == f"{local:%Y-%m-%d %H:%M:%S}"


@pytest.mark.slow(smoke=["-1"])
@pytest.mark.parametrize("sentinel", [2**63 - 1, -(2**63), -1, 0, 4_102_444_800, 9_999_999_999_999])
def test_one_row_without_a_true_time_is_a_bad_row_and_shows_nowhere_else(
    sentinel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_2024(raw: Path, recipe: dict[str, Any]) -> None:
        del recipe["log"]["earliest"]
        recipe["splits"] = {"by": "rows_of_each_user", "valid": 0.2, "test": 0.2}
        for name in ("log_1.csv", "log_2.csv"):
            head, *rows = (raw / name).read_text().splitlines()
            cells = [row.split(",") for row in rows]
            rows = [",".join([*row[:2], str(1_714_521_600 + int(row[2])), *row[3:]]) for row in cells]
            (raw / name).write_text("\n".join([head, *rows]) + "\n")

    recipe, raw = kiosk(tmp_path / "clean", of_2024)
    build_store(recipe, raw, tmp_path / "clean" / "store", QUIET)
    recipe, raw = kiosk(tmp_path / "odd", of_2024)
    add("log_1.csv", f"0,0,{sentinel},1,1,a")(raw, {})
    build_store(recipe, raw, tmp_path / "odd" / "store", QUIET, max_bad_fraction=0.05)
    assert hashes(tmp_path / "odd" / "store") == hashes(tmp_path / "clean" / "store")
    reason = "time is not between 1990-01-01 (earliest) and 2100-01-01 (latest)"
    assert [row[:3] for row in quarantined(tmp_path / "odd" / "store")] == [("log_1.csv", 22, reason)]


ADVICE = {
    ("ms", "1714546189"): 'it would be 2024-05-01 if time_unit = "s"',
    ("s", "1714546189607"): 'it would be 2024-05-01 if time_unit = "ms"',
    ("ms", "1714546189607000"): 'it would be 2024-05-01 if time_unit = "us"',
    ("s", "1714546189607000000"): 'it would be 2024-05-01 if time_unit = "ns"',
    ("text", "1714546189607"): 'it would be 2024-05-01 if time_unit = "ms"',
    ("s", "1714546189.607"): 'it would be 2024-05-01 if time_unit = "decimal_s"',
    ("ms", "1.714546189607E9"): 'it would be 2024-05-01 if time_unit = "decimal_s"',
    ("s", "2024-05-01 06:49:49"): 'write time_unit = "text"',
    ("ms", "2024-05-01T06:49:49.607Z"): 'write time_unit = "text"',
    ("ms", "20240501"): 'write time_unit = "text"',
    ("decimal_s", "2024/05/01"): 'write time_unit = "text"',
    ("s", "86400"): "if the log counts from a start of its own, write earliest = 1970-01-01",
    ("s", "9223372036854775807"): "",
    ("s", "-1"): "",
    ("ms", "0"): "",
    ("text", "noon"): "",
}


@pytest.mark.parametrize(("unit", "value"), ADVICE)
def test_a_message_says_which_time_unit_would_fit(unit: Any, value: str) -> None:
    assert Clock(unit, 0, EARLIEST, LATEST).advice(value) == ADVICE[unit, value]


def test_a_wrong_unit_is_one_line_with_value_place_and_key(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        del recipe["log"]["earliest"]
        recipe["log"]["time_unit"] = "ms"
        text = "\n".join([FILES["log_1.csv"][0], *(f"0,0,{1_714_521_600 + k},1,1,a" for k in range(2_000))])
        (raw / "log_1.csv").write_text(text)

    recipe, raw = kiosk(tmp_path, edit)
    with pytest.raises(UserError) as caught:
        build_store(recipe, raw, tmp_path / "store", QUIET)
    lines = [line for line in str(caught.value).splitlines() if "1714521600" in line]
    assert lines == [
        f"  {raw}/log_1.csv, line 2: time is not between 1990-01-01 (earliest) and 2100-01-01 (latest) "
        '(it is "1714521600"; it would be 2024-05-01 if time_unit = "s")'
    ]


def test_a_history_has_true_times_too(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        pq.write_table(pa.table({"who": [7], "until": [5_000_000_000], "what": [[2]]}), raw / "h.parquet")
        told = {"file": "h.parquet", "user": "who", "time": "until", "behaviour": "click", "items": "what"}
        recipe["history"] = [told]

    recipe, raw = kiosk(tmp_path, edit)
    with pytest.raises(
        UserError, match=r"history h\.parquet: until of user 7 is not between 1970-01-01 .* and 2100-01-01"
    ):
        build_store(recipe, raw, tmp_path / "store", QUIET)


@settings(max_examples=num_examples(200), deadline=None)
@given(
    origin=st.integers(-(2**63), 2**63 - 1),
    instants=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    length=st.integers(1, 2**62),
)
def test_the_period_of_an_instant_is_right_for_any_instants(origin: int, instants: list[int], length: int) -> None:
    periods = Periods(origin, length, 1)
    expected = [(instant - origin) // length for instant in instants]
    if all(abs(number) < 2**63 - 1 for number in expected):
        assert periods.of(np.array(instants)).tolist() == expected


@pytest.mark.slow(smoke=["0"])
@pytest.mark.parametrize("sentinel", [2**63 - 1, 2**53, 0, 10**15])
def test_statistics_of_an_older_store_cost_nothing_by_span(sentinel: int, tmp_path: Path) -> None:
    """Stores of earlier versions may hold instants that cannot be."""
    recipe, raw = kiosk(tmp_path)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    path = tmp_path / "store" / "examples" / "test.arrow"
    batch = read_arrow(path)
    columns = {name: batch.column(name) for name in batch.schema.names}
    time = as_numpy(batch, "time").copy()
    time[-1] = sentinel
    write_arrow(path, columns | {"time": time})
    tracemalloc.start()
    stats = store_stats(Store(tmp_path / "store"), lambda _: None)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 32 * 2**20
    periods = stats["periods"]
    assert len(periods["starts"]) <= MAX_PERIODS + 1 and periods["length"] >= 1
    assert sum(sum(split["num_examples"]) for split in periods["splits"].values()) == 30
    json.dumps(stats)


def test_a_log_of_a_century_has_periods_of_several_days(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, lambda raw, recipe: recipe["splits"].update(end="2100-01-01T00:00:00"))
    with (raw / "log_2.csv").open("a") as file:
        file.write("0,0,4099680000,1,1,a\n")  # 2099-11-30
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert check_store(store) == []
    periods = store_stats(store, lambda _: None)["periods"]
    days = (datetime(2099, 11, 30) - EPOCH).days + 1
    assert periods["length"] == -(-days // MAX_PERIODS) == 12
    assert periods["starts"][:2] == ["1970-01-01", "1970-01-13"]
    assert sum(periods["splits"]["test"]["num_examples"]) == 11


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbfname = "x"\r\n')
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"name": "x"}')
    assert read_toml(tmp_path / "a.toml") == read_json(tmp_path / "a.json") == {"name": "x"}
    (tmp_path / "b.toml").write_bytes('name = "x"'.encode("utf-16"))
    with pytest.raises(UserError, match=r"b\.toml: not a TOML file: .*TOML is UTF-8 text, save it as such"):
        read_toml(tmp_path / "b.toml")
