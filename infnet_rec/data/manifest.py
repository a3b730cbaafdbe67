"""What a store says of itself: its schema and everything that its readers need to know before they open a column."""

import platform
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

import infnet_rec
from infnet_rec.data.ingest.bad_rows import Quarantine
from infnet_rec.data.ingest.recipe import Recipe, sequence_name, sequence_table
from infnet_rec.data.ingest.timeline import Timeline
from infnet_rec.data.ingest.vocabulary import Vocabulary
from infnet_rec.data.store import STORE_VERSION
from infnet_rec.schema import Feature, Schema, Sequence, Side, Table, Task


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
