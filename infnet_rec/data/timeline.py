"""The log in (user, time) order, cut into events per behaviour and examples per split.

N rows, U users, V behaviours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from infnet_rec.data.raw import quoted
from infnet_rec.data.recipe import Recipe
from infnet_rec.data.store import SPLITS, ColumnSpool
from infnet_rec.data.vocab import Vocabulary, clock, clock_ids, fit_index, id_sql, value_sql

CHUNK_ROWS = 262_144

Chunk = dict[str, np.ndarray]


def fit_context(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> dict[str, Vocabulary]:
    """Vocabularies of the features read from the log itself, from training examples only."""
    first, last = recipe.instant(recipe.splits.train), recipe.instant(recipe.splits.valid)
    found = {}
    for feature in recipe.features:
        if feature.side != "context":
            continue
        for name in feature.named_columns:
            if feature.encoding == "index":
                value = value_sql(quoted("context_" + name), feature.null_values)
                source = f"(SELECT *, 1 AS weight FROM rows WHERE is_example AND time >= {first} AND time < {last})"
                found[name] = fit_index(connection, source, name, value)
            else:
                found[name] = clock(name, feature.encoding)
    return found


def sorted_chunks(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> Iterator[Chunk]:
    """Streams `rows` sorted by (user, time) as numpy columns; no user is cut between two chunks."""
    context = [f for f in recipe.features if f.side == "context" and f.encoding == "index"]
    joins, ids = [], []
    for k, (name, feature) in enumerate((n, f) for f in context for n in f.named_columns):
        value = value_sql(f"r.{quoted('context_' + name)}", feature.null_values)
        joins.append(f"LEFT JOIN {quoted('vocab_' + name)} AS v{k} ON v{k}.value = {value}")
        ids.append(f"{id_sql(value, f'v{k}')} AS {quoted('context_' + name)}")
    labels = [f"coalesce(r.{quoted('label_' + t.name)}, 0) AS {quoted('label_' + t.name)}" for t in recipe.tasks]
    flags = [f"r.{quoted('is_' + b.name)}" for b in recipe.behaviours]
    columns = ", ".join(["r.user", "r.item", "r.time", "r.is_example", *flags, *labels, *ids])
    # All that an example keeps, so that neither threads nor the order of the raw rows show in the store.
    ties = [f"label_{t.name}" for t in recipe.tasks] + [f"context_{n}" for f in context for n in f.named_columns]
    order = ", ".join(["r.user", "r.time", "r.position", "r.item", *map(quoted, ties)])
    reader = connection.sql(f"SELECT {columns} FROM rows AS r {' '.join(joins)} ORDER BY {order}").to_arrow_reader(
        CHUNK_ROWS
    )
    kept: Chunk | None = None
    for batch in reader:
        chunk = {n: batch.column(n).to_numpy(zero_copy_only=False) for n in batch.schema.names}
        if kept is not None:
            chunk = {n: np.concatenate([kept[n], column]) for n, column in chunk.items()}
        last_user = int(np.searchsorted(chunk["user"], chunk["user"][-1]))
        kept = {n: column[last_user:] for n, column in chunk.items()}
        if last_user:
            yield {n: column[:last_user] for n, column in chunk.items()}
    if kept is not None:
        yield kept


def strictly_earlier(user_N: np.ndarray, time_N: np.ndarray, happened_N: np.ndarray) -> np.ndarray:
    """For each row, how many events of the same user are strictly earlier; int64 [N].

    Rows of one instant do not see each other: one page of results shares a timestamp, and a duplicate is no history.

    Args:
        user_N: users, sorted.
        time_N: instants, sorted within a user.
        happened_N: whether the row is an event.
    """
    new_user = np.append(True, user_N[1:] != user_N[:-1])
    new_instant = new_user | np.append(True, time_N[1:] != time_N[:-1])
    rows = np.arange(len(user_N))
    user_start = np.maximum.accumulate(np.where(new_user, rows, 0))
    instant_start = np.maximum.accumulate(np.where(new_instant, rows, 0))
    before = np.cumsum(happened_N, dtype=np.int64) - happened_N
    return before[instant_start] - before[user_start]


@dataclass(slots=True)
class Timeline:
    """Spools for events and examples, filled chunk by chunk; `starts_UV` is complete after the last chunk."""

    recipe: Recipe
    events: dict[str, ColumnSpool]
    examples: dict[str, ColumnSpool]
    num_events_UV: np.ndarray
    positives: dict[str, dict[str, int]]

    @property
    def starts_UV(self) -> np.ndarray:
        """Where each user's events begin, int64 [U, V]."""
        return np.cumsum(self.num_events_UV, axis=0) - self.num_events_UV

    def add(self, chunk: Chunk) -> None:
        """Takes the rows of some whole users."""
        recipe, log = self.recipe, self.recipe.log
        ticks = 1000 if log.time_unit == "ms" else 1
        columns: Chunk = {"user": chunk["user"], "item": chunk["item"], "time": chunk["time"]}
        for feature in recipe.features:
            if feature.side == "context":
                for name in feature.named_columns:
                    columns[f"context_{name}"] = (
                        chunk[f"context_{name}"]
                        if feature.encoding == "index"
                        else clock_ids(feature.encoding, chunk["time"], ticks, log.utc_offset_hours)
                    )
        for task in recipe.tasks:
            columns[f"label_{task.name}"] = chunk[f"label_{task.name}"]
        for v, behaviour in enumerate(recipe.behaviours):
            happened = chunk[f"is_{behaviour.name}"].astype(bool)
            columns[f"seen_{behaviour.name}"] = strictly_earlier(chunk["user"], chunk["time"], happened)
            self.events[behaviour.name].append({"item": chunk["item"][happened], "time": chunk["time"][happened]})
            self.num_events_UV[:, v] += np.bincount(chunk["user"][happened], minlength=len(self.num_events_UV))
        splits = recipe.splits
        bounds = [recipe.instant(t) for t in (splits.train, splits.valid, splits.test, splits.end)]
        split_N = np.searchsorted(bounds, chunk["time"], side="right") - 1
        for k, split in enumerate(SPLITS):
            chosen = (split_N == k) & chunk["is_example"].astype(bool)
            self.examples[split].append({name: column[chosen] for name, column in columns.items()})
            for task in recipe.tasks:
                self.positives[split][task.name] += int(columns[f"label_{task.name}"][chosen].sum())


