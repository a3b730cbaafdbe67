"""The log in (user, time) order, cut into events per behaviour and examples per split.

A bucket is a range of users. Buckets know nothing of each other: each is sorted and counted alone, here by a few
threads, and their parts are laid end to end.

N rows, U users, V behaviours.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from infnet_rec.data.ingest.interactions import TRAIN
from infnet_rec.data.ingest.recipe import FeatureRecipe, Recipe
from infnet_rec.data.ingest.staging import ColumnSpool, in_order
from infnet_rec.data.ingest.vocabulary import (
    Vocabulary,
    clock_ids,
    clock_vocabulary,
    fit_index,
    fit_quantile,
    hash_id_sql,
    hashed,
    index_id_sql,
    values_sql,
)
from infnet_rec.data.parsing.values import known_sql, quoted
from infnet_rec.data.store import SPLITS, count_dtype, id_dtype
from infnet_rec.schema import EMPTY_SLOT, NULL_ID, UNSEEN_ID

BYTES_A_ROW = 400  # of a bucket in memory: DuckDB's sort, the columns as they come and as they go
MAX_BUCKET_ROWS = 2_000_000

# Truncation lengths whose mean is kept; between them it is nearly a straight line.
KEPT_EVENTS = (5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 350, 500, 1000)

Columns = dict[str, np.ndarray]


def fit_context(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> dict[str, Vocabulary]:
    """Vocabularies of the features read from the log itself, from training examples only."""
    found = {}
    examples = f"FROM rows WHERE example_ AND split = {TRAIN}"
    for feature in recipe.features:
        if feature.side != "context":
            continue
        for name in feature.named_columns:
            column = quoted("context_" + name)
            match feature.encoding:
                case "index":
                    rows = f"SELECT {known_sql(column, feature.null_values)} AS value, 1 AS weight {examples}"
                    found[name] = fit_index(connection, rows, feature, name)
                case "multi":
                    rows = f"SELECT unnest({values_sql(column, feature)}) AS value, 1 AS weight {examples}"
                    found[name] = fit_index(connection, rows, feature, name)
                case "quantile":
                    rows = f"SELECT {column} AS value, 1 AS weight {examples}"
                    found[name] = fit_quantile(connection, rows, name, feature.num_ranges)
                case "hash":
                    found[name] = hashed(name, feature)
                case _:
                    found[name] = clock_vocabulary(name, feature.encoding)
    return found


@dataclass(frozen=True, slots=True)
class UserCounts:
    """How much there is of each user, known before anything is sorted.

    Attributes:
        rows_U: rows of each user.
        most_events: for each behaviour, the events of the user who has most.
    """

    rows_U: np.ndarray
    most_events: dict[str, int]

    def buckets(self, memory_gib: float) -> list[tuple[int, int]]:
        """Ranges of users whose rows fit in `memory_gib` GiB together; a user is never cut."""
        bucket_rows = int(min(MAX_BUCKET_ROWS, max(1, memory_gib * 2**30 / BYTES_A_ROW)))
        starts = np.flatnonzero(np.diff((np.cumsum(self.rows_U) - self.rows_U) // bucket_rows, prepend=-1))
        if not len(self.rows_U):
            return [(0, 0)]
        return list(zip(starts.tolist(), [*starts[1:].tolist(), len(self.rows_U)], strict=True))


def count_users(connection: duckdb.DuckDBPyConnection, recipe: Recipe, num_users: int) -> UserCounts:
    """Counts the rows and events of every user."""
    events = [f", count(*) FILTER ({quoted('is_' + b.name)}) AS e{v}" for v, b in enumerate(recipe.behaviours)]
    found: Any = connection.execute(f"SELECT user, count(*) AS n{''.join(events)} FROM rows GROUP BY 1").fetchnumpy()
    rows_U = np.zeros(num_users, np.int64)
    rows_U[found["user"]] = found["n"]
    return UserCounts(rows_U, {b.name: int(found[f"e{v}"].max(initial=0)) for v, b in enumerate(recipe.behaviours)})


def _starts(user_N: np.ndarray, time_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row, the first row of its user, and the first row of its user and instant; both sorted.

    Events before the second and not before the first are strictly earlier. Rows of one instant do not see each other:
    one page of results shares a timestamp, and a duplicate is no history.
    """
    new_user = np.diff(user_N, prepend=-1) != 0
    new_instant = new_user | (np.diff(time_N, prepend=-1) != 0)
    rows = np.arange(len(user_N))
    return (
        np.maximum.accumulate(np.where(new_user, rows, 0)),
        np.maximum.accumulate(np.where(new_instant, rows, 0)),
    )


