"""Users and items: one row each, numbered by sorted key, with the ids of all their features.

Tables made here (DuckDB): `users` and `items` (index, key), `rows` (the whole log and the seeded histories, joined to
those numbers), `user_side` and `item_side` (raw feature columns and each row's training weight).
"""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from infnet_rec.data.raw import faults_of, first_value, quoted
from infnet_rec.data.recipe import FeatureRecipe, Recipe
from infnet_rec.data.store import ColumnSpool
from infnet_rec.data.vocab import Vocabulary, fit_side_feature, id_sql, value_sql
from infnet_rec.faults import Fault

CHUNK_ROWS = 65_536


def number_users_and_items(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> None:
    """Creates `users` and `items`: every key of the log, the histories and the side tables."""
    for side, column in (("user", recipe.log.user), ("item", recipe.log.item)):
        parts = [f"SELECT {quoted(column)} AS key FROM raw_log"]
        sources = getattr(recipe.sides, side)
        parts += [f"SELECT {quoted(source.key)} FROM raw_{side}_{k}" for k, source in enumerate(sources)]
        for k, history in enumerate(recipe.history):
            parts.append(
                f"SELECT {quoted(history.user)} FROM raw_history_{k}"
                if side == "user"
                else f"SELECT unnest({quoted(history.items)}) FROM raw_history_{k}"
            )
        with faults_of(f"{side} ids of recipe {recipe.name}"):
            connection.execute(
                f"""CREATE TABLE {side}s AS SELECT CAST(row_number() OVER (ORDER BY key) - 1 AS INTEGER) AS index, key
                FROM (SELECT DISTINCT key FROM ({" UNION ALL ".join(parts)}) WHERE key IS NOT NULL)"""
            )


def join_rows(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> int:
    """Creates `rows`: user, item, time, position, is_example, one flag a behaviour, labels and context columns.

    Returns:
        The number of rows.

    Raises:
        Fault: a label is not 0 or 1, or a user, item or time is empty.
    """
    log = recipe.log
    flags = [f"coalesce(CAST(({b.where}) AS BOOLEAN), FALSE) AS {quoted('is_' + b.name)}" for b in recipe.behaviours]
    labels = [
        f"CASE WHEN {column} IN (0, 1) THEN CAST({column} AS TINYINT) END AS {quoted('label_' + task.name)}"
        for task, column in ((t, quoted(t.label)) for t in recipe.tasks)
    ]
    context = [
        f"{quoted(column)} AS {quoted('context_' + name)}"
        for f in recipe.features
        if f.side == "context" and f.encoding == "index"
        for name, column in f.named_columns.items()
    ]
    columns = ", ".join([*flags, *labels, *context])
    end = recipe.instant(recipe.splits.end)
    with faults_of(f"log of recipe {recipe.name}"):
        connection.execute(
            f"""CREATE TABLE rows AS SELECT users.index AS user, items.index AS item, log.{quoted(log.time)} AS time,
            0 AS position, TRUE AS is_example, log.* EXCLUDE (user_key, item_key, {quoted(log.time)})
            FROM (SELECT {quoted(log.user)} AS user_key, {quoted(log.item)} AS item_key, {quoted(log.time)}, {columns}
                  FROM raw_log) AS log
            LEFT JOIN users ON users.key = user_key LEFT JOIN items ON items.key = item_key
            WHERE {quoted(log.time)} IS NULL OR {quoted(log.time)} < {end}"""
        )
    bad = " OR ".join(f"label_{t.name} IS NULL" for t in recipe.tasks)
    for what, rule in (
        ("user, item or time is empty", "user IS NULL OR item IS NULL OR time IS NULL"),
        (f"a label is not 0 or 1 ({', '.join(t.label for t in recipe.tasks)})", bad),
    ):
        found = first_value(connection, f"SELECT count(*) FROM rows WHERE {rule}")
        if found:
            raise Fault(f"log of recipe {recipe.name}: {what} in {found:,} rows; mend or remove them")
    _seed_histories(connection, recipe)
    return first_value(connection, "SELECT count(*) FROM rows")


def _seed_histories(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> None:
    """Adds the events of the recipe's histories; `position` keeps the order of each list under its one instant."""
    for k, history in enumerate(recipe.history):
        flags = ", ".join(
            f"{'TRUE' if b.name == history.behaviour else 'FALSE'} AS {quoted('is_' + b.name)}"
            for b in recipe.behaviours
        )
        with faults_of(f"history {history.file}"):
            connection.execute(
                f"""INSERT INTO rows BY NAME SELECT users.index AS user, items.index AS item, time, position,
                FALSE AS is_example, {flags}
                FROM (SELECT {quoted(history.user)} AS user_key, CAST({quoted(history.time)} AS BIGINT) AS time,
                      unnest({quoted(history.items)}) AS item_key,
                      unnest(range(1, len({quoted(history.items)}) + 1)) AS position FROM raw_history_{k})
                JOIN users ON users.key = user_key JOIN items ON items.key = item_key"""
            )
        if first_value(connection, "SELECT 1 FROM rows WHERE time IS NULL LIMIT 1"):
            raise Fault(
                f"history {history.file}: {history.time} is empty for a user with events; mend or remove the row"
            )


def join_sides(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> None:
    """Creates `user_side` and `item_side`: index, key, training weight and the raw column of every feature.

    The weight of a row is how often training looks it up: a user once a training example, an item once a training
    example or event before the validation window.
    """
    first, last = recipe.instant(recipe.splits.train), recipe.instant(recipe.splits.valid)
    looked_up = {"user": f"(is_example AND time >= {first})"}
    looked_up["item"] = " OR ".join([looked_up["user"], *(quoted("is_" + b.name) for b in recipe.behaviours)])
    for side, own_key in (("user", recipe.log.user), ("item", recipe.log.item)):
        connection.execute(
            f"""CREATE TABLE {side}_weight AS SELECT {side} AS index, count(*) AS weight FROM rows
            WHERE time < {last} AND ({looked_up[side]}) GROUP BY 1"""
        )
        joins, home = [], {own_key: "s.key"}
        for k, source in enumerate(getattr(recipe.sides, side)):
            columns = connection.execute(f"SELECT column_name FROM (DESCRIBE raw_{side}_{k})").fetchall()
            for (column,) in columns:
                home.setdefault(column, f"s{k}.{quoted(column)}")
            joins.append(f"LEFT JOIN raw_{side}_{k} AS s{k} ON s{k}.{quoted(source.key)} = s.key")
            _refuse_repeated_keys(connection, f"raw_{side}_{k}", source.key, source.files)
        features = [f for f in recipe.features if f.side == side]
        columns = "".join(f", {home[c]} AS {quoted(n)}" for f in features for n, c in f.named_columns.items())
        with faults_of(f"{side} tables of recipe {recipe.name}"):
            connection.execute(
                f"""CREATE TABLE {side}_side AS SELECT s.index, s.key, coalesce(w.weight, 0) AS weight{columns}
                FROM {side}s AS s LEFT JOIN {side}_weight AS w ON w.index = s.index {" ".join(joins)}"""
            )


def _refuse_repeated_keys(connection: duckdb.DuckDBPyConnection, view: str, key: str, files: tuple[str, ...]) -> None:
    with faults_of(", ".join(files)):
        twice = first_value(
            connection,
            f"SELECT {quoted(key)} FROM {view} WHERE {quoted(key)} IS NOT NULL GROUP BY 1 HAVING count(*) > 1 LIMIT 1",
        )
    if twice is not None:
        raise Fault(f"{', '.join(files)}: {key} {twice} stands in more than one row; a side table has one row a {key}")


def encode_side(
    connection: duckdb.DuckDBPyConnection, recipe: Recipe, side: str, folder: Path
) -> tuple[dict[str, Vocabulary], ColumnSpool]:
    """Fits every feature of one side and spools the ids of all its rows, in index order.

    Returns:
        The vocabularies, and a spool with the column `ids` (and nothing else).
    """
    owner: dict[str, FeatureRecipe] = {n: f for f in recipe.features if f.side == side for n in f.named_columns}
    source = f"{side}_side"
    with faults_of(f"{side} features of recipe {recipe.name}"):
        vocabularies = {n: fit_side_feature(connection, source, f, n) for n, f in owner.items()}
    selected, joins = [], []
    for k, (name, feature) in enumerate(owner.items()):
        if feature.encoding == "index":
            value = value_sql(f"s.{quoted(name)}", feature.null_values)
            joins.append(f"LEFT JOIN {quoted('vocab_' + name)} AS v{k} ON v{k}.value = {value}")
            selected.append(f"{id_sql(value, f'v{k}')} AS {quoted(name)}")
        else:
            selected.append(f"CAST(s.{quoted(name)} AS DOUBLE) AS {quoted(name)}")
    spool = ColumnSpool(folder, {"ids": f"({len(owner)},)int32"})
    reader = connection.sql(
        f"SELECT {', '.join(selected) or 'NULL AS none'} FROM {source} AS s {' '.join(joins)} ORDER BY s.index"
    ).to_arrow_reader(CHUNK_ROWS)
    for batch in reader:
        ids = np.empty((batch.num_rows, len(owner)), np.int32)
        for k, (name, feature) in enumerate(owner.items()):
            column = batch.column(k).to_numpy(zero_copy_only=False)
            ids[:, k] = (
                column if feature.encoding == "index" else vocabularies[name].encode_numbers(column.astype(np.float64))
            )
        spool.append({"ids": ids})
    return vocabularies, spool


def sorted_keys(connection: duckdb.DuckDBPyConnection, side: str) -> pa.Array:
    """Raw ids in index order."""
    return connection.sql(f"SELECT key FROM {side}s ORDER BY index").to_arrow_table().column("key").combine_chunks()
