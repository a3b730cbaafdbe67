"""What a store must hold, worked out slowly from the raw files: csv, dicts and lists, one row at a time.

Shares no code with the package: a recipe comes as the plain dict that TOML gives, and pyarrow only opens Parquet files.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

import slow_values
from raw_cells import Cell, columns_of, hashed_number, read_rows
from slow_values import BadCell, Predicate

UNSEEN, NULL, ZERO, FIRST_VALUE, FIRST_RANGE, EMPTY = 0, 1, 2, 2, 3, -1
SPLITS = ("train", "valid", "test")

Key = int | str


class Row(NamedTuple):
    """One row of the log; `labels` and `context` (raw text of the columns that are features) in the recipe's order.

    `split` is None before the first split.
    """

    user: Key
    item: Key
    time: int
    behaviours: frozenset[str]
    labels: tuple[int, ...]
    context: tuple[str, ...]
    split: str | None = None


class Event(NamedTuple):
    """Sorts as a history is ordered: by time, then by place in a seeded list, then by what an example keeps."""

    time: int
    position: int
    item: Key
    split: int
    labels: tuple[int, ...]
    context: tuple[int, ...]


def range_id(number: float | None, edges: list[float]) -> int:
    """The id of a number among ranges."""
    if number is None or number == 0:
        return NULL if number is None else ZERO
    return FIRST_RANGE + sum(edge <= number for edge in edges)


class Reference:
    """A dataset in dicts and lists."""

    def __init__(self, recipe: dict[str, Any], raw: Path, edges: dict[str, list[float]] | None = None) -> None:
        """`edges` are the inner borders of the store's ranges, which are checked by themselves."""
        self.edges = edges or {}
        self.recipe, self.raw, self.log = recipe, raw, recipe["log"]
        self.ticks = {"ms": 1000, "s": 1}[self.log.get("time_unit", "ms")]
        self.is_integer = self.log.get("id_type", "int64") == "int64"
        self.features = {
            feature.get("name", column): (feature, column)
            for feature in recipe["features"]
            for column in feature["columns"]
        }
        self.tasks = [task["name"] for task in recipe["tasks"]]
        self.behaviours = [behaviour["name"] for behaviour in recipe["behaviours"]]
        self.texts_of_context = [
            name
            for name, (f, _) in self.features.items()
            if f["side"] == "context" and f["encoding"] in ("index", "hash", "multi", "quantile")
        ]
        self.shares = recipe["splits"] if "by" in recipe["splits"] else None
        self.bounds = [] if self.shares else [self._instant(recipe["splits"][name]) for name in (*SPLITS, "end")]
        self.rows = self._split(list(self._log_rows()))
        self.by_user: dict[Key, list[Row]] = defaultdict(list)
        for row in self.rows:
            self.by_user[row.user].append(row)
        self.weights = {"user": Counter(), "item": Counter()}
        self._count_lookups()
        self.side_cells = {side: self._side_cells(side) for side in ("user", "item")}
        indexed = [name for name, (f, _) in self.features.items() if f["encoding"] in ("index", "multi")]
        self.vocabularies = {name: self._vocabulary(name) for name in indexed}
        self.ids = {name: {v: k for k, v in enumerate(self.vocabularies[name], FIRST_VALUE)} for name in indexed}
        self.events = self._events()

    def _instant(self, local: Any) -> int:
        """A date of the recipe in the log's ticks, by counting days by hand."""
        since = datetime.fromisoformat(local.isoformat()) - datetime(1970, 1, 1)
        return round((since - timedelta(hours=self.log.get("utc_offset_hours", 0))).total_seconds() * self.ticks)

    def key(self, text: str, nulls: tuple[str, ...] = ()) -> Key:
        """A user's or an item's id; raises BadCell."""
        if self.is_integer:
            return slow_values.whole(text, nulls)
        if (found := slow_values.value(text, nulls)) is None:
            raise BadCell(text)
        return found

    def _log_rows(self) -> Iterator[Row]:
        """The good rows."""
        nulls, number = tuple(self.log.get("null_values", ())), 0
        wheres = [(b["name"], Predicate(b["where"], nulls)) for b in self.recipe["behaviours"]]
        tasks = [Predicate(t["where"], nulls) if "where" in t else t["label"] for t in self.recipe["tasks"]]
        context = [self.features[name][1] for name in self.texts_of_context]
        wanted = {self.log["user"], self.log["item"], *context, *(t for t in tasks if isinstance(t, str))}
        wanted |= {self.log["time"]} if "time" in self.log else set()
        wanted |= {c for p in [*(w for _, w in wheres), *tasks] if isinstance(p, Predicate) for c in p.columns}
        for file in self.log["files"]:
            for cells in read_rows(self.raw / file, list(wanted)):
                row = dict(zip(wanted, cells, strict=True))
                try:
                    found = self._log_row(row, wheres, tasks, nulls)
                except BadCell:
                    continue
                number += 1
                texts = tuple(str(slow_values.value(row[c], nulls) or "") for c in context)
                yield found._replace(context=texts, time=found.time if "time" in self.log else number)

    def _log_row(
        self,
        row: dict[str, str],
        wheres: list[tuple[str, Predicate]],
        tasks: list[Predicate | str],
        nulls: tuple[str, ...],
    ) -> Row:
        user, item = (self.key(row[self.log[side]], nulls) for side in ("user", "item"))
        time = slow_values.whole(row[self.log["time"]], nulls) if "time" in self.log else 0
        happened = frozenset([name for name, where in [(n, w(row)) for n, w in wheres] if where])
        labels = [slow_values.flag(row[t], nulls) if isinstance(t, str) else t(row) for t in tasks]
        if time < 0 or None in labels or any(map(slow_values.is_nested, self._context_cells(row))):
            raise BadCell(row)
        return Row(user, item, time, happened, tuple(int(bool(label)) for label in labels), ())

    def _context_cells(self, row: dict[str, str]) -> list[str]:
        return [row[self.features[name][1]] for name in self.texts_of_context]

    def _split(self, rows: list[Row]) -> list[Row]:
        """The rows that are used, each with its split."""
        if not self.shares:
            kept = (row for row in rows if row.time < self.bounds[3])
            return [row._replace(split=self._split_at(row.time)) for row in kept]
        if self.shares["by"] == "random":
            return [row._replace(split=self._drawn(row)) for row in rows]
        of_users: dict[Key, list[Row]] = defaultdict(list)
        for row in rows:
            of_users[row.user].append(row)
        found = []
        for mine in of_users.values():
            mine.sort(key=self._order_of_rows)
            num_test, num_valid = (math.floor(len(mine) * self.shares[s] + 1e-9) for s in ("test", "valid"))
            num_train = len(mine) - num_test - num_valid
            splits = ["train"] * num_train + ["valid"] * num_valid + ["test"] * num_test
            found += [row._replace(split=split) for row, split in zip(mine, splits, strict=True)]
        return found

    def _order_of_rows(self, row: Row) -> tuple[Any, ...]:
        happened = [name in row.behaviours for name in self.behaviours]
        return (row.time, row.item, row.labels, happened, [(text == "", text) for text in row.context])

    def _split_at(self, time: int) -> str | None:
        started = sum(time >= start for start in self.bounds[:3])
        return SPLITS[started - 1] if started else None

    def _drawn(self, row: Row) -> str:
        share = hashed_number(f"{row.user}/{row.item}/{row.time}/{self.shares.get('seed', 0)}") / 2**64
        test = self.shares["test"]
        return "test" if share < test else "valid" if share < test + self.shares["valid"] else "train"

    def _seeds(self) -> Iterator[tuple[str, Key, Event]]:
        """Behaviour, user and event of every seeded history."""
        no_labels, no_context = (0,) * len(self.tasks), (NULL,) * len(self.texts_of_context)
        for history in self.recipe.get("history", ()):
            table = pq.read_table(self.raw / history["file"]).to_pydict()
            for user, time, items in zip(*(table[history[c]] for c in ("user", "time", "items")), strict=True):
                for place, item in enumerate(items or ()):
                    if item is not None:
                        yield history["behaviour"], user, Event(time, 1 + place, item, -1, no_labels, no_context)

    def _events(self) -> dict[str, dict[Key, list[Event]]]:
        events = {name: defaultdict(list) for name in self.behaviours}
        for row in self.rows:
            context = tuple(self.context_id(name, row.time, row.context) for name in self.texts_of_context)
            split = SPLITS.index(row.split) if row.split else -1
            for name in row.behaviours:
                events[name][row.user].append(Event(row.time, 0, row.item, split, row.labels, context))
        for name, user, event in self._seeds():
            events[name][user].append(event)
        for by_user in events.values():
            for mine in by_user.values():
                mine.sort()
        return events

    def _count_lookups(self) -> None:
        """A user is looked up once a training example, an item once a training example or earlier event."""
        for row in self.rows:
            self.weights["user"][row.user] += row.split == "train"
            self.weights["item"][row.item] += row.split == "train" or (row.split is None and bool(row.behaviours))
        for _, _, event in self._seeds():
            self.weights["item"][event.item] += not self.bounds or event.time < self.bounds[1]

    def _side_cells(self, side: str) -> dict[Key, dict[str, Cell]]:
        """Key -> feature -> raw text, for all keys of the side files; the first file that has a column gives it."""
        own_key, cells = self.log[side], defaultdict(dict)
        mine = {name: column for name, (f, column) in self.features.items() if f["side"] == side and column != own_key}
        for source in self.recipe.get("sides", {}).get(side, ()):
            found = {n: c for n, c in mine.items() if c in columns_of(self.raw / source["files"][0])}
            mine = {n: c for n, c in mine.items() if n not in found}
            nulls = tuple(source.get("null_values", ()))
            for file in source["files"]:
                for key, *texts in read_rows(self.raw / file, [source["key"], *found.values()]):
                    try:
                        id_, texts = self.key(key, nulls), self._side_row(list(found), texts, nulls)
                    except BadCell:
                        continue
                    known = cells[id_]
                    if not (source.get("first_row_of_each") and known.keys() >= found.keys()):
                        known.update(zip(found, texts, strict=True))
        assert not mine, f"no file has {mine}"
        return cells

    def _side_row(self, names: list[str], texts: list[Cell], nulls: tuple[str, ...]) -> list[Cell]:
        """The cells of a row, empty where they are missing; raises BadCell."""
        found: list[Cell] = []
        for name, text in zip(names, texts, strict=True):
            feature = self.features[name][0]
            if isinstance(text, str):
                if slow_values.value(text, nulls) is None:
                    text = ""
                elif feature["encoding"] == "multi":
                    text = tuple(slow_values.texts(text, feature.get("separator", ",")))
                elif feature["encoding"] == "quantile":
                    slow_values.number(text, (*nulls, *feature.get("null_values", ())))
                elif slow_values.is_nested(text):
                    raise BadCell(text)
            found.append(text)
        return found

    def cell(self, name: str, key: Key) -> Cell:
        """Raw text of a user or item feature; empty where the side files do not know the key."""
        feature, column = self.features[name]
        if column == self.log[feature["side"]]:
            return str(key)
        return self.side_cells[feature["side"]].get(key, {}).get(name, "")

    def value(self, name: str, text: str) -> str | None:
        """The value behind a text, None for null."""
        return slow_values.value(text, tuple(self.features[name][0].get("null_values", ())))

    def values(self, name: str, cell: Cell) -> list[str]:
        """The values of an index or multi feature, without nulls."""
        feature = self.features[name][0]
        if feature["encoding"] == "index":
            parts: Iterable[str] = [str(cell)]
        else:
            parts = cell.split(feature.get("separator", ",")) if isinstance(cell, str) else cell
            parts = [part.strip(" ") for part in parts]
        found = [value for part in parts if (value := self.value(name, part)) is not None]
        return found[: feature.get("max_values", 5)]

    def number(self, name: str, key: Key) -> float | None:
        """The value of a quantile feature, None for null."""
        return self.number_of(name, str(self.cell(name, key)))

    def number_of(self, name: str, text: str) -> float | None:
        """The number behind a text, None for null."""
        nulls = tuple(self.features[name][0].get("null_values", ()))
        found = slow_values.number(text, nulls)
        return None if found is None else float(found)

    def _vocabulary(self, name: str) -> dict[str, int]:
        """Value -> training look-ups, in the order of the ids."""
        cells, counts, feature = Counter(), Counter(), self.features[name][0]
        if feature["side"] == "context":
            place = self.texts_of_context.index(name)
            cells.update(row.context[place] for row in self.rows_of("train"))
        else:
            for key, weight in self.weights[feature["side"]].items():
                cells[self.cell(name, key)] += weight
        for cell, count in cells.items():
            for value in self.values(name, cell):
                counts[value] += count
        seen = [(value, count) for value, count in counts.items() if count >= max(1, feature.get("min_count", 1))]
        return dict(sorted(seen, key=lambda pair: (-pair[1], pair[0])))

    def rows_of(self, split: str) -> Iterable[Row]:
        return (row for row in self.rows if row.split == split)

    def text_id(self, name: str, text: str) -> int:
        """The id of an index or hash feature."""
        value, feature = self.value(name, text), self.features[name][0]
        if value is None:
            return NULL
        if feature["encoding"] == "hash":
            return FIRST_VALUE + hashed_number(value) % feature["buckets"]
        return self.ids[name].get(value, UNSEEN)

    def side_ids(self, name: str, key: Key, edges: dict[str, list[float]]) -> list[int]:
        """The ids of a user or item feature; `edges` are the inner borders of the store's ranges."""
        encoding = self.features[name][0]["encoding"]
        if encoding == "multi":
            return [self.ids[name].get(v, UNSEEN) for v in self.values(name, self.cell(name, key))] or [NULL]
        if encoding in ("index", "hash"):
            return [self.text_id(name, str(self.cell(name, key)))]
        return [range_id(self.number(name, key), edges[name])]

    def context_id(self, name: str, time: int, context: tuple[str, ...]) -> int | tuple[int, ...]:
        """The id of a context feature; all ids of one of several values."""
        encoding = self.features[name][0]["encoding"]
        if encoding == "multi":
            cell = context[self.texts_of_context.index(name)]
            return tuple(self.ids[name].get(v, UNSEEN) for v in self.values(name, cell)) or (NULL,)
        if encoding == "quantile":
            number = self.number_of(name, context[self.texts_of_context.index(name)])
            return range_id(number, self.edges[name])
        if encoding in ("index", "hash"):
            return self.text_id(name, context[self.texts_of_context.index(name)])
        local = datetime(1970, 1, 1) + timedelta(seconds=time // self.ticks, hours=self.log.get("utc_offset_hours", 0))
        return FIRST_VALUE + (local.hour if encoding == "hour_of_day" else local.weekday())

    def event_ids(self, attribute: str, event: Event, edges: dict[str, list[float]]) -> list[int]:
        """The ids that a sequence reads for an event: of its item, or of its own row of the log."""
        if self.features[attribute][0]["side"] == "context":
            ids = event.context[self.texts_of_context.index(attribute)]
            return list(ids) if isinstance(ids, tuple) else [ids]
        return self.side_ids(attribute, event.item, edges)

    def history(self, behaviour: str, user: Key, time: int) -> list[Event]:
        """Events of the user strictly before an instant, oldest first."""
        return [event for event in self.events[behaviour].get(user, ()) if event.time < time]
