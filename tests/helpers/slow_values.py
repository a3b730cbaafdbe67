"""What a raw cell and a predicate mean, slowly: Decimal, regular expressions, descent; no code of the package."""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

SPACES = " \t\n\v\f\r"
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
NOT_A_NUMBER = re.compile(r"[+-]?nan(\([0-9a-z]*\))?", re.IGNORECASE)
TEXTS_OF_NAN = {sign + text for sign in ("", "-") for text in ("nan", "NaN", "NAN")}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class BadCell(Exception):
    """A cell that cannot be read; its row is a bad row."""


def plain(text: str) -> str:
    """A whole number that was printed as a float is the number."""
    if re.fullmatch(r"-?[0-9](\.[0-9]{1,16})?e\+1[678]", text):
        return format(Decimal(text), "f").partition(".")[0]
    if whole := re.fullmatch(r"(-?)([0-9]+)\.0+", text):
        return whole[2] if set(whole[2]) == {"0"} else whole[1] + whole[2]
    return text


def value(text: str, nulls: tuple[str, ...] = ()) -> str | None:
    """The text that a cell is, None where it is missing."""
    missing = text == "" or text in TEXTS_OF_NAN or plain(text) in {plain(null) for null in nulls}
    return None if missing else plain(text)


def number(text: str, nulls: tuple[str, ...] = (), *, words: bool = False) -> int | float | None:
    """The number that a cell is: an int if it is a whole one of 64 bits; `words` are true and false."""
    inside = text.strip(SPACES)
    if text == "" or plain(text) in {plain(null) for null in nulls} or NOT_A_NUMBER.fullmatch(inside):
        return None
    if words and inside.lower() in ("true", "false"):
        return int(inside.lower() == "true")
    if INFINITE.fullmatch(inside):
        return float(inside)
    if not NUMBER.fullmatch(inside):
        raise BadCell(text)
    exact = Decimal(inside)
    if exact == 0 or (-400 < exact.adjusted() < 30 and exact == int(exact)):
        whole = int(exact)
        if -(2**63) <= whole < 2**63:
            return whole
    return float(inside)


def whole(text: str, nulls: tuple[str, ...] = ()) -> int:
    """An id or an instant."""
    found = number(text, nulls)
    if not isinstance(found, int):
        raise BadCell(text)
    return found


def flag(text: str, nulls: tuple[str, ...] = ()) -> int:
    """A label."""
    found = number(text, nulls, words=True)
    if found not in (0, 1):
        raise BadCell(text)
    return int(found)


def texts(cell: str, separator: str) -> list[str]:
    """The texts of a cell of several values."""
    if cell.startswith("{") and cell.endswith("}") and _json(cell) is not None:
        raise BadCell(cell)
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell.split(separator)
    parts = [part.strip(SPACES) for part in cell[1:-1].split(",")]
    if parts == [""] or all(_is_list_number(part) for part in parts):
        return ["" if part in ("null", "None") else part for part in parts]
    for written in (cell, cell.replace("'", '"') if '"' not in cell and "\\" not in cell else ""):
        found = _json(written)
        if isinstance(found, list) and len({type(part) for part in found} - {type(None)}) <= 1:
            if all(isinstance(part, str | None) for part in found):
                return [part or "" for part in found]
            if all(isinstance(part, bool | None) for part in found):
                return ["" if part is None else str(part).lower() for part in found]
    raise BadCell(cell)


def is_nested(cell: str) -> bool:
    """Whether a text is a list or an object."""
    if cell.startswith("{") and cell.endswith("}"):
        return _json(cell) is not None
    if not (cell.startswith("[") and cell.endswith("]")):
        return False
    parts = [part.strip(SPACES) for part in cell[1:-1].split(",")]
    python = cell.replace("'", '"') if '"' not in cell and "\\" not in cell else ""
    return all(_is_list_number(p) for p in parts) or _json(cell) is not None or _json(python) is not None


def _is_list_number(part: str) -> bool:
    kinds = (NUMBER, INFINITE, NOT_A_NUMBER)
    return part in ("null", "None") or any(kind.fullmatch(part) for kind in kinds)


def _json(text: str) -> Any:
    """JSON, in which a comma may stand behind the last value."""
    try:
        return json.loads(re.sub(r"(?<=[^\s\[{,])\s*,\s*([\]}])", r"\1", text))
    except ValueError:
        return None


