"""The `where` of a recipe: an SQL predicate on the log's columns, parsed into a tree and rendered for an engine.

A predicate holds columns, literals, comparisons, AND, OR, NOT, IN, BETWEEN, IS NULL, + - * / and parentheses; all
else is refused by its name. What a cell is does not depend on the other rows, but on what the predicate compares it
with:

- with a number, TRUE or FALSE, in arithmetic, or with another column by < <= > >=: a number. A row whose cell is no
  number is a bad row.
- with a text: a text, by = and <>, or in the order of its bytes.
- another column by = or <>: both are numbers or both are texts.
- alone: 1 or true, 0 or false. A row whose cell is neither is a bad row.

What is missing is null, and logic has three values: a comparison with null is null, NOT null is null, and a row is
taken only where the predicate is true. Whole numbers of 64 bits are compared exactly with any other number;
arithmetic is that of doubles, and what it has no answer for (x / 0, infinity - infinity) is null.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from infnet_rec.data.parsing import values
from infnet_rec.data.parsing.columns import EXACT_DOUBLES, RawColumn
from infnet_rec.data.parsing.values import literal
from infnet_rec.errors import did_you_mean

ALLOWED = "columns, literals, comparisons, AND, OR, NOT, IN, BETWEEN, IS NULL, + - * / and parentheses"
LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**63 - 1
BELOW_ALL_LARGER = 9223372036854774784.0  # the largest double below 2**63
MAX_SHOWN = 80

Operator = Literal["=", "<>", "<", "<=", ">", ">="]
OPERATORS: dict[type[exp.Expr], Operator] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
ArithmeticOperator = Literal["+", "-", "*", "/"]
ARITHMETIC: dict[type[exp.Expr], ArithmeticOperator] = {
    exp.Add: "+",
    exp.Sub: "-",
    exp.Mul: "*",
    exp.Div: "/",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the log."""

    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number: an int if it is a whole one of 64 bits."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Text:
    """A text in quotes."""

    value: str


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A sum, difference, product or quotient."""

    operator: ArithmeticOperator
    left: "Operand"
    right: "Operand"


Operand = Column | Number | Text | Arithmetic


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two operands, compared as numbers, as texts, or as whichever of the two both are."""

    operator: Operator
    left: Operand
    right: Operand
    by: Literal["number", "text", "either"]


@dataclass(frozen=True, slots=True)
class Missing:
    """Whether an operand is null: IS NULL."""

    operand: Operand


@dataclass(frozen=True, slots=True)
class Truth:
    """TRUE, FALSE, or a column that is one of them."""

    value: bool | Column


@dataclass(frozen=True, slots=True)
class Junction:
    """AND or OR of several conditions."""

    operator: Literal["AND", "OR"]
    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """The opposite of a condition: NOT."""

    part: "Condition"


Condition = Comparison | Missing | Truth | Junction | Negation


def parse(text: str, columns: Iterable[str]) -> Condition:
    """Reads a predicate.

    Args:
        text: SQL, as a recipe has it.
        columns: of the log. As in SQL, a name need not keep their case unless two differ in nothing else.

    Raises:
        ValueError: it is no predicate, holds what a predicate may not hold, or names an unknown column; the message
            says which.
    """
    try:
        found = [statement for statement in sqlglot.parse(text, read="duckdb") if statement is not None]
    except SqlglotError as error:
        errors = getattr(error, "errors", None) or [{}]
        near = errors[0].get("highlight")
        where = f" near {near!r}" if near else ""
        raise ValueError(
            f"is no SQL{where}; a column named like a word of SQL stands in double quotes, a text in single ones"
        ) from error
    if len(found) != 1:
        raise ValueError("is empty" if not found else "is more than one predicate; join them with AND or OR")
    try:
        return _Parser(tuple(columns)).condition(found[0])
    except RecursionError as error:
        raise ValueError("is nested too deeply; use IN for a long list") from error


def columns_of(node: Condition | Operand) -> tuple[str, ...]:
    """The names of a predicate's columns, each once."""
    match node:
        case Column(name):
            return (name,)
        case Number() | Text():
            return ()
        case Truth(value):
            return () if isinstance(value, bool) else (value.name,)
        case Missing(inner) | Negation(inner):
            return columns_of(inner)
        case Junction(_, parts):
            return tuple(dict.fromkeys(name for part in parts for name in columns_of(part)))
    return tuple(dict.fromkeys([*columns_of(node.left), *columns_of(node.right)]))


