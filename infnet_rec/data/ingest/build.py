"""Raw files to a store, out of core.

DuckDB scans, joins and sorts (and spills to disk under a memory limit); numpy counts histories on the sorted stream.
Every raw file is read once. The store is built in a hidden folder beside its destination and takes its place when it is
whole.
"""

import json
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import infnet_rec
from infnet_rec.data.ingest.bad_rows import Quarantine
from infnet_rec.data.ingest.build_summary import (
    Join,
    as_json,
    flat_features,
    measure_history,
    measure_joins,
    measure_log,
    warnings_of,
)
from infnet_rec.data.ingest.entities import SideTables, sorted_keys
from infnet_rec.data.ingest.interactions import join_numbers, number_keys, read_log, weigh
from infnet_rec.data.ingest.raw_files import connect, faults_of, release
from infnet_rec.data.ingest.raw_folder import RawFolder, find_raw
from infnet_rec.data.ingest.recipe import Recipe, sequence_name, sequence_table
from infnet_rec.data.ingest.repeats import measure_repeats
from infnet_rec.data.ingest.sources import SIDES, RawFiles, names_of_files, open_raw
from infnet_rec.data.ingest.staging import ColumnSpool
from infnet_rec.data.ingest.timeline import Bucketing, Timeline, count_users, fit_context, run_timeline
from infnet_rec.data.ingest.vocabulary import Vocabulary, vocabulary_columns
from infnet_rec.data.publish import NOTES, new_store, refuse_what_exists
from infnet_rec.data.remote import is_url
from infnet_rec.data.store import STORE_VERSION, Store, hash_files, to_arrow, write_arrow
from infnet_rec.errors import UserError
from infnet_rec.files import try_folder
from infnet_rec.schema import Feature, Schema, Sequence, Side, Table, Task

# Of the memory given: DuckDB's share, and that of the parts in work (ranges of a side, buckets of users). The rest is
# Python's own.
DUCKDB_SHARE, PARTS_SHARE = 0.55, 0.2
POLL_S = 0.25


def schema_of(recipe: Recipe, vocabularies: dict[str, Vocabulary]) -> Schema:
    """The schema of all the recipe's features; one table a feature, shared with its sequences if the recipe says so."""
    names: list[tuple[str, Side]] = [(name, f.side) for f in recipe.features for name in f.named_columns]
    tables = [Table(name, vocabularies[name].num_rows) for name, _ in names]
    sequences = []
    if recipe.sequences:
        for behaviour in recipe.behaviours:
            for attribute in recipe.sequences.attributes:
                table = attribute if recipe.sequences.share_tables else sequence_table(attribute)
                name = sequence_name(behaviour.name, attribute)
                most = vocabularies[attribute].max_values
                sequences.append(Sequence(name, behaviour.name, attribute, table, behaviour.name, most))
        if not recipe.sequences.share_tables:
            tables += [Table(sequence_table(a), vocabularies[a].num_rows) for a in recipe.sequences.attributes]
    tasks = tuple(Task(t.name, t.source) for t in recipe.tasks)
    features = tuple(Feature(n, n, side, vocabularies[n].max_values) for n, side in names)
    return Schema(tuple(tables), features, tuple(sequences), tasks).with_free_table_names()


def make_manifest(
    recipe: Recipe,
    vocabularies: dict[str, Vocabulary],
    timeline: Timeline,
    counts: dict[Side, int],
    quarantine: Quarantine,
) -> dict[str, Any]:
    """The manifest of a store, but for the hashes of its files."""
    splits = {}
    for split, spool in timeline.examples.items():
        rates = {task: n / spool.num_rows for task, n in timeline.positives[split].items()}
        splits[split] = {"num_examples": spool.num_rows, "label_rates": rates}
    weight = {}
    if recipe.log.weight:
        mean = timeline.weight / splits["train"]["num_examples"]
        weight = {"weight": {"column": recipe.log.weight, "train_mean": mean}}
    columns: dict[str, list[str]] = {"user": [], "item": [], "context": []}
    for feature in recipe.features:
        for name in feature.named_columns:
            columns[feature.side] += [name] * vocabularies[name].max_values
    return {
        "store_version": STORE_VERSION,
        "name": recipe.name,
        "licence": recipe.licence,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "order": "time" if recipe.log.time else "file",
        "num_users": counts["user"],
        "num_items": counts["item"],
        "splits": splits,
        **weight,
        "behaviours": {b.name: {"num_events": timeline.events[b.name].num_rows} for b in recipe.behaviours},
        "history_lengths": timeline.history_lengths(),
        "bad_rows": quarantine.counts,
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
    }


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """What a build tells its caller.

    Attributes:
        stage: called with a line about what begins now, the amount of work in it and its unit; 0 if it is not known.
        done: called with the amount of work done in the stage so far.
    """

    stage: Callable[[str, int, str], None]
    done: Callable[[int], None]


