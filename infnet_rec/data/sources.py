"""The raw files of a recipe, found and opened before anything is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from infnet_rec.data.headers import missing_columns, open_table
from infnet_rec.data.raw import RawTable
from infnet_rec.data.raw_folder import RawFolder
from infnet_rec.data.recipe import Recipe
from infnet_rec.faults import Fault, did_you_mean
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
        Fault: files do not fit or columns are missing; all of them are named.
    """
    faults: list[str] = []
    log = _open_log(recipe, raw, recipe.log.files, faults)
    sides: dict[Side, list[RawTable]] = {side: _open_side(recipe, raw, side, faults) for side in SIDES}
    histories = []
    for history in recipe.history:
        table = open_table(raw.of([history.file]), faults)
        if table is not None:
            faults += missing_columns(table, [history.user, history.time, history.items])
            histories.append(table)
    further = [_open_log(recipe, raw, test.files, faults) for test in recipe.further_tests]
    if faults or log is None:
        raise Fault(f"raw files do not fit recipe {recipe.name}\n" + "\n".join(f"  {fault}" for fault in faults))
    return RawFiles(log, sides, histories, [table for table in further if table is not None])


def _open_log(recipe: Recipe, raw: RawFolder, files: Sequence[str], faults: list[str]) -> RawTable | None:
    """Files of the log's format and with its columns."""
    log = open_table(raw.of(files), faults, recipe.log.form, recipe.log.null_values)
    if log is not None:
        wanted = [recipe.log.user, recipe.log.item, *recipe.log.time_columns]
        wanted += [recipe.log.weight] if recipe.log.weight else []
        wanted += [task.label for task in recipe.tasks]
        wanted += [c for f in recipe.features if f.side == "context" for c in f.columns]
        faults += missing_columns(log, dict.fromkeys(wanted))
    return log


def _open_side(recipe: Recipe, raw: RawFolder, side: Side, faults: list[str]) -> list[RawTable]:
    tables = []
    found = {recipe.log.user if side == "user" else recipe.log.item}
    all_opened = True
    for source in getattr(recipe.sides, side):
        table = open_table(raw.of(source.files), faults, source.form, source.null_values)
        all_opened &= table is not None
        if table is not None:
            faults += missing_columns(table, [source.key])
            found |= set(table.columns)
            tables.append(table)
    for column in dict.fromkeys(c for f in recipe.features if f.side == side for c in f.columns):
        if all_opened and column not in found:
            where = ", ".join(file for source in getattr(recipe.sides, side) for file in source.files) or "(no file)"
            faults.append(f"{side} feature {column!r}: no such column in {where}{did_you_mean(column, found)}")
    return tables
