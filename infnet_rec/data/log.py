"""The behaviour log, read once into a table of typed rows.

Table made here (DuckDB): `log`, one row an impression or a seeded event: user_key, item_key, time, position (order
under one instant), example_ (whether it is an impression), one flag `is_<behaviour>`, one `label_<task>`, `weight_`,
what is raw of each context column (a text, a list of texts or a number), and `split` (-1 history only, 0 train, 1
valid, 2 test, 3.. further tests). Names of the build's own end in an underscore where a recipe could give the same.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import duckdb

from infnet_rec.data.quarantine import Intake, Quarantine, Remedy
from infnet_rec.data.raw import RawTable, faults_of, first_value, quoted, sniffed
from infnet_rec.data.recipe import FeatureRecipe, Recipe
from infnet_rec.data.splits import ShareSplits, TimeSplits
from infnet_rec.data.vocab import value_sql, values_sql
from infnet_rec.faults import Fault

HISTORY_ONLY, TRAIN, VALID, TEST = -1, 0, 1, 2
SHARE_SLACK = 1e-9  # 0.29 * 100 is 28.999999999999996


def key_sql(recipe: Recipe, table: RawTable, column: str) -> str:
    """SQL of a user's or item's id, null where there is none."""
    return table.integer(column) if recipe.log.id_type == "int64" else f"NULLIF({table.text(column)}, '')"


def log_intake(
    connection: duckdb.DuckDBPyConnection, recipe: Recipe, table: RawTable, max_bad_fraction: float
) -> Intake:
    """How the raw log becomes the table `log`.

    Raises:
        Fault: a behaviour's predicate does not fit the columns.
    """
    log = recipe.log
    as_text = {log.user, log.item, *log.time_columns}
    as_text |= {c for f in recipe.features if f.side == "context" for c in f.columns}
    as_text |= {log.weight} if log.weight else set()
    # An integer type would round 0.5.
    types = {task.label: "DOUBLE" for task in recipe.tasks if task.label not in as_text}
    mentioned = {c for b in recipe.behaviours for c in table.columns if _mentions(b.where, c)}
    kinds = sniffed(connection, table, sorted(mentioned - types.keys()), max_bad_fraction)
    whole = {*log.time_columns, *((log.user, log.item) if log.id_type == "int64" else ())}
    kinds |= {column: "BIGINT" for column in mentioned & whole if not table.is_parquet}
    types |= {column: kind for column, kind in kinds.items() if column not in as_text}
    # A column that is read as text and stands in a predicate too is there under two names.
    twofold = {column: kind for column, kind in kinds.items() if column in as_text}
    typed = [f"TRY_CAST({quoted(c)} AS {kind}) AS {quoted(c)}" for c, kind in twofold.items()]
    texts = [f", {quoted(c)} AS {quoted(_text_name(c))}" for c in twofold]
    replaced = f"REPLACE ({', '.join(typed)})" if typed else ""
    view = f"SELECT * {replaced}{''.join(texts)}, file_index FROM"

    def name(column: str) -> str:
        return _text_name(column) if column in twofold else column

    columns = {"user_key": key_sql(recipe, table, name(log.user)), "item_key": key_sql(recipe, table, name(log.item))}
    times = [name(column) for column in log.time_columns]
    if times:
        columns["time"] = log.clock.sql(table, times)
    columns |= {"position": "0", "example_": "TRUE"}
    for behaviour in recipe.behaviours:
        predicate = f"({behaviour.where}\n)"  # a comment must not go on
        columns[f"is_{behaviour.name}"] = f"coalesce(CAST({predicate} AS BOOLEAN), FALSE)"
        with faults_of(f"recipe {recipe.name}, behaviour {behaviour.name}, where = {behaviour.where!r}"):
            connection.execute(f"SELECT 1 FROM ({view} {table.scan(types)}) WHERE {predicate} LIMIT 0").fetchall()
    checks = {
        f"{log.user} is empty{or_fractional(recipe)}": "user_key IS NULL",
        f"{log.item} is empty{or_fractional(recipe)}": "item_key IS NULL",
    }
    ids = zip(checks, (log.user, log.item), strict=True)
    remedies = {reason: Remedy((name(column),), _id_advice(recipe)) for reason, column in ids}
    if times:
        of_time = log.clock.checks(log.time_columns, table)
        checks |= of_time
        remedies |= {reason: Remedy(tuple(times), log.clock.advice) for reason in of_time}
    for task in recipe.tasks:
        number = f"TRY_CAST({quoted(name(task.label))} AS DOUBLE)"
        columns[f"label_{task.name}"] = f"CASE WHEN {number} IN (0, 1) THEN CAST({number} AS TINYINT) END"
        checks[f"{task.label} is not 0 or 1"] = f"{quoted(f'label_{task.name}')} IS NULL"
    if log.weight is not None:
        columns["weight_"] = f"TRY_CAST({table.text(name(log.weight))} AS DOUBLE)"
        checks[f"{log.weight} is not a finite number from 0"] = (
            "weight_ IS NULL OR NOT isfinite(weight_) OR weight_ < 0"
        )
    for feature_name, feature in recipe.raw_context.items():
        column, key = feature.named_columns[feature_name], f"context_{feature_name}"
        match feature.encoding:
            case "multi":
                columns[key] = table.values(name(column), feature.separator)
            case "quantile":
                value = value_sql(table.text(name(column)), feature.null_values)
                columns[key] = f"TRY_CAST({value} AS DOUBLE)"
                columns[f"odd_{feature_name}"] = f"{value} IS NOT NULL AND TRY_CAST({value} AS DOUBLE) IS NULL"
                checks[f"{column} is not a number"] = quoted(f"odd_{feature_name}")
            case _:
                columns[key] = table.text(name(column))
    keep, derived = "TRUE", {}
    if isinstance(splits := recipe.splits, TimeSplits):
        train, valid, test, end = map(recipe.instant, (splits.train, splits.valid, splits.test, splits.end))
        keep = f"time < {end}"
        derived["split"] = f"""CAST(CASE WHEN time < {train} THEN {HISTORY_ONLY} WHEN time < {valid} THEN {TRAIN}
            WHEN time < {test} THEN {VALID} ELSE {TEST} END AS TINYINT)"""
    return Intake(
        "log",
        "the log",
        table,
        types,
        columns,
        checks,
        view,
        derived=derived,
        keep=keep,
        ordered=not times,
        remedies=remedies,
    )


def _id_advice(recipe: Recipe) -> Callable[[str], str]:
    return lambda value: 'write id_type = "string" in [log]' if recipe.log.id_type == "int64" and value.strip() else ""


def _text_name(column: str) -> str:
    return f"{column} as text"


def _mentions(predicate: str, column: str) -> bool:
    """SQL names have no case, and may be quoted."""
    name = re.escape(quoted(column)[1:-1])
    return re.search(rf"(?<!\w){name}(?!\w)", predicate, re.IGNORECASE) is not None


def or_fractional(recipe: Recipe) -> str:
    """The other thing that may be wrong with an id."""
    return " or not a whole number" if recipe.log.id_type == "int64" else ""


def read_log(
    connection: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    table: RawTable,
    besides: tuple[list[RawTable], list[RawTable]],
    quarantine: Quarantine,
) -> int:
    """Creates `log` and returns its number of rows.

    Args:
        connection: where to.
        recipe: what the files mean.
        table: the log itself.
        besides: the files of the recipe's histories and of its further tests.
        quarantine: for bad rows.

    Raises:
        Fault: no usable row, too many bad rows, or a history that does not fit.
    """
    num_rows = log_intake(connection, recipe, table, quarantine.max_fraction).run(connection, quarantine)
    if not num_rows and not first_value(connection, f"SELECT 1 FROM {table.scan({}, skip_bad=True)} LIMIT 1"):
        header = "a header and no rows" if table.form.has_header and not table.is_parquet else "no rows"
        raise Fault(f"{', '.join(map(str, table.paths))}: the log holds {header}; name files with rows in [log] files")
    if isinstance(recipe.splits, ShareSplits):
        _share_out(connection, recipe, recipe.splits)
    histories, further_tests = besides
    for k, history in enumerate(histories):
        _seed_history(connection, recipe, k, history)
    for k, further in enumerate(further_tests):
        _add_further_test(connection, recipe, k, further, quarantine)
    return first_value(connection, "SELECT count(*) FROM log")


def _share_out(connection: duckdb.DuckDBPyConnection, recipe: Recipe, splits: ShareSplits) -> None:
    """Adds `split` by each user's own rows, or by a hash of the row that any tool can compute again."""
    if splits.by == "random":
        text = f"concat_ws('/', user_key, item_key, time, {splits.seed})"
        source = f"(SELECT *, md5_number_upper({text}) / 18446744073709551616.0 AS u FROM log)"
        test, valid, helpers = f"u < {splits.test}", f"u < {splits.test + splits.valid}", "u"
    else:
        # All that a row has, so that the order of the raw rows does not show.
        ties = [f"label_{t.name}" for t in recipe.tasks] + [f"is_{b.name}" for b in recipe.behaviours]
        order = ", ".join(["time", "item_key", *map(quoted, ties)])
        order += "".join(f", {_tie(name, feature)}" for name, feature in recipe.raw_context.items())
        order += ", weight_" if recipe.log.weight else ""
        source = f"""(SELECT *, count(*) OVER (PARTITION BY user_key) AS n,
            row_number() OVER (PARTITION BY user_key ORDER BY {order}) AS k FROM log)"""
        num_test = f"floor(n * {splits.test} + {SHARE_SLACK})"
        test = f"k > n - {num_test}"
        valid = f"k > n - {num_test} - floor(n * {splits.valid} + {SHARE_SLACK})"
        helpers = "n, k"
    connection.execute(
        f"""CREATE TABLE shared_out AS SELECT * EXCLUDE ({helpers}),
        CAST(CASE WHEN {test} THEN {TEST} WHEN {valid} THEN {VALID} ELSE {TRAIN} END AS TINYINT) AS split
        FROM {source}"""
    )
    connection.execute("DROP TABLE log")
    connection.execute("ALTER TABLE shared_out RENAME TO log")


