"""What a store must hold, worked out slowly from the raw files: csv, dicts and lists, one row at a time.

Shares no code with the package: a recipe comes as the plain dict that TOML gives, and pyarrow only opens Parquet files.
"""

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

UNSEEN, NULL, ZERO, FIRST_VALUE, FIRST_RANGE = 0, 1, 2, 2, 3
SPLITS = ("train", "valid", "test")

Key = int | str


class Row(NamedTuple):
    """One row of the log; `labels` and `context` (raw text of the indexed columns) in the recipe's order."""

    user: Key
    item: Key
    time: int
    behaviours: frozenset[str]
    labels: tuple[int, ...]
    context: tuple[str, ...]


class Event(NamedTuple):
    """Sorts as a history is ordered: by time, then by place in a seeded list, then by item."""

    time: int
    position: int
    item: Key


def as_text(cell: Any) -> str:
    """A cell as a CSV file would hold it; the empty field is null."""
    return "" if cell is None else repr(cell) if isinstance(cell, float) else str(cell)


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """The text of some columns, row by row."""
    if path.suffix == ".parquet":
        table = pq.read_table(path, columns=columns).to_pydict()
        yield from zip(*([as_text(cell) for cell in table[c]] for c in columns), strict=True)
        return
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader)
        places = [header.index(column) for column in columns]
        for row in reader:
            yield tuple(row[place] for place in places)


def columns_of(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return pq.read_schema(path).names
    with path.open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file))


