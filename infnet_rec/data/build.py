"""Raw files to a store, out of core.

DuckDB scans, joins and sorts (and spills to disk under a memory limit); numpy counts histories on the sorted stream.
The store is built in a hidden folder beside its destination and renamed when it is whole.
"""

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

import infnet_rec
from infnet_rec.data.raw import connect, open_raw
from infnet_rec.data.recipe import Recipe
from infnet_rec.data.sides import encode_side, join_rows, join_sides, number_users_and_items, sorted_keys
from infnet_rec.data.store import SPLITS, STORE_VERSION, as_numpy, hash_files, read_arrow, write_arrow
from infnet_rec.data.timeline import Timeline, fit_context, run_timeline
from infnet_rec.data.vocab import Vocabulary, vocabulary_columns
from infnet_rec.faults import Fault
from infnet_rec.schema import Feature, Schema, Sequence, Side, Table, Task

LENGTH_SAMPLE_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """What a build tells its caller.

    Attributes:
        stage: called with a line about what begins now.
        total_rows: called once with the number of rows to be sorted.
        rows: called with the number of rows just written.
    """

    stage: Callable[[str], None]
    total_rows: Callable[[int], None]
    rows: Callable[[int], None]


def build(
    recipe: Recipe,
    raw: Path,
    out: Path,
    progress: Progress,
    *,
    memory_gib: float = 6.0,
    num_threads: int = 2,
    replace: bool = False,
) -> dict[str, Any]:
    """Builds a store and returns its manifest.

    Args:
        recipe: what the raw files mean.
        raw: folder of the raw files.
        out: the store to make.
        progress: whom to tell.
        memory_gib: DuckDB may use two thirds of it, the rest is for the columns in flight.
        num_threads: DuckDB's threads.
        replace: whether an existing store at `out` gives way to the finished new one.

    Raises:
        Fault: `out` exists, or the raw files do not fit the recipe. Nothing is left behind.
    """
    if out.exists() and not (replace and (out / "manifest.json").is_file()):
        remedy = (
            "use --replace to build it anew"
            if (out / "manifest.json").is_file()
            else "it is not a store; name another folder"
        )
        raise Fault(f"--out {out}: exists already; {remedy}")
    work = out.parent / f".{out.name}.building"
    shutil.rmtree(work, ignore_errors=True)  # what an interrupted build of this same store left
    store = work / "store"
    store.mkdir(parents=True)
    try:
        connection = connect(work, memory_gib=memory_gib * 2 / 3, num_threads=num_threads)
        with connection:
            manifest = _build(connection, recipe, raw, store, progress)
        (store / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _publish(store, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _publish(store: Path, out: Path) -> None:
    """Renames the finished store into its place; an older one is removed only after that."""
    if not out.exists():
        store.rename(out)
        return
    old = out.parent / f".{out.name}.replaced"
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    store.rename(out)
    shutil.rmtree(old)


def _build(
    connection: duckdb.DuckDBPyConnection, recipe: Recipe, raw: Path, store: Path, progress: Progress
) -> dict[str, Any]:
    spools = store.parent / "spools"
    progress.stage("reading the raw files")
    open_raw(connection, recipe, raw)
    number_users_and_items(connection, recipe)
    num_rows = join_rows(connection, recipe)
    progress.stage("fitting vocabularies on the training window")
    join_sides(connection, recipe)
    keys = {side: sorted_keys(connection, side) for side in ("user", "item")}
    vocabularies, side_spools = {}, {}
    for side in ("user", "item"):
        fitted, side_spools[side] = encode_side(connection, recipe, side, spools / side)
        vocabularies |= fitted
    vocabularies |= fit_context(connection, recipe)
    progress.stage("sorting the log by user and time")
    progress.total_rows(num_rows)
    timeline = run_timeline(connection, recipe, spools, len(keys["user"]), progress.rows)
    empty = [split for split in SPLITS if not timeline.examples[split].num_rows]
    if empty:
        raise Fault(
            f"recipe {recipe.name}: no row of the log falls into {', '.join(empty)}; move the boundaries of [splits]"
        )
    progress.stage("writing the store")
    side_spools["user"].finish(store / "users.arrow", key=keys["user"], starts=timeline.starts_UV)
    side_spools["item"].finish(store / "items.arrow", key=keys["item"])
    for name, spool in timeline.events.items():
        spool.finish(store / "events" / f"{name}.arrow")
    for name, spool in timeline.examples.items():
        spool.finish(store / "examples" / f"{name}.arrow")
    for name, vocabulary in vocabularies.items():
        write_arrow(store / "vocab" / f"{name}.arrow", vocabulary_columns(connection, vocabulary))
    progress.stage("hashing")
    return _manifest(recipe, store, vocabularies, timeline, {side: len(k) for side, k in keys.items()})


def schema_of(recipe: Recipe, vocabularies: dict[str, Vocabulary]) -> Schema:
    """The schema of all the recipe's features; one table a feature, shared with its sequences if the recipe says so."""
    names: list[tuple[str, Side]] = [(name, f.side) for f in recipe.features for name in f.named_columns]
    tables = [Table(name, vocabularies[name].num_rows) for name, _ in names]
    sequences = []
    if recipe.sequences:
        for behaviour in recipe.behaviours:
            for attribute in recipe.sequences.attributes:
                table = attribute if recipe.sequences.share_tables else f"seq_{attribute}"
                sequences.append(
                    Sequence(f"seq_{behaviour.name}_{attribute}", behaviour.name, attribute, table, behaviour.name)
                )
        if not recipe.sequences.share_tables:
            tables += [Table(f"seq_{a}", vocabularies[a].num_rows) for a in recipe.sequences.attributes]
    tasks = tuple(Task(t.name, t.label) for t in recipe.tasks)
    return Schema(tuple(tables), tuple(Feature(n, n, side) for n, side in names), tuple(sequences), tasks)


def _manifest(
    recipe: Recipe, store: Path, vocabularies: dict[str, Vocabulary], timeline: Timeline, counts: dict[str, int]
) -> dict[str, Any]:
    splits = {}
    for split, spool in timeline.examples.items():
        rates = {task: n / spool.num_rows for task, n in timeline.positives[split].items()}
        splits[split] = {"num_examples": spool.num_rows, "label_rates": rates}
    columns: dict[str, list[str]] = {"user": [], "item": [], "context": []}
    for feature in recipe.features:
        columns[feature.side] += feature.named_columns
    files = [str(path.relative_to(store)) for path in store.rglob("*.arrow")]
    return {
        "store_version": STORE_VERSION,
        "name": recipe.name,
        "licence": recipe.licence,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_users": counts["user"],
        "num_items": counts["item"],
        "splits": splits,
        "behaviours": {b.name: {"num_events": timeline.events[b.name].num_rows} for b in recipe.behaviours},
        "history_lengths": _history_lengths(store, recipe),
        "columns": columns,
        "encodings": {name: vocabulary.encoding for name, vocabulary in vocabularies.items()},
        "profiles": recipe.profile_choices(),
        "schema": schema_of(recipe, vocabularies).to_json(),
        "recipe": recipe.model_dump(mode="json"),
        "versions": {
            "infnet_rec": infnet_rec.__version__,
            "python": platform.python_version(),
            "duckdb": duckdb.__version__,
            "pyarrow": pa.__version__,
        },
        "files": hash_files(store, files),
    }


def _history_lengths(store: Path, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Events before a training example, per behaviour, untruncated, from evenly spaced examples."""
    examples = read_arrow(store / "examples" / "train.arrow")
    lengths = {}
    for behaviour in recipe.behaviours:
        seen = as_numpy(examples, f"seen_{behaviour.name}")
        seen = seen[:: max(1, len(seen) // LENGTH_SAMPLE_ROWS)]
        p50, p95, largest = np.percentile(seen, [50, 95, 100])
        lengths[behaviour.name] = {"mean": float(seen.mean()), "p50": p50, "p95": p95, "max": largest}
    return lengths
