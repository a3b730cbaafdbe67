"""What the rows of tables mean in one store, and where the same meanings stand in another.

A row's meaning is what its id stands for: a raw value, a range of numbers, an hour. Weights that were trained on one
store fit another only where the meanings are the same; sizes that happen to agree say nothing.

R rows of a table here.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.schema import FIRST_VALUE_ID, UNSEEN_ID, Schema

NOWHERE = -1
NUM_SHOWN = 3


@dataclass(frozen=True, slots=True)
class RowSources:
    """Where each row of a table stood in another store's table of the same name.

    Attributes:
        row_R: int64, rows there; `NOWHERE` for a value that the other store never saw.
    """

    row_R: np.ndarray

    @property
    def num_new(self) -> int:
        """Rows whose value the other store never saw."""
        return int((self.row_R == NOWHERE).sum())

    def or_unseen(self) -> "RowSources":
        """The same, but values that the other store never saw have the row that it kept for such values."""
        return RowSources(np.where(self.row_R == NOWHERE, UNSEEN_ID, self.row_R))


def feature_of_table(schema: Schema) -> dict[str, str]:
    """Table -> the feature whose vocabulary its ids come from."""
    return {s.table: s.attribute for s in schema.sequences} | {f.table: f.name for f in schema.features}


def table_meanings(store: Store, schema: Schema) -> dict[str, str]:
    """Table -> a digest of what its ids mean; equal digests are equal meanings, row for row."""
    manifest = store.manifest
    rows = {table.name: table.num_ids for table in schema.tables}
    meanings = {}
    for table, feature in feature_of_table(schema).items():
        # A manifest that stands in for a store names no files.
        file = manifest["files"].get(f"vocab/{feature}.arrow", {}).get("sha256")
        text = json.dumps([manifest["encodings"].get(feature), rows[table], file])
        meanings[table] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return meanings


def match_rows(there: Store, here: Store, schema: Schema, tables: list[str]) -> dict[str, RowSources]:
    """Finds each row of some tables in another store's vocabularies, by what it means.

    Args:
        there: the store that the weights were trained on.
        here: the store of this run.
        schema: of this run.
        tables: those whose meanings differ.

    Returns:
        Table -> the rows there. Tables whose rows are the same after all are left out.

    Raises:
        UserError: ids of a table are made in another way, or share rows by hashing into another number of buckets.
    """
    features, found = feature_of_table(schema), {}
    for table in tables:
        row_R = _rows_there(there, here, features[table])
        if not np.array_equal(row_R, np.arange(_num_rows(there, features[table]))):
            found[table] = RowSources(row_R)
    return found


def _rows_there(there: Store, here: Store, feature: str) -> np.ndarray:
    """For each row of the table here its row there, int64 [R]."""
    was, now = (store.manifest["encodings"].get(feature) for store in (there, here))
    if was != now:
        raise UserError(
            f"feature {feature!r}: is encoded by {now!r} in store {here.path} and by {was!r} in {there.path}, the one "
            "that the weights were trained on; build a store with the recipe that they had"
        )
    num_there, num_here = _num_rows(there, feature), _num_rows(here, feature)
    first = np.arange(FIRST_VALUE_ID, dtype=np.int64)
    if now == "hash":
        if num_there != num_here:
            raise UserError(
                f"feature {feature!r}: is hashed into {num_here - FIRST_VALUE_ID:,} buckets in store {here.path} and "
                f"into {num_there - FIRST_VALUE_ID:,} in {there.path}, the one that the weights were trained on; use "
                "the same buckets"
            )
        return np.arange(num_here, dtype=np.int64)
    names = ("value",) if now in ("index", "multi") else ("low", "high") if now == "quantile" else ("value",)
    meaning_here, meaning_there = (_meanings(store.vocabulary(feature), names) for store in (here, there))
    index = pc.index_in(meaning_here, value_set=meaning_there)  # type: ignore[attr-defined]
    row_R = pc.fill_null(index, NOWHERE - FIRST_VALUE_ID).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[attr-defined]
    return np.concatenate([first, row_R + FIRST_VALUE_ID])


def _meanings(vocabulary: pa.RecordBatch, names: tuple[str, ...]) -> pa.Array:
    """What each id from `FIRST_VALUE_ID` on means; a range is the exact bits of its two ends."""
    columns = [vocabulary.column(name) for name in names]
    if len(columns) == 1:
        return columns[0]
    bits = np.stack([np.asarray(column, np.float64) for column in columns], axis=1).tobytes()
    size = len(columns) * 8
    return pa.array([bits[k : k + size] for k in range(0, len(bits), size)], pa.binary())


def _num_rows(store: Store, feature: str) -> int:
    table = next((f.table for f in store.schema.features if f.name == feature), None)
    if table is None:
        raise UserError(
            f"feature {feature!r}: is not in store {store.path}, the one that the weights were trained on; leave it "
            "out with data.profile"
        )
    return next(t.num_rows for t in store.schema.tables if t.name == table)