@dataclass(frozen=True, slots=True)
class TimelinePart:
    """The events and examples of one bucket, sorted; `num_events_UV` is over the bucket's users only."""

    first_user: int
    num_rows: int
    events: dict[str, Columns]
    examples: dict[str, Columns]
    num_events_UV: np.ndarray


@dataclass(frozen=True, slots=True)
class Bucketing:
    """Reads a bucket from the table `rows`."""

    recipe: Recipe
    vocabularies: dict[str, Vocabulary]

    def query(self, first_user: int, last_user: int) -> str:
        """The bucket's rows with their context ids, sorted by (user, time).

        A context feature of several values is as many columns, a quantile feature its number.
        """
        joins, ids, lists = [], [], []
        for k, (name, feature) in enumerate(self.recipe.raw_context.items()):
            column, raw = quoted("context_" + name), f"r.{quoted('context_' + name)}"
            value = known_sql(raw, feature.null_values)
            match feature.encoding:
                case "index":
                    joins.append(f"LEFT JOIN {quoted('vocab_' + name)} AS v{k} ON v{k}.value = {value}")
                    ids.append(f"{index_id_sql(value, f'v{k}')} AS {column}")
                case "hash":
                    ids.append(f"{hash_id_sql(value, feature)} AS {column}")
                case "quantile":
                    ids.append(f"coalesce({raw}, 'nan'::DOUBLE) AS {column}")
                case _:
                    lists.append(self._lists(k, name, feature))
                    joins.append(f"LEFT JOIN m{k} ON m{k}.row_ = r.row_")
                    empty = [NULL_ID] + [EMPTY_SLOT] * (feature.max_values - 1)
                    names = _value_columns(name, feature)
                    ids += [f"coalesce(m{k}.ids[{n + 1}], {empty[n]}) AS {quoted(c)}" for n, c in enumerate(names)]
        labels = [
            f"coalesce(r.{quoted(f'label_{t.name}')}, 0) AS {quoted(f'label_{t.name}')}" for t in self.recipe.tasks
        ]
        flags = [f"r.{quoted('is_' + b.name)}" for b in self.recipe.behaviours]
        columns = ["r.user", "r.item", "r.time", "CASE WHEN example_ THEN split ELSE -1 END AS split"]
        # All that an example keeps, so that neither threads nor the order of the raw rows show in the store.
        ties = [f"label_{t.name}" for t in self.recipe.tasks]
        ties += [c for name, feature in self.recipe.raw_context.items() for c in _value_columns(name, feature)]
        if self.recipe.log.weight:
            # A seeded event is no example.
            columns.append("coalesce(r.weight_, 1) AS weight")
            ties.append("weight")
        order = ", ".join(["r.user", "r.time", "r.position", "r.item", "split", *map(quoted, ties)])
        bucket = f"SELECT * FROM rows WHERE rows.user >= {first_user} AND rows.user < {last_user}"
        source, rows = "", f"({bucket})"
        if lists:
            # Rows have no number until one is asked for, and then all parts of the query must see the same.
            numbered = f"numbered AS MATERIALIZED (SELECT *, row_number() OVER () AS row_ FROM ({bucket}))"
            source, rows = f"WITH {', '.join([numbered, *lists])} ", "numbered"
        return f"""{source}SELECT {", ".join([*columns, *flags, *labels, *ids])} FROM {rows} AS r
            {" ".join(joins)} ORDER BY {order}"""

    def _lists(self, k: int, name: str, feature: FeatureRecipe) -> str:
        """SQL of the lists of ids of a feature of several values, by row."""
        values = values_sql(quoted("context_" + name), feature)
        return f"""m{k} AS (SELECT row_, list(coalesce(v.id, {UNSEEN_ID}) ORDER BY place) AS ids FROM
            (SELECT row_, unnest({values}) AS value, generate_subscripts({values}, 1) AS place FROM numbered) AS s
            LEFT JOIN {quoted("vocab_" + name)} AS v ON v.value = s.value GROUP BY row_)"""

    def _context_ids(self, name: str, feature: FeatureRecipe, found: dict[str, Any], time: np.ndarray) -> np.ndarray:
        """The ids of a context feature, [N], or [N, max_values]; takes its columns out of `found`."""
        if feature.is_clock:
            offset = self.recipe.log.utc_offset_hours
            return clock_ids(feature.encoding, time, self.recipe.ticks_per_second, offset)
        columns = [np.asarray(found.pop(column)) for column in _value_columns(name, feature)]
        if feature.encoding == "quantile":
            return self.vocabularies[name].encode_numbers(columns[0].astype(np.float64))
        return columns[0] if feature.encoding != "multi" else np.stack(columns, axis=1).astype(np.int32)

    def read(self, cursor: duckdb.DuckDBPyConnection, first_user: int, last_user: int) -> TimelinePart:
        """Sorts and counts one bucket."""
        found: Any = cursor.execute(self.query(first_user, last_user)).fetchnumpy()
        user, item, time = (np.asarray(found.pop(name)) for name in ("user", "item", "time"))
        columns: Columns = {"user": user, "item": item, "time": time}
        for feature in self.recipe.features:
            if feature.side == "context":
                for name in feature.named_columns:
                    columns[f"context_{name}"] = self._context_ids(name, feature, found, time)
        for task in self.recipe.tasks:
            columns[f"label_{task.name}"] = found.pop(f"label_{task.name}")
        if self.recipe.log.weight:
            columns["weight"] = found.pop("weight").astype(np.float32)
        num_users = last_user - first_user
        num_events_UV = np.zeros((num_users, len(self.recipe.behaviours)), np.int64)
        events = {}
        user_start, instant_start = _starts(user, time)
        for v, behaviour in enumerate(self.recipe.behaviours):
            happened = found.pop(f"is_{behaviour.name}").astype(bool)
            kept = ("item", "time", *(f"context_{name}" for name in event_context(self.recipe)))
            events[behaviour.name] = {name: columns[name][happened] for name in kept}
            num_events_UV[:, v] = np.bincount(user[happened] - first_user, minlength=num_users)
            before = np.cumsum(happened, dtype=np.int64) - happened
            columns[f"seen_{behaviour.name}"] = before[instant_start] - before[user_start]
        split = found.pop("split")
        splits = splits_of(self.recipe)
        examples = {s: {n: c[split == k] for n, c in columns.items()} for k, s in enumerate(splits)}
        return TimelinePart(first_user, len(user), events, examples, num_events_UV)


