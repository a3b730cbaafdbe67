"""What raw files say of themselves, looked at before anything is read: columns, and the types of Parquet files."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.data.columns import types_of
from infnet_rec.data.raw import ParquetTime, RawTable
from infnet_rec.data.raw_folder import RawFile
from infnet_rec.data.text_format import (
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
from infnet_rec.faults import Fault, did_you_mean

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
        except Fault as fault:
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
        raise Fault(f"{path}, line 1: {no_header(line, len(names))}")
    return _checked_names(path, names)


def _checked_names(path: Path, columns: list[str]) -> tuple[str, ...]:
    """Raises a Fault if DuckDB would take two of the columns for one."""
    if twice := repeated(columns):
        names = ", ".join(str(name) for name, _ in twice)
        raise Fault(f"{path}: column {names} stands in the header more than once; rename one")
    if twice := repeated(name.lower() for name in columns):
        names = ", ".join(name for name in columns if name.lower() == twice[0][0])
        raise Fault(f"{path}: columns {names} differ by case only, which DuckDB takes for one; rename one")
    if reserved := [name for name in columns if name.lower() in RESERVED]:
        raise Fault(f"{path}: column {reserved[0]} has a name that DuckDB uses for its own; rename it")
    return tuple(columns)


def _schema(path: Path, form: TextFormat) -> tuple[pa.Schema, dict[str, ParquetTime]]:
    """The types of a Parquet file's columns, and which of them are times."""
    if form != CSV_FORMAT:
        raise Fault(f"{path}: is Parquet, which has no delimiter, header, quote or encoding; leave those keys out")
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise Fault(f"{path}: not a Parquet file ({error})") from error
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
