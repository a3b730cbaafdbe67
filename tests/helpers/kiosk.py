"""A log in CSV as small as can be, and ways to change it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.store import Store

DAY_S = 86_400
KIOSK: dict[str, Any] = {
    "name": "kiosk",
    "licence": "made up",
    # Its days are the first of 1970, so that a time is easy to read.
    "log": {
        "files": ["log_1.csv", "log_2.csv"],
        "user": "user",
        "item": "item",
        "time": "time",
        "time_unit": "s",
        "earliest": "1970-01-01T00:00:00",
    },
    "sides": {"user": [{"files": ["users.csv"], "key": "user"}], "item": [{"files": ["items.csv"], "key": "item"}]},
    "features": [
        {"side": "user", "encoding": "index", "columns": ["user", "city"]},
        {"side": "item", "encoding": "index", "columns": ["item"]},
        {"side": "item", "encoding": "quantile", "columns": ["price"], "buckets": 4},
        {"side": "context", "encoding": "index", "columns": ["page", "mark"]},
    ],
    "behaviours": [{"name": "click", "where": "click = 1"}, {"name": "never", "where": "click = 1 AND time < 0"}],
    "sequences": {"attributes": ["item"]},
    "tasks": [{"name": "click", "label": "click"}],
    "splits": {name: f"1970-01-0{1 + k}T00:00:00" for k, name in enumerate(("train", "valid", "test", "end"))},
}
# The second mark looks like a comment, the third cell of a user like a float.
LOG = [f"{k % 3},{k % 4},{k * DAY_S // 10},{k % 2},{k % 2},{('a', '#1', '')[k % 3]}" for k in range(30)]
FILES = {
    "log_1.csv": ["user,item,time,click,page,mark", *LOG[:20]],
    "log_2.csv": ["user,item,time,click,page,mark", *LOG[20:]],
    "users.csv": ["user,city", "0,Oslo", '1,"Paris, France"', "2,"],
    "items.csv": ["item,price", *(f"{k},{k * 1.5}" for k in range(4))],
}

Edit = Callable[[Path, dict[str, Any]], object]


def kiosk(folder: Path, edit: Edit = lambda raw, recipe: None) -> tuple[Recipe, Path]:
    """A log in CSV, as small as can be, with something changed."""
    raw, recipe = folder / "raw", copy.deepcopy(KIOSK)
    raw.mkdir(parents=True)
    for name, lines in FILES.items():
        (raw / name).write_text("\n".join(lines) + "\n")
    edit(raw, recipe)
    return validate_model(Recipe, recipe, "kiosk.toml"), raw


def add(name: str, line: str) -> Edit:
    return lambda raw, recipe: (raw / name).open("a").write(line + "\n")


def rewrite(change: Callable[[bytes], bytes], name: str = "*.csv") -> Edit:
    return lambda raw, recipe: [path.write_bytes(change(path.read_bytes())) for path in raw.glob(name)]


def swap(old: str, new: str, name: str = "*.csv") -> Edit:
    return rewrite(lambda text: text.replace(old.encode(), new.encode()), name)


def where(predicate: str) -> Edit:
    return lambda raw, recipe: recipe["behaviours"][0].update(where=predicate)


def history(**columns: list[Any]) -> Edit:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        pq.write_table(pa.table(columns), raw / "h.parquet")
        recipe["history"] = [
            {"file": "h.parquet", "user": "who", "time": "until", "behaviour": "click", "items": "what"}
        ]

    return edit


def hashes(store: Path) -> dict[str, str]:
    """Of all columnar files; equal hashes are equal stores."""
    return {name: file["sha256"] for name, file in Store(store).manifest["files"].items()}