def run_timeline(
    connection: duckdb.DuckDBPyConnection, recipe: Recipe, folder: Path, num_users: int, progress: Callable[[int], None]
) -> Timeline:
    """Sorts the log and spools every event and example under `folder`.

    Args:
        connection: where `rows` lives.
        recipe: the dataset.
        folder: for the spools.
        num_users: U.
        progress: called with the number of rows of each finished chunk.
    """
    context = [n for f in recipe.features if f.side == "context" for n in f.named_columns]
    columns = {"user": "int32", "item": "int32", "time": "int64"}
    columns |= {f"context_{name}": "int32" for name in context}
    columns |= {f"label_{task.name}": "uint8" for task in recipe.tasks}
    columns |= {f"seen_{behaviour.name}": "uint32" for behaviour in recipe.behaviours}
    timeline = Timeline(
        recipe,
        {
            b.name: ColumnSpool(folder / "events" / b.name, {"item": "int32", "time": "int64"})
            for b in recipe.behaviours
        },
        {split: ColumnSpool(folder / "examples" / split, columns) for split in SPLITS},
        np.zeros((num_users, len(recipe.behaviours)), np.int64),
        {split: {task.name: 0 for task in recipe.tasks} for split in SPLITS},
    )
    for chunk in sorted_chunks(connection, recipe):
        timeline.add(chunk)
        progress(len(chunk["user"]))
    return timeline
