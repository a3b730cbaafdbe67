"""Where the rows of a raw CSV file stand: the lines of a text editor, blank lines and quoted line ends counted.

DuckDB numbers rows, not lines. Its byte offsets are exact, and so is the number of a row among those that parse, so
the file is read once more here, for the few rows whose lines a person wants to know.
"""

import gzip
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

MAX_ROW_BYTES = 2_000_000  # as DuckDB has it: an unclosed quote ends there
CLOSED = re.compile(rb'(?:^|(?<=,))"(?:[^"]|"")*+"')
OPENED = re.compile(rb'(?:^|(?<=,))"')


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def rows(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line (from 1) and text of every row, the header among them; blank lines have no text."""
    offset, line = 0, 1
    for text in file:
        num_lines = 1
        if b'"' in text:
            while len(text) < MAX_ROW_BYTES and OPENED.search(CLOSED.sub(b"x", text)) and (more := file.readline()):
                text += more
                num_lines += 1
        yield offset, line, text.rstrip(b"\r\n")
        offset += len(text)
        line += num_lines


def find_rows(
    path: Path, broken_at: Iterable[int], numbers: Iterable[int], *, num_columns: int
) -> tuple[dict[int, int], dict[int, tuple[int, str]]]:
    """Lines of some rows of a file.

    Args:
        path: a CSV file with a header.
        broken_at: byte offsets of all rows that do not parse.
        numbers: wanted rows, by their number (from 1) among those that parse.
        num_columns: of the file. A blank line is a row where there is one column only.

    Returns:
        The line of each offset, and the line and text of each number.
    """
    broken, wanted = set(broken_at), set(numbers)
    lines: dict[int, int] = {}
    found: dict[int, tuple[int, str]] = {}
    number = 0
    with open_bytes(path) as file:
        of_rows = rows(file)
        next(of_rows, None)
        for offset, line, text in of_rows:
            if offset in broken:
                lines[offset] = line
            elif text or num_columns == 1:
                number += 1
                if number in wanted:
                    found[number] = (line, text.decode("utf-8", "replace"))
            if len(lines) == len(broken) and len(found) == len(wanted):
                break
    return lines, found
