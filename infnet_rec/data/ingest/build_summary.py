"""What a person must know of a build: rows, joins, the span of the log, and all that is unusual about them.

A side table whose keys are written in another way than the log's joins with nothing, and every model would train on
nulls. So every join is counted on both sides, and one that finds nothing ends the build.

U keys of a side, W columns of its ids.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import duckdb
import numpy as np

from infnet_rec.data.ingest.bad_rows import Quarantine
from infnet_rec.data.ingest.interactions import TEST
from infnet_rec.data.ingest.raw_files import first_value
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.ingest.staging import ColumnSpool
from infnet_rec.errors import UserError
from infnet_rec.schema import NULL_ID, UNSEEN_ID, Side

# A join is told as unusual when it finds fewer of the log's keys than this, and a split when it has fewer examples.
FEW_MATCHED, FEW_EXAMPLES = 0.5, 100
SHOWN_FEATURES = 8
DAY_S = 86_400

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Join:
    """How the keys of one table meet those of the log.

    Attributes:
        kind: a side table, or events from before the log.
        side: of the keys.
        files: of the table.
        key: the table's column.
        num_log_keys: distinct keys of that side in the log, events from before the log included.
        num_log_keys_matched: those of them that the table has.
        num_table_keys: distinct keys of the table.
        num_table_keys_matched: those of them that the log has.
        num_log_rows: rows of the log.
        num_log_rows_matched: those of them whose key the table has.
    """

    kind: Literal["side", "history"]
    side: Side
    files: tuple[str, ...]
    key: str
    num_log_keys: int
    num_log_keys_matched: int
    num_table_keys: int
    num_table_keys_matched: int
    num_log_rows: int
    num_log_rows_matched: int


def measure_joins(connection: duckdb.DuckDBPyConnection, recipe: Recipe, side: Side) -> list[Join]:
    """Counts what each table of a side has in common with the log.

    Args:
        connection: where `<side>_weight` and `side_<side>_<k>` live.
        recipe: whose tables they are.
        side: user or item.

    Raises:
        UserError: a table has nothing in common with the log; a key of each is shown.
    """
    num_log_keys, num_log_rows = connection.execute(
        f"SELECT count(*), coalesce(sum(rows), 0)::BIGINT FROM {side}_weight"
    ).fetchall()[0]
    joins: list[Join] = []
    for k, source in enumerate(getattr(recipe.sides, side)):
        table = f"side_{side}_{k}"
        matched, rows = connection.execute(
            f"SELECT count(*), coalesce(sum(w.rows), 0)::BIGINT FROM {table} AS s JOIN {side}_weight AS w USING (key)"
        ).fetchall()[0]
        num_keys = first_value(connection, f"SELECT count(*) FROM {table}")
        name = f"{', '.join(source.files)} ({side} side)"
        if not matched and num_log_keys:
            column = recipe.log.user if side == "user" else recipe.log.item
            raise UserError(_nothing_matched(connection, table, side, name, (source.key, column), num_log_keys))
        # A key stands once in a table, so as many of the table's keys are matched as of the log's.
        numbers = num_log_keys, matched, num_keys, matched, num_log_rows, rows
        joins.append(Join("side", side, source.files, source.key, *numbers))
    return joins


def measure_history(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> list[Join]:
    """Counts what the events from before the log have in common with it, by user; nothing without such events.

    Raises:
        UserError: none of their users has an example.
    """
    if not recipe.history:
        return []
    found = connection.execute(
        """SELECT count(*) FILTER (examples > 0), count(*) FILTER (examples > 0 AND rows > examples),
        count(*) FILTER (rows > examples), coalesce(sum(examples), 0)::BIGINT,
        coalesce(sum(examples) FILTER (rows > examples), 0)::BIGINT FROM user_weight"""
    ).fetchall()[0]
    num_log_keys, matched, num_table_keys, num_log_rows, rows = found
    files = tuple(dict.fromkeys(history.file for history in recipe.history))
    key = recipe.history[0].user
    if num_table_keys and not matched:
        theirs, ours = (
            first_value(connection, f"SELECT min(key) FROM user_weight WHERE {which}")
            for which in ("examples = 0", "examples > 0")
        )
        raise UserError(
            f"history {', '.join(files)}: none of its {num_table_keys:,} users is in the log, which has "
            f"{num_log_keys:,}: {key} is {theirs!r} there, {recipe.log.user} is {ours!r} in the log; write them alike, "
            "or name the column that has the log's ids, user ="
        )
    numbers = num_log_keys, matched, num_table_keys, matched, num_log_rows, rows
    return [Join("history", "user", files, key, *numbers)]


def _nothing_matched(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    side: Side,
    name: str,
    columns: tuple[str, str],
    num_log_keys: int,
) -> str:
    """The message; keys that would be one if they were written alike are shown, where there are any."""
    key, column = columns
    num_keys = first_value(connection, f"SELECT count(*) FROM {table}")
    if not num_keys:
        return f"{name}: has no usable row, so that no {side} of the log is in it; mend the file or leave the table out"
    text = "CAST(key AS VARCHAR)"
    alike = f"lower(ltrim(regexp_replace(trim({text}), '\\.0+$', ''), '0'))"
    pairs = connection.execute(
        f"""SELECT t.text, l.text FROM (SELECT {text} AS text, {alike} AS alike FROM {table}) AS t
        JOIN (SELECT {text} AS text, {alike} AS alike FROM {side}_weight) AS l USING (alike) ORDER BY ALL LIMIT 1"""
    ).fetchall()
    if not pairs:
        either = (first_value(connection, f"SELECT min({text}) FROM {rows}") for rows in (table, f"{side}_weight"))
        pairs = [tuple(either)]
    theirs, ours = pairs[0]
    return (
        f"{name}: none of its {num_keys:,} keys is among the log's {num_log_keys:,}: {key} is {theirs!r} in the table, "
        f"{column} is {ours!r} in the log{_difference(theirs, ours)}; write them alike, or name the column that has "
        "the log's ids, key ="
    )


def _difference(theirs: str, ours: str) -> str:
    """In words, what keeps two keys from being one; "" where they have nothing to do with each other."""
    steps = (
        ("blanks around it", str.strip),
        ("a decimal point", lambda text: text.strip().removesuffix(".0")),
        ("zeros in front", lambda text: text.strip().removesuffix(".0").lstrip("0")),
        ("upper and lower case", lambda text: text.strip().removesuffix(".0").lstrip("0").lower()),
    )
    return next((f" ({what})" for what, plain in steps if plain(theirs) == plain(ours)), "")


def measure_log(connection: duckdb.DuckDBPyConnection, recipe: Recipe, quarantine: Quarantine) -> JSON:
    """Rows of the log, and its first and last instant.

    Args:
        connection: where `rows` lives.
        recipe: whose log it is.
        quarantine: that counted its rows.

    Returns:
        `rows_read` (bad ones included), `bad`, `after_end` (rows from the end of the splits on, which are left out),
        `history_only` (rows before the training window) and `rows`, those that examples are made of; `first` and
        `last` on the local clock, None without time; `whole_days`, whether every instant is a midnight.
    """
    num, before, first, last, whole_days = connection.execute(
        f"""SELECT count(*), count(*) FILTER (split < 0), min(time), max(time),
        bool_and((time + {recipe.log.utc_offset_hours * 3600 * recipe.ticks_per_second})
            % {DAY_S * recipe.ticks_per_second} = 0)
        FROM rows WHERE example_ AND split <= {TEST}"""
    ).fetchall()[0]
    has_time = recipe.log.time is not None
    return {
        "rows_read": quarantine.rows_read.get("the log", num),
        "bad": quarantine.counts.get("the log", 0),
        "after_end": quarantine.left_out.get("the log", 0),
        "history_only": before,
        "rows": num,
        "first": _local(recipe, first) if has_time and num else None,
        "last": _local(recipe, last) if has_time and num else None,
        "whole_days": bool(has_time and whole_days),
    }


def _local(recipe: Recipe, instant: int) -> str:
    seconds = instant / recipe.ticks_per_second
    try:
        local = datetime.fromtimestamp(seconds, UTC) + timedelta(hours=recipe.log.utc_offset_hours)
    except (ValueError, OverflowError):
        return f"instant {instant}"
    return local.strftime("%Y-%m-%d %H:%M:%S")


def flat_features(
    sides: Mapping[Side, ColumnSpool], train: ColumnSpool, columns: Mapping[str, list[str]]
) -> dict[str, str]:
    """The features that have one and the same id in every training example, with what that is.

    Args:
        sides: the ids of all users and items.
        train: the training examples.
        columns: the features of the columns of each side and of the context, as the manifest names them.

    Returns:
        Feature -> "null", "rare" (every value is rarer than its `min_count`) or "constant".
    """
    found: dict[str, str] = {}
    for side, spool in sides.items():
        used_U = np.zeros(spool.num_rows, bool)
        for rows in train.chunks(side):
            used_U[rows] = True
        low_W, high_W, start = None, None, 0
        for ids in spool.chunks("ids"):
            mine = ids[used_U[start : start + len(ids)]]
            start += len(ids)
            if len(mine) and mine.shape[1]:
                low_W = mine.min(axis=0) if low_W is None else np.minimum(low_W, mine.min(axis=0))
                high_W = mine.max(axis=0) if high_W is None else np.maximum(high_W, mine.max(axis=0))
        if low_W is not None and high_W is not None:
            found |= _flat(columns[side], low_W, high_W)
    for name in columns["context"]:
        chunks = list(map(_ends, train.chunks(f"context_{name}")))
        if chunks:
            low, high = min(low for low, _ in chunks), max(high for _, high in chunks)
            found |= _flat([name], np.array([low]), np.array([high]))
    return found


def _ends(ids: np.ndarray) -> tuple[int, int]:
    return int(ids.min()), int(ids.max())


def _flat(names: list[str], low_W: np.ndarray, high_W: np.ndarray) -> dict[str, str]:
    """Of columns; a feature of several columns, its several values, is flat if all of them are."""
    varied = {name for name, flat in zip(names, low_W == high_W, strict=True) if not flat}
    kinds = {NULL_ID: "null", UNSEEN_ID: "rare"}
    first = {name: int(low) for name, low in reversed(list(zip(names, low_W, strict=True)))}
    return {name: kinds.get(first[name], "constant") for name in dict.fromkeys(names) if name not in varied}


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each thing that is unusual about a store, from its manifest; most often nothing is."""
    return [
        *_log_warnings(manifest["log"]),
        *_join_warnings(manifest["joins"]),
        *_behaviour_warnings(manifest),
        *_split_warnings(manifest["splits"]),
        *_feature_warnings(manifest["flat_features"]),
    ]


