"""Rows as lines of CSV, as pandas writes them: quotes around commas only, floats as "1.0", null as nothing."""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from infnet_rec.data.generate.draws import Flags, Ints


def csv_lines(rows: Iterable[Any]) -> bytes:
    """Lines of rows of Python values."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def log_lines(columns: dict[str, Ints], chosen: Flags) -> bytes:
    """Lines of the chosen rows of a log, which holds whole numbers alone; some ten times faster."""
    table = pa.table({name: column[chosen] for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    arrow_csv.write_csv(table, sink, arrow_csv.WriteOptions(include_header=False, quoting_style="none"))
    return sink.getvalue().to_pybytes()
