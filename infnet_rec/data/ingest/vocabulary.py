"""Raw values to ids, fitted on the training window only.

Ids: 0 never seen in training, 1 null, then
- index, multi: 2.. by falling number of training rows (ties by value), so that frequent rows lie together;
- hash: 2 + (the first 8 bytes of the text's MD5, little endian) % buckets; nothing is fitted;
- quantile: 2 is exact zero, 3.. are equally frequent ranges of the other numbers;
- hour_of_day, day_of_week: 2 + hour, 2 + day (Monday 0); nothing is fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import duckdb
import numpy as np
import pyarrow as pa

from infnet_rec.data.ingest.raw_files import first_value
from infnet_rec.data.ingest.recipe import ClockEncoding, Encoding, FeatureRecipe
from infnet_rec.data.parsing.values import quoted, value_sql
from infnet_rec.schema import FIRST_VALUE_ID, NULL_ID, UNSEEN_ID

ZERO_ID = FIRST_VALUE_ID
FIRST_RANGE_ID = FIRST_VALUE_ID + 1


@dataclass(frozen=True, slots=True)
class ClockReading:
    """What an encoding makes of the log's time.

    Attributes:
        num_values: that there are.
        of_hours: values, from 0, of whole local hours since 1970-01-01, a Thursday; both int64.
    """

    num_values: int
    of_hours: Callable[[np.ndarray], np.ndarray]


CLOCKS: Mapping[Encoding, ClockReading] = {
    "hour_of_day": ClockReading(24, lambda hours: hours % 24),
    "day_of_week": ClockReading(7, lambda hours: (hours // 24 + 3) % 7),
}
assert set(CLOCKS) == set(get_args(ClockEncoding))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of one feature.

    Attributes:
        feature: the feature's name.
        encoding: how ids are made.
        num_rows: ids are below this number.
        max_values: ids that one example may have; more than 1 for multi only.
        edges: quantile only: inner borders of the ranges, float64, increasing.
    """

    feature: str
    encoding: Encoding
    num_rows: int
    max_values: int = 1
    edges: np.ndarray | None = None

    @property
    def table(self) -> str:
        """The DuckDB table of an index or multi feature."""
        return quoted("vocab_" + self.feature)

    def encode_numbers(self, values: np.ndarray) -> np.ndarray:
        """Quantile ids of float64 values (NaN is null), int32."""
        assert self.edges is not None
        ids = np.searchsorted(self.edges, values, side="right").astype(np.int32) + FIRST_RANGE_ID
        ids[values == 0.0] = ZERO_ID
        ids[np.isnan(values)] = NULL_ID
        return ids


def values_sql(texts: str, recipe: FeatureRecipe) -> str:
    """SQL of the list of a multi feature's values from that of texts, without the missing; null where none is left."""
    value = value_sql("trim(part)", recipe.null_values)
    parts = f"[{value} FOR part IN {texts}]"
    kept = f"list_filter({parts}, lambda part: part IS NOT NULL)[1:{recipe.max_values}]"
    return f"CASE WHEN len({kept}) > 0 THEN {kept} END"


def fit_index(connection: duckdb.DuckDBPyConnection, rows: str, recipe: FeatureRecipe, feature: str) -> Vocabulary:
    """Creates the table `vocab_<feature>` (id, value, count).

    Args:
        connection: where the rows live.
        rows: SQL of rows with `value` and `weight`, the number of training rows behind it.
        recipe: of the feature.
        feature: the feature's name.
    """
    connection.execute(
        f"""CREATE TABLE {quoted("vocab_" + feature)} AS
        SELECT CAST(row_number() OVER (ORDER BY count DESC, value) - 1 + {FIRST_VALUE_ID} AS INTEGER) AS id,
               value, count
        FROM (SELECT value, CAST(sum(weight) AS BIGINT) AS count FROM ({rows}) WHERE weight > 0 GROUP BY 1)
        WHERE value IS NOT NULL AND count >= {recipe.min_count}"""
    )
    size = first_value(connection, f"SELECT count(*) FROM {quoted('vocab_' + feature)}")
    max_values = recipe.max_values if recipe.encoding == "multi" else 1
    return Vocabulary(feature, recipe.encoding, size + FIRST_VALUE_ID, max_values)