@cache
def plain(text: str) -> str:
    """An integer that was printed as a float is the integer."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


class Reference:
    """A dataset in dicts and lists."""

    def __init__(self, recipe: dict[str, Any], raw: Path) -> None:
        self.recipe, self.raw, self.log = recipe, raw, recipe["log"]
        self.ticks = {"ms": 1000, "s": 1}[self.log.get("time_unit", "ms")]
        self.key = {"int64": int, "string": str}[self.log.get("id_type", "int64")]
        self.features = {
            feature.get("name", column): (feature, column)
            for feature in recipe["features"]
            for column in feature["columns"]
        }
        self.tasks = [task["name"] for task in recipe["tasks"]]
        self.behaviours = [behaviour["name"] for behaviour in recipe["behaviours"]]
        self.indexed_context = [
            name for name, (f, _) in self.features.items() if f["side"] == "context" and f["encoding"] == "index"
        ]
        self.bounds = [self._instant(recipe["splits"][name]) for name in (*SPLITS, "end")]
        self.rows = [row for row in self._log_rows() if row.time < self.bounds[3]]
        self.by_user: dict[Key, list[Row]] = defaultdict(list)
        for row in self.rows:
            self.by_user[row.user].append(row)
        self.events = self._events()
        self.weights = {"user": Counter(), "item": Counter()}
        self._count_lookups()
        self.side_cells = {side: self._side_cells(side) for side in ("user", "item")}
        indexed = [name for name, (f, _) in self.features.items() if f["encoding"] == "index"]
        self.vocabularies = {name: self._vocabulary(name) for name in indexed}
        self.ids = {name: {v: k for k, v in enumerate(self.vocabularies[name], FIRST_VALUE)} for name in indexed}

    def _instant(self, local: Any) -> int:
        """A date of the recipe in the log's ticks, by counting days by hand."""
        since = datetime.fromisoformat(local.isoformat()) - datetime(1970, 1, 1)
        return round((since - timedelta(hours=self.log.get("utc_offset_hours", 0))).total_seconds() * self.ticks)

    def _log_rows(self) -> Iterator[Row]:
        wheres = []
        for behaviour in self.recipe["behaviours"]:
            always = f"{self.log['time']} >= 0"
            predicate = behaviour["where"].replace("TRUE", always)
            column, sign, number = re.fullmatch(r"(\w+) (=|>=) (\d+)", predicate).groups()
            wheres.append((behaviour["name"], column, sign, float(number)))
        context = [self.features[name][1] for name in self.indexed_context]
        wanted = [self.log["user"], self.log["item"], self.log["time"], *(w[1] for w in wheres)]
        wanted += [*(task["label"] for task in self.recipe["tasks"]), *context]
        first_label, first_context = 3 + len(wheres), 3 + len(wheres) + len(self.tasks)
        for file in self.log["files"]:
            for cells in read_rows(self.raw / file, wanted):
                happened = frozenset(
                    name
                    for (name, _, sign, number), cell in zip(wheres, cells[3:first_label], strict=True)
                    if cell and (float(cell) == number if sign == "=" else float(cell) >= number)
                )
                labels = tuple(int(cell) for cell in cells[first_label:first_context])
                yield Row(
                    self.key(cells[0]), self.key(cells[1]), int(cells[2]), happened, labels, cells[first_context:]
                )

    def _seeds(self) -> Iterator[tuple[str, Key, Event]]:
        """Behaviour, user and event of every seeded history."""
        for history in self.recipe.get("history", ()):
            table = pq.read_table(self.raw / history["file"]).to_pydict()
            for user, time, items in zip(*(table[history[c]] for c in ("user", "time", "items")), strict=True):
                for place, item in enumerate(items or ()):
                    if item is not None:
                        yield history["behaviour"], user, Event(time, 1 + place, item)

    def _events(self) -> dict[str, dict[Key, list[Event]]]:
        events = {name: defaultdict(list) for name in self.behaviours}
        for row in self.rows:
            for name in row.behaviours:
                events[name][row.user].append(Event(row.time, 0, row.item))
        for name, user, event in self._seeds():
            events[name][user].append(event)
        for by_user in events.values():
            for mine in by_user.values():
                mine.sort()
        return events

    def _count_lookups(self) -> None:
        """A user is looked up once a training example, an item once a training example or earlier event."""
        for row in self.rows:
            is_training_example = self.split_of(row.time) == "train"
            self.weights["user"][row.user] += is_training_example
            self.weights["item"][row.item] += is_training_example or (
                row.time < self.bounds[1] and bool(row.behaviours)
            )
        for _, _, event in self._seeds():
            self.weights["item"][event.item] += event.time < self.bounds[1]

    def _side_cells(self, side: str) -> dict[Key, dict[str, str]]:
        """Key -> feature -> raw text, for all keys of the side files; the first file that has a column gives it."""
        own_key, cells = self.log[side], defaultdict(dict)
        mine = {name: column for name, (f, column) in self.features.items() if f["side"] == side and column != own_key}
        for source in self.recipe.get("sides", {}).get(side, ()):
            found = {n: c for n, c in mine.items() if c in columns_of(self.raw / source["files"][0])}
            mine = {n: c for n, c in mine.items() if n not in found}
            for file in source["files"]:
                for key, *texts in read_rows(self.raw / file, [source["key"], *found.values()]):
                    cells[self.key(key)].update(zip(found, texts, strict=True))
        assert not mine, f"no file has {mine}"
        return cells

    def cell(self, name: str, key: Key) -> str:
        """Raw text of a user or item feature; empty where the side files do not know the key."""
        feature, column = self.features[name]
        if column == self.log[feature["side"]]:
            return str(key)
        return self.side_cells[feature["side"]].get(key, {}).get(name, "")

    def value(self, name: str, text: str) -> str | None:
        """The value of an index feature, None for null."""
        value = plain(text)
        return None if value == "" or value in map(plain, self.features[name][0].get("null_values", ())) else value

    def number(self, name: str, key: Key) -> float | None:
        """The value of a quantile feature, None for null."""
        text = self.cell(name, key)
        return None if text == "" or math.isnan(float(text)) else float(text)

    def _vocabulary(self, name: str) -> dict[str, int]:
        """Value -> training look-ups, in the order of the ids."""
        texts, counts, side = Counter(), Counter(), self.features[name][0]["side"]
        if side == "context":
            place = self.indexed_context.index(name)
            texts.update(row.context[place] for row in self.rows_of("train"))
        else:
            for key, weight in self.weights[side].items():
                texts[self.cell(name, key)] += weight
        for text, count in texts.items():
            counts[self.value(name, text)] += count
        seen = [(value, count) for value, count in counts.items() if value is not None and count]
        return dict(sorted(seen, key=lambda pair: (-pair[1], pair[0])))

    def split_of(self, time: int) -> str | None:
        """The split that an instant falls into; None before the first."""
        started = sum(time >= start for start in self.bounds[:3])
        return SPLITS[started - 1] if started else None

    def rows_of(self, split: str) -> Iterable[Row]:
        return (row for row in self.rows if self.split_of(row.time) == split)

    def index_id(self, name: str, text: str) -> int:
        value = self.value(name, text)
        if value is None:
            return NULL
        return self.ids[name].get(value, UNSEEN)

    def side_id(self, name: str, key: Key, edges: dict[str, list[float]]) -> int:
        """The id of a user or item feature; `edges` are the inner borders of the store's ranges."""
        if self.features[name][0]["encoding"] == "index":
            return self.index_id(name, self.cell(name, key))
        number = self.number(name, key)
        if number is None or number == 0:
            return NULL if number is None else ZERO
        return FIRST_RANGE + sum(edge <= number for edge in edges[name])

    def context_id(self, name: str, time: int, context: tuple[str, ...]) -> int:
        encoding = self.features[name][0]["encoding"]
        if encoding == "index":
            return self.index_id(name, context[self.indexed_context.index(name)])
        local = datetime(1970, 1, 1) + timedelta(seconds=time // self.ticks, hours=self.log.get("utc_offset_hours", 0))
        return FIRST_VALUE + (local.hour if encoding == "hour_of_day" else local.weekday())

    def history(self, behaviour: str, user: Key, time: int) -> list[Event]:
        """Events of the user strictly before an instant, oldest first."""
        return [event for event in self.events[behaviour].get(user, ()) if event.time < time]
