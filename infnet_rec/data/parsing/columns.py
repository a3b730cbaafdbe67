"""A column of raw files: how its cells are read as texts, numbers, ids or lists, whatever type Parquet gives it.

A CSV column is text. Of Parquet, each type belongs to a kind; the parts of a table may differ in type where they
agree in what they hold, and are a fault where DuckDB would change values to make them agree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.data.parsing import values
from infnet_rec.data.parsing.values import literal, quoted

Kind = Literal["text", "integer", "double", "single", "decimal", "boolean", "binary", "time", "list", "nested", "null"]
EXACT_DOUBLES = 2**53
# Of what the parts of a table may have together: DuckDB casts the first to the second without a change of value.
TOGETHER = {frozenset(pair) for pair in (("integer", "text"), ("double", "text"), ("single", "text"))}


def kind_of(kind: pa.DataType) -> Kind:
    """What belongs together of pyarrow's types."""
    types = pa.types
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    found: list[tuple[Kind, bool]] = [
        ("null", types.is_null(kind)),
        ("integer", types.is_integer(kind)),
        ("double", types.is_float64(kind)),
        ("single", types.is_floating(kind)),
        ("decimal", types.is_decimal(kind)),
        ("boolean", types.is_boolean(kind)),
        ("text", types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)),
        ("binary", types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)),
        ("time", types.is_temporal(kind)),
        ("list", is_list(kind) and not types.is_nested(kind.value_type)),
    ]
    for name, is_it in found:
        if is_it:
            return name
    return "nested"


def is_list(kind: pa.DataType) -> bool:
    """Whether it is any of Arrow's list types."""
    types = pa.types
    plain = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return plain or types.is_list_view(kind) or types.is_large_list_view(kind)


@dataclass(frozen=True, slots=True)
class RawColumn:
    """SQL that reads one column, over the rows of a scan.

    Attributes:
        name: the column.
        kind: what its cells are.
        element: what the cells of a list are.
        null_values: texts that mean "missing", besides the rule's own.
    """

    name: str
    kind: Kind = "text"
    element: Kind = "text"
    null_values: tuple[str, ...] = ()
    is_parquet: bool = False

    @property
    def raw(self) -> str:
        """The cell as a text, as it stands."""
        column = quoted(self.name)
        match self.kind:
            case "list" | "nested":
                return f"array_to_string({column}, ',')" if self.kind == "list" else f"CAST({column} AS VARCHAR)"
            case "binary":
                return f"decode({column})"
            case "decimal":
                text = f"CAST({column} AS VARCHAR)"
                return f"CASE WHEN contains({text}, '.') THEN rtrim(rtrim({text}, '0'), '.') ELSE {text} END"
        return f"CAST({column} AS VARCHAR)" if self.is_parquet else column

    @property
    def text(self) -> str:
        """The value of the cell, null where it is missing."""
        if self.kind == "integer" and not self.null_values:
            return self.raw
        return values.value_sql(self.raw, self.null_values)

    @property
    def number(self) -> str:
        """The cell's double, null where it is missing or no number."""
        column = quoted(self.name)
        if self.kind == "double":
            # Not isnan, nor a comparison with NaN: the statistics of Parquet files do not count it, and DuckDB answers
            # both from them.
            return self._known(f"CASE WHEN isfinite({column}) OR isinf({column}) THEN {column} END")
        if self.kind == "integer":
            return self._known(f"CAST({column} AS DOUBLE)")
        return values.number_sql(self.raw, self.null_values)

    @property
    def integer(self) -> str:
        """The cell's 64-bit whole number, null where it is missing or no such number."""
        column = quoted(self.name)
        if self.kind == "integer":
            return self._known(f"TRY_CAST({column} AS BIGINT)")
        if self.kind == "double":
            exact = f"CASE WHEN {column} % 1 = 0 THEN TRY_CAST({column} AS BIGINT) END"
            large = values.integer_sql(self.raw)
            return self._known(f"CASE WHEN abs({column}) < {EXACT_DOUBLES} THEN {exact} ELSE {large} END")
        if self.kind == "boolean":
            return "CAST(NULL AS BIGINT)"
        return values.integer_sql(self.raw, self.null_values)

    @property
    def truth(self) -> str:
        """The cell's double, but that true is 1 and false is 0: what predicates and labels read."""
        if self.kind in ("double", "integer"):
            return self.number
        if self.kind == "boolean":
            return f"CAST({quoted(self.name)} AS DOUBLE)"
        return values.truth_sql(self.raw, self.null_values)

    def neither(self, number: str) -> str:
        """Whether the cell is neither missing nor the number that `number` is SQL of."""
        if self.kind in ("integer", "double", "single", "decimal"):
            return "FALSE"
        return values.no_number_sql(self.raw, number, self.null_values)

    @property
    def is_nested(self) -> str:
        """Whether the cell is a list or an object written as a text."""
        return values.nested_sql(self.raw) if self.kind == "text" else "FALSE"

    def elements(self, separator: str) -> str:
        """The texts of a cell of several values; null where it is missing, or a text in brackets that is no list."""
        if self.kind == "list":
            return RawColumn("part", self.element, is_parquet=True)._of_list(quoted(self.name))
        return values.list_sql(self._present(self.raw), separator)

    def no_list(self, separator: str) -> str:
        """Whether the cell looks like a list or an object, and cannot be read as a list of texts."""
        if self.kind == "list":
            return "FALSE"
        return f"({self._present(self.raw)} IS NOT NULL AND {self.elements(separator)} IS NULL)"

    def _of_list(self, cells: str) -> str:
        return f"[{self.raw} FOR part IN {cells}]"

    def _known(self, number: str) -> str:
        if not self.null_values:
            return number
        nulls = ", ".join(literal(values.plain(text)) for text in self.null_values)
        return f"CASE WHEN {values.plain_sql(self.raw)} IN ({nulls}) THEN NULL ELSE {number} END"

    def _present(self, text: str) -> str:
        if not self.null_values:
            return text
        nulls = ", ".join(literal(values.plain(null)) for null in self.null_values)
        return f"CASE WHEN {values.plain_sql(text)} IN ({nulls}) THEN NULL ELSE {text} END"