@dataclass(slots=True)
class Timeline:
    """Spools for events and examples, filled part by part in the order of users."""

    recipe: Recipe
    events: dict[str, ColumnSpool]
    examples: dict[str, ColumnSpool]
    num_events_UV: np.ndarray
    positives: dict[str, dict[str, int]]
    weight: float = 0.0
    lengths: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def starts_UV(self) -> np.ndarray:
        """Where each user's events begin, int64 [U, V]."""
        return np.cumsum(self.num_events_UV, axis=0) - self.num_events_UV

    def add(self, part: TimelinePart) -> None:
        """Takes the next part."""
        for name, columns in part.events.items():
            self.events[name].append(columns)
        last_user = part.first_user + len(part.num_events_UV)
        self.num_events_UV[part.first_user : last_user] = part.num_events_UV
        for split, columns in part.examples.items():
            self.examples[split].append(columns)
            for task in self.recipe.tasks:
                self.positives[split][task.name] += int(columns[f"label_{task.name}"].sum())
        if self.recipe.log.weight:
            self.weight += float(part.examples[SPLITS[0]]["weight"].sum(dtype=np.float64))
        for behaviour in self.recipe.behaviours:
            seen = np.bincount(part.examples[SPLITS[0]][f"seen_{behaviour.name}"])
            known = self.lengths.get(behaviour.name, np.zeros(0, np.int64))
            longer = np.zeros(max(len(seen), len(known)), np.int64)
            longer[: len(seen)] += seen
            longer[: len(known)] += known
            self.lengths[behaviour.name] = longer

    def history_lengths(self) -> dict[str, dict[str, Any]]:
        """Events before a training example, per behaviour; whole, and the mean when only the newest are kept."""
        found = {}
        for name, count in self.lengths.items():
            total, length = int(count.sum()), np.arange(len(count))
            at = [int(np.searchsorted(np.cumsum(count), total * share, side="left")) for share in (0.5, 0.95)]
            mean = float(count @ length / total) if total else 0.0
            kept = {str(n): float(count @ np.minimum(length, n) / total) if total else 0.0 for n in KEPT_EVENTS}
            found[name] = {
                "mean": mean,
                "p50": at[0],
                "p95": at[1],
                "max": max(len(count) - 1, 0),
                "mean_of_newest": kept,
            }
        return found


