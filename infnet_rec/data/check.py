"""Is a store what its manifest says?"""

import numpy as np

from infnet_rec.data.store import SPLITS, Store, hash_files
from infnet_rec.schema import Schema


def check_store(store: Store) -> list[str]:
    """Reads every file again and returns what is wrong, one line each."""
    faults: list[str] = []
    recorded = store.manifest["files"]
    present = {str(p.relative_to(store.path)) for p in store.path.rglob("*.arrow")}
    faults += [f"{name}: missing" for name in sorted(recorded.keys() - present)]
    faults += [f"{name}: not in the manifest" for name in sorted(present - recorded.keys())]
    for name, found in hash_files(store.path, present & recorded.keys()).items():
        for what in ("bytes", "blake2b"):
            if found[what] != recorded[name][what]:
                faults.append(f"{name}: {what} is {found[what]}, the manifest says {recorded[name][what]}")
                break
    return faults or ids_outside_tables(store, store.schema)


def ids_outside_tables(store: Store, schema: Schema) -> list[str]:
    """Features and sequences with ids that their table has no row for, one line each; reads every id.

    A sharded lookup takes such an id for row 0 without a word, so it must not get there.
    """
    found: dict[str, tuple[int, int]] = {}
    for side, ids in (("user", store.user_ids), ("item", store.item_ids)):
        names, lows, highs = np.array(store.columns_of(side)), ids.min(0), ids.max(0)
        found |= {name: _range([lows[names == name]], [highs[names == name]]) for name in names.tolist()}
    context = [store.examples(split).context for split in SPLITS]
    for name in store.columns_of("context"):
        columns = [columns[name] for columns in context]
        found[name] = _range([column.min(0) for column in columns], [column.max(0) for column in columns])
    num_rows = {table.name: table.num_rows for table in schema.tables}
    read = [(f.name, f.name, f.table) for f in schema.features]
    read += [(s.name, s.attribute, s.table) for s in schema.sequences]
    faults = []
    for name, column, table in read:
        low, high = found[column]
        if low < 0 or high >= num_rows[table]:
            faults.append(f"{name}: has ids {low} to {high}, but table {table!r} has rows 0 to {num_rows[table] - 1}")
    return faults


def _range(lows: list[np.ndarray], highs: list[np.ndarray]) -> tuple[int, int]:
    """Smallest and largest id of a feature from those of its columns; empty slots (-1) may follow the first value."""
    low_k = np.stack([np.atleast_1d(low) for low in lows]).min(axis=0)
    low_k[1:] += 1
    return int(low_k.min()), int(np.max(highs))