def fit_quantile(connection: duckdb.DuckDBPyConnection, rows: str, feature: str, num_ranges: int) -> Vocabulary:
    """Borders of ranges that hold equally many training rows, exact zeros aside; `rows` as for `fit_index`."""
    found = connection.execute(
        f"""SELECT CAST(value AS DOUBLE) AS value, CAST(weight AS BIGINT) AS weight FROM ({rows})
        WHERE weight > 0 AND value IS NOT NULL AND NOT isnan(value) AND value != 0"""
    ).fetchnumpy()
    values, weights = np.asarray(found["value"], np.float64), np.asarray(found["weight"])
    edges = np.empty(0)
    if len(values):
        order = np.argsort(values)
        values, cumulative = values[order], np.cumsum(weights[order])
        last = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # of each distinct value
        values, cumulative = values[last], cumulative[last]
        at = np.searchsorted(cumulative, cumulative[-1] * np.arange(1, num_ranges) / num_ranges, side="left")
        edges = np.unique(values[np.minimum(at + 1, len(values) - 1)])
    return Vocabulary(feature, "quantile", FIRST_RANGE_ID + len(edges) + 1, edges=edges)


def hashed(feature: str, recipe: FeatureRecipe) -> Vocabulary:
    """A hash feature, of which nothing is fitted."""
    assert recipe.buckets is not None
    return Vocabulary(feature, "hash", FIRST_VALUE_ID + recipe.buckets)


def clock_vocabulary(feature: str, encoding: Encoding) -> Vocabulary:
    """That of an encoding of the log's time."""
    return Vocabulary(feature, encoding, FIRST_VALUE_ID + CLOCKS[encoding].num_values)


def clock_ids(encoding: Encoding, time: np.ndarray, ticks_per_second: int, utc_offset_hours: int) -> np.ndarray:
    """Ids of integer instants, such as of the local hour, int32."""
    hours = time // (3600 * ticks_per_second) + utc_offset_hours
    return (CLOCKS[encoding].of_hours(hours) + FIRST_VALUE_ID).astype(np.int32)


def index_id_sql(value: str, joined: str) -> str:
    """The id of an index feature whose vocabulary is joined under the name `joined`."""
    return f"CASE WHEN {value} IS NULL THEN {NULL_ID} ELSE coalesce({joined}.id, {UNSEEN_ID}) END"


def hash_id_sql(value: str, recipe: FeatureRecipe) -> str:
    """The id of a hash feature."""
    hashed_id = f"CAST({FIRST_VALUE_ID} + md5_number_upper({value}) % {recipe.buckets} AS INTEGER)"
    return f"CASE WHEN {value} IS NULL THEN {NULL_ID} ELSE {hashed_id} END"


def vocabulary_columns(connection: duckdb.DuckDBPyConnection, vocabulary: Vocabulary) -> dict[str, pa.Array]:
    """What each id from `FIRST_VALUE_ID` on means: id and value (with its count), or id and range."""
    ids = pa.array(np.arange(FIRST_VALUE_ID, vocabulary.num_rows, dtype=np.int32))
    match vocabulary.encoding:
        case "index" | "multi":
            table = connection.sql(f"SELECT id, value, count FROM {vocabulary.table} ORDER BY id").to_arrow_table()
            return {c: table.column(c).combine_chunks() for c in ("id", "value", "count")}
        case "quantile":
            assert vocabulary.edges is not None
            low = np.concatenate([[0.0, -np.inf], vocabulary.edges])
            high = np.concatenate([[0.0], vocabulary.edges, [np.inf]])
            return {"id": ids, "low": pa.array(low), "high": pa.array(high)}
        case "hash":
            return {"id": pa.array([], pa.int32())}
        case _:
            return {"id": ids, "value": pa.array([str(k) for k in range(len(ids))])}
