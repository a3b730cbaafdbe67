"""The text of raw files, cell by cell, for the slow reference; shares no code with the package."""

import csv
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

Cell = str | tuple[str, ...]


def as_text(cell: Any) -> Cell:
    """A cell as a CSV file would hold it, the empty field is null; of a list, its values so."""
    if isinstance(cell, list):
        return tuple(str(as_text(value)) for value in cell)
    return "" if cell is None else repr(cell) if isinstance(cell, float) else str(cell)


def open_text(path: Path) -> IO[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", newline="", encoding="utf-8-sig")


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The text of some columns, row by row."""
    if path.suffix == ".parquet":
        table = pq.read_table(path, columns=columns).to_pydict()
        yield from zip(*([as_text(cell) for cell in table[c]] for c in columns), strict=True)
        return
    with open_text(path) as file:
        reader = csv.reader(file)
        header = next(reader)
        places = [header.index(column) for column in columns]
        for row in reader:
            yield tuple(row[place] for place in places)


def columns_of(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return pq.read_schema(path).names
    with open_text(path) as file:
        return next(csv.reader(file))


def hashed_number(text: str) -> int:
    """The first eight bytes of a text's MD5, the first byte the least."""
    return int.from_bytes(hashlib.md5(text.encode()).digest()[:8], "little")
