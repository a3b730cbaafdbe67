"""A small store written by hand, with features of several values, and what its batches must hold.

The expected values are worked out from the arrays with loops, one example at a time, and share no code with the loader.
"""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from infnet_rec.data.store import STORE_VERSION, Store, hash_files, write_arrow
from infnet_rec.schema import Feature, Schema, Sequence, Table, Task

ROWS = {"user": 9, "langs": 6, "item": 14, "brand": 5, "tags": 8, "device": 4, "places": 5, "price": 7}
COLUMNS = {
    "user": ["user", "langs", "langs"],
    "item": ["item", "tags", "tags", "tags", "brand", "price"],
    "context": ["device", "places", "places"],
}
SIDE_OF = {name: side for side, names in COLUMNS.items() for name in names}
MULTI = ("langs", "tags", "places")
BEHAVIOURS = ("view", "buy", "save")
NUM = {"users": 7, "items": 12, "train": 40, "valid": 11, "test": 9}


def schema(order: tuple[str, ...] = ("user", "langs", "tags", "item", "price", "device", "places")) -> Schema:
    """`view` and `save` are read for two attributes, `buy` for one; the item shares its table with them."""
    reads = [("view", "item"), ("view", "brand"), ("buy", "brand"), ("save", "item"), ("save", "brand")]
    return Schema(
        tables=tuple(Table(name, rows) for name, rows in ROWS.items()),
        features=tuple(Feature(name, name, SIDE_OF[name], COLUMNS[SIDE_OF[name]].count(name)) for name in order),
        sequences=tuple(Sequence(f"{b}_{a}", b, a, a, b) for b, a in reads),
        tasks=(Task("click", "click"), Task("like", "like")),
    )


@dataclass(frozen=True)
class Handmade:
    """The store, and the arrays that it was written from."""

    store: Store
    ids: dict[str, np.ndarray]
    events: dict[str, list[list[int]]]
    examples: dict[str, dict[str, np.ndarray]]
    counts: dict[str, list[int]]

    def values(self, split: str, row: int, feature: str) -> list[int]:
        """The ids of a feature of one example; empty slots are left out."""
        side, example = SIDE_OF[feature], self.examples[split]
        places = [k for k, name in enumerate(COLUMNS[side]) if name == feature]
        if side == "context":
            given = np.atleast_1d(example[f"context_{feature}"][row])
        else:
            given = self.ids[side][example[side][row], places]
        return [int(id_) for id_ in given if id_ != -1]

    def history(self, split: str, row: int, sequence: Sequence, length: int) -> list[int]:
        """The newest ids of a sequence of one example."""
        example = self.examples[split]
        seen = int(example[f"seen_{sequence.behaviour}"][row])
        items = self.events[sequence.behaviour][example["user"][row]][:seen][-length:]
        column = COLUMNS["item"].index(sequence.attribute)
        return [int(self.ids["item"][item, column]) for item in items]

    def rarity(self, split: str, row: int, feature: str) -> float:
        """The mean of one over the count of each id; `price` is cut in ranges, so it has none."""
        ids = self.values(split, row, feature)
        return sum(0.0 if feature == "price" or i < 2 else 1 / self.counts[feature][i - 2] for i in ids) / len(ids)


def _ids(random: np.random.Generator, side: str, num: int) -> np.ndarray:
    """Each feature has from one value to as many as it has columns, left-aligned."""
    columns = []
    for name in dict.fromkeys(COLUMNS[side]):
        most = COLUMNS[side].count(name)
        ids = random.integers(0, ROWS[name], (num, most))
        ids[np.arange(most) >= random.integers(1, most + 1, num)[:, None]] = -1
        columns.append(ids)
    return np.concatenate(columns, axis=1).astype(np.int32)


def _examples(random: np.random.Generator, num: int, events: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
    user = np.sort(random.integers(0, NUM["users"], num)).astype(np.int32)
    context = _ids(random, "context", num)
    seen = {
        f"seen_{name}": np.array([random.integers(0, len(mine[u]) + 1) for u in user], np.uint32)
        for name, mine in events.items()
    }
    return {
        "user": user,
        "item": random.integers(0, NUM["items"], num).astype(np.int32),
        "time": random.integers(1, 1000, num),
        "context_device": context[:, 0].astype(np.uint8),
        "context_places": context[:, 1:],
        "label_click": random.integers(0, 2, num).astype(np.uint8),
        "label_like": random.integers(0, 2, num).astype(np.uint8),
        **seen,
    }


def write_store(folder: Path, seed: int = 0) -> Handmade:
    """Draws the arrays and writes the store."""
    random = np.random.default_rng(seed)
    ids = {side: _ids(random, side, NUM[f"{side}s"]) for side in ("user", "item")}
    events = {
        name: [random.integers(0, NUM["items"], random.integers(0, 9)).tolist() for _ in range(NUM["users"])]
        for name in BEHAVIOURS
    }
    examples = {split: _examples(random, NUM[split], events) for split in ("train", "valid", "test")}
    counts = {name: random.integers(1, 50, rows - 2).tolist() for name, rows in ROWS.items()}
    lengths = np.array([[len(events[name][u]) for name in BEHAVIOURS] for u in range(NUM["users"])])
    starts = np.cumsum(lengths, axis=0) - lengths
    write_arrow(folder / "users.arrow", {"key": np.arange(NUM["users"]), "ids": ids["user"], "starts": starts})
    write_arrow(folder / "items.arrow", {"key": np.arange(NUM["items"]), "ids": ids["item"]})
    for name, mine in events.items():
        items = np.array(list(chain.from_iterable(mine)), np.int32)
        write_arrow(folder / "events" / f"{name}.arrow", {"item": items, "time": np.zeros(len(items), np.int64)})
    for split, columns in examples.items():
        write_arrow(folder / "examples" / f"{split}.arrow", columns)
    for name, numbers in counts.items():
        write_arrow(folder / "vocab" / f"{name}.arrow", {"count": np.array(numbers)})
    (folder / "manifest.json").write_text(json.dumps(_manifest(folder, events, examples)))
    return Handmade(Store(folder), ids, events, examples, counts)


def _lengths(whole: list[int]) -> dict[str, float]:
    """Of the users' whole histories; what plans are made from."""
    return {"mean": float(np.mean(whole)), "p50": float(np.median(whole)), "p95": max(whole), "max": max(whole)}


def _manifest(folder: Path, events: dict[str, Any], examples: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    whole = schema()
    splits = {
        split: {
            "num_examples": NUM[split],
            "label_rates": {t.name: float(columns[f"label_{t.name}"].mean()) for t in whole.tasks},
        }
        for split, columns in examples.items()
    }
    return {
        "store_version": STORE_VERSION,
        "name": "handmade",
        "schema": whole.to_json(),
        "columns": COLUMNS,
        "order": "time",
        "num_users": NUM["users"],
        "num_items": NUM["items"],
        "behaviours": {name: {"num_events": sum(map(len, mine))} for name, mine in events.items()},
        "history_lengths": {name: _lengths([len(user) for user in mine]) for name, mine in events.items()},
        "profiles": {"all": {"features": [f.name for f in whole.features], "behaviours": list(BEHAVIOURS)}},
        "encodings": {name: "quantile" if name == "price" else "multi" if name in MULTI else "index" for name in ROWS},
        "splits": splits,
        "files": hash_files(folder, [str(path.relative_to(folder)) for path in folder.rglob("*.arrow")]),
    }
