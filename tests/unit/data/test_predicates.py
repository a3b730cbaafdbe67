"""The predicates of recipes: what is taken and what refused, and what each row is, against a slow evaluator."""

import os
from typing import Any

import duckdb
import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from infnet_rec.data.parsing.columns import RawColumn
from infnet_rec.data.parsing.predicates import columns_of, parse, render
from properties import num_examples
from slow_values import BadCell, Predicate

COLUMNS = ("a", "b", "like", "a b")
CONNECTION = duckdb.connect(config={"threads": 1})
EXAMPLES = int(os.environ.get("INFNET_REC_RANDOM_EXAMPLES", "25"))
REFUSED = {
    "click LIKE 'x'": r"LIKE 'x' \(LIKE\) is not understood; a predicate holds columns, literals",
    "abs(a) = 1": r"ABS\(a\) \(ABS\) is not understood",
    "foo(a) = 1": r"foo\(a\) \(foo\) is not understood",
    "CAST(a AS DOUBLE) = 1": r"\(CAST\) is not understood",
    "a::INTEGER = 1": r"\(CAST\) is not understood",
    "CASE WHEN a = 1 THEN b = 1 END": r"\(CASE\) is not understood",
    "a % 2 = 0": r"\(MOD\) is not understood",
    "a || 'x' = 'y'": r"\(DPIPE\) is not understood",
    "a IN (SELECT 1)": r"\(IN\) is not understood",
    "SELECT 1": r"\(SELECT\) is not understood",
    "a IS TRUE": r"\(IS\) is not understood",
    "(a = 1) = (b = 1)": r"\(EQ\) is not understood",
    "a = 1; b = 1": "more than one predicate",
    "": "is empty",
    "a =": "is no SQL",
    "like = 1": "double quotes",
    "a.b = 1": "a.b is no column",
    "c = 1": 'no column "c"',
    "lik = 1": r'no column "lik" \(did you mean \'like\'\?\)',
    "a = NULL": "write IS NULL",
    "a = ''": "write IS NULL",
    "a = 'nan'": "write IS NULL",
    "a >= '30'": "write 30",
    "a + 'x' = 1": "'x' is a text",
    "a = 1 + 'x'": "'x' is a text",
    "1 = 'x'": "'x' is a text",
    "a IN (1, 'x')": "texts and numbers",
    "a + 1": "a value, not a condition",
    "7": "a value, not a condition",
    "a = 0x10": "is not understood",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_predicate_may_not_hold_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[text]):
        parse(text, (*COLUMNS, "click"))


TAKEN = {
    '"like" = 1': ("1", True),
    "A = 1": ("1.0", True),
    "a = 1 -- a comment": ("1e0", True),
    "a == 1": (" 1 ", True),
    "a = TRUE": ("true", True),
    "a": ("TRUE", True),
    "NOT a": ("0", True),
    "a = '1'": ("1.0", True),
    "a = 'it''s'": ("it's", True),
    "a >= 30": ("nan", None),
    "NOT a < 30": ("NaN", None),
    "a <> 30": ("", None),
    "a IS NULL": ("nan", True),
    "a IS NOT NULL": ("inf", True),
    "a > 1e300": ("inf", True),
    "a >= 30 ": ("29.6", False),
    "a BETWEEN 1 AND 2": ("1.5", True),
    "a NOT IN (1, 2)": ("3", True),
    "a = 9007199254740993": ("9007199254740992", False),
    "a < 9223372036854775807": ("9223372036854775806", True),
    "a > 9223372036854775807": ("9223372036854775808", True),
    "a = -9223372036854775808": ("-9223372036854775808", True),
    "a / 0 = 1": ("1", None),
    "a - a = 0": ("inf", None),
    "-a = -2": ("2", True),
    "a = b": ("01", True),
    "a >= 'b'": ("c", True),
}


