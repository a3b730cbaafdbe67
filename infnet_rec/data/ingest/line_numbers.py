"""Where the rows of a raw CSV file stand: the lines of a text editor, blank lines and quoted line ends counted.

DuckDB numbers rows, not lines. Its byte offsets are exact, and so is the number of a row among those that parse, so
the file is read once more here, for the few rows whose lines a person wants to know.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from infnet_rec.data.parsing.text_format import TextFormat, open_bytes

BOM = codecs.BOM_UTF8
MAX_ROW_BYTES = 2_000_000  # as DuckDB has it: an unclosed quote ends there


def rows(file: IO[bytes], form: TextFormat) -> Iterator[tuple[int, int, bytes]]:
    """Byte offset, line (from 1) and text of every row, a header among them; blank lines have no text."""
    quote, begins = form.quote.encode(), rb"(?:^|(?<=" + re.escape(form.delimiter.encode()) + rb"))"
    closed = re.compile(begins + b'"(?:[^"]|"")*+"'.replace(b'"', re.escape(quote or b"\0")))
    opened = re.compile(begins + re.escape(quote))
    offset, line = 0, 1
    for text in file:
        if not offset and text.startswith(BOM):
            offset, text = len(BOM), text.removeprefix(BOM)
        num_lines = 1
        if quote and quote in text:
            while len(text) < MAX_ROW_BYTES and opened.search(closed.sub(b"x", text)) and (more := file.readline()):
                text += more
                num_lines += 1
        yield offset, line, text.rstrip(b"\r\n")
        offset += len(text)
        line += num_lines


def find_rows(
    path: Path, form: TextFormat, broken_at: Iterable[int], numbers: Iterable[int], *, num_columns: int
) -> tuple[dict[int, int], dict[int, tuple[int, str]]]:
    """Lines of some rows of a file.

    Args:
        path: a text file.
        form: how it is written.
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
    with open_bytes(path, form.encoding) as file:
        of_rows = rows(file, form)
        if form.has_header:
            next(of_rows, None)
        for offset, line, text in of_rows:
            if line == 1 and offset == len(BOM) and 0 in broken:
                offset = 0  # of a row behind a byte order mark DuckDB says either
            if offset in broken:
                lines[offset] = line
            elif text or num_columns == 1:
                number += 1
                if number in wanted:
                    found[number] = (line, text.decode("utf-8", "replace"))
            if len(lines) == len(broken) and len(found) == len(wanted):
                break
    return lines, found