@dataclass(frozen=True, slots=True)
class _Parser:
    """Turns sqlglot's tree into ours, and refuses what is not in it."""

    columns: tuple[str, ...]

    def condition(self, node: exp.Expr) -> Condition:
        match node:
            case exp.Paren():
                return self.condition(node.this)
            case exp.And() | exp.Or():
                parts = tuple(self.condition(part) for part in node.flatten())
                return Junction("AND" if isinstance(node, exp.And) else "OR", parts)
            case exp.Not():
                return Negation(self.condition(node.this))
            case exp.Boolean():
                return Truth(bool(node.this))
            case exp.Column():
                return Truth(self._column(node))
            case exp.Is():
                if not isinstance(node.expression, exp.Null):
                    raise _refused(node)
                return Missing(self.operand(node.this))
            case exp.Between():
                if node.args.get("symmetric"):
                    raise _refused(node)
                inside, ends = self.operand(node.this), [self.operand(node.args[end]) for end in ("low", "high")]
                return Junction("AND", (_comparison(">=", inside, ends[0]), _comparison("<=", inside, ends[1])))
            case exp.In():
                if not node.expressions or any(node.args.get(key) for key in ("query", "unnest", "field")):
                    raise _refused(node)
                inside, options = self.operand(node.this), [self.operand(option) for option in node.expressions]
                if len({isinstance(option, Text) for option in options}) > 1:
                    raise ValueError(
                        f"{_shown(node)} has texts and numbers; write numbers without quotes, texts in them"
                    )
                return Junction("OR", tuple(_comparison("=", inside, option) for option in options))
        if type(node) in OPERATORS:
            return _comparison(OPERATORS[type(node)], self.operand(node.this), self.operand(node.expression))
        if isinstance(node, exp.Literal | exp.Neg) or type(node) in ARITHMETIC:
            raise ValueError(f"{_shown(node)} is a value, not a condition; compare it with another")
        raise _refused(node)

    def operand(self, node: exp.Expr) -> Operand:
        match node:
            case exp.Paren():
                return self.operand(node.this)
            case exp.Column():
                return self._column(node)
            case exp.Boolean():
                return Number(int(bool(node.this)))
            case exp.Literal() if node.is_string:
                return _text(node.this)
            case exp.Literal():
                return _number(node.this)
            case exp.Neg(this=exp.Literal(is_string=False) as number):
                return _number(f"-{number.this}")
            case exp.Neg():
                return _arithmetic("-", Number(0), self.operand(node.this))
            case exp.Null():
                raise ValueError("compares with NULL, which is never true; write IS NULL")
        if type(node) in ARITHMETIC:
            return _arithmetic(ARITHMETIC[type(node)], self.operand(node.this), self.operand(node.expression))
        raise _refused(node)

    def _column(self, node: exp.Column) -> Column:
        if not isinstance(node.this, exp.Identifier) or node.table:
            name = node.sql(dialect="duckdb")
            raise ValueError(f"{name} is no column; a name with a dot in it stands in double quotes")
        name = node.this.this
        if name in self.columns:
            return Column(name)
        if same := [column for column in self.columns if column.lower() == name.lower()]:
            return Column(same[0])
        known = ", ".join(f'"{column}"' for column in self.columns)
        raise ValueError(f'the log has no column "{name}"{did_you_mean(name, self.columns)}; it has {known}')


def _refused(node: exp.Expr) -> ValueError:
    name = node.name if isinstance(node, exp.Anonymous) else node.key.upper()
    return ValueError(f"{_shown(node)} ({name}) is not understood; a predicate holds {ALLOWED}")


def _shown(node: exp.Expr) -> str:
    text = node.sql(dialect="duckdb", comments=False, normalize_functions=False)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _number(text: str) -> Number:
    exact = Decimal(text)
    if abs(exact.adjusted()) < values.MAX_DIGITS and exact == exact.to_integral_value():
        whole = int(exact)
        if LEAST_INTEGER <= whole <= MOST_INTEGER:
            return Number(whole)
    return Number(float(exact))


def _text(text: str) -> Text:
    value = values.plain(text)
    if not value.strip(values.SPACES) or value in values.NAN_TEXTS:
        raise ValueError(f"compares with {text!r}, which is missing and never equal; write IS NULL")
    return Text(value)


def _arithmetic(operator: ArithmeticOperator, left: Operand, right: Operand) -> Arithmetic:
    for side in (left, right):
        if isinstance(side, Text):
            raise ValueError(f"{side.value!r} is a text, and {operator} takes numbers; write numbers without quotes")
    return Arithmetic(operator, left, right)


def _comparison(operator: Operator, left: Operand, right: Operand) -> Comparison:
    texts = [side for side in (left, right) if isinstance(side, Text)]
    numbers = [side for side in (left, right) if isinstance(side, Number | Arithmetic)]
    if texts and numbers:
        raise ValueError(f"{texts[0].value!r} is a text and is compared with a number; write numbers without quotes")
    if texts:
        for text in texts:
            if operator not in ("=", "<>") and _is_number(text.value):
                raise ValueError(
                    f"{text.value!r} is in quotes, so {operator} would compare letters; write {text.value}"
                )
        return Comparison(operator, left, right, "text")
    if numbers or operator not in ("=", "<>"):
        return Comparison(operator, left, right, "number")
    return Comparison(operator, left, right, "either")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Rendering:
    """A predicate in DuckDB's SQL, over the rows of a scan.

    Attributes:
        condition: SQL that is true, false or null.
        bad: what a cell may not be: (column, reason) -> SQL condition that makes its row a bad row.
    """

    condition: str
    bad: Mapping[tuple[str, str], str]