@dataclass(frozen=True, slots=True)
class ColumnTypes:
    """The types of one Parquet column, one for each part of the table."""

    name: str
    of_parts: tuple[tuple[Path, pa.DataType], ...]

    @property
    def kinds(self) -> dict[Kind, tuple[Path, pa.DataType]]:
        """The kinds that there are, with the first part that has each; parts without a type agree with any."""
        found: dict[Kind, tuple[Path, pa.DataType]] = {}
        for path, kind in self.of_parts:
            if (name := kind_of(kind)) != "null":
                found.setdefault(name, (path, kind))
        return found

    def column(self, null_values: tuple[str, ...]) -> RawColumn:
        """How the column is read; call `fault` first."""
        kinds = list(self.kinds)
        kind: Kind = "text" if "text" in kinds or not kinds else "double" if len(kinds) > 1 else kinds[0]
        elements: list[Kind] = [kind_of(t.value_type) for _, t in self.of_parts if is_list(t)]
        element: Kind = "text"
        for found in elements if kind == "list" else ():
            element = element if found == "null" else found
        return RawColumn(self.name, kind, element, null_values, is_parquet=True)

    def fault(self, use: Literal["value", "text"]) -> str | None:
        """What is wrong with the column's types for such a use, in a line; None if nothing is.

        Args:
            use: "value" where a cell must be one value, "text" where a list will do.
        """
        kinds = self.kinds
        if "nested" in kinds:
            path, kind = kinds["nested"]
            return (
                f"{path}: column {self.name} is {kind}, which is no single value; write what is meant as plain columns"
            )
        if use == "value" and "list" in kinds:
            path, kind = kinds["list"]
            return f'{path}: column {self.name} is {kind}, and one value is wanted; encoding = "multi" reads lists'
        if len(kinds) > 1:
            (first, one), (second, other) = list(kinds.values())[:2]
            lossless = frozenset(kinds) in TOGETHER or (set(kinds) == {"integer", "double"} and self._small_integers())
            if not lossless:
                return (
                    f"{second}: column {self.name} is {other}, and {one} in {first}; read together, values would "
                    "change, so write it in one type"
                )
        if set(kinds) == {"list"}:
            elements = {kind_of(t.value_type): (p, t) for p, t in self.of_parts if is_list(t)}
            elements.pop("null", None)
            if len(elements) > 1:
                (first, one), (second, other) = list(elements.values())[:2]
                return f"{second}: column {self.name} is {other}, and {one} in {first}; write it in one type"
        return None

    def _small_integers(self) -> bool:
        """Whether the parts with whole numbers say that all of them are exact as doubles."""
        return all(
            (pa.types.is_integer(kind) and kind.bit_width <= 32) or _within(path, self.name, EXACT_DOUBLES)
            for path, kind in self.of_parts
            if kind_of(kind) == "integer"
        )


def _within(path: Path, column: str, bound: int) -> bool:
    """Whether the statistics of a Parquet file say that a column lies strictly between -bound and bound."""
    metadata = pq.read_metadata(path)
    at = [metadata.schema.column(k).path for k in range(metadata.num_columns)].index(column)
    for k in range(metadata.num_row_groups):
        group = metadata.row_group(k)
        statistics = group.column(at).statistics
        if statistics is None or not (statistics.has_min_max or statistics.null_count == group.num_rows):
            return False
        if statistics.has_min_max and not -bound < statistics.min <= statistics.max < bound:
            return False
    return True


def types_of(columns: Iterable[str], schemas: Mapping[Path, pa.Schema]) -> dict[str, ColumnTypes]:
    """The types of each column over the parts of a table."""
    return {
        name: ColumnTypes(name, tuple((path, schema.field(name).type) for path, schema in schemas.items()))
        for name in columns
    }