def _tie(name: str, feature: FeatureRecipe) -> str:
    """SQL of what a context feature adds to the order of a user's rows."""
    column = quoted(f"context_{name}")
    if feature.encoding == "quantile":
        return column
    return values_sql(column, feature) if feature.encoding == "multi" else f"NULLIF({column}, '')"


def _add_further_test(
    connection: duckdb.DuckDBPyConnection, recipe: Recipe, k: int, table: RawTable, quarantine: Quarantine
) -> None:
    """Adds the rows of one of the recipe's further tests: examples whose events are nobody's history."""
    test = recipe.further_tests[k]
    keep = "TRUE"
    if test.within_test and isinstance(recipe.splits, TimeSplits):
        keep = f"time >= {recipe.instant(recipe.splits.test)} AND time < {recipe.instant(recipe.splits.end)}"
    intake = replace(
        log_intake(connection, recipe, table, quarantine.max_fraction),
        name=f"further_{k}",
        what=f"the rows of {test.name}",
        derived={"split": f"CAST({TEST + 1 + k} AS TINYINT)"},
        keep=keep,
    )
    intake.run(connection, quarantine)
    never = [f"FALSE AS {quoted(f'is_{b.name}')}" for b in recipe.behaviours]
    columns = f"* REPLACE ({', '.join(never)})" if never else "*"
    connection.execute(f"INSERT INTO log BY NAME SELECT {columns} FROM {intake.name}")
    connection.execute(f"DROP TABLE {intake.name}")


