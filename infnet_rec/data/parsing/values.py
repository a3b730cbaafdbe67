"""What a raw cell means: one set of rules, written as data, and their form in DuckDB's SQL.

The rules:

- **Missing** are null, the empty text and NaN as programs print it (`NAN_TEXTS`), in every column; and the texts that
  a recipe declares with `null_values`. Where a number is wanted, NaN in any case (`NAN`) is missing too.
- **A number** in a text is what `NUMBER` matches (or `INFINITY`), spaces around it aside. It is a whole number of 64
  bits if it is one, in any notation ("1", "1.0", "1e0", "10e-1"), and the nearest double otherwise; a number too large
  for a double is infinite. "1_000", "0x10", "1,5" and "1 000" are no numbers. In predicates and labels true is 1 and
  false is 0, in any case.
- **An id or an instant** is a whole number of 64 bits; true, false and infinities are none.
- **Infinities** are numbers beyond all others: they compare so in predicates and fall into the outermost ranges, and
  are no ids, no instants and no labels.
- **A text** is its value as it stands: leading zeros, signs and spaces stay. Only a whole number that a program
  printed as a float is the integer that was meant: "5.0" is "5", "1e+16" is "10000000000000000".
- **Types of Parquet** are used as they are: what they hold is what their text would be, and a 32-bit float is the
  shortest decimal that names it, so that the same rows mean the same in any form.
- **A list in a text** ("[3, 1, 7]", a JSON list of texts, or Python's) is a list where several values are wanted, and
  a fault elsewhere.

Each function gives SQL over SQL, without a look at any row: what a row means depends on no other row.
"""

import json
import re
from collections.abc import Collection
from decimal import Decimal

SPACES = " \t\n\v\f\r"
_SPACE = r"[ \t\n\v\f\r]"
# Of RE2, Java and Python alike.
NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
INFINITY = r"[+-]?([iI][nN][fF]([iI][nN][iI][tT][yY])?)"
NAN = r"[+-]?[nN][aA][nN](\([0-9A-Za-z]*\))?"
# What DuckDB's cast to DOUBLE takes besides: single underscores between digits, and a minus behind a plus.
ONLY_DUCKDB = ("_", "+-")
# How programs print a missing number; as a text, any other spelling is a name.
NAN_TEXTS = ("nan", "NaN", "NAN", "-nan", "-NaN", "-NAN")
# A whole number as programs print doubles: with a point, or with an exponent when it has 17 digits or more.
PRINTED_WHOLE = r"(?:-(0+)|(-?[0-9]+))\.0+"
PRINTED_LARGE = r"-?[0-9](\.[0-9]{1,16})?e\+1[678]"
_WHOLE = rf"{_SPACE}*[+-]?[0-9]+(\.0*)?{_SPACE}*"
MAX_DIGITS = 400  # a double has no more before its point
NUMBER_LIST = (
    rf"\[\s*((({NUMBER})|({INFINITY})|({NAN})|null|None)\s*(,\s*(({NUMBER})|({INFINITY})|({NAN})|null|None)\s*)*)?\]"
)
NOTHING = (
    r"\N",
    "NULL",
    "Null",
    "null",
    "None",
    "none",
    "NA",
    "N/A",
    "n/a",
    "na",
    "<NA>",
    "#N/A",
    "-",
    "?",
    "undefined",
)
NULLS_IN_LISTS = ("", "null", "None")
TEXTS_IN_JSON = r'\["(VARCHAR|BOOLEAN|NULL)"\]'


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def trimmed(text: str) -> str:
    """SQL of a text without the spaces around it."""
    return f"trim({text}, {literal(SPACES)})"


def plain(text: str) -> str:
    """The value of a text, worked out here as `value_sql` does: "5.0" is "5"."""
    if re.fullmatch(PRINTED_LARGE, text, re.ASCII):
        return str(int(Decimal(text)))
    return re.sub(rf"^{PRINTED_WHOLE}\Z", lambda match: match[1] or match[2], text, flags=re.ASCII)


