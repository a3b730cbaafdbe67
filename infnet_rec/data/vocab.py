"""Raw values to ids, fitted on the training window only.

Ids: 0 never seen in training, 1 null, then
- index: 2.. by falling number of training rows (ties by value), so that frequent rows lie together;
- quantile: 2 is exact zero, 3.. are equally frequent ranges of the other numbers;
- hour_of_day, day_of_week: 2 + hour, 2 + day (Monday 0); nothing is fitted.
"""

import re
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from infnet_rec.data.raw import first_value, literal, quoted
from infnet_rec.data.recipe import Encoding, FeatureRecipe
from infnet_rec.schema import FIRST_VALUE_ID, NULL_ID, UNSEEN_ID

ZERO_ID = FIRST_VALUE_ID
FIRST_RANGE_ID = FIRST_VALUE_ID + 1
CLOCK_VALUES = {"hour_of_day": 24, "day_of_week": 7}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of one feature.

    Attributes:
        feature: the feature's name.
        encoding: how ids are made.
        num_rows: ids are below this number.
        edges: quantile only: inner borders of the ranges, float64, increasing.
    """

    feature: str
    encoding: Encoding
    num_rows: int
    edges: np.ndarray | None = None

    def encode_numbers(self, values: np.ndarray) -> np.ndarray:
        """Quantile ids of float64 values (NaN is null), int32."""
        assert self.edges is not None
        ids = np.searchsorted(self.edges, values, side="right").astype(np.int32) + FIRST_RANGE_ID
        ids[values == 0.0] = ZERO_ID
        ids[np.isnan(values)] = NULL_ID
        return ids


def value_sql(column: str, null_values: tuple[str, ...]) -> str:
    """An index feature's raw value: text, null where missing, and "1.0" written as "1".

    Files written by pandas print an integer column with gaps as floats, and part files need not agree.
    """
    text = f"regexp_replace(CAST({column} AS VARCHAR), '^(-?[0-9]+)\\.0+$', '\\1')"
    nulls = ", ".join(literal(re.sub(r"^(-?[0-9]+)\.0+$", r"\1", value)) for value in ("", *null_values))
    return f"CASE WHEN {text} IN ({nulls}) THEN NULL ELSE {text} END"


def fit_index(connection: duckdb.DuckDBPyConnection, source: str, feature: str, value: str) -> Vocabulary:
    """Creates the table `vocab_<feature>` (id, value, count).

    Args:
        connection: where `source` lives.
        source: a table with a column `weight`, the number of training rows of each of its rows.
        feature: the feature's name.
        value: SQL expression of the raw value.
    """
    connection.execute(
        f"""CREATE TABLE {quoted("vocab_" + feature)} AS
        SELECT CAST(row_number() OVER (ORDER BY count DESC, value) - 1 + {FIRST_VALUE_ID} AS INTEGER) AS id,
               value, count
        FROM (SELECT {value} AS value, CAST(sum(weight) AS BIGINT) AS count FROM {source} WHERE weight > 0 GROUP BY 1)
        WHERE value IS NOT NULL"""
    )
    size = first_value(connection, f"SELECT count(*) FROM {quoted('vocab_' + feature)}")
    return Vocabulary(feature, "index", size + FIRST_VALUE_ID)


def fit_quantile(
    connection: duckdb.DuckDBPyConnection, source: str, feature: str, value: str, num_buckets: int
) -> Vocabulary:
    """Borders of ranges that hold equally many training rows, exact zeros aside."""
    found = connection.execute(
        f"""SELECT value, sum(weight)::DOUBLE AS weight
        FROM (SELECT CAST({value} AS DOUBLE) AS value, weight FROM {source})
        WHERE weight > 0 AND NOT isnan(value) AND value != 0 GROUP BY 1 ORDER BY 1"""
    ).fetchnumpy()
    values, weights = np.asarray(found["value"], np.float64), np.asarray(found["weight"], np.float64)
    edges = np.empty(0)
    if len(values):
        cumulative = np.cumsum(weights)
        at = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, num_buckets) / num_buckets, side="left")
        edges = np.unique(values[np.minimum(at + 1, len(values) - 1)])
    return Vocabulary(feature, "quantile", FIRST_RANGE_ID + len(edges) + 1, edges)


def clock(feature: str, encoding: Encoding) -> Vocabulary:
    """Hour of the day or day of the week."""
    return Vocabulary(feature, encoding, FIRST_VALUE_ID + CLOCK_VALUES[encoding])


def clock_ids(encoding: Encoding, time: np.ndarray, ticks_per_second: int, utc_offset_hours: int) -> np.ndarray:
    """Ids of the local hour or day of the week of integer instants, int32."""
    hours = time // (3600 * ticks_per_second) + utc_offset_hours
    value = hours % 24 if encoding == "hour_of_day" else (hours // 24 + 3) % 7  # 1970-01-01 was a Thursday
    return (value + FIRST_VALUE_ID).astype(np.int32)


def id_sql(value: str, joined: str) -> str:
    """The id of an index feature whose vocabulary is joined under the name `joined`."""
    return f"CASE WHEN {value} IS NULL THEN {NULL_ID} ELSE coalesce({joined}.id, {UNSEEN_ID}) END"


def vocabulary_columns(connection: duckdb.DuckDBPyConnection, vocabulary: Vocabulary) -> dict[str, pa.Array]:
    """What each id from `FIRST_VALUE_ID` on means: id and value (with its count), or id and range."""
    ids = pa.array(np.arange(FIRST_VALUE_ID, vocabulary.num_rows, dtype=np.int32))
    match vocabulary.encoding:
        case "index":
            name = quoted("vocab_" + vocabulary.feature)
            table = connection.sql(f"SELECT id, value, count FROM {name} ORDER BY id").to_arrow_table()
            return {c: table.column(c).combine_chunks() for c in ("id", "value", "count")}
        case "quantile":
            assert vocabulary.edges is not None
            low = np.concatenate([[0.0, -np.inf], vocabulary.edges])
            high = np.concatenate([[0.0], vocabulary.edges, [np.inf]])
            return {"id": ids, "low": pa.array(low), "high": pa.array(high)}
        case _:
            return {"id": ids, "value": pa.array([str(k) for k in range(len(ids))])}


def fit_side_feature(
    connection: duckdb.DuckDBPyConnection, source: str, recipe: FeatureRecipe, feature: str
) -> Vocabulary:
    """Fits a user or item feature whose raw column stands in `source` under the feature's name."""
    if recipe.encoding == "quantile":
        return fit_quantile(connection, source, feature, quoted(feature), recipe.buckets)
    return fit_index(connection, source, feature, value_sql(quoted(feature), recipe.null_values))
