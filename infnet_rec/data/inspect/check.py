"""Is a store what its manifest says?

Cheap before dear: which files there are and how large, what their bytes hash to, how many rows they have, what stands
in them. Contents are looked at only when every file is the one that was built, so a damaged one is not misread.

N examples of a chunk, U users, V behaviours.
"""

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np

from infnet_rec.data.inspect.counters import row_chunks
from infnet_rec.data.store import Examples, Store, hash_files, read_arrow
from infnet_rec.schema import EMPTY_SLOT, FIRST_VALUE_ID, Schema

CHUNK_ROWS = 1 << 18

Progress = Callable[[int], None]


def _nobody(_: int) -> None:
    """Hears of no progress."""


def bytes_to_read(store: Store) -> int:
    """What `progress` adds up to: every file is hashed, and the examples are looked at once more."""
    files = store.manifest["files"]
    return sum(file["bytes"] for file in files.values()) + sum(files[_name(split)]["bytes"] for split in store.splits)


def check_store(store: Store, progress: Progress = _nobody) -> list[str]:
    """Reads every file again and returns what is wrong, one line each."""
    return list(reference_differences(store, progress))


def reference_differences(store: Store, progress: Progress = _nobody) -> Iterator[str]:
    """What is wrong, one line each with the file's name in front, as soon as it is found.

    Args:
        store: what to check.
        progress: called with the number of bytes just read, of `bytes_to_read`.
    """
    sound = True
    for fault in chain(_names_and_sizes(store), _hashes(store, progress)):
        sound = False
        yield fault
    if sound:
        for fault in chain(_row_counts(store), _starts(store)):
            sound = False
            yield fault
    if sound:
        yield from _event_items(store)
        for split in store.splits:
            yield from _examples(store, split, progress)
        yield from (f"{file}: {fault}" for file, fault in _ids_outside(store, store.schema))


def _name(split: str) -> str:
    return f"examples/{split}.arrow"


def _names_and_sizes(store: Store) -> Iterator[str]:
    recorded = store.manifest["files"]
    present = {str(p.relative_to(store.path)) for p in store.path.rglob("*.arrow")}
    yield from (f"{name}: missing" for name in sorted(recorded.keys() - present))
    yield from (f"{name}: not in the manifest" for name in sorted(present - recorded.keys()))
    for name in sorted(recorded.keys() & present):
        num_bytes = (store.path / name).stat().st_size
        if num_bytes != recorded[name]["bytes"]:
            yield f"{name}: bytes is {num_bytes}, the manifest says {recorded[name]['bytes']}"


def _hashes(store: Store, progress: Progress) -> Iterator[str]:
    for name, recorded in sorted(store.manifest["files"].items()):
        path = store.path / name
        if path.is_file() and path.stat().st_size == recorded["bytes"]:
            found = hash_files(store.path, [name], progress)[name]["sha256"]
            if found != recorded["sha256"]:
                yield f"{name}: sha256 is {found}, the manifest says {recorded['sha256']}"


def _row_counts(store: Store) -> Iterator[str]:
    manifest = store.manifest
    table_rows = {table.name: table.num_rows for table in store.schema.tables}
    expected = {"users.arrow": manifest["num_users"], "items.arrow": manifest["num_items"]}
    expected |= {_name(split): facts["num_examples"] for split, facts in manifest["splits"].items()}
    expected |= {f"events/{name}.arrow": facts["num_events"] for name, facts in manifest["behaviours"].items()}
    listed = [f for f in store.schema.features if manifest["encodings"][f.name] != "hash"]
    vocabularies = {f"vocab/{f.name}.arrow": table_rows[f.table] - FIRST_VALUE_ID for f in listed}
    expected |= {name: rows for name, rows in vocabularies.items() if name in manifest["files"]}
    for name, num_rows in expected.items():
        found = read_arrow(store.path / name).num_rows
        if found != num_rows:
            yield f"{name}: has {found:,} rows, the manifest says {num_rows:,}"


def _starts(store: Store) -> Iterator[str]:
    """Each user's events begin where the last one's end."""
    starts_UV = store.starts
    for v, (name, facts) in enumerate(store.manifest["behaviours"].items()):
        first, last = int(starts_UV[0, v]), int(starts_UV[-1, v])
        if first != 0 or last > facts["num_events"]:
            events = f"the behaviour has {facts['num_events']} events"
            yield f"users.arrow: starts of {name!r} run from {first} to {last}, {events}"
    for rows in row_chunks(len(starts_UV) - 1, CHUNK_ROWS):
        falls_NV = starts_UV[rows] > starts_UV[rows.start + 1 : rows.stop + 1]
        if falls_NV.any():
            user, v = (int(places[0]) for places in np.nonzero(falls_NV))
            yield f"users.arrow: starts of {list(store.manifest['behaviours'])[v]!r} fall after row {rows.start + user}"
            return


def _event_items(store: Store) -> Iterator[str]:
    num_items = store.manifest["num_items"]
    for name, facts in store.manifest["behaviours"].items():
        item_E = store.events(name).item_E
        if facts["num_events"] and (item_E.min() < 0 or item_E.max() >= num_items):
            yield f"events/{name}.arrow: has items {item_E.min()} to {item_E.max()}, there are {num_items}"


