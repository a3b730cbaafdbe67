"""Rows as lines of CSV, as pandas writes them: quotes around commas only, floats as "1.0", null as nothing."""

import csv
from collections.abc import Iterable
from io import StringIO
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from infnet_rec.synthetic.draws import Flags, Floats, Ints


def csv_lines(rows: Iterable[Any]) -> bytes:
    """Lines of rows of Python values."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def joined_lines(columns: list[pa.Array]) -> bytes:
    """Lines of columns of text, written as they are; null becomes nothing."""
    comma, newline = (pa.scalar(end, pa.large_string()) for end in (",", "\n"))
    parts: list[Any] = []
    for column in columns:
        parts += [column.cast(pa.large_string()), comma]
    return _text_of(_joined([*parts[:-1], newline]))


def float_text(values: Ints, null: Flags) -> pa.Array:
    """Whole numbers in a column of floats: "720.0"."""
    texts = pa.array(values, mask=null).cast(pa.large_string())
    return _joined([texts, pa.scalar(".0", pa.large_string())], null_handling="emit_null")


def number_lines(table: Floats, num_whole: int) -> bytes:
    """Lines of numbers below 1e16 as Python writes them, the first columns as whole numbers, the others as floats.

    Each number is joined with what follows it, and the result is the file; row by row takes several times as long.
    """
    numbers = table.ravel()
    texts = pa.array(numbers).cast(pa.large_string())
    # Arrow writes numbers out of this range otherwise than Python.
    odd = np.flatnonzero(((np.abs(numbers) < 1e-3) & (numbers != 0.0)) | (np.abs(numbers) >= 1e9))
    if len(odd):
        mask = np.zeros(len(numbers), dtype=bool)
        mask[odd] = True
        exact = [repr(x).removesuffix(".0") for x in numbers[odd].tolist()]
        texts = pc.call_function("replace_with_mask", [texts, pa.array(mask), pa.array(exact, pa.large_string())])
    point = table == np.rint(table)
    point[:, :num_whole] = False
    last = np.arange(table.shape[1]) == table.shape[1] - 1
    ends = pa.array([",", ".0,", "\n", ".0\n"], pa.large_string()).take(pa.array((point + 2 * last).ravel()))
    return _text_of(_joined([texts, ends]))


def _joined(parts: list[Any], null_handling: Literal["replace", "emit_null"] = "replace") -> Any:
    """Text by text, all parts one behind the other."""
    options = pc.JoinOptions(null_handling=null_handling, null_replacement="")
    return pc.call_function("binary_join_element_wise", [*parts, pa.scalar("", pa.large_string())], options)


def _text_of(texts: Any) -> bytes:
    """The characters of all texts, which Arrow keeps one behind the other."""
    if len(texts) == 0:
        return b""
    _, offsets, characters = texts.buffers()
    return characters.to_pybytes()[: np.frombuffer(offsets, np.int64)[len(texts)]]


def log_lines(columns: dict[str, Ints], chosen: Flags) -> bytes:
    """Lines of the chosen rows of a log, which holds whole numbers alone; some ten times faster."""
    table = pa.table({name: column[chosen] for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    arrow_csv.write_csv(table, sink, arrow_csv.WriteOptions(include_header=False, quoting_style="none"))
    return sink.getvalue().to_pybytes()