def build_store(
    recipe: Recipe,
    raw: Path | str,
    out: Path,
    progress: BuildProgress,
    *,
    memory_gib: float = 6.0,
    num_threads: int = 2,
    max_bad_fraction: float = 0.001,
    replace: bool = False,
) -> dict[str, Any]:
    """Builds a store and returns its manifest.

    Args:
        recipe: what the raw files mean.
        raw: folder of the raw files, or a URL of one that fsspec reads.
        out: the store to make.
        progress: whom to tell.
        memory_gib: what the process may use, whatever the number of rows; the rest spills to disk.
        num_threads: DuckDB's threads, and user buckets in work at a time.
        max_bad_fraction: of the rows of a table that may be bad; they are listed in the store's `quarantine.csv`.
        replace: whether an existing store at `out` gives way to the finished new one.

    Raises:
        UserError: `out` exists, or the raw files do not fit the recipe. Nothing is left behind.
        Failure: the disk is full, or the memory given is too small.
    """
    if "?" in str(out.absolute()):
        raise UserError(f"--out {out}: its path has a '?', which DuckDB cuts a path at; name another folder")
    refuse_what_exists(out, replace=replace)
    try_folder("--out", out)
    folder = find_raw(raw, names_of_files(recipe), progress.stage, progress.done)
    with _in_words(folder):
        files = open_raw(recipe, folder)
    with _in_words(folder), faults_of(f"building {out}"), new_store(out, replace=replace) as work:
        connection = connect(work, memory_gib=memory_gib * DUCKDB_SHARE, num_threads=num_threads)
        with connection:
            memory = memory_gib * PARTS_SHARE / (num_threads + 1)
            construction = _Construction(connection, recipe, work, num_threads, memory, progress)
            manifest = construction.run(files, Quarantine(max_bad_fraction, shown=folder.shown))
        if not is_url(str(raw)) and (Path(raw) / NOTES).is_file():
            manifest["generated"] = True
        _write_manifest(work / "store", manifest)
        progress.stage("counting repeated ids", 0, "")
        if (repeats := measure_repeats(Store(work / "store"))) is not None:
            manifest["repeats"] = repeats
            _write_manifest(work / "store", manifest)
    return manifest


@contextmanager
def _in_words(folder: RawFolder) -> Iterator[None]:
    """Names fetched files by their URLs in what goes wrong."""
    try:
        yield
    except UserError as fault:
        if (text := folder.in_words(str(fault))) == str(fault):
            raise
        raise UserError(text) from fault


