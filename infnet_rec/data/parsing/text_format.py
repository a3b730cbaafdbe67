"""How a text file is cut into rows and cells, as a recipe says it: delimiter, quotes, header line, encoding, packing.

DuckDB is told all of it and guesses nothing. The first line is looked at here too: what stands in it says what to write
in the recipe when it does not fit.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa

from infnet_rec.errors import UserError

PARQUET_ENDINGS = (".parquet", ".parq", ".pq")
UNREAD_PACKINGS = (".zip", ".bz2", ".xz", ".7z", ".lz4", ".snappy", ".tar", ".tgz")
MAX_DELIMITER_BYTES = 4  # what DuckDB takes
MAX_HEADER_BYTES = 1 << 20
LOOKED_AT = 3  # lines
USUAL_DELIMITERS = ("\t", "::", ";", "|", ",", " ", "\x01")
CHUNK_BYTES = 1 << 20

NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")

TextEncoding = Literal["utf-8", "latin-1"]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """How the text files of one table are written.

    Attributes:
        delimiter: what stands between cells.
        quote: what stands around a cell that holds a delimiter or a line end, doubled within it; "" if nothing does.
        columns: names of the columns, where the files have no header line; empty if the first line names them.
        encoding: of the text.
    """

    delimiter: str = ","
    quote: str = '"'
    columns: tuple[str, ...] = ()
    encoding: TextEncoding = "utf-8"

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns."""
        return not self.columns

    @property
    def sql_options(self) -> str:
        """Options of DuckDB's read_csv."""
        told = {"delim": self.delimiter, "quote": self.quote, "escape": self.quote, "comment": ""}
        texts = ", ".join(f"{name} = '{text.replace(chr(39), chr(39) * 2)}'" for name, text in told.items())
        encoding = "" if self.encoding == "utf-8" else f", encoding = '{self.encoding}'"
        return f"auto_detect = false, header = {str(self.has_header).lower()}, {texts}{encoding}"

    def cells(self, line: str) -> list[str]:
        """The cells of one line of text, a line end at its end aside.

        Raises:
            csv.Error: the line ends inside of a quote, or holds line ends of another kind.
        """
        line = line.rstrip("\r\n")
        if not self.quote or self.quote not in line:
            if "\r" in line:
                raise csv.Error("new-line character seen in unquoted field")
            return line.split(self.delimiter)
        if len(self.delimiter) == 1:
            return next(csv.reader([line], delimiter=self.delimiter, quotechar=self.quote, strict=True), [])
        quote, delimiter = re.escape(self.quote), re.escape(self.delimiter)
        cell = rf"(?:{quote}((?:[^{quote}]|{quote}{quote})*){quote}|((?:(?!{delimiter}).)*))({delimiter}|$)"
        found, at = [], 0
        while (match := re.compile(cell).match(line, at)) is not None:
            quoted, plain, end = match.groups()
            found.append(plain if quoted is None else quoted.replace(self.quote * 2, self.quote))
            at = match.end()
            if not end:
                return found
        raise csv.Error("a quote is not closed")


# As most files are written.
CSV_FORMAT = TextFormat()


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its name; every other file is text."""
    return path.suffix.lower() in PARQUET_ENDINGS


def open_bytes(path: Path, encoding: TextEncoding = "utf-8") -> IO[bytes]:
    """The file's text as UTF-8 bytes, unpacked if its name ends in .gz or .zst."""
    match path.suffix:
        case ".gz":
            file: IO[bytes] = gzip.GzipFile(path, "rb")  # type: ignore[assignment]
        case ".zst":
            file = io.BufferedReader(pa.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]
        case _:
            file = path.open("rb")
    # As DuckDB counts: its offsets are those of the text in UTF-8.
    return file if encoding == "utf-8" else codecs.EncodedFile(file, "utf-8", encoding)  # type: ignore[return-value]


def refuse_damage(path: Path) -> None:
    """Raises a UserError for a file whose name says that it is packed in a way that is not read, or that is cut off.

    DuckDB notices where a .gz ends too early, but takes what is left of a .zst for the whole: that is unpacked once.
    """
    if path.suffix.lower() in UNREAD_PACKINGS:
        raise UserError(f"{path}: {path.suffix} is not read; unpack it, or pack it as .gz or .zst")
    if path.suffix != ".zst":
        return
    try:
        with pa.input_stream(str(path), compression="zstd") as file:
            while file.read(CHUNK_BYTES):
                pass
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path}: cut off or not zstd ({error}); fetch the file again") from error


def first_line(path: Path, encoding: TextEncoding) -> str:
    """The first line of a text file; see `first_lines`."""
    return (first_lines(path, encoding, 1) or [""])[0]


