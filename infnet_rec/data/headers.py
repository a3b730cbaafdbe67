"""What raw files say of themselves, looked at before anything is read: columns, and the types of Parquet files."""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.data.columns import types_of
from infnet_rec.data.places import open_bytes
from infnet_rec.data.raw import RawTable
from infnet_rec.faults import Fault, did_you_mean

RESERVED = ("file_index", "file_row_number")  # DuckDB's own columns beside those of a file


def open_table(raw: Path, files: Iterable[str], faults: list[str]) -> RawTable | None:
    """Reads the headers; appends to `faults` what is wrong and returns None then."""
    paths = tuple(raw / file for file in files)
    found = len(faults)
    faults.extend(
        f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}"
        for path in paths
        if not path.is_file()
    )
    faults.extend(f"{path}: is listed {k} times; its rows would count as often" for path, k in repeated(paths))
    if len({path.suffix == ".parquet" for path in paths}) > 1:
        faults.append(f"{', '.join(map(str, paths))}: parts of one table must all be CSV or all be Parquet")
    if len(faults) > found:
        return None
    columns: dict[Path, tuple[str, ...]] = {}
    schemas: dict[Path, pa.Schema] = {}
    for path in paths:
        try:
            if path.suffix == ".parquet":
                schemas[path] = _schema(path)
                columns[path] = _checked_names(path, schemas[path].names)
            else:
                columns[path] = _header(path)
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
    if len(faults) > found:
        return None
    return RawTable(paths, first, types=types_of(first, schemas) if schemas else {})


def repeated(names: Iterable[Hashable]) -> list[tuple[Hashable, int]]:
    """What stands there more than once, and how often."""
    return [(name, count) for name, count in Counter(names).items() if count > 1]


def _header(path: Path) -> tuple[str, ...]:
    """Column names of a CSV file; a byte order mark and CRLF are no part of them."""
    try:
        with open_bytes(path) as file:
            text = file.readline(1 << 20).decode("utf-8-sig")
        columns = next(csv.reader([text]), [])
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Fault(f"{path}: cut off or not gzip ({error}); fetch the file again") from error
    except OSError as error:
        raise Fault(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
    except UnicodeDecodeError as error:
        raise Fault(f"{path}: the header is not UTF-8 text; convert the file") from error
    except csv.Error as error:
        raise Fault(f"{path}: the header is not a line of CSV ({error}); lines must end in LF or CRLF") from error
    if not any(columns):
        raise Fault(f"{path}: has no header; the first line must hold the column names")
    # The index of a pandas table has no name.
    columns = [name or f"column {k}" for k, name in enumerate(columns, start=1)]
    return _checked_names(path, columns)


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


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise Fault(f"{path}: not a Parquet file ({error})") from error


def missing_columns(table: RawTable, wanted: Iterable[str]) -> list[str]:
    """One line for each column that the files do not have."""
    return [
        f"{table.paths[0]}: no column {w!r}{did_you_mean(w, table.columns)}" for w in wanted if w not in table.columns
    ]