def _write_manifest(store: Path, manifest: dict[str, Any]) -> None:
    (store / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Construction:
    """One build's tools, and its steps in order."""

    connection: duckdb.DuckDBPyConnection
    recipe: Recipe
    work: Path
    num_threads: int
    part_gib: float
    progress: BuildProgress

    def run(self, files: RawFiles, quarantine: Quarantine) -> dict[str, Any]:
        """Writes everything but the manifest, and returns that."""
        store = self.work / "store"
        sides: dict[Side, SideTables] = {side: SideTables(self.recipe, side, files.sides[side]) for side in SIDES}
        num_rows, counts, joins = self._read(files, sides, quarantine)
        spools: dict[Side, ColumnSpool] = {side: self._encode(table, counts[side]) for side, table in sides.items()}
        vocabularies = sides["user"].vocabularies | sides["item"].vocabularies
        vocabularies |= fit_context(self.connection, self.recipe)
        timeline = self._sort(vocabularies, counts["user"], num_rows)
        log = measure_log(self.connection, self.recipe, quarantine)
        self.progress.stage("writing the store", 0, "")
        release(self.connection)
        keys = {side: sorted_keys(self.connection, side) for side in SIDES}
        manifest = make_manifest(self.recipe, vocabularies, timeline, counts, quarantine)
        flat = flat_features(spools, timeline.examples["train"], manifest["columns"])
        manifest |= {"log": log, "joins": as_json(joins), "flat_features": flat}
        manifest["warnings"] = warnings_of(manifest)
        spools["user"].finish(store / "users.arrow", key=keys["user"], starts=to_arrow(timeline.starts_UV))
        spools["item"].finish(store / "items.arrow", key=keys["item"])
        for name, spool in timeline.events.items():
            spool.finish(store / "events" / f"{name}.arrow")
        for name, spool in timeline.examples.items():
            spool.finish(store / "examples" / f"{name}.arrow")
        for name, vocabulary in vocabularies.items():
            write_arrow(store / "vocab" / f"{name}.arrow", vocabulary_columns(self.connection, vocabulary))
        if quarantine.rows:
            quarantine.write(store / "quarantine.csv")
        names = [str(path.relative_to(store)) for path in store.rglob("*.arrow")]
        self.progress.stage("hashing", sum((store / name).stat().st_size for name in names), "B")
        return manifest | {"files": hash_files(store, names, self._adding(), num_threads=self.num_threads)}

    def _read(
        self, files: RawFiles, sides: dict[Side, SideTables], quarantine: Quarantine
    ) -> tuple[int, dict[Side, int], list[Join]]:
        """Reads every raw file, numbers users and items; returns the rows of the log and each side, and the joins."""
        with watched(self.connection, self.progress, "reading the log", files.log.num_bytes):
            besides = files.histories, files.further_tests
            num_rows = read_log(self.connection, self.recipe, files.log, besides, quarantine)
        weigh(self.connection, self.recipe)
        counts: dict[Side, int] = {}
        joins = measure_history(self.connection, self.recipe)
        for side, table in sides.items():
            num_bytes = sum(source.num_bytes for source in table.sources)
            with watched(self.connection, self.progress, f"reading the {side}s", num_bytes):
                table.read(self.connection, quarantine)
            joins += measure_joins(self.connection, self.recipe, side)
            sources = [f"SELECT key FROM {side}_weight"]
            sources += [f"SELECT key FROM side_{side}_{k}" for k in range(len(table.sources))]
            counts[side] = number_keys(self.connection, f"{side}s", sources)
        join_numbers(self.connection)
        return num_rows, counts, joins

    def _encode(self, table: SideTables, num_rows: int) -> ColumnSpool:
        self.progress.stage(f"fitting the {table.side}s' features", len(table.features), " features")
        for done, _ in enumerate(table.fit(self.connection, self.num_threads), start=1):
            self.progress.done(done)
        self.progress.stage(f"encoding the {table.side}s", num_rows, " rows")
        table.code(self.connection)
        spool, folder = None, self.work / "spools" / table.side
        for spool in table.encode(
            self.connection, folder, num_rows, num_threads=self.num_threads, range_gib=self.part_gib
        ):
            self.progress.done(spool.num_rows)
        assert spool is not None
        return spool

    def _sort(self, vocabularies: dict[str, Vocabulary], num_users: int, num_rows: int) -> Timeline:
        self.progress.stage("sorting the log by user and time", num_rows, " rows")
        timeline = run_timeline(
            self.connection,
            Bucketing(self.recipe, vocabularies),
            self.work / "spools",
            count_users(self.connection, self.recipe, num_users),
            bucket_gib=self.part_gib,
            num_threads=self.num_threads,
            progress=self._adding(),
        )
        empty = [split for split, spool in timeline.examples.items() if not spool.num_rows]
        if empty:
            raise UserError(
                f"recipe {self.recipe.name}: no row of the log falls into {', '.join(empty)}; move the boundaries of "
                "[splits]"
            )
        if self.recipe.log.weight and not timeline.weight > 0:
            raise UserError(
                f"recipe {self.recipe.name}: log.weight = {self.recipe.log.weight!r}: is 0 for every training example, "
                "so nothing would be learned; leave it out"
            )
        return timeline

    def _adding(self) -> Callable[[int], None]:
        """Reports the sum of what it is called with."""
        done = 0

        def add(amount: int) -> None:
            nonlocal done
            done += amount
            self.progress.done(done)

        return add


@contextmanager
def watched(
    connection: duckdb.DuckDBPyConnection, progress: BuildProgress, text: str, num_bytes: int
) -> Iterator[None]:
    """A stage of DuckDB's own, whose share of the work it is asked for now and then."""
    progress.stage(text, num_bytes, "B")
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            progress.done(max(0, int(num_bytes * connection.query_progress() / 100)))

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