def first_lines(path: Path, encoding: TextEncoding, num_lines: int) -> list[str]:
    """The first lines of a text file, without a byte order mark.

    Raises:
        UserError: the file cannot be read, or is no such text.
    """
    try:
        with open_bytes(path, encoding) as file:
            lines = [line for _ in range(num_lines) if (line := file.readline(MAX_HEADER_BYTES))]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cut off or not gzip ({error}); fetch the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
    if lines and lines[0].startswith(b"PAR1"):
        raise UserError(f"{path}: is a Parquet file; its name must end in .parquet")
    try:
        return [lines[0].decode("utf-8-sig"), *(line.decode("utf-8", "replace") for line in lines[1:])] if lines else []
    except UnicodeDecodeError as error:
        is_utf16 = lines[0][:2] in (b"\xff\xfe", b"\xfe\xff")
        remedy = "convert the file" if is_utf16 else 'convert it, or write encoding = "latin-1"'
        raise UserError(f"{path}: its first line is not UTF-8 text; {remedy}") from error


def column_names(path: Path, form: TextFormat) -> list[str]:
    """Names of a text file's columns: the cells of its header line, or those that the recipe gives.

    Raises:
        UserError: the file cannot be read, has no header, or is not written as the recipe says.
    """
    if not form.has_header:
        _refuse_another_delimiter(path, form)
        return list(form.columns)
    try:
        cells = form.cells(first_line(path, form.encoding))
    except csv.Error as error:
        raise UserError(f"{path}: the header is not a line of CSV ({error}); lines must end in LF or CRLF") from error
    if not any(cells):
        raise UserError(f"{path}: has no header; the first line must hold the column names, or write header = false")
    # The index of a pandas table has no name.
    return [name or f"column {k}" for k, name in enumerate(cells, start=1)]


def misread(path: Path, form: TextFormat, columns: Sequence[str], wanted: Iterable[str]) -> str:
    """What to write in the recipe for a text file that lacks columns, if its first line tells; "" if it does not.

    Args:
        path: the file.
        form: how it was read.
        columns: the names that were found so.
        wanted: the names that the recipe gives.
    """
    line = first_line(path, form.encoding)
    if not form.has_header:
        return ""
    wanted = set(wanted)
    for delimiter in USUAL_DELIMITERS:
        cells = _cells_with(line, form, delimiter)
        if delimiter != form.delimiter and len(cells) > len(columns) and wanted & set(cells) - set(columns):
            return (
                f"{path}, line 1: the header {_shown(line)!r} is cut at {toml_text(form.delimiter)} into "
                f"{len(columns)} column{'s' * (len(columns) > 1)}; write delimiter = {toml_text(delimiter)}"
            )
    if wanted & set(columns):
        return ""
    delimiter = max((form.delimiter, *USUAL_DELIMITERS), key=lambda d: len(_cells_with(line, form, d)))
    cells = _cells_with(line, form, delimiter)
    if not looks_like_data(cells):
        return ""
    also = f", delimiter = {toml_text(delimiter)}" if delimiter != form.delimiter else ""
    return f"{path}, line 1: {no_header(line, len(cells))}{also}"


def looks_like_data(cells: Iterable[str]) -> bool:
    """Whether a first line is a row rather than a header: a number stands in it."""
    return any(NUMBER.fullmatch(cell) for cell in cells)


def no_header(line: str, num_cells: int) -> str:
    """What to write where the first line is a row."""
    return (
        f"{_shown(line)!r} is a row, not a header; write header = false and columns = [...] with the names of its "
        f"{num_cells} columns"
    )


def _refuse_another_delimiter(path: Path, form: TextFormat) -> None:
    """Raises a UserError if each of the first lines is one cell, but with another delimiter one cell a column."""
    lines, num_columns = first_lines(path, form.encoding, LOOKED_AT), len(form.columns)
    if num_columns == 1 or any(len(_cells_with(line, form, form.delimiter)) != 1 for line in lines):
        return
    for delimiter in USUAL_DELIMITERS:
        if lines and all(len(_cells_with(line, form, delimiter)) == num_columns for line in lines):
            raise UserError(
                f"{path}, line 1: {_shown(lines[0])!r} is one cell where columns names {num_columns}; "
                f"write delimiter = {toml_text(delimiter)}"
            )


def _cells_with(line: str, form: TextFormat, delimiter: str) -> list[str]:
    try:
        return TextFormat(delimiter, form.quote).cells(line)
    except csv.Error:
        return []


def _shown(line: str) -> str:
    line = line.rstrip("\r\n")
    return line if len(line) <= 120 else line[:117] + "..."


def toml_text(text: str) -> str:
    """A text as a TOML file has it."""
    escapes = {"\t": "\\t", '"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) + '"'
