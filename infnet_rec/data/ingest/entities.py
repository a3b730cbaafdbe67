"""Users and items: one row each, numbered by sorted key, with the ids of all their features.

Tables made here (DuckDB), for the sides `user` and `item`: `side_<side>_<k>` (the k-th source: key, weight,
`t_<column>` as text, `n_<feature>` as number, `l_<feature>` as list of texts) and `coded_<side>_<k>` (key and the ids
`f_<feature>` of the features with a vocabulary). A side is encoded a range of rows at a time, so that memory does not
grow with the number of items.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from infnet_rec.data.ingest.bad_rows import Cell, Intake, Quarantine
from infnet_rec.data.ingest.interactions import (
    LIST_ADVICE,
    NESTED_ADVICE,
    key_cell,
    key_sql,
    nested_reason,
    no_list_reason,
    or_fractional,
)
from infnet_rec.data.ingest.raw_files import RawTable, faults_of, first_value
from infnet_rec.data.ingest.recipe import FeatureRecipe, Recipe, SourceRecipe
from infnet_rec.data.ingest.staging import ColumnSpool, in_order
from infnet_rec.data.ingest.vocabulary import (
    Vocabulary,
    fit_index,
    fit_quantile,
    hash_id_sql,
    hashed,
    index_id_sql,
    values_sql,
)
from infnet_rec.data.parsing.values import known_sql, literal, no_number_sql, number_sql, quoted
from infnet_rec.errors import UserError
from infnet_rec.schema import EMPTY_SLOT, NULL_ID, UNSEEN_ID, Side

RANGE_ROWS, LEAST_RANGE_ROWS = 1 << 18, 1 << 10
BYTES_A_VALUE = 24  # of a range in memory: as DuckDB gives it, as numpy has it, and the id
OWN = "own"  # the source of features that are the key itself


@dataclass(frozen=True, slots=True)
class SideFeature:
    """A feature of a side: its recipe, and the source and column it is read from."""

    name: str
    recipe: FeatureRecipe
    source: str
    column: str

    @property
    def text(self) -> str:
        """SQL of the raw text within the source."""
        return "CAST(key AS VARCHAR)" if self.source == OWN else quoted(f"t_{self.column}")

    @property
    def number(self) -> str:
        """SQL of the raw number within the source."""
        if self.source != OWN:
            return quoted(f"n_{self.name}")
        text, nulls = "CAST(key AS VARCHAR)", self.recipe.null_values
        number, wrong = number_sql(text, nulls), literal(f"feature {self.name}: an id is not a number: ")
        return f"CASE WHEN {no_number_sql(text, number, nulls)} THEN error({wrong} || key) ELSE {number} END"

    @property
    def values(self) -> str:
        """SQL of the list of raw texts within the source."""
        if self.source != OWN:
            return quoted(f"l_{self.name}")
        return f"string_split({self.text}, {literal(self.recipe.separator)})"


@dataclass(slots=True)
class SideTables:
    """One side: its sources and features, filled step by step: read, fit, code, then encode."""

    recipe: Recipe
    side: Side
    sources: list[RawTable]
    features: list[SideFeature] = field(default_factory=list)
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        log = self.recipe.log
        home = {log.user if self.side == "user" else log.item: OWN}
        for k, source in enumerate(self.sources):
            for column in source.columns:
                home.setdefault(column, str(k))
        self.features = [
            SideFeature(name, recipe, home[column], column)
            for recipe in self.recipe.features
            if recipe.side == self.side
            for name, column in recipe.named_columns.items()
        ]

    def read(self, connection: duckdb.DuckDBPyConnection, quarantine: Quarantine) -> None:
        """Creates `side_<side>_<k>`.

        Raises:
            UserError: too many bad rows, or a key that stands in two rows.
        """
        for k, (source, recipe) in enumerate(zip(self.sources, getattr(self.recipe.sides, self.side), strict=True)):
            self._intake(k, source, recipe).run(connection, quarantine)
            if recipe.first_row_of_each:
                _keep_first_rows(connection, f"side_{self.side}_{k}")
            _refuse_repeated_keys(connection, f"side_{self.side}_{k}", recipe.key, recipe.files)

    def _intake(self, k: int, source: RawTable, recipe: SourceRecipe) -> Intake:
        """How the k-th source becomes `side_<side>_<k>`."""
        mine = [f for f in self.features if f.source == str(k)]
        reason = f"{recipe.key} is empty{or_fractional(self.recipe)}"
        checks, cells = {reason: "r.key IS NULL"}, {reason: key_cell(self.recipe, recipe.key)}
        columns, raw_checks = {"key": key_sql(self.recipe, source, recipe.key)}, {}
        typed = self._typed(source, recipe, mine)
        for feature in mine:
            column = source.column(feature.column, feature.recipe.null_values)
            if feature.recipe.encoding == "multi":
                columns[f"l_{feature.name}"] = column.elements(feature.recipe.separator)
                reason = no_list_reason(feature.column)
                raw_checks[reason] = column.no_list(feature.recipe.separator)
                cells[reason] = Cell(feature.column, LIST_ADVICE)
            elif feature.recipe.encoding == "quantile":
                reason = f"{feature.column} is not a number"
                if feature.column in typed:
                    columns[f"n_{feature.name}"] = quoted(feature.column)
                else:
                    columns[f"n_{feature.name}"] = column.number
                    raw_checks[reason], cells[reason] = column.neither(column.number), Cell(feature.column)
            else:
                # Without the feature's own nulls: features may share a column.
                columns[f"t_{feature.column}"] = source.text(feature.column)
                reason = nested_reason(feature.column)
                raw_checks[reason] = column.is_nested
                cells[reason] = Cell(feature.column, NESTED_ADVICE)
        return Intake(
            f"side_{self.side}_{k}",
            f"{', '.join(recipe.files)} ({self.side} side)",
            source,
            dict.fromkeys(typed, "DOUBLE"),
            columns,
            checks,
            {reason: sql for reason, sql in raw_checks.items() if sql != "FALSE"},
            cells,
            derived={"weight": "coalesce(w.weight, 0)"},
            ordered=recipe.first_row_of_each,
            join=f"LEFT JOIN {self.side}_weight AS w ON w.key = r.key",
        )

    def _typed(self, source: RawTable, recipe: SourceRecipe, features: list[SideFeature]) -> list[str]:
        """CSV columns that DuckDB may read as doubles by itself, which is twice as fast.

        It does so by the rule in files that hold nothing which it reads beyond the rule.
        """
        numbers = [f for f in features if f.recipe.encoding == "quantile"]
        others = {recipe.key, *source.partitions, *(f.column for f in features if f.recipe.encoding != "quantile")}
        nulls = {f.column for f in numbers if f.recipe.null_values}
        wanted = dict.fromkeys(f.column for f in numbers if f.column not in others | nulls)
        if not wanted or source.is_parquet or source.null_values or source.has_odd_numbers():
            return []
        return list(wanted)

    def fit(self, connection: duckdb.DuckDBPyConnection, num_threads: int) -> Iterator[str]:
        """Fits every feature on the rows that training looks up; yields its name after each."""

        def fitted(feature: SideFeature) -> Vocabulary:
            source = f"{self.side}_weight" if feature.source == OWN else f"side_{self.side}_{feature.source}"
            with faults_of(f"{self.side} feature {feature.name}"):
                return _fitted(connection.cursor(), feature, feature.recipe, source)

        vocabularies = in_order(fitted, self.features, num_threads)
        for feature, vocabulary in zip(self.features, vocabularies, strict=True):
            self.vocabularies[feature.name] = vocabulary
            yield feature.name

    def code(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Creates `coded_<side>_<k>` for every source, and for the keys themselves."""
        for source in (OWN, *map(str, range(len(self.sources)))):
            mine = [f for f in self.features if f.source == source and f.recipe.encoding in ("index", "hash")]
            rows = f"{self.side}s" if source == OWN else f"side_{self.side}_{source}"
            ids, joins = [], []
            for k, feature in enumerate(mine):
                value = known_sql(feature.text, feature.recipe.null_values)
                if feature.recipe.encoding == "index":
                    joins.append(f"LEFT JOIN {self.vocabularies[feature.name].table} AS v{k} ON v{k}.value = {value}")
                    sql = index_id_sql(value, f"v{k}")
                else:
                    sql = hash_id_sql(value, feature.recipe)
                ids.append(f", {sql} AS {quoted('f_' + feature.name)}")
            connection.execute(
                f"""CREATE TABLE coded_{self.side}_{source} AS SELECT s.key{"".join(ids)}
                FROM {rows} AS s {" ".join(joins)}"""
            )
        for feature in self.features:
            if feature.recipe.encoding == "multi":
                _code_multi(connection, self.side, feature, self.vocabularies[feature.name])

    def encode(
        self, connection: duckdb.DuckDBPyConnection, folder: Path, num_rows: int, *, num_threads: int, range_gib: float
    ) -> Iterator[ColumnSpool]:
        """Spools the ids of all rows, in index order; yields the spool (one column, `ids`) after each range.

        Args:
            connection: where the tables live.
            folder: for the spool.
            num_rows: of the side.
            num_threads: ranges in work at a time.
            range_gib: what a range may take in memory.
        """
        width = sum(self.vocabularies[f.name].max_values for f in self.features)
        spool = ColumnSpool(folder, {"ids": f"({width},)int32"})
        if not num_rows:
            yield spool

        fitting = int(range_gib * 2**30 / (BYTES_A_VALUE * max(width, 1)))
        range_rows = min(RANGE_ROWS, max(fitting, LEAST_RANGE_ROWS))

        def encoded(start: int) -> np.ndarray:
            return self._encoded(connection.cursor(), start, min(start + range_rows, num_rows), width)

        for ids in in_order(encoded, range(0, num_rows, range_rows), num_threads):
            spool.append({"ids": ids})
            yield spool

    def _encoded(self, cursor: duckdb.DuckDBPyConnection, start: int, stop: int, width: int) -> np.ndarray:
        """The ids of rows start..stop-1, int32 [rows, width]. A row that a source does not have is null there."""
        ends = cursor.execute(
            f"SELECT min(key), max(key) FROM {self.side}s WHERE index >= {start} AND index < {stop}"
        ).fetchall()[0]
        low, high = (literal(key) if isinstance(key, str) else str(key) for key in ends)
        ids = np.full((stop - start, width), NULL_ID, np.int32)
        reads: dict[str, list[tuple[int, Vocabulary, str]]] = {}
        place = 0
        for feature in self.features:
            vocabulary = self.vocabularies[feature.name]
            table, columns = self._columns(feature)
            reads.setdefault(table, []).extend((place + k, vocabulary, sql) for k, sql in enumerate(columns))
            ids[:, place + 1 : place + len(columns)] = EMPTY_SLOT
            place += len(columns)
        for table, wanted in reads.items():
            columns = "".join(f", {sql} AS c{place}" for place, _, sql in wanted)
            # Constants, so that DuckDB skips what lies elsewhere.
            within = f"(SELECT * FROM {quoted(table)} WHERE key >= {low} AND key <= {high})"
            found = cursor.execute(
                f"""SELECT s.index{columns} FROM {within} AS t JOIN {self.side}s AS s USING (key)
                WHERE s.index >= {start} AND s.index < {stop}"""
            ).fetchnumpy()
            row_N = np.asarray(found["index"]) - start
            for place, vocabulary, _ in wanted:
                column = np.asarray(found[f"c{place}"])
                quantile = vocabulary.encoding == "quantile"
                ids[row_N, place] = vocabulary.encode_numbers(column.astype(np.float64)) if quantile else column
        return ids

    def _columns(self, feature: SideFeature) -> tuple[str, list[str]]:
        """The table to read, and SQL of the feature's columns: its number, its id, or its several ids."""
        coded = f"coded_{self.side}_{feature.source}"
        match feature.recipe.encoding:
            case "quantile":
                table = coded if feature.source == OWN else f"side_{self.side}_{feature.source}"
                return table, [f"coalesce({feature.number}, 'nan'::DOUBLE)"]
            case "multi":
                empty = [NULL_ID] + [EMPTY_SLOT] * (feature.recipe.max_values - 1)
                ids = [f"coalesce(ids[{k}], {fallback})" for k, fallback in enumerate(empty, start=1)]
                return f"multi_{feature.name}", ids
            case _:
                return coded, [f"coalesce({quoted('f_' + feature.name)}, {NULL_ID})"]


