"""What raw files say of themselves, looked at before anything is read: columns, and the types of Parquet files."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
    tables = []
    for path in paths:
        try:
            refuse_damage(path)
            tables.append(_parquet(path, form) if is_parquet(path) else RawTable((path,), _columns(path, form)))
        except Fault as fault:
            faults.append(str(fault))
    if len(faults) > found:
        return None
    faults += _disagreements(tables)
    partitions = _partitions(files, tables[0].columns, faults)
    instants = {
        column: ParquetTime(time.kind, any(t.instants[column].nanoseconds for t in tables if column in t.instants))
        for column, time in tables[0].instants.items()
    }
    return replace(
        tables[0],
        paths=paths,
        columns=_checked_names(paths[0], [*tables[0].columns, *partitions]),
        numbers=frozenset.intersection(*(table.numbers for table in tables)),
        integers=frozenset.intersection(*(table.integers for table in tables)),
        form=form,
        null_values=null_values,
        partitions=partitions,
        instants=instants,
    )


def _disagreements(tables: Sequence[RawTable]) -> list[str]:
    """Parts of one table that differ from the first in their columns, or in what sort of times a column holds."""
    first, faults = tables[0], []
    for table in tables[1:]:
        if table.columns != first.columns or table.lists != first.lists:
            faults.append(
                f"{table.paths[0]}: its columns differ from those of {first.paths[0]}; parts of one table must agree"
            )
            continue
        kinds = ({c: time.kind for c, time in t.instants.items()} for t in (table, first))
        odd = sorted({column for column, _ in set.symmetric_difference(*(set(k.items()) for k in kinds))})
        if odd:
            faults.append(
                f"{table.paths[0]}: column {odd[0]} holds times of another type than in {first.paths[0]}; parts of one "
                "table must agree"
            )
    return faults


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


def _parquet(path: Path, form: TextFormat) -> RawTable:
    if form != CSV_FORMAT:
        raise Fault(f"{path}: is Parquet, which has no delimiter, header, quote or encoding; leave those keys out")
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        raise Fault(f"{path}: not a Parquet file ({error})") from error
    lists = frozenset(f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_large_list(f.type))
    integers = frozenset(f.name for f in schema if pa.types.is_integer(f.type))
    fractions = {f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_decimal(f.type)}
    # An INT96 is an instant by convention, though nothing in the file says so.
    physical = [file.schema.column(k) for k in range(len(file.schema))]
    old = {column.path for column in physical if column.physical_type == "INT96"}
    return RawTable(
        (path,),
        _checked_names(path, schema.names),
        lists,
        integers | fractions,
        integers,
        instants={f.name: time for f in schema if (time := _time(f.type, is_old=f.name in old)) is not None},
    )


def _time(kind: pa.DataType, *, is_old: bool) -> ParquetTime | None:
    """What a column of times holds; an `is_old` one is an INT96, which DuckDB reads in microseconds."""
    if pa.types.is_timestamp(kind):
        is_instant = is_old or kind.tz is not None
        return ParquetTime("instant" if is_instant else "local", kind.unit == "ns" and not is_old)
    if pa.types.is_date(kind):
        return ParquetTime("date")
    return ParquetTime("clock") if pa.types.is_time(kind) else None


def missing_columns(table: RawTable, wanted: Iterable[str]) -> list[str]:
    """One line for each column that the files do not have, or the one line that says why they have none of them."""
    wanted = list(wanted)
    missing = [name for name in wanted if name not in table.columns]
    if missing and not table.is_parquet and (why := misread(table.paths[0], table.form, table.file_columns, wanted)):
        return [why]
    return [f"{table.paths[0]}: no column {name!r}{did_you_mean(name, table.columns)}" for name in missing]