def _log_warnings(log: JSON) -> Iterator[str]:
    if log["after_end"]:
        yield f"{log['after_end']:,} rows of the log lie after splits.end and were left out"
    if log["whole_days"]:
        yield "every time of the log is a midnight: rows of one day do not see each other, and hours say nothing"


def _join_warnings(joins: list[JSON]) -> Iterator[str]:
    for join in joins:
        share = join["num_log_keys_matched"] / max(1, join["num_log_keys"])
        if share < FEW_MATCHED and join["kind"] == "side":
            missing = join["num_log_keys"] - join["num_log_keys_matched"]
            yield (
                f"{', '.join(join['files'])} ({join['side']} side) lacks {missing:,} of the log's "
                f"{join['num_log_keys']:,} {join['side']}s; its features are null for them"
            )


def _behaviour_warnings(manifest: Mapping[str, Any]) -> Iterator[str]:
    # Events from before the log are no rows of it, so a behaviour that has such may have as many events by chance.
    seeded = {history["behaviour"] for history in manifest["recipe"]["history"]}
    for name, facts in manifest["behaviours"].items():
        if not facts["num_events"]:
            yield f"behaviour {name} never happens: its histories are empty"
        elif facts["num_events"] == manifest["log"]["rows"] and name not in seeded:
            yield f"behaviour {name} happens in every row of the log"


