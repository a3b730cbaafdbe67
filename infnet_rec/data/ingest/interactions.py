"""The behaviour log, read once into a table of typed rows.

Table made here (DuckDB): `log`, one row an impression or a seeded event: user_key, item_key, time, position (order
under one instant), example_ (whether it is an impression), one flag `is_<behaviour>`, one `label_<task>`, `weight_`,
the value of each context column (a text, a list of texts or a number), and `split` (-1 history only, 0 train, 1 valid,
2 test, 3.. further tests). Names of the build's own end in an underscore where a recipe could give the same.
"""

from dataclasses import replace

import duckdb

from infnet_rec.data.ingest.bad_rows import Cell, Intake, Quarantine
from infnet_rec.data.ingest.raw_files import RawTable, faults_of, first_value
from infnet_rec.data.ingest.recipe import FeatureRecipe, Recipe
from infnet_rec.data.ingest.sources import predicates_of
from infnet_rec.data.ingest.splits import ShareSplits, TimeSplits
from infnet_rec.data.ingest.vocabulary import values_sql
from infnet_rec.data.parsing.predicates import Rendering, columns_of, render
from infnet_rec.data.parsing.values import integer_sql, quoted, value_sql
from infnet_rec.errors import UserError

HISTORY_ONLY, TRAIN, VALID, TEST = -1, 0, 1, 2
SHARE_SLACK = 1e-9  # 0.29 * 100 is 28.999999999999996


def key_sql(recipe: Recipe, table: RawTable, column: str) -> str:
    """SQL of a user's or item's id, null where there is none."""
    return table.integer(column) if recipe.log.id_type == "int64" else table.text(column)


def key_cell(recipe: Recipe, column: str) -> Cell:
    """The cell of a bad id."""
    return Cell(column, '; log.id_type = "string" reads ids of any form' if recipe.log.id_type == "int64" else "")


def log_intake(recipe: Recipe, table: RawTable) -> Intake:
    """How the raw log becomes the table `log`.

    Raises:
        UserError: a predicate does not fit the columns.
    """
    log = recipe.log
    columns = {"user_key": key_sql(recipe, table, log.user), "item_key": key_sql(recipe, table, log.item)}
    if log.time_columns:
        columns["time"] = log.clock.sql(table, log.time_columns)
    columns |= {"position": "0", "example_": "TRUE"}
    checks = {
        f"{log.user} is empty{or_fractional(recipe)}": "user_key IS NULL",
        f"{log.item} is empty{or_fractional(recipe)}": "item_key IS NULL",
    }
    cells = {reason: key_cell(recipe, c) for reason, c in zip(checks, (log.user, log.item), strict=True)}
    if log.time_columns:
        of_time = log.clock.checks(log.time_columns, table)
        checks |= of_time
        time, *also = log.time_columns
        cells |= {reason: Cell(time, also="".join(also), advice=log.clock.advice) for reason in of_time}
    predicates, raw_checks = _rendered(recipe, table)
    columns |= {name: f"coalesce({p.condition}, FALSE)" for name, p in predicates.items() if name.startswith("is_")}
    for task in recipe.tasks:
        column = f"label_{task.name}"
        if task.label is not None:
            number, reason = table.column(task.label).truth, f"{task.label} is not 0 or 1"
            columns[column] = f"CAST(CASE {number} WHEN 0 THEN 0 WHEN 1 THEN 1 END AS TINYINT)"
            cells[reason] = Cell(task.label)
        else:
            columns[column] = f"CAST({predicates[column].condition} AS TINYINT)"
            reason = f"task {task.name}, where = {task.where!r}: is neither true nor false, for a value is missing"
        checks[reason] = f"{quoted(column)} IS NULL"
    if log.weight is not None:
        columns["weight_"], reason = table.column(log.weight).number, f"{log.weight} is not a finite number from 0"
        checks[reason], cells[reason] = "weight_ IS NULL OR NOT isfinite(weight_) OR weight_ < 0", Cell(log.weight)
    cells |= {reason: Cell(column) for reason, (column, _) in raw_checks.items()}
    for name, feature in recipe.raw_context.items():
        column = feature.named_columns[name]
        columns[f"context_{name}"], bad, reason, advice = _context_column(table, column, feature)
        raw_checks[reason], cells[reason] = (column, bad), Cell(column, advice)
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
        {},
        columns,
        checks,
        {reason: condition for reason, (_, condition) in raw_checks.items() if condition != "FALSE"},
        cells,
        derived=derived,
        keep=keep,
        ordered=not log.time_columns,
    )


LIST_ADVICE = '; write JSON, such as ["a", "b"], or set a separator'
NESTED_ADVICE = '; encoding = "multi" reads lists'


def _context_column(table: RawTable, column: str, feature: FeatureRecipe) -> tuple[str, str, str, str]:
    """SQL of what is kept of a column of the log, SQL of whether that is bad, the reason, and what helps."""
    raw = table.column(column, feature.null_values)
    match feature.encoding:
        case "multi":
            bad = raw.no_list(feature.separator)
            return raw.elements(feature.separator), bad, no_list_reason(column), LIST_ADVICE
        case "quantile":
            return raw.number, raw.neither(raw.number), f"{column} is not a number", ""
        case _:
            return raw.text, raw.is_nested, nested_reason(column), NESTED_ADVICE