def _seed_history(connection: duckdb.DuckDBPyConnection, recipe: Recipe, k: int, table: RawTable) -> None:
    """Adds the events of one of the recipe's histories; `position` keeps their order under their one instant."""
    history = recipe.history[k]
    flags = ", ".join(
        f"{'TRUE' if b.name == history.behaviour else 'FALSE'} AS {quoted('is_' + b.name)}" for b in recipe.behaviours
    )
    items = quoted(history.items)
    split = str(HISTORY_ONLY)
    if isinstance(recipe.splits, TimeSplits):
        # No example; but training must not count what came after its end.
        split = f"CASE WHEN time < {recipe.instant(recipe.splits.valid)} THEN {HISTORY_ONLY} ELSE {VALID} END"
    item = f"CAST(unnest({items}) AS {'BIGINT' if recipe.log.id_type == 'int64' else 'VARCHAR'})"
    user, time = key_sql(recipe, table, history.user), recipe.log.clock.sql(table, [history.time])
    with faults_of(f"history {history.file}"):
        connection.execute(
            f"""INSERT INTO log BY NAME SELECT *, {split} AS split FROM (SELECT {user} AS user_key, {time} AS time,
            {item} AS item_key, unnest(range(1, len({items}) + 1)) AS position, FALSE AS example_, {flags}
            FROM {table.scan({})}) WHERE item_key IS NOT NULL"""
        )
    for column, name in (("time", history.time), ("user_key", history.user)):
        if first_value(connection, f"SELECT 1 FROM log WHERE {column} IS NULL LIMIT 1"):
            raise Fault(f"history {history.file}: {name} is empty for a user with events; mend or remove the row")
    low, high = recipe.instant(recipe.log.earliest), recipe.instant(recipe.log.latest)
    odd = f"FROM log WHERE NOT example_ AND (time < {low} OR time >= {high})"
    if (found := connection.execute(f"SELECT user_key, time {odd} ORDER BY ALL LIMIT 1").fetchone()) is not None:
        raise Fault(
            f"history {history.file}: {history.time} of user {found[0]} is {recipe.log.clock.range_text} "
            f"({found[1]:,} ticks); mend or remove the row, or mend time_unit in [log]"
        )