class Predicate:
    """A `where`, read by descent and evaluated on the texts of a row's cells."""

    def __init__(self, text: str, nulls: tuple[str, ...] = ()) -> None:
        pattern = r"""\s*("[^"]*"|'(?:[^']|'')*'|[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|\w+|<>|!=|<=|>=|[-+*/()=<>,])"""
        self.tokens, self.at, self.nulls = re.findall(pattern, text), 0, nulls
        self.columns: set[str] = set()
        self.evaluate = self._either()
        assert self.at == len(self.tokens), (text, self.tokens[self.at :])

    def __call__(self, cells: Mapping[str, str]) -> bool | None:
        """True, False or None; raises BadCell."""
        return self.evaluate(cells)

    def _next(self, *expected: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at].upper() in expected:
            self.at += 1
            return True
        return False

    def _either(self) -> Callable[..., Any]:
        parts = [self._both()]
        while self._next("OR"):
            parts.append(self._both())

        def run(cells: Mapping[str, str]) -> bool | None:
            found = [part(cells) for part in parts]
            return True if True in found else None if None in found else False

        return run

    def _both(self) -> Callable[..., Any]:
        parts = [self._negated()]
        while self._next("AND"):
            parts.append(self._negated())

        def run(cells: Mapping[str, str]) -> bool | None:
            found = [part(cells) for part in parts]
            return False if False in found else None if None in found else True

        return run

    def _negated(self) -> Callable[..., Any]:
        if self._next("NOT"):
            inside = self._negated()
            return lambda cells: None if (found := inside(cells)) is None else not found
        return self._compared()

    def _compared(self) -> Callable[..., Any]:
        start = self.at
        try:
            left = self._sum()
        except (AssertionError, IndexError):
            self.at = start
            assert self._next("(")
            inside = self._either()
            assert self._next(")")
            return inside
        if self._next("IS"):
            negated = self._next("NOT")
            assert self._next("NULL")
            return lambda cells: (self._missing(left, cells)) != negated
        negated = self._next("NOT")
        if self._next("IN"):
            assert self._next("(")
            options = [self._sum()]
            while self._next(","):
                options.append(self._sum())
            assert self._next(")")
            tests = [self._comparison("=", left, option) for option in options]
            return lambda cells: self._any([test(cells) for test in tests], negated)
        if self._next("BETWEEN"):
            low = self._sum()
            assert self._next("AND")
            tests = [self._comparison(">=", left, low), self._comparison("<=", left, self._sum())]
            return lambda cells: self._all([test(cells) for test in tests], negated)
        if self.at < len(self.tokens) and (sign := self.tokens[self.at].replace("!=", "<>")) in COMPARE:
            self.at += 1
            return self._comparison(sign, left, self._sum())
        if left[0] == "number":
            return lambda cells: bool(left[1])
        assert left[0] == "column"
        return lambda cells: self._truth(left[1], cells)

    @staticmethod
    def _any(found: list[bool | None], negated: bool) -> bool | None:
        result = True if True in found else None if None in found else False
        return None if result is None else result != negated

    @staticmethod
    def _all(found: list[bool | None], negated: bool) -> bool | None:
        result = False if False in found else None if None in found else True
        return None if result is None else result != negated

    def _truth(self, column: str, cells: Mapping[str, str]) -> bool | None:
        found = number(cells[column], self.nulls, words=True)
        if found not in (None, 0, 1):
            raise BadCell(cells[column])
        return None if found is None else bool(found)

    def _sum(self) -> tuple[Any, ...]:
        left = self._product()
        while self.at < len(self.tokens) and self.tokens[self.at] in "+-":
            self.at += 1
            left = ("arithmetic", self.tokens[self.at - 1], left, self._product())
        return left

    def _product(self) -> tuple[Any, ...]:
        left = self._atom()
        while self.at < len(self.tokens) and self.tokens[self.at] in "*/":
            self.at += 1
            left = ("arithmetic", self.tokens[self.at - 1], left, self._atom())
        return left

    def _atom(self) -> tuple[Any, ...]:
        if self._next("("):
            inside = self._sum()
            assert self._next(")")
            return inside
        if self._next("-"):
            inside = self._atom()
            if inside[0] == "number":
                return ("number", number(f"-{inside[2]}"), "")
            return ("arithmetic", "-", ("number", 0), inside)
        token = self.tokens[self.at]
        self.at += 1
        if token.upper() in ("TRUE", "FALSE"):
            return ("number", int(token.upper() == "TRUE"), token)
        if token[0] == "'":
            return ("text", plain(token[1:-1].replace("''", "'")))
        if token[0].isdigit() or token[0] == ".":
            return ("number", number(token), token)
        assert token[0] == '"' or re.match(r"[a-zA-Z_]", token), token
        assert token.upper() not in ("NOT", "AND", "OR", "IS", "IN")
        name = token.strip('"')
        self.columns.add(name)
        return ("column", name)

    def _missing(self, operand: tuple[Any, ...], cells: Mapping[str, str]) -> bool:
        if operand[0] == "column":
            return value(cells[operand[1]], self.nulls) is None
        return self._number(operand, cells) is None

    def _number(self, operand: tuple[Any, ...], cells: Mapping[str, str]) -> int | float | None:
        if operand[0] == "number":
            return operand[1]
        if operand[0] == "column":
            return number(cells[operand[1]], self.nulls, words=True)
        left, right = (self._number(side, cells) for side in operand[2:])
        if left is None or right is None or (operand[1] == "/" and right == 0):
            return None
        apply = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[operand[1]]
        found = apply(float(left), float(right))
        return None if math.isnan(found) else found

    def _comparison(self, sign: str, left: tuple[Any, ...], right: tuple[Any, ...]) -> Callable[..., Any]:
        kinds = {left[0], right[0]}
        compare = COMPARE[sign]

        def as_numbers(cells: Mapping[str, str]) -> bool | None:
            a, b = self._number(left, cells), self._number(right, cells)
            if a is None or b is None:
                return None
            return compare(float(a), float(b)) if "arithmetic" in kinds else compare(a, b)

        def as_texts(cells: Mapping[str, str]) -> bool | None:
            a, b = (side[1] if side[0] == "text" else value(cells[side[1]], self.nulls) for side in (left, right))
            return None if a is None or b is None else compare(a.encode(), b.encode())

        def as_either(cells: Mapping[str, str]) -> bool | None:
            try:
                a, b = self._number(left, cells), self._number(right, cells)
            except BadCell:
                return as_texts(cells)
            return as_texts(cells) if a is None or b is None else compare(a, b)

        if "text" in kinds:
            return as_texts
        return as_either if kinds == {"column"} and sign in ("=", "<>") else as_numbers
