"""A store of any size, drawn straight into its files: for machines that have no raw logs and no DuckDB.

What a manifest says of a dataset (its tables, behaviours, splits and lengths of histories) is taken from one that
exists, such as `configs/manifests/kuairand_27k.json`; the rows are drawn with numpy. Tables keep their full size, so a
run on such a store allocates and looks up what a run on the real one would. Labels are drawn at their rates and depend
on nothing: such a store says how fast a model trains, never how good it is.

Shapes: N examples, U users, I items, V behaviours, E events of one behaviour, W columns of ids of one side.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

import infnet_rec
from infnet_rec.data.ingest.repeats import measure_repeats
from infnet_rec.data.inspect.counters import Distribution
from infnet_rec.data.publish import new_store
from infnet_rec.data.store import SPLITS, Store, count_dtype, hash_files, id_dtype, to_arrow, write_arrow
from infnet_rec.errors import UserError
from infnet_rec.schema import EMPTY_SLOT, FIRST_VALUE_ID, Schema, Side

DAY_MS = 24 * 3_600_000
FIRST_MS = 1_649_376_000_000  # 2022-04-08, when KuaiRand begins
# Two weeks of history, then training, validation and test, as in KuaiRand.
SPLIT_DAYS = {"train": (14, 27), "valid": (27, 29), "test": (29, 31)}
HISTORY_SHARE = 0.9  # of the events lie before the first training example
# Ranks are the cubes of uniform numbers: a tenth of the items get nearly half of all events.
POPULARITY = 3.0
DEVIATIONS_OF_P95 = 1.645
# Kept of each behaviour of a user: more than any run reads, and far less than the most active users have.
MOST_EVENTS = 200

JSON = dict[str, Any]
Columns = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class StoreSize:
    """How many rows to draw.

    Attributes:
        num_examples: of train, valid and test.
        num_items: rows of items.arrow; their ids reach over the whole of every table.
        num_users: None takes the manifest's.
        most_table_rows: larger tables are cut to so many rows; None leaves every table as it is.
    """

    num_examples: tuple[int, int, int]
    num_items: int
    num_users: int | None = None
    most_table_rows: int | None = None


def write_store(like: Path, out: Path, size: StoreSize, *, seed: int = 0, num_threads: int = 1) -> JSON:
    """Draws a store; it appears at `out` when it is whole.

    Args:
        like: a manifest, or a store that has one.
        out: the new store's folder.
        size: how many rows.
        seed: of everything that is drawn.
        num_threads: that hash the files.

    Returns:
        The manifest.

    Raises:
        UserError: no such manifest, sizes that cannot be drawn, or `out` exists or cannot be made.
    """
    model = Store(like).manifest
    least = min(*size.num_examples, size.num_items, 1 if size.num_users is None else size.num_users)
    if least < 1:
        raise UserError(f"size {size}: every split, the users and the items need at least one row; ask for more")
    drawing = _Drawing(model, size, np.random.Generator(np.random.SFC64(seed)))
    with new_store(out, replace=False) as work:
        store = work / "store"
        manifest = drawing.write(store)
        names = [str(path.relative_to(store)) for path in store.rglob("*.arrow")]
        manifest["files"] = hash_files(store, names, num_threads=num_threads)
        if (repeats := measure_repeats(Store.of_manifest(store, manifest))) is not None:
            manifest["repeats"] = repeats
        (store / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


class _Drawing:
    """Draws one store's columns, file by file."""

    def __init__(self, model: Mapping[str, Any], size: StoreSize, rng: np.random.Generator) -> None:
        self._model, self._size, self._rng = model, size, rng
        self._schema = _cut(Schema.from_json(model["schema"]), size.most_table_rows)
        self._rows = {table.name: table.num_rows for table in self._schema.tables}
        self._table_of = {feature.name: feature.table for feature in self._schema.features}
        self._behaviours = list(model["behaviours"])
        self._num_users = size.num_users or int(model["num_users"])
        context = set(model["columns"]["context"])
        self._event_context = sorted({s.attribute for s in self._schema.sequences} & context)

    def write(self, store: Path) -> JSON:
        """Writes all files but the manifest, and returns that, without the files' hashes."""
        write_arrow(store / "items.arrow", {"key": _keys(self._size.num_items), "ids": self._ids("item")})
        counts_UV = self._event_counts()
        starts_UV = np.cumsum(counts_UV, axis=0) - counts_UV
        write_arrow(
            store / "users.arrow",
            {"key": _keys(self._num_users), "starts": to_arrow(starts_UV), "ids": self._ids("user")},
        )
        moments = {}
        for v, name in enumerate(self._behaviours):
            moments[name], events = self._events(counts_UV[:, v])
            write_arrow(store / "events" / f"{name}.arrow", events)
        splits, lengths = {}, {}
        for split, num_examples in zip(SPLITS, self._size.num_examples, strict=True):
            examples = self._examples(split, num_examples, moments, starts_UV, counts_UV)
            write_arrow(store / "examples" / f"{split}.arrow", examples)
            rates = {t.name: float(examples[f"label_{t.name}"].mean()) for t in self._schema.tasks}
            splits[split] = {"num_examples": num_examples, "label_rates": rates}
            if split == SPLITS[0]:
                lengths = {name: self._lengths(name, examples[f"seen_{name}"]) for name in self._behaviours}
        for name, columns in self._vocabularies():
            write_arrow(store / "vocab" / f"{name}.arrow", columns)
        return self._manifest(splits, lengths, counts_UV.sum(axis=0))

    def _manifest(self, splits: JSON, lengths: JSON, num_events_V: np.ndarray) -> JSON:
        kept = ("store_version", "licence", "order", "columns", "encodings", "profiles")
        events = zip(self._behaviours, num_events_V.tolist(), strict=True)
        return {
            **{key: self._model[key] for key in kept},
            "name": f"{self._model['name']} (drawn)",
            "generated": True,
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "num_users": self._num_users,
            "num_items": self._size.num_items,
            "splits": splits,
            "behaviours": {name: {"num_events": number} for name, number in events},
            "history_lengths": lengths,
            "bad_rows": {},
            "schema": self._schema.to_json(),
            # All that readers of a store ask of its recipe.
            "recipe": {"log": {"time_unit": "ms", "time": "time", "utc_offset_hours": 0}},
            "versions": {
                "infnet_rec": infnet_rec.__version__,
                "python": platform.python_version(),
                "pyarrow": pa.__version__,
            },
        }

    def _ids(self, side: Side) -> np.ndarray:
        """Ids of a side's features, int32 [rows, W]."""
        num_rows = self._num_users if side == "user" else self._size.num_items
        names = self._model["columns"][side]
        ids = np.empty((num_rows, len(names)), np.int32)
        for name in dict.fromkeys(names):
            mine = [w for w, column in enumerate(names) if column == name]
            ids[:, mine] = self._feature(name, num_rows, len(mine))
        return ids

    def _feature(self, name: str, num_rows: int, max_values: int) -> np.ndarray:
        """One feature's ids; of several values, all up to a drawn number are given."""
        num_ids = self._rows[self._table_of[name]] - FIRST_VALUE_ID
        if num_ids <= 0:
            drawn = np.zeros((num_rows, max_values), np.int32)
        elif num_ids >= num_rows and max_values == 1:
            # As the key itself: every row has its own id, and they lie all over the table.
            drawn = (np.arange(num_rows) * num_ids // num_rows + FIRST_VALUE_ID).astype(np.int32)[:, None]
        else:
            rank = self._rng.random((num_rows, max_values), np.float32) ** 2
            drawn = (rank * num_ids).astype(np.int32) + FIRST_VALUE_ID
            np.minimum(drawn, num_ids + FIRST_VALUE_ID - 1, out=drawn)
        if max_values > 1:
            given_N = self._rng.integers(1, max_values + 1, num_rows)
            drawn[np.arange(max_values) >= given_N[:, None]] = EMPTY_SLOT
        return drawn

    def _event_counts(self) -> np.ndarray:
        """Events of each user and behaviour, int64 [U, V]: lognormal, through the manifest's p50 and p95."""
        counts_UV = np.empty((self._num_users, len(self._behaviours)), np.int64)
        activity_U = self._rng.standard_normal(self._num_users)
        for v, name in enumerate(self._behaviours):
            known = self._model["history_lengths"][name]
            middle, high = max(1.0, known["p50"]), max(2.0, known["p95"])
            spread = np.log(max(high / middle, 1.1)) / DEVIATIONS_OF_P95
            own_U = (activity_U + self._rng.standard_normal(self._num_users)) / np.sqrt(2.0)
            drawn_U = middle * np.exp(spread * own_U)
            counts_UV[:, v] = np.minimum(drawn_U.round(), MOST_EVENTS).astype(np.int64)
        return counts_UV

    def _events(self, count_U: np.ndarray) -> tuple[np.ndarray, Columns]:
        """One behaviour's events, by user and time; first their moments, see `_moments`."""
        num_events = int(count_U.sum())
        first_day = SPLIT_DAYS["train"][0]
        early_E = self._rng.random(num_events) < HISTORY_SHARE
        days_E = np.where(early_E, first_day, SPLIT_DAYS["test"][1])
        time_E = (self._rng.random(num_events) * days_E * DAY_MS).astype(np.int64)
        moment_E = _moments(np.repeat(np.arange(self._num_users), count_U), time_E)
        moment_E.sort()
        events: Columns = {"item": self._items(num_events), "time": moment_E % _SPAN + FIRST_MS}
        for name in self._event_context:
            events[f"context_{name}"] = self._context(name, events["time"])
        return moment_E, events

    def _items(self, number: int) -> np.ndarray:
        """Items by popularity, int32; which of them are popular has nothing to do with their numbers."""
        rank = (self._rng.random(number) ** POPULARITY * self._size.num_items).astype(np.int64)
        # A number without a common factor spreads the ranks over all items, one to one.
        factor = _coprime(self._size.num_items)
        return (rank * factor % self._size.num_items).astype(np.int32)

    def _context(self, name: str, time_N: np.ndarray) -> np.ndarray:
        """A feature of the log itself."""
        num_rows = self._rows[self._table_of[name]]
        match self._model["encodings"][name]:
            case "hour_of_day":
                ids = time_N // 3_600_000 % 24 + FIRST_VALUE_ID
            case "day_of_week":
                ids = (time_N // DAY_MS + 3) % 7 + FIRST_VALUE_ID
            case _:
                max_values = self._model["columns"]["context"].count(name)
                ids = self._feature(name, len(time_N), max_values)
                ids = ids[:, 0] if max_values == 1 else ids
        # An empty slot is negative.
        return ids.astype(np.int32 if ids.ndim > 1 else id_dtype(num_rows))

    def _examples(
        self,
        split: str,
        num_examples: int,
        moments: Mapping[str, np.ndarray],
        starts_UV: np.ndarray,
        counts_UV: np.ndarray,
    ) -> Columns:
        """One split's columns, by user and time."""
        first_day, last_day = SPLIT_DAYS[split]
        user_N = self._rng.integers(self._num_users, size=num_examples)
        time_N = self._rng.integers(first_day * DAY_MS, last_day * DAY_MS, num_examples)
        moment_N = _moments(user_N, time_N)
        moment_N.sort()
        user_N, time_N = np.divmod(moment_N, _SPAN)
        time_N += FIRST_MS
        columns: Columns = {"user": user_N.astype(np.int32), "item": self._items(num_examples), "time": time_N}
        for name in dict.fromkeys(self._model["columns"]["context"]):
            columns[f"context_{name}"] = self._context(name, time_N)
        rates = self._model["splits"][split]["label_rates"]
        for task in self._schema.tasks:
            columns[f"label_{task.name}"] = (self._rng.random(num_examples) < rates[task.name]).astype(np.uint8)
        for v, name in enumerate(self._behaviours):
            seen_N = np.searchsorted(moments[name], moment_N, side="left") - starts_UV[user_N, v]
            columns[f"seen_{name}"] = seen_N.astype(count_dtype(int(counts_UV[:, v].max())))
        return columns

    def _lengths(self, name: str, seen_N: np.ndarray) -> JSON:
        """As `data build` writes them."""
        lengths = Distribution.of([seen_N])
        kept = self._model["history_lengths"][name]["mean_of_newest"]
        return {
            "mean": lengths.sum / lengths.num,
            "p50": lengths.quantile(50),
            "p95": lengths.quantile(95),
            "max": int(lengths.values_K[-1]),
            "mean_of_newest": {number: lengths.truncated_mean(int(number)) for number in kept},
        }

    def _vocabularies(self) -> Iterator[tuple[str, dict[str, pa.Array]]]:
        """What each id means: the number of its value, and a count that falls as ids rise."""
        for feature in self._schema.features:
            num_ids = max(0, self._rows[feature.table] - FIRST_VALUE_ID)
            ids = pa.array(np.arange(FIRST_VALUE_ID, num_ids + FIRST_VALUE_ID, dtype=np.int32))
            match self._model["encodings"][feature.name]:
                case "hash":
                    yield feature.name, {"id": pa.array([], pa.int32())}
                case "quantile":
                    edges = np.arange(num_ids - 1, dtype=np.float64)
                    low = np.concatenate([[0.0, -np.inf], edges[1:]])[:num_ids]
                    high = np.concatenate([[0.0], edges[1:], [np.inf]])[:num_ids]
                    yield feature.name, {"id": ids, "low": pa.array(low), "high": pa.array(high)}
                case "index" | "multi":
                    count = self._size.num_examples[0] // np.arange(1, num_ids + 1) + 1
                    yield feature.name, {"id": ids, "value": _keys(num_ids), "count": pa.array(count)}
                case _:
                    yield feature.name, {"id": ids, "value": _keys(num_ids)}


# Longer than any time: a user's moments all lie before the next one's.
_SPAN = SPLIT_DAYS["test"][1] * DAY_MS + 1


def _moments(user_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """User and time in one number that sorts by user, then time, int64."""
    return user_N.astype(np.int64) * _SPAN + time_N


def _keys(number: int) -> pa.Array:
    """Raw values, as text."""
    # Arrow's own cast is a hundred times faster than Python's.
    return cast(pa.Array, pa.array(np.arange(number)).cast(pa.string()))


def _coprime(number: int) -> int:
    """A factor near the golden ratio's share of `number` that has no divisor in common with it."""
    factor = max(1, int(number * 0.618))
    while np.gcd(factor, number) != 1:
        factor += 1
    return factor


def _cut(schema: Schema, most_rows: int | None) -> Schema:
    """The schema with no table larger than `most_rows`."""
    if most_rows is None:
        return schema
    facts = schema.to_json()
    for table in facts["tables"]:
        table["num_rows"] = min(table["num_rows"], most_rows)
    return Schema.from_json(facts)