def splits_of(recipe: Recipe) -> tuple[str, ...]:
    """Splits by the number that the log gives them."""
    return *SPLITS, *(test.name for test in recipe.further_tests)


def _value_columns(name: str, feature: FeatureRecipe) -> list[str]:
    """Columns of a context feature in a bucket: one, or one a value."""
    if feature.encoding != "multi":
        return [f"context_{name}"]
    return [f"context_{name} {k}" for k in range(1, feature.max_values + 1)]  # no feature's name has a blank


def _context_dtype(vocabulary: Vocabulary) -> str:
    if vocabulary.max_values > 1:
        return f"({vocabulary.max_values},)int32"  # an empty slot is negative
    return id_dtype(vocabulary.num_rows)


def event_context(recipe: Recipe) -> list[str]:
    """The sequence attributes that are columns of the log, not of the item."""
    own = {name for f in recipe.features if f.side == "context" for name in f.named_columns}
    return [name for name in (recipe.sequences.attributes if recipe.sequences else ()) if name in own]


def run_timeline(
    connection: duckdb.DuckDBPyConnection,
    bucketing: Bucketing,
    folder: Path,
    counts: UserCounts,
    *,
    bucket_gib: float,
    num_threads: int,
    progress: Callable[[int], None],
) -> Timeline:
    """Sorts the log and spools every event and example under `folder`.

    Args:
        connection: where `rows` lives.
        bucketing: the dataset.
        folder: for the spools.
        counts: from `count_users`.
        bucket_gib: memory for a bucket.
        num_threads: buckets in work at a time.
        progress: called with the number of rows of each finished bucket.
    """
    recipe = bucketing.recipe
    columns = {"user": "int32", "item": "int32", "time": "int64"}
    context = [n for f in recipe.features if f.side == "context" for n in f.named_columns]
    columns |= {f"context_{name}": _context_dtype(bucketing.vocabularies[name]) for name in context}
    columns |= {f"label_{task.name}": "uint8" for task in recipe.tasks}
    columns |= {"weight": "float32"} if recipe.log.weight else {}
    columns |= {f"seen_{name}": count_dtype(most) for name, most in counts.most_events.items()}
    event = {"item": "int32", "time": "int64"}
    event |= {f"context_{name}": columns[f"context_{name}"] for name in event_context(recipe)}
    timeline = Timeline(
        recipe,
        {b.name: ColumnSpool(folder / "events" / b.name, event) for b in recipe.behaviours},
        {split: ColumnSpool(folder / "examples" / split, columns) for split in splits_of(recipe)},
        np.zeros((len(counts.rows_U), len(recipe.behaviours)), np.int64),
        {split: {task.name: 0 for task in recipe.tasks} for split in splits_of(recipe)},
    )

    def read(bucket: tuple[int, int]) -> TimelinePart:
        return bucketing.read(connection.cursor(), *bucket)

    for part in in_order(read, counts.buckets(bucket_gib), num_threads):
        timeline.add(part)
        progress(part.num_rows)
    return timeline