@pytest.mark.parametrize("text", TAKEN)
def test_a_predicate_is_what_it_says(text: str) -> None:
    cell, expected = TAKEN[text]
    row = {"a": cell, "b": "1", "like": cell, "a b": ""}
    assert _rendered(text, [row]) == [expected]
    if "A =" not in text and "==" not in text and "--" not in text:
        assert Predicate(text)(row) is expected


def _rendered(text: str, rows: list[dict[str, str]]) -> list[bool | str | None]:
    """What DuckDB makes of the rows, "bad" for a bad row."""
    predicate = parse(text, COLUMNS)
    rendering = render(predicate, {name: RawColumn(name) for name in columns_of(predicate)})
    table = pa.table({name: pa.array([row[name] or None for row in rows], pa.string()) for name in COLUMNS})
    bad = " OR ".join(rendering.bad.values()) or "FALSE"
    CONNECTION.register("cells", table)
    found: list[Any] = CONNECTION.execute(f"SELECT {rendering.condition}, {bad} FROM cells").fetchall()
    return ["bad" if is_bad else result for result, is_bad in found]


CELLS = [
    "0", "1", "2", "-1", "1.0", "1e0", "10e-1", "0.5", "29.6", "30", "inf", "-Infinity", "nan", "-nan", "NaN",
    "Nan", "true", "False", "1e400", "9007199254740992", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "1e18", "1e+18", "0x10", "1_0", "+-1", "01", "+1", "-0.0", "x",
    "it's", "A", "a", "", " 1", "1 ",
]  # fmt: skip
NUMBERS = ["0", "1", "2", "30", "0.5", "29.6", "1e3", "9007199254740993", "9223372036854775807", "9223372036854775808"]
NAMES = ["a", "b", '"like"', '"a b"']

_atoms = st.sampled_from(NAMES + NUMBERS + [f"-{n}" for n in NUMBERS])
_operands = st.recursive(
    _atoms,
    lambda inner: st.builds(lambda a, o, b: f"({a} {o} {b})", inner, st.sampled_from("+-*/"), inner),
    max_leaves=3,
)
_signs = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
_texts = st.sampled_from(["'x'", "'1'", "'it''s'", "'A'"])
_comparisons = st.one_of(
    st.builds(lambda a, o, b: f"{a} {o} {b}", _operands, _signs, _operands),
    st.builds(lambda a, o, b: f"{a} {o} {b}", st.sampled_from(NAMES), st.sampled_from(["=", "<>"]), _texts),
    st.builds(lambda a, n: f"{a} IS {n}NULL", _operands, st.sampled_from(["", "NOT "])),
    st.builds(lambda a, b, c: f"{a} BETWEEN {b} AND {c}", _operands, _operands, _operands),
    st.builds(lambda a, n, b, c: f"{a} {n}IN ({b}, {c})", _operands, st.sampled_from(["", "NOT "]), _atoms, _atoms),
    st.builds(lambda a, b, c: f"{a} IN ({b}, {c})", st.sampled_from(NAMES), _texts, _texts),
    st.sampled_from([*NAMES, "TRUE", "FALSE"]),
)
_predicates = st.recursive(
    _comparisons,
    lambda inner: st.one_of(
        st.builds(lambda a, o, b: f"({a}) {o} ({b})", inner, st.sampled_from(["AND", "OR"]), inner),
        st.builds(lambda a: f"NOT ({a})", inner),
    ),
    max_leaves=4,
)
_rows = st.lists(st.fixed_dictionaries({name: st.sampled_from(CELLS) for name in COLUMNS}), min_size=1, max_size=12)


@settings(max_examples=num_examples(EXAMPLES), deadline=None)
@given(_predicates, _rows)
def test_rows_are_what_a_slow_evaluator_says(text: str, rows: list[dict[str, str]]) -> None:
    slow = Predicate(text)

    def expected(row: dict[str, str]) -> bool | str | None:
        try:
            return slow(row)
        except BadCell:
            return "bad"

    assert _rendered(text, rows) == [expected(row) for row in rows]
