"""The dataset on disk: a manifest and memory-mapped Arrow tables.

    manifest.json            schema, profiles, splits, row counts, length statistics, hashes, recipe, versions
    users.arrow              one row a user: key, ids (int32, one a user feature), starts (int64, one a behaviour)
    items.arrow              one row an item: key, ids (int32, one an item feature)
    events/<behaviour>.arrow item (int32) and time (int64) of every event, sorted by (user, time), and the ids of those
                             sequence attributes that are columns of the log; a user's events begin at their `starts`
                             entry
    examples/<split>.arrow   user, item (int32), time (int64), context ids (uint8, uint16 or int32, as the table needs;
                             a list of int32 of a feature of several values), labels (uint8), the weight (float32) where
                             the recipe names one, and per behaviour the number of the user's events strictly before the
                             example (`seen_<behaviour>`; uint8, uint16 or uint32, as the longest history needs)
    vocab/<table>.arrow      what each id of a table means

Every file is uncompressed Arrow IPC with a single record batch, so that each column is one contiguous array on disk:
numpy, pandas, polars and duckdb read it without a copy.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from infnet_rec.config.toml import read_json
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.schema import Schema

STORE_VERSION = 3
SPLITS = ("train", "valid", "test")
HASH_CHUNK_BYTES = 1 << 20


def write_arrow(path: Path, columns: Mapping[str, np.ndarray | pa.Array]) -> None:
    """Writes columns of one length as a single-batch Arrow IPC file; a 2-D array becomes a fixed-size list."""
    arrays = {name: to_arrow(column) for name, column in columns.items()}
    batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def id_dtype(num_rows: int) -> str:
    """The narrowest type that holds a table's ids."""
    return "uint8" if num_rows <= 2**8 else "uint16" if num_rows <= 2**16 else "int32"


def count_dtype(most: int) -> str:
    """The narrowest type that counts so far."""
    return "uint8" if most < 2**8 else "uint16" if most < 2**16 else "uint32"


def to_arrow(column: np.ndarray | pa.Array) -> pa.Array:
    """The memory as Arrow sees it; a 2-D array becomes a fixed-size list."""
    if isinstance(column, pa.Array):
        return column
    if column.ndim == 1:
        return _flat(column)
    if not column.shape[1]:
        return pa.nulls(len(column))  # Arrow has no list of no elements
    return pa.FixedSizeListArray.from_arrays(_flat(column.reshape(-1)), column.shape[1])


def _flat(column: np.ndarray) -> pa.Array:
    """Wraps memory without copying it, a memory-mapped file's too."""
    kind = pa.from_numpy_dtype(column.dtype)
    return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(np.ascontiguousarray(column))])


def read_arrow(path: Path) -> pa.RecordBatch:
    """Memory-maps a file that `write_arrow` made."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path), "r")).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error}); build the store again") from error


def as_numpy(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """A column as a numpy view of the file; a fixed-size list becomes a 2-D array."""
    array = batch.column(column)
    if pa.types.is_null(array.type):
        return np.empty((len(array), 0), np.int32)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), width)
    return array.to_numpy(zero_copy_only=True)


@dataclass(frozen=True, slots=True)
class Examples:
    """One split's columns, memory-mapped. N examples, T tasks, X context features, V behaviours.

    A context feature of several values has two dimensions. `weight_N` is what the recipe's weight column says, float32;
    None where there is none.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    time_N: np.ndarray
    context: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]
    weight_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.user_N)


@dataclass(frozen=True, slots=True)
class EventColumns:
    """One behaviour's columns, memory-mapped; `context` holds the sequence attributes that are read from the log."""

    item_E: np.ndarray
    time_E: np.ndarray
    context: dict[str, np.ndarray]


