"""Raw CSV and Parquet files as typed DuckDB views.

DuckDB scans, joins and sorts out of core; this file checks that the raw files are what the recipe says before any of it
starts, and turns DuckDB's errors into faults.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from infnet_rec.data.recipe import Recipe, SourceRecipe
from infnet_rec.faults import Fault, did_you_mean

# What DuckDB raises for data or predicates that do not fit; anything else is a bug or a failure of the machine.
COMPLAINTS = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.BinderException,
    duckdb.ParserException,
    duckdb.CatalogException,
)
# Left to itself DuckDB drops first rows of another length than the later ones, and takes "#" for a comment.
CSV_FORMAT = "header = true, delim = ',', quote = '\"', escape = '\"', skip = 0, comment = ''"
SQL_TYPE = {"index": "VARCHAR", "quantile": "DOUBLE", "hour_of_day": "BIGINT", "day_of_week": "BIGINT"}


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


def connect(folder: Path, *, memory_gib: float, num_threads: int) -> duckdb.DuckDBPyConnection:
    """A database in `folder` that spills there instead of using more than `memory_gib` GiB."""
    connection = duckdb.connect(str(folder / "build.duckdb"))
    connection.execute(f"SET memory_limit = '{memory_gib:.3f}GiB'; SET threads = {num_threads}")
    connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}; SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")
    return connection


def first_value(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    """The first column of a query's first row, or None; the result is drained, as DuckDB asks for."""
    rows = connection.execute(query).fetchall()
    return rows[0][0] if rows else None


@contextmanager
def faults_of(where: str) -> Iterator[None]:
    """Turns DuckDB's complaints about the data into a Fault that says what was being read."""
    try:
        yield
    except COMPLAINTS as error:
        detail = re.sub(r"\s*\n\s*", " ", str(error)).split(" Possible fixes")[0]
        raise Fault(f"{where}: {detail[:500]}") from error


def open_raw(connection: duckdb.DuckDBPyConnection, recipe: Recipe, raw: Path) -> None:
    """Creates the views `raw_log`, `raw_user_<i>`, `raw_item_<i>` and `raw_history_<i>`.

    Raises:
        Fault: files or columns are missing; all of them are named.
    """
    if not raw.is_dir():
        raise Fault(
            f"--raw {raw}: no such folder; it must hold the files that the recipe names, such as {recipe.log.files[0]}"
        )
    faults: list[str] = []
    id_type = "BIGINT" if recipe.log.id_type == "int64" else "VARCHAR"
    log_types = {recipe.log.user: id_type, recipe.log.item: id_type, recipe.log.time: "BIGINT"}
    log_types |= {task.label: "DOUBLE" for task in recipe.tasks}  # an integer type would round 0.5
    for feature in recipe.features:
        if feature.side == "context":
            log_types |= {c: SQL_TYPE[feature.encoding] for c in feature.columns if c not in log_types}
    wanted = list(log_types)
    _view(connection, "raw_log", raw, recipe.log.files, log_types, wanted, faults)
    for side in ("user", "item"):
        _open_side(connection, recipe, raw, side, id_type, faults)
    for k, history in enumerate(recipe.history):
        wanted = [history.user, history.time, history.items]
        _view(connection, f"raw_history_{k}", raw, [history.file], {}, wanted, faults)
    if faults:
        raise Fault(f"raw files do not fit recipe {recipe.name}\n" + "\n".join(f"  {fault}" for fault in faults))
    for behaviour in recipe.behaviours:
        with faults_of(f"recipe {recipe.name}, behaviour {behaviour.name}, where = {behaviour.where!r}"):
            connection.execute(f"SELECT 1 FROM raw_log WHERE {behaviour.where} LIMIT 0").fetchall()


def side_columns(recipe: Recipe, side: str) -> dict[str, str]:
    """Columns that a side's features read -> the SQL type to read them as."""
    return {c: SQL_TYPE[f.encoding] for f in recipe.features if f.side == side for c in f.columns}


def _open_side(
    connection: duckdb.DuckDBPyConnection, recipe: Recipe, raw: Path, side: str, id_type: str, faults: list[str]
) -> None:
    sources: tuple[SourceRecipe, ...] = getattr(recipe.sides, side)
    own_key = recipe.log.user if side == "user" else recipe.log.item
    wanted = side_columns(recipe, side)
    found: set[str] = {own_key}
    for k, source in enumerate(sources):
        types = {c: kind for c, kind in wanted.items() if c not in found} | {source.key: id_type}
        found |= _view(connection, f"raw_{side}_{k}", raw, source.files, types, [source.key], faults)
    for column in wanted:
        if column not in found:
            files = [file for source in sources for file in source.files]
            where = ", ".join(files) or "(no file)"
            faults.append(f"{side} feature {column!r}: no such column in {where}{did_you_mean(column, found)}")


def _view(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    raw: Path,
    files: Iterable[str],
    types: dict[str, str],
    wanted: list[str],
    faults: list[str],
) -> set[str]:
    """Creates one view over all parts and returns its columns; appends to `faults` instead of raising."""
    paths = [raw / file for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        faults.extend(f"{path}: no such file" for path in missing)
        return set(types)
    headers = {path: _columns(connection, path) for path in paths}
    first = headers[paths[0]]
    for path, columns in headers.items():
        if columns != first:
            faults.append(f"{path}: its columns differ from those of {paths[0]}; parts of one table must agree")
        faults += [f"{path}: no column {w!r}{did_you_mean(w, columns)}" for w in wanted if w not in columns]
    if not faults:
        typed = {c: kind for c, kind in types.items() if c in first}
        with faults_of(", ".join(str(path) for path in paths)):
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {_scan(paths, typed)}")
    return set(first)


def _columns(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    with faults_of(str(path)):
        return [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {_scan([path], {})}").fetchall()]


def _scan(paths: list[Path], types: dict[str, str]) -> str:
    """A FROM clause; only columns whose type matters are forced, DuckDB detects the others."""
    names = "[" + ", ".join(literal(str(path)) for path in paths) + "]"
    if paths[0].suffix == ".parquet":
        casts = ", ".join(f"CAST({quoted(c)} AS {kind}) AS {quoted(c)}" for c, kind in types.items())
        return f"(SELECT * REPLACE ({casts}) FROM read_parquet({names}))" if casts else f"read_parquet({names})"
    forced = ", ".join(f"{literal(c)}: {literal(kind)}" for c, kind in types.items())
    return f"read_csv({names}, {CSV_FORMAT}, {f'types = {{{forced}}}' if forced else 'all_varchar = true'})"