def plain_sql(text: str) -> str:
    """SQL of the value of a text, without a look at what is missing."""
    # The lengths and ends are cheap to look at, and let most texts pass.
    whole, large = literal(f"^{PRINTED_WHOLE}$"), literal(PRINTED_LARGE)
    return f"""CASE WHEN strlen({text}) > 2 AND ends_with({text}, '0') AND contains({text}, '.')
        THEN regexp_replace({text}, {whole}, '\\1\\2')
        WHEN strlen({text}) > 4 AND contains({text}, 'e+1') AND regexp_full_match({text}, {large})
        THEN CAST(TRY_CAST({text} AS HUGEINT) AS VARCHAR) ELSE {text} END"""


def value_sql(text: str, null_values: Collection[str] = ()) -> str:
    """SQL of the value of a text, null where it is missing."""
    value = plain_sql(text)
    missing = f"{text} = '' OR (strlen({text}) BETWEEN 3 AND 4 AND {_among(text, NAN_TEXTS)})"
    if null_values:
        missing += f" OR {_is_null_text(text, null_values)}"
    return f"CASE WHEN {missing} THEN NULL ELSE {value} END"


def known_sql(value: str, null_values: Collection[str] = ()) -> str:
    """SQL of what `value_sql` gave, null where further texts mean missing."""
    if not null_values:
        return value
    return f"CASE WHEN {_among(value, dict.fromkeys(map(plain, null_values)))} THEN NULL ELSE {value} END"


def number_sql(text: str, null_values: Collection[str] = ()) -> str:
    """SQL of the double of a text, null where it is missing or no number."""
    # DuckDB's own cast takes what the rule takes, and a little more.
    more = " OR ".join(f"contains({text}, {literal(odd)})" for odd in ONLY_DUCKDB)
    number = f"""CASE WHEN strlen({text}) > 2 AND ({more}) THEN NULL
        ELSE NULLIF(TRY_CAST({text} AS DOUBLE), 'nan'::DOUBLE) END"""
    return _unless_null(text, number, null_values)


def truth_sql(text: str, null_values: Collection[str] = ()) -> str:
    """SQL of the double of a text, as of `number_sql`, but that true is 1 and false is 0."""
    # Most of what is read so is a flag.
    flag = f"WHEN {text} = '0' THEN 0::DOUBLE WHEN {text} = '1' THEN 1::DOUBLE"
    words = f"CASE lower({trimmed(text)}) WHEN 'true' THEN 1::DOUBLE WHEN 'false' THEN 0::DOUBLE END"
    return _unless_null(text, f"CASE {flag} ELSE coalesce({number_sql(text)}, {words}) END", null_values)


def integer_sql(text: str, null_values: Collection[str] = ()) -> str:
    """SQL of the 64-bit whole number of a text, null where it is missing or no such number.

    DuckDB alone would round 1.5 and 15e-1, and read 0x10 and 1_000.
    """
    integer = f"TRY_CAST({text} AS BIGINT)"
    # Most numbers are written as they would be printed; the others are looked at.
    number = f"""CASE WHEN CAST({integer} AS VARCHAR) = {text} THEN {integer}
        WHEN regexp_full_match({text}, {literal(_WHOLE)}) THEN {integer}
        WHEN regexp_full_match({trimmed(text)}, {literal(NUMBER)}) THEN {_exact_integer(trimmed(text))} END"""
    return _unless_null(text, number, null_values)


