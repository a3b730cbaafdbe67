"""A guess as a recipe's text: TOML that builds as it stands, with the reason of every guess as a comment beside it."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from infnet_rec.data.parsing.text_format import CSV_FORMAT, toml_text
from infnet_rec.data.sniff.roles import Guess, GuessedFeature, GuessedJoin, safe_name, small_name
from infnet_rec.data.sniff.sniffer import SniffedTable

SHARE = 0.1  # of valid and of test
MAX_ATTRIBUTES = 4


def render(guess: Guess, folder: Path, name: str) -> str:
    """The recipe.

    Args:
        guess: what the files may mean.
        folder: that the recipe's files are relative to.
        name: of the store.
    """
    parts = [
        _head(guess, folder, name),
        _log(guess),
        *(_join(guess, join) for join in guess.joins),
        *_features(guess),
        _behaviours(guess),
        *_tasks(guess),
        _splits(guess),
        _unused(guess),
    ]
    return "\n\n".join("\n".join(part) for part in map(list, parts) if part) + "\n"


def _head(guess: Guess, folder: Path, name: str) -> Iterator[str]:
    yield "# A first recipe, guessed from the files alone by `infnet-rec data sniff`. Look it over, then build:"
    yield "#"
    yield f"#   infnet-rec data build THIS_FILE --raw {folder} --out stores/{name}"
    yield ""
    yield f"name = {toml_text(name)}"
    yield 'licence = "unknown" # whose data it is, and what may be done with it'


def _log(guess: Guess) -> Iterator[str]:
    yield f"# {guess.log.num_rows:,} rows{_broken(guess.log)}."
    yield "[log]"
    yield from _files(guess.log)
    yield f"user = {toml_text(guess.user[0])} # {guess.user[1]}"
    yield f"item = {toml_text(guess.item[0])} # {guess.item[1]}"
    if guess.time is None:
        yield "# time: no column holds instants, so the rows of a user must stand in the order in which they happened"
    else:
        columns = [toml_text(column) for column in guess.time.columns]
        time = columns[0] if len(columns) == 1 else f"[{', '.join(columns)}]"
        yield f"time = {time} # {guess.time.reason}"
        yield f"time_unit = {toml_text(guess.time.unit)}"
        yield "utc_offset_hours = 0 # of the local clock; the files do not say it"
    yield f"id_type = {toml_text(guess.id_type)} # {guess.id_reason}"


def _broken(table: SniffedTable) -> str:
    return f", and {table.num_broken:,} that do not parse" if table.num_broken else ""


def _files(table: SniffedTable) -> Iterator[str]:
    """The keys that say how files are read, with those left out that have their default."""
    form = table.raw.form
    yield f"files = [{', '.join(map(toml_text, table.files))}]"
    if table.raw.is_parquet:
        return
    if form.delimiter != CSV_FORMAT.delimiter:
        yield f"delimiter = {toml_text(form.delimiter)} # every row has {len(table.columns)} cells so"
    if form.columns:
        yield "header = false # the first line is a row like the others; the names below are ours"
        yield f"columns = [{', '.join(map(toml_text, form.columns))}]"
    if form.quote != CSV_FORMAT.quote:
        yield f"quote = {toml_text(form.quote)} # quotes stand in texts, not around them"
    if form.encoding != CSV_FORMAT.encoding:
        yield f"encoding = {toml_text(form.encoding)} # the text is not UTF-8"


def _join(guess: Guess, join: GuessedJoin) -> Iterator[str]:
    if join.of_log:
        yield f"# Columns of the log that have one value only for each {join.side}: they say something of it."
    else:
        yield f"# {join.reason}; {join.table.num_rows:,} rows{_broken(join.table)}."
    yield f"[[sides.{join.side}]]"
    yield from _files(guess.log if join.of_log else join.table)
    yield f"key = {toml_text(join.key)}"
    if join.of_log:
        yield "first_row_of_each = true"


def _features(guess: Guess) -> Iterator[list[str]]:
    """A block for each feature that needs keys of its own, and one for all that are made alike."""
    names: set[str] = set()

    def kind(feature: GuessedFeature) -> tuple[Any, ...]:
        name = safe_name(feature.column)
        own = name if name != feature.column or name.lower() in names else ""
        if own and name.lower() in names:
            own = f"{feature.side}_{name}"
        names.add((own or name).lower())
        return feature.side, feature.encoding, feature.options, own

    keyed = [(kind(feature), feature) for feature in guess.features]
    order = list(dict.fromkeys(key for key, _ in keyed))
    keyed.sort(key=lambda pair: order.index(pair[0]))
    for (side, encoding, options, own), group in groupby(keyed, key=lambda pair: pair[0]):
        features = [feature for _, feature in group]
        lines = ["[[features]]", f"side = {toml_text(side)}", f"encoding = {toml_text(encoding)}"]
        if len(features) == 1:
            lines.append(f"columns = [{toml_text(features[0].column)}] # {features[0].reason}")
        else:
            lines += ["columns = [", *(f"    {toml_text(f.column)}, # {f.reason}" for f in features), "]"]
        lines += [f"name = {toml_text(own)}"] if own else []
        lines += [_option(key, value) for key, value in options]
        yield lines


def _option(key: str, value: str) -> str:
    if key == "max_values":
        return f"max_values = {value}"
    if key == "null_values":
        return f"null_values = [{', '.join(map(toml_text, value.split('|')))}]"
    return f"{key} = {toml_text(value)}"


def _behaviours(guess: Guess) -> Iterator[str]:
    yield "# What a user did before: a history for each, of the events strictly before the example."
    for label in guess.labels:
        yield "[[behaviours]]"
        yield f"name = {toml_text(label.name)}"
        yield f"where = {toml_text(label.where)} # {label.reason}"
        yield ""
    several = {f.column for f in guess.features if f.encoding == "multi"}
    readable = [f for f in guess.features if f.side == "item" and f.column not in several]
    names = [_name_of(guess, f) for f in readable][:MAX_ATTRIBUTES]
    yield "# What of each past event is read."
    yield "[sequences]"
    yield f"attributes = [{', '.join(map(toml_text, names))}]"


def _name_of(guess: Guess, feature: GuessedFeature) -> str:
    """The feature's name; see `_features`, which gives names in the same order."""
    names: set[str] = set()
    for other in guess.features:
        name = safe_name(other.column)
        name = f"{other.side}_{name}" if name.lower() in names else name
        names.add(name.lower())
        if other is feature:
            return name
    raise AssertionError(feature)


def _tasks(guess: Guess) -> Iterator[list[str]]:
    for label in guess.labels:
        what = f"label = {toml_text(label.column)}" if label.is_flag else f"where = {toml_text(label.where)}"
        yield ["[[tasks]]", f"name = {toml_text(label.name)}", f"{what} # {label.reason}"]


def _splits(guess: Guess) -> Iterator[str]:
    by, reason = guess.splits
    yield f"# {reason[0].upper()}{reason[1:]}."
    yield "[splits]"
    yield f"by = {toml_text(by)}"
    if by != "time":
        yield f"valid = {SHARE}"
        yield f"test = {SHARE}"
        return
    assert guess.time is not None and guess.time.boundaries is not None
    for key, boundary in zip(("train", "valid", "test", "end"), guess.time.boundaries, strict=True):
        yield f"{key} = {boundary.isoformat()}"


def _unused(guess: Guess) -> Iterator[str]:
    if guess.unused:
        yield "# Left out:"
        yield from (f"#   {line}" for line in guess.unused)


def store_name(path: Path) -> str:
    """A name for the store, after the recipe's file."""
    return small_name(path.stem)