def render(predicate: Condition, columns: Mapping[str, RawColumn]) -> Rendering:
    """Renders a predicate for DuckDB.

    Args:
        predicate: from `parse`.
        columns: how each of its columns is read.
    """
    bad: dict[tuple[str, str], str] = {}
    condition = _Renderer(columns, bad).condition(predicate)
    return Rendering(condition, {place: sql for place, sql in bad.items() if sql != "FALSE"})


@dataclass(frozen=True, slots=True)
class _Renderer:
    columns: Mapping[str, RawColumn]
    bad: dict[tuple[str, str], str]

    def condition(self, node: Condition) -> str:
        match node:
            case Truth():
                return self._truth(node)
            case Missing(Column(name)):
                return f"({self.columns[name].text} IS NULL)"
            case Missing(operand):
                return f"({self._number(operand)} IS NULL)"
            case Negation(part):
                return f"(NOT {self.condition(part)})"
            case Junction(operator, parts):
                return f"({f' {operator} '.join(map(self.condition, parts))})"
            case Comparison(operator, left, right, "text"):
                return f"({self._text(left)} {operator} {self._text(right)})"
            case Comparison(by="number"):
                return self._numbers(node)
            case Comparison(operator, left, right):
                texts = f"{self._text(left)} {operator} {self._text(right)}"
                unknown = f"{self._number(left)} IS NULL OR {self._number(right)} IS NULL"
                return f"(CASE WHEN {unknown} THEN {texts} ELSE {self._exact(node)} END)"

    def _truth(self, node: Truth) -> str:
        value = node.value
        if isinstance(value, bool):
            return str(value).upper()
        number, no_number = self._column(value.name)
        odd = f"{number} IS NOT NULL AND {number} NOT IN (0, 1)"
        self.bad[value.name, "is neither 1 or true nor 0 or false"] = f"({odd} OR {no_number})"
        return f"({number} = 1)"

    def _numbers(self, node: Comparison) -> str:
        for name in columns_of(node):
            self.bad[name, "is not a number"] = self._column(name)[1]
        sides = (node.left, node.right)
        small = any(isinstance(side, Number) and abs(side.value) < EXACT_DOUBLES for side in sides)
        if small or any(isinstance(side, Arithmetic) for side in sides):
            # A double next to a small number, or to what is a double, says all.
            return f"({self._number(node.left)} {node.operator} {self._number(node.right)})"
        return self._exact(node)

    def _exact(self, node: Comparison) -> str:
        """Whole numbers of 64 bits are more than a double holds."""
        whole = [self._integer(side) for side in (node.left, node.right)]
        doubles = [
            f"CASE WHEN {integer} IS NULL THEN {double} ELSE least({double}, {BELOW_ALL_LARGER!r}::DOUBLE) END"
            for integer, double in zip(whole, map(self._number, (node.left, node.right)), strict=True)
        ]
        both = f"{whole[0]} IS NOT NULL AND {whole[1]} IS NOT NULL"
        return f"""(CASE WHEN {both} THEN {whole[0]} {node.operator} {whole[1]}
            ELSE {doubles[0]} {node.operator} {doubles[1]} END)"""

    def _column(self, name: str) -> tuple[str, str]:
        """SQL of a column's number, and of whether it is none."""
        column = self.columns[name]
        return column.truth, column.neither(column.truth)

    def _text(self, operand: Operand) -> str:
        assert isinstance(operand, Column | Text)
        return literal(operand.value) if isinstance(operand, Text) else self.columns[operand.name].text

    def _integer(self, operand: Operand) -> str:
        match operand:
            case Number(int() as value):
                return f"CAST('{value}' AS BIGINT)"
            case Column(name):
                return self.columns[name].integer
        return "CAST(NULL AS BIGINT)"

    def _number(self, operand: Operand) -> str:
        """The operand's double, null where arithmetic has no answer: NaN goes through all that is made of it."""
        double = self._double(operand)
        if not isinstance(operand, Arithmetic):
            return double
        return f"(CASE WHEN isfinite({double}) OR isinf({double}) THEN {double} END)"

    def _double(self, operand: Operand) -> str:
        match operand:
            case Number(value):
                return f"CAST('{float(value)!r}' AS DOUBLE)"
            case Column(name):
                return self.columns[name].truth
            case Arithmetic(operator, left, right):
                for name in columns_of(operand):
                    self.bad[name, "is not a number"] = self._column(name)[1]
                first, second = self._double(left), self._double(right)
                if operator == "/":
                    second = f"NULLIF({second}, 0)"
                return f"({first} {operator} {second})"
        raise AssertionError(f"{operand} is no number")