def no_list_reason(column: str) -> str:
    """Why a row is bad whose text should be several values."""
    return f"{column} stands in brackets and is no list of values"


def nested_reason(column: str) -> str:
    """Why a row is bad whose text is a list or an object."""
    return f"{column} is a list or an object, where one value is wanted"


def _rendered(recipe: Recipe, table: RawTable) -> tuple[dict[str, Rendering], dict[str, tuple[str, str]]]:
    """The predicates of behaviours and tasks, and what is bad in them: reason -> column and SQL condition."""
    faults: list[str] = []
    parsed = predicates_of(recipe, table, faults)
    if faults:
        raise UserError(f"recipe {recipe.name}: {'; '.join(faults)}")
    rendered, bad = {}, {}
    for name, predicate in parsed.items():
        rendered[name] = render(predicate, {column: table.column(column) for column in columns_of(predicate)})
        bad |= {f"{column} {reason}": (column, sql) for (column, reason), sql in rendered[name].bad.items()}
    return rendered, bad


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
        UserError: no usable row, too many bad rows, or a history that does not fit.
    """
    num_rows = log_intake(recipe, table).run(connection, quarantine)
    if not num_rows and not first_value(connection, f"SELECT 1 FROM {table.scan({}, skip_bad=True)} LIMIT 1"):
        header = "a header and no rows" if table.form.has_header and not table.is_parquet else "no rows"
        raise UserError(
            f"{', '.join(map(str, table.paths))}: the log holds {header}; name files with rows in [log] files"
        )
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
        log_intake(recipe, table),
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
    split = str(HISTORY_ONLY)
    if isinstance(recipe.splits, TimeSplits):
        # No example; but training must not count what came after its end.
        split = f"CASE WHEN time < {recipe.instant(recipe.splits.valid)} THEN {HISTORY_ONLY} ELSE {VALID} END"
    items = table.column(history.items).elements(",")
    item = integer_sql("cell") if recipe.log.id_type == "int64" else value_sql("cell")
    user, time = key_sql(recipe, table, history.user), recipe.log.clock.sql(table, [history.time])
    cells = f"""SELECT {user} AS user_key, {time} AS time, unnest({items}) AS cell,
        unnest(range(1, len({items}) + 1)) AS position FROM {table.scan({})}"""
    with faults_of(f"history {history.file}"):
        odd = first_value(
            connection, f"SELECT cell FROM ({cells}) WHERE {value_sql('cell')} IS NOT NULL AND {item} IS NULL"
        )
        if odd is not None:
            raise UserError(
                f"history {history.file}: {history.items} holds {odd!r}, which is no whole number of 64 bits"
            )
        connection.execute(
            f"""INSERT INTO log BY NAME SELECT *, {split} AS split FROM (SELECT user_key, time, {item} AS item_key,
            position, FALSE AS example_, {flags} FROM ({cells})) WHERE item_key IS NOT NULL"""
        )
    for column, name in (("time", history.time), ("user_key", history.user)):
        if first_value(connection, f"SELECT 1 FROM log WHERE {column} IS NULL LIMIT 1"):
            raise UserError(f"history {history.file}: {name} is empty for a user with events; mend or remove the row")
    low, high = recipe.instant(recipe.log.earliest), recipe.instant(recipe.log.latest)
    odd = f"FROM log WHERE NOT example_ AND (time < {low} OR time >= {high})"
    if (found := connection.execute(f"SELECT user_key, time {odd} ORDER BY ALL LIMIT 1").fetchone()) is not None:
        raise UserError(
            f"history {history.file}: {history.time} of user {found[0]} is {recipe.log.clock.range_text} "
            f"({found[1]:,} ticks); mend or remove the row, or mend time_unit in [log]"
        )


def number_keys(connection: duckdb.DuckDBPyConnection, name: str, sources: list[str]) -> int:
    """Creates the table `name` (index, key): every key of the source queries, numbered in sorted order."""
    connection.execute(
        f"""CREATE TABLE {name} AS SELECT CAST(row_number() OVER (ORDER BY key) - 1 AS INTEGER) AS index, key
        FROM (SELECT DISTINCT key FROM ({" UNION ALL ".join(sources)}))"""
    )
    return first_value(connection, f"SELECT count(*) FROM {name}")


def weigh(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> None:
    """Creates `user_weight` and `item_weight` (key, weight, rows, examples), of every key of the log.

    The weight is how often training looks a row up: a user once a training example, an item once a training example or
    training event. Rows are all of the log, events from before it among them; examples are those without them.
    """
    example = f"(example_ AND split = {TRAIN})"
    events = [f"(split <= {TRAIN} AND {quoted('is_' + b.name)})" for b in recipe.behaviours]
    for side, looked_up in (("user", example), ("item", " OR ".join([example, *events]))):
        connection.execute(
            f"""CREATE TABLE {side}_weight AS SELECT {side}_key AS key, count(*) FILTER ({looked_up}) AS weight,
            count(*) AS rows, count(*) FILTER (example_) AS examples FROM log GROUP BY 1"""
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