def _examples(store: Store, split: str, progress: Progress) -> Iterator[str]:
    """Each kind of fault once, with its first row; and the positives of each task."""
    examples, recorded = store.examples(split), store.manifest["splits"][split]
    num_bytes, reported = store.manifest["files"][_name(split)]["bytes"], 0
    positives = dict.fromkeys(examples.labels, 0)
    wrong: dict[str, tuple[int, int]] = {}
    for rows in row_chunks(len(examples), CHUNK_ROWS):
        for what, bad_N in _bad_rows(store, examples, rows):
            if bad_N.any():
                first, number = wrong.get(what, (rows.start + int(bad_N.argmax()), 0))
                wrong[what] = (first, number + int(bad_N.sum()))
        for task, label_N in examples.labels.items():
            positives[task] += int((label_N[rows] == 1).sum())
        progress(num_bytes * rows.stop // len(examples) - reported)
        reported = num_bytes * rows.stop // len(examples)
    for what, (first, number) in wrong.items():
        yield f"{_name(split)}: {number:,} examples {what}, the first is row {first}"
    for task, number in positives.items():
        expected = round(recorded["label_rates"][task] * len(examples))
        if number != expected:
            yield f"{_name(split)}: label {task!r} is 1 in {number:,} examples, the manifest says {expected:,}"


def _bad_rows(store: Store, examples: Examples, rows: slice) -> Iterator[tuple[str, np.ndarray]]:
    """What can be wrong with an example, and which of these rows it is wrong with (bool [N])."""
    user_N, item_N, time_N = examples.user_N[rows], examples.item_N[rows], examples.time_N[rows]
    num_users = len(store.starts)
    no_user_N = (user_N < 0) | (user_N >= num_users)
    yield "name a user that users.arrow has no row for", no_user_N
    yield "name an item that items.arrow has no row for", (item_N < 0) | (item_N >= store.manifest["num_items"])
    for task, label_N in examples.labels.items():
        yield f"have a label {task!r} that is neither 0 nor 1", label_N[rows] > 1
    user_N = np.where(no_user_N, 0, user_N)
    num_events_V = np.array([facts["num_events"] for facts in store.manifest["behaviours"].values()], np.int64)
    start_NV = store.starts[user_N]
    stop_NV = np.where((user_N < num_users - 1)[:, None], store.starts[(user_N + 1) % num_users], num_events_V)
    for v, (name, seen_N) in enumerate(examples.seen.items()):
        end_N = start_NV[:, v] + seen_N[rows]
        too_many_N = end_N > stop_NV[:, v]
        yield f"have seen more events of {name!r} than their user has", too_many_N & ~no_user_N
        event_time_E = store.events(name).time_E
        newest_N = event_time_E[np.where(too_many_N, 0, end_N - 1)] if len(event_time_E) else time_N
        has_seen_N = (seen_N[rows] > 0) & ~too_many_N & ~no_user_N
        yield f"have seen an event of {name!r} that is not earlier than they are", has_seen_N & (newest_N >= time_N)


def ids_outside_tables(store: Store, schema: Schema) -> list[str]:
    """Features and sequences with ids that their table has no row for, one line each; reads every id.

    A sharded lookup takes such an id for row 0 without a word, so it must not get there.
    """
    return [fault for _, fault in _ids_outside(store, schema)]


def _ids_outside(store: Store, schema: Schema) -> Iterator[tuple[str, str]]:
    """The file and what is wrong in it. The first id of a feature of several values is never an empty slot."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for side, ids in (("user", store.user_ids), ("item", store.item_ids)):
        lows, highs, columns = ids.min(0), ids.max(0), store.columns_of(side)
        for name in dict.fromkeys(columns):
            mine = [c for c, column in enumerate(columns) if column == name]
            found[name] = [(f"{side}s.arrow", *_range(lows[mine], highs[mine]))]
    for split in store.splits:
        for name, ids in store.examples(split).context.items():
            ends = _range(np.atleast_1d(ids.min(0)), np.atleast_1d(ids.max(0)))
            found.setdefault(name, []).append((_name(split), *ends))
    num_rows = {table.name: table.num_ids for table in schema.tables}
    read = [(f.name, f.name, f.table) for f in schema.features]
    read += [(s.name, s.attribute, s.table) for s in schema.sequences]
    for name, column, table in read:
        for file, low, high in found[column]:
            if low < 0 or high >= num_rows[table]:
                rows = f"table {table!r} has rows 0 to {num_rows[table] - 1}"
                yield file, f"{name}: has ids {low} to {high}, but {rows}"


def _range(low_k: np.ndarray, high_k: np.ndarray) -> tuple[int, int]:
    """Smallest and largest id of a feature from those of its places; all places but the first may be empty."""
    low_k = low_k.astype(np.int64)
    low_k[1:] -= EMPTY_SLOT
    return int(low_k.min()), int(high_k.max())