def _fitted(
    connection: duckdb.DuckDBPyConnection, feature: SideFeature, recipe: FeatureRecipe, source: str
) -> Vocabulary:
    match recipe.encoding:
        case "quantile":
            rows = f"SELECT {feature.number} AS value, weight FROM {source}"
            return fit_quantile(connection, rows, feature.name, recipe.num_ranges)
        case "hash":
            return hashed(feature.name, recipe)
        case "multi":
            values = f"unnest({values_sql(feature.values, recipe)})"
        case _:
            values = known_sql(feature.text, recipe.null_values)
    return fit_index(connection, f"SELECT {values} AS value, weight FROM {source}", recipe, feature.name)


def _code_multi(connection: duckdb.DuckDBPyConnection, side: str, feature: SideFeature, vocabulary: Vocabulary) -> None:
    """Creates `multi_<feature>`: key and the list of ids."""
    source = f"{side}s" if feature.source == OWN else f"side_{side}_{feature.source}"
    values = values_sql(feature.values, feature.recipe)
    connection.execute(
        f"""CREATE TABLE {quoted("multi_" + feature.name)} AS
        SELECT key, list(coalesce(v.id, {UNSEEN_ID}) ORDER BY place) AS ids
        FROM (SELECT key, unnest({values}) AS value, generate_subscripts({values}, 1) AS place FROM {source}) AS s
        LEFT JOIN {vocabulary.table} AS v ON v.value = s.value GROUP BY key"""
    )


def _keep_first_rows(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    connection.execute(f"CREATE TABLE first_rows AS SELECT DISTINCT ON (key) * FROM {table} ORDER BY key, time")
    connection.execute(f"DROP TABLE {table}")
    connection.execute(f"ALTER TABLE first_rows RENAME TO {table}")


def _refuse_repeated_keys(connection: duckdb.DuckDBPyConnection, table: str, key: str, files: tuple[str, ...]) -> None:
    twice = first_value(connection, f"SELECT key FROM {table} GROUP BY 1 HAVING count(*) > 1 LIMIT 1")
    if twice is not None:
        raise UserError(
            f"{', '.join(files)}: {key} {twice} stands in more than one row; a side table has one row a {key}"
        )


def sorted_keys(connection: duckdb.DuckDBPyConnection, side: str) -> pa.Array:
    """Raw ids in index order."""
    return connection.sql(f"SELECT key FROM {side}s ORDER BY index").to_arrow_table().column("key").combine_chunks()