class Store:
    """A finished store, opened for reading."""

    def __init__(self, path: Path) -> None:
        """Opens a store.

        Args:
            path: its folder; or its manifest alone, a JSON file, for those who only plan.

        Raises:
            UserError: there is no finished store, or another version of this package made it.
        """
        manifest = path if path.suffix == ".json" else path / "manifest.json"
        if not manifest.is_file():
            raise UserError(f"store {path}: holds no manifest.json; make a store with 'infnet-rec data build'")
        self._take(path, read_json(manifest))

    @classmethod
    def of_manifest(cls, path: Path, manifest: dict[str, Any]) -> Self:
        """A store that lies elsewhere, for those who need no more than its manifest; see `__init__`."""
        store = cls.__new__(cls)
        store._take(path, manifest)
        return store

    def _take(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        version = self.manifest.get("store_version")
        if version != STORE_VERSION:
            raise UserError(
                f"store {path}: has store_version {version}, this package reads {STORE_VERSION}; "
                "build it again with 'infnet-rec data build --replace'"
            )
        self.schema = Schema.from_json(self.manifest["schema"])

    @property
    def fingerprint(self) -> str:
        """A hash of the contents: stores of one fingerprint hold the same bytes."""
        files = json.dumps(self.manifest["files"], sort_keys=True)
        return hashlib.blake2b(files.encode(), digest_size=16).hexdigest()

    def profile_schema(self, profile: str) -> Schema:
        """The store's schema with the features and histories of one profile.

        Raises:
            UserError: the store has no such profile.
        """
        profiles = self.manifest["profiles"]
        if profile not in profiles:
            known = ", ".join(sorted(profiles))
            raise UserError(
                f"profile {profile!r} is not in store {self.path} (it has {known}){did_you_mean(profile, profiles)}"
            )
        choice = profiles[profile]
        return self.schema.with_features(choice["features"]).with_behaviours(choice["behaviours"])

    @property
    def splits(self) -> tuple[str, ...]:
        """train, valid and test, and the further tests of the recipe."""
        return SPLITS + self.further_tests

    @property
    def further_tests(self) -> tuple[str, ...]:
        """Splits that are only ever tested on."""
        return tuple(split for split in self.manifest["splits"] if split not in SPLITS)

    @property
    def mean_weight(self) -> float:
        """Mean weight of the training examples; 1 where the recipe names no weight."""
        return self.manifest.get("weight", {}).get("train_mean", 1.0)

    def num_examples(self, split: str) -> int:
        """Rows of one split."""
        return self.manifest["splits"][split]["num_examples"]

    @cached_property
    def user_keys(self) -> pa.Array:
        """Raw ids of the users, in store order (sorted)."""
        return read_arrow(self.path / "users.arrow").column("key")

    @cached_property
    def item_keys(self) -> pa.Array:
        """Raw ids of the items, in store order (sorted)."""
        return read_arrow(self.path / "items.arrow").column("key")

    @cached_property
    def user_ids(self) -> np.ndarray:
        """int32 [users, user features]."""
        return as_numpy(read_arrow(self.path / "users.arrow"), "ids")

    @cached_property
    def item_ids(self) -> np.ndarray:
        """int32 [items, item features]."""
        return as_numpy(read_arrow(self.path / "items.arrow"), "ids")

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 [users, behaviours]: where each user's events begin in each events file."""
        return as_numpy(read_arrow(self.path / "users.arrow"), "starts")

    def columns_of(self, side: str) -> list[str]:
        """Feature names of the columns of `user_ids` or `item_ids`, or of the context columns."""
        return self.manifest["columns"][side]

    def events(self, behaviour: str) -> EventColumns:
        """Every event of one behaviour."""
        batch = read_arrow(self.path / "events" / f"{behaviour}.arrow")
        context = [name for name in batch.schema.names if name.startswith("context_")]
        return EventColumns(
            as_numpy(batch, "item"),
            as_numpy(batch, "time"),
            {name.removeprefix("context_"): as_numpy(batch, name) for name in context},
        )

    def examples(self, split: str) -> Examples:
        """One split's columns.

        Raises:
            UserError: there is no such split.
        """
        if split not in self.splits:
            raise UserError(f"split {split!r}: is one of {', '.join(self.splits)}{did_you_mean(split, self.splits)}")
        batch = read_arrow(self.path / "examples" / f"{split}.arrow")
        behaviours = self.manifest["behaviours"]
        return Examples(
            *(as_numpy(batch, column) for column in ("user", "item", "time")),
            context={name: as_numpy(batch, f"context_{name}") for name in self.columns_of("context")},
            labels={task.name: as_numpy(batch, f"label_{task.name}") for task in self.schema.tasks},
            seen={name: as_numpy(batch, f"seen_{name}") for name in behaviours},
            weight_N=as_numpy(batch, "weight") if "weight" in batch.schema.names else None,
        )

    def vocabulary(self, table: str) -> pa.RecordBatch:
        """What each id of a table means, from id 2 on (see `vocabulary.py`)."""
        return read_arrow(self.path / "vocab" / f"{table}.arrow")


def hash_files(
    root: Path, names: Iterable[str], progress: Callable[[int], None] = lambda _: None, *, num_threads: int = 1
) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files below `root`, by their relative names; `progress` hears of bytes just read."""

    def hashed(name: str) -> dict[str, Any]:
        digest = hashlib.sha256()
        with (root / name).open("rb") as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                digest.update(chunk)
                progress(len(chunk))
        return {"bytes": (root / name).stat().st_size, "sha256": digest.hexdigest()}

    names = sorted(names)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hash") as pool:
        return dict(zip(names, pool.map(hashed, names), strict=True))
