"""The raw files of a recipe, found and opened before anything is read."""

from collections.abc import Iterable
from dataclasses import dataclass

from infnet_rec.data.ingest.raw_files import RawTable, misreading, missing_columns, open_table
from infnet_rec.data.ingest.raw_folder import RawFolder
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.parsing.predicates import Condition, columns_of, parse
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.schema import Side

SIDES: tuple[Side, ...] = ("user", "item")


@dataclass(frozen=True, slots=True)
class RawFiles:
    """The opened raw files of a recipe."""

    log: RawTable
    sides: dict[Side, list[RawTable]]
    histories: list[RawTable]
    further_tests: list[RawTable]


def names_of_files(recipe: Recipe) -> list[str]:
    """All files, patterns and folders that a recipe names."""
    sources = [source for side in SIDES for source in getattr(recipe.sides, side)]
    names = [*recipe.log.files, *(file for source in sources for file in source.files)]
    names += [file for test in recipe.further_tests for file in test.files]
    return [*names, *(history.file for history in recipe.history)]


def open_raw(recipe: Recipe, raw: RawFolder) -> RawFiles:
    """Opens all raw files.

    Raises:
        UserError: files do not fit or columns are missing; all of them are named.
    """
    faults: list[str] = []
    log = _open_log(recipe, raw, recipe.log.files, faults)
    sides: dict[Side, list[RawTable]] = {side: _open_side(recipe, raw, side, faults) for side in SIDES}
    histories = []
    for history in recipe.history:
        table = open_table(raw.of([history.file]), faults)
        if table is not None:
            faults += missing_columns(table, [history.user, history.time, history.items])
            faults += table.type_faults([history.user, history.time], [history.items])
            faults += time_faults(table, [history.time])
            if (items := table.types.get(history.items)) and set(items.kinds) - {"list", "text", "nested"}:
                faults.append(f"history {history.file}: column {history.items} is {items.of_parts[0][1]}, not a list")
            histories.append(table)
    further = [_open_log(recipe, raw, test.files, faults) for test in recipe.further_tests]
    if faults or log is None:
        raise UserError(f"raw files do not fit recipe {recipe.name}\n" + "\n".join(f"  {fault}" for fault in faults))
    return RawFiles(log, sides, histories, [table for table in further if table is not None])


def _open_log(recipe: Recipe, raw: RawFolder, files: Iterable[str], faults: list[str]) -> RawTable | None:
    """Files of the log's format and with its columns."""
    log = open_table(raw.of(files), faults, recipe.log.form, recipe.log.null_values)
    if log is not None:
        wanted = [recipe.log.user, recipe.log.item, *recipe.log.time_columns]
        wanted += [task.label for task in recipe.tasks if task.label is not None]
        wanted += [recipe.log.weight] if recipe.log.weight else []
        own = [f for f in recipe.features if f.side == "context"]
        wanted += [c for f in own if f.encoding == "quantile" for c in f.columns]
        context = [c for f in own if f.encoding != "quantile" for c in f.columns]
        faults += missing_columns(log, dict.fromkeys([*wanted, *context]))
        if misreading(log, [*wanted, *context]):
            return log  # its predicates lack the same columns for the same reason
        wanted += [c for predicate in predicates_of(recipe, log, faults).values() for c in columns_of(predicate)]
        faults += log.type_faults(wanted, context)
        faults += time_faults(log, recipe.log.time_columns)
    return log


def time_faults(table: RawTable, columns: Iterable[str]) -> list[str]:
    """What is wrong with the types of a table's columns of time."""
    mixed = [name for name in columns if name in table.instants and table.instants[name].kind == "mixed"]
    return [
        f"{', '.join(map(str, table.paths))}: column {name} holds times of more than one type, such as dates and "
        "instants with a time zone; write it in one"
        for name in mixed
    ]


def predicates_of(recipe: Recipe, log: RawTable, faults: list[str]) -> dict[str, Condition]:
    """The predicates of behaviours and tasks, parsed; appends to `faults` what is wrong with one.

    Returns:
        `is_<behaviour>` and `label_<task>` -> predicate.
    """
    wheres = [("behaviour", f"is_{b.name}", b.name, b.where) for b in recipe.behaviours]
    wheres += [("task", f"label_{t.name}", t.name, t.where) for t in recipe.tasks if t.where is not None]
    found = {}
    for kind, column, name, where in wheres:
        try:
            found[column] = parse(where, log.columns)
        except ValueError as error:
            faults.append(f"{kind} {name}, where = {where!r}: {error}")
    return found


def _open_side(recipe: Recipe, raw: RawFolder, side: Side, faults: list[str]) -> list[RawTable]:
    tables = []
    found = {recipe.log.user if side == "user" else recipe.log.item}
    all_opened = True
    for source in getattr(recipe.sides, side):
        table = open_table(raw.of(source.files), faults, source.form, source.null_values)
        all_opened &= table is not None
        if table is not None:
            faults += missing_columns(table, [source.key])
            faults += _side_type_faults(recipe, side, source.key, table)
            found |= set(table.columns)
            tables.append(table)
    for column in dict.fromkeys(c for f in recipe.features if f.side == side for c in f.columns):
        if all_opened and column not in found:
            where = ", ".join(file for source in getattr(recipe.sides, side) for file in source.files) or "(no file)"
            faults.append(f"{side} feature {column!r}: no such column in {where}{did_you_mean(column, found)}")
    return tables


def _side_type_faults(recipe: Recipe, side: Side, key: str, table: RawTable) -> list[str]:
    mine = [f for f in recipe.features if f.side == side]
    numbers = [c for f in mine if f.encoding == "quantile" for c in f.columns]
    texts = [c for f in mine if f.encoding != "quantile" for c in f.columns if c not in numbers and c != key]
    return table.type_faults([key, *numbers], texts)