def _exact_integer(text: str) -> str:
    """SQL of the whole number that a decimal with a point or an exponent is, digit by digit; else null."""
    before = f"regexp_extract({text}, '^[+-]?([0-9]*)', 1)"
    behind = f"regexp_extract({text}, '^[+-]?[0-9]*\\.([0-9]*)', 1)"
    written = f"regexp_extract({text}, '[eE]([+-]?[0-9]+)$', 1)"
    exponent = f"CASE WHEN {written} = '' THEN 0 ELSE coalesce(TRY_CAST({written} AS INTEGER), 1000000) END"
    digits = f"rtrim({before} || {behind}, '0')"
    place = f"(length({before}) + CAST({exponent} AS BIGINT))"
    sign = f"CASE WHEN starts_with({text}, '-') THEN '-' ELSE '' END"
    padded = f"rpad({digits}, CAST(least({place}, {MAX_DIGITS}) AS INTEGER), '0')"
    return f"""CASE WHEN {digits} = '' THEN 0
        WHEN {place} BETWEEN length({digits}) AND {MAX_DIGITS} THEN TRY_CAST({sign} || {padded} AS BIGINT) END"""


def no_number_sql(text: str, number: str, null_values: Collection[str] = ()) -> str:
    """SQL of whether a text is neither missing nor the number that `number` is SQL of."""
    known = f" OR {_is_null_text(text, null_values)}" if null_values else ""
    missing = f"{text} = '' OR regexp_full_match({trimmed(text)}, {literal(NAN)}){known}"
    return f"({number} IS NULL AND {text} IS NOT NULL AND NOT ({missing}))"


def _unless_null(text: str, number: str, null_values: Collection[str]) -> str:
    return f"CASE WHEN {_is_null_text(text, null_values)} THEN NULL ELSE {number} END" if null_values else number


def _is_null_text(text: str, null_values: Collection[str]) -> str:
    return _among(plain_sql(text), dict.fromkeys(map(plain, null_values)))


def _among(text: str, texts: Collection[str]) -> str:
    return f"{text} IN ({', '.join(map(literal, texts))})"


def nested_sql(text: str) -> str:
    """SQL of whether a text is a list or an object in itself: "[3, 1, 7]", ["a", "b"], {"a": 1}."""
    return f"""(CASE WHEN {_within(text, "[", "]")} THEN
        regexp_full_match({text}, {literal(NUMBER_LIST)}) OR json_valid({text}) OR json_valid({_as_json(text)})
        WHEN {_within(text, "{", "}")} THEN json_valid({text}) ELSE FALSE END)"""


def list_sql(text: str, separator: str) -> str:
    """SQL of the texts that stand between the separators of a text, or in the list that it is; null if neither.

    What stands in brackets is a list of numbers as it is written, or of texts as JSON or Python have them; anything
    else in brackets is null, as is an object in braces.
    """
    nulls = ", ".join(map(literal, NULLS_IN_LISTS))
    numbers = f"string_split(substr({text}, 2, length({text}) - 2), ',')"
    numbers = f"[CASE WHEN {trimmed('part')} IN ({nulls}) THEN NULL ELSE {trimmed('part')} END FOR part IN {numbers}]"
    texts = ", ".join(
        f"""CASE WHEN regexp_full_match(TRY(json_structure({written})), {literal(TEXTS_IN_JSON)})
            THEN TRY(from_json({written}, '["VARCHAR"]')) END"""
        for written in (text, _as_json(text))
    )
    return f"""CASE WHEN {_within(text, "[", "]")} THEN
            CASE WHEN regexp_full_match({text}, {literal(NUMBER_LIST)}) THEN {numbers} ELSE coalesce({texts}) END
        WHEN {_within(text, "{", "}")} AND json_valid({text}) THEN NULL
        ELSE string_split({text}, {literal(separator)}) END"""


def _within(text: str, first: str, last: str) -> str:
    return f"ends_with({text}, '{last}') AND starts_with({text}, '{first}')"


def _as_json(text: str) -> str:
    """SQL of a list of Python's texts in JSON's quotes, where that is no more than another mark; else of no JSON."""
    clear = f"NOT contains({text}, '\"') AND NOT contains({text}, '\\')"
    return f"CASE WHEN {clear} THEN replace({text}, '''', '\"') ELSE '' END"


def remedy(value: str) -> str:
    """What a recipe may say of a cell that programs print where there is nothing, as the end of a message; else ""."""
    if value.strip() in NOTHING:
        return f"; if that means missing, write null_values = [{json.dumps(value)}] next to the files"
    return ""