def _split_warnings(splits: JSON) -> Iterator[str]:
    for split, facts in splits.items():
        if facts["num_examples"] < FEW_EXAMPLES:
            yield f"{split} has {facts['num_examples']:,} examples only"
        for task, rate in facts["label_rates"].items():
            if rate in (0.0, 1.0):
                remedy = "nothing can be learned of it" if split == "train" else "it cannot be judged there"
                yield f"task {task}: every label of {split} is {int(rate)}; {remedy}"


def _feature_warnings(flat: Mapping[str, str]) -> Iterator[str]:
    texts = {
        "null": "always null in training",
        "rare": "never a known value in training, as every value is rarer than min_count",
        "constant": "constant in training",
    }
    for kind, text in texts.items():
        names = [name for name, found in flat.items() if found == kind]
        if names:
            more = f" and {len(names) - SHOWN_FEATURES} more" if len(names) > SHOWN_FEATURES else ""
            one = len(names) == 1
            yield f"feature{'s' * (not one)} {', '.join(names[:SHOWN_FEATURES])}{more}: {text}"


def as_json(joins: list[Join]) -> list[JSON]:
    """As the manifest holds them."""
    return [asdict(join) for join in joins]


def log_lines(manifest: Mapping[str, Any]) -> list[str]:
    """The rows of the log and its joins for people; nothing for a store of an older version, which does not know."""
    log = manifest.get("log")
    if log is None:
        return []
    parts = [f"{log['rows_read']:,} rows read"]
    for key, text in (("bad", "bad"), ("after_end", "after the end of the splits")):
        parts += [f"{log[key]:,} {text}"] if log[key] else []
    parts += [f"{log['history_only']:,} for histories only"] if log["history_only"] else []
    span = f"; {log['first']} to {log['last']}, local time" if log["first"] else ""
    lines = [f"log: {', '.join(parts)}{span}"]
    for join in manifest["joins"]:
        first, *others = join["files"]
        name = first + (f" and {len(others)} more" if others else "")
        lines.append(
            f"{name}: {_of(join, 'log_keys')} {join['side']}s and {_of(join, 'log_rows')} rows of the log; "
            f"{_of(join, 'table_keys')} of its own keys"
        )
    return lines


def _of(join: JSON, what: str) -> str:
    matched, number = join[f"num_{what}_matched"], join[f"num_{what}"]
    return f"all {number:,}" if matched == number else f"{matched:,} of {number:,}"