def number(connection: duckdb.DuckDBPyConnection, name: str, sources: list[str]) -> int:
    """Creates the table `name` (index, key): every key of the source queries, numbered in sorted order."""
    connection.execute(
        f"""CREATE TABLE {name} AS SELECT CAST(row_number() OVER (ORDER BY key) - 1 AS INTEGER) AS index, key
        FROM (SELECT DISTINCT key FROM ({" UNION ALL ".join(sources)}))"""
    )
    return first_value(connection, f"SELECT count(*) FROM {name}")


def weigh(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> None:
    """Creates `user_weight` and `item_weight` (key, weight): how often training looks a row up.

    That is a user once a training example, an item once a training example or training event.
    """
    example = f"(example_ AND split = {TRAIN})"
    events = [f"(split <= {TRAIN} AND {quoted('is_' + b.name)})" for b in recipe.behaviours]
    for side, looked_up in (("user", example), ("item", " OR ".join([example, *events]))):
        connection.execute(
            f"""CREATE TABLE {side}_weight AS SELECT {side}_key AS key, count(*) AS weight FROM log
            WHERE {looked_up} GROUP BY 1"""
        )


def join_numbers(connection: duckdb.DuckDBPyConnection) -> None:
    """Creates `rows`: the log with `user` and `item`, the numbers, in the place of the keys.

    Keys that are whole numbers without a gap, as KuaiRand's are, number themselves: `rows` is then the log seen
    otherwise, and nothing is joined or written.
    """
    numbers, joins = [], []
    for side in ("user", "item"):
        first = _first_of_dense(connection, f"{side}s")
        if first is None:
            joins.append(f"JOIN {side}s ON {side}s.key = {side}_key")
        numbers.append(
            f"{side}s.index AS {side}" if first is None else f"CAST({side}_key - {first} AS INTEGER) AS {side}"
        )
    query = f"""SELECT {", ".join(numbers)}, log.* EXCLUDE (user_key, item_key, file_, line_, bad_)
        FROM log {" ".join(joins)}"""
    connection.execute(f"CREATE {'TABLE' if joins else 'VIEW'} rows AS {query}")
    if joins:
        connection.execute("DROP TABLE log")


def _first_of_dense(connection: duckdb.DuckDBPyConnection, table: str) -> int | None:
    """The smallest key, where the keys are whole numbers without a gap."""
    low, high, count = connection.execute(f"SELECT min(key), max(key), count(*) FROM {table}").fetchall()[0]
    return low if isinstance(low, int) and high - low + 1 == count else None
