"""What a store holds, in numbers: one JSON object, from one pass over its examples, users and items.

Percentiles are numbers that occur (no interpolation); rates are exact. `curve`s are for plots: a few points each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from infnet_rec.data.inspect.counters import (
    CHUNK_EXAMPLES,
    DAY_S,
    Distribution,
    LookUps,
    Periods,
    SplitCounts,
    count_side,
    count_split,
    has_time,
    periods_of,
    row_chunks,
    ticks_and_offset,
    time_span,
)
from infnet_rec.data.inspect.show import local_time
from infnet_rec.data.store import SPLITS, Store

LENGTHS = (20, 50, 100, 200)
WIDTHS = (16, 32, 64, 128)
ID_BYTES = 4
FLOAT_BYTES = 4
ROW_WISE_ADAGRAD_BYTES = 4  # one float a row, whatever the width
CURVE_POINTS = 120
DISK_PARTS = ("examples", "events", "items", "users", "vocab")

JSON = dict[str, Any]


def store_stats(store: Store, progress: Callable[[int], None]) -> JSON:
    """Counts everything.

    Args:
        store: the dataset.
        progress: called with the number of rows just read, of `counters.rows_to_read`.
    """
    spans = {split: time_span(store.examples(split)) for split in SPLITS}
    periods = periods_of(store, min(first for first, _ in spans.values()), max(last for _, last in spans.values()))
    split_counts: dict[str, SplitCounts] = {}
    context: dict[str, dict[str, LookUps]] = {}
    for split in SPLITS:
        split_counts[split], context[split] = count_split(store, split, periods, progress)
    sides = {
        "user": count_side(store, "user", [counted.user_counts for counted in split_counts.values()], progress),
        "item": count_side(store, "item", [counted.item_counts for counted in split_counts.values()], progress),
        "context": _joined(context),
    }
    manifest = store.manifest
    histories, tokens = _histories(store, split_counts)
    return {
        "store": str(store.path),
        "name": manifest["name"],
        "order": "time" if has_time(store) else "file",
        "num_examples": sum(counted.num_examples for counted in split_counts.values()),
        "num_users": manifest["num_users"],
        "num_items": manifest["num_items"],
        "splits": {split: _split(store, split_counts, split, spans[split]) for split in SPLITS},
        "log": manifest.get("log"),
        "joins": manifest.get("joins"),
        "bad_rows": manifest["bad_rows"],
        "flat_features": manifest.get("flat_features"),
        "warnings": manifest.get("warnings"),
        "examples_per_user": _popularity([counted.user_counts for counted in split_counts.values()]),
        "examples_per_item": _popularity([counted.item_counts for counted in split_counts.values()]),
        "periods": _periods(store, periods, split_counts),
        "histories": histories,
        "tokens_per_example": {str(length): tokens[length]["train"] for length in LENGTHS},
        "repeats": manifest.get("repeats"),
        "features": _features(store, sides, split_counts),
        "tables": _tables(store),
        "memory": _memory(store),
        "disk": _disk(store, tokens, {split: counted.num_examples for split, counted in split_counts.items()}),
    }


def _joined(context: Mapping[str, Mapping[str, LookUps]]) -> dict[str, LookUps]:
    """Look-ups of the context features, all splits in one array."""
    joined = {}
    for name in context[SPLITS[0]]:
        parts = [context[split][name] for split in SPLITS]
        joined[name] = LookUps(
            np.concatenate([part.null_S for part in parts]),
            np.concatenate([part.unseen_S for part in parts]),
            np.concatenate([part.values_S for part in parts]),
        )
    return joined


def _split(store: Store, split_counts: Mapping[str, SplitCounts], split: str, span: tuple[int, int]) -> JSON:
    counted, train = split_counts[split], split_counts["train"]
    positives = {name: int(counts.sum()) for name, counts in counted.positives_per_period.items()}
    first, last = (local_time(store, t) for t in span) if has_time(store) else span
    return {
        "num_examples": counted.num_examples,
        "num_users": int(np.count_nonzero(counted.user_counts)),
        "num_items": int(np.count_nonzero(counted.item_counts)),
        "new_user_share": _share_new(counted.user_counts, train.user_counts),
        "new_item_share": _share_new(counted.item_counts, train.item_counts),
        "first": first,
        "last": last,
        "positives": positives,
        "label_rates": {name: number / counted.num_examples for name, number in positives.items()},
    }


def _share_new(counts: np.ndarray, train_counts: np.ndarray) -> float:
    """The share of a split's examples whose user or item has no training example."""
    return int(counts[train_counts == 0].sum(dtype=np.int64)) / int(counts.sum(dtype=np.int64))


def _popularity(counts: list[np.ndarray]) -> JSON:
    """Examples of all splits a user or item; those without any are counted apart."""
    everyone = Distribution.of(
        np.sum([part[rows] for part in counts], axis=0) for rows in row_chunks(len(counts[0]), CHUNK_EXAMPLES)
    )
    distribution = everyone.without_zero()
    return {
        **distribution.summary(),
        "num": distribution.num,
        "num_without": everyone.num_zero,
        "top_1_percent_share": distribution.top_share(1),
        "top_10_percent_share": distribution.top_share(10),
        "curve_at_least": distribution.tail(CURVE_POINTS),
        "curve_by_rank": distribution.by_rank(CURVE_POINTS),
    }


def _periods(store: Store, periods: Periods, split_counts: Mapping[str, SplitCounts]) -> JSON:
    """Examples and positives along the log: one or more local days each, or a span of its rows."""
    starts: list[Any] = periods.starts
    if has_time(store):
        starts = [local_time(store, start).partition(" 00:00:00")[0] for start in starts]
    return {
        "unit": "day" if has_time(store) else "rows",
        "utc_offset_hours": ticks_and_offset(store)[1] / ticks_and_offset(store)[0] / 3600 if has_time(store) else None,
        "length": periods.ticks // (DAY_S * ticks_and_offset(store)[0]) if has_time(store) else periods.ticks,
        "starts": starts,
        "splits": {
            split: {
                "num_examples": counted.examples_per_period.tolist(),
                "positives": {name: counts.tolist() for name, counts in counted.positives_per_period.items()},
            }
            for split, counted in split_counts.items()
        },
    }


def _histories(store: Store, split_counts: Mapping[str, SplitCounts]) -> tuple[JSON, dict[int, dict[str, float]]]:
    """Events before an example, and sequence tokens an example when histories are cut to a length, per split."""
    histories: JSON = {}
    tokens: dict[int, dict[str, float]] = {length: dict.fromkeys(split_counts, 0.0) for length in LENGTHS}
    for behaviour, facts in store.manifest["behaviours"].items():
        attributes = [s.attribute for s in store.schema.sequences if s.behaviour == behaviour]
        histories[behaviour] = {"num_events": facts["num_events"], "attributes": attributes}
        for split, counted in split_counts.items():
            distribution = Distribution.from_counts(counted.seen[behaviour])
            histories[behaviour][split] = {
                **distribution.summary(),
                "empty_share": distribution.num_zero / distribution.num,
                "curve_at_least": distribution.tail(CURVE_POINTS),
            }
            for length in LENGTHS:
                tokens[length][split] += distribution.truncated_mean(length) * len(attributes)
    return histories, tokens


def _features(
    store: Store, sides: Mapping[str, Mapping[str, LookUps]], split_counts: Mapping[str, SplitCounts]
) -> list[JSON]:
    num_rows = {table.name: table.num_rows for table in store.schema.tables}
    features = []
    for feature in store.schema.features:
        look_ups = sides[feature.side][feature.name]
        shares = {
            key: {
                split: float(number) / split_counts[split].num_examples
                for split, number in zip(SPLITS, row, strict=True)
            }
            for key, row in (
                ("null_share", look_ups.null_S),
                ("unseen_share", look_ups.unseen_S),
                ("values_per_example", look_ups.values_S),
            )
        }
        if feature.max_values == 1:
            del shares["values_per_example"]
        features.append(
            {
                "feature": feature.name,
                "side": feature.side,
                "encoding": store.manifest["encodings"].get(feature.name),
                "table": feature.table,
                "num_rows": num_rows[feature.table],
                **shares,
            }
        )
    return features


def _tables(store: Store) -> list[JSON]:
    """Tables that something reads, the largest first."""
    schema = store.schema
    in_sequences = {table.name for table in schema.sequence_tables}
    return [
        {
            "table": table.name,
            "num_rows": table.num_rows,
            "features": [f.name for f in schema.features if f.table == table.name],
            "num_sequences": sum(s.table == table.name for s in schema.sequences),
            "looked_up_by_sequences": table.name in in_sequences,
        }
        for table in sorted((*schema.bag_tables, *schema.sequence_tables), key=lambda table: -table.num_rows)
    ]


def _memory(store: Store) -> JSON:
    """Bytes of all tables by embedding width: float32 weights and row-wise Adagrad's state."""
    num_rows = sum(table["num_rows"] for table in _tables(store))
    optimizer = num_rows * ROW_WISE_ADAGRAD_BYTES
    by_width = {}
    for width in WIDTHS:
        weights = num_rows * width * FLOAT_BYTES
        by_width[str(width)] = {
            "weights_gib": weights / 2**30,
            "row_wise_adagrad_gib": optimizer / 2**30,
            "total_gib": (weights + optimizer) / 2**30,
        }
    return {"num_rows": num_rows, "by_width": by_width}


def _disk(store: Store, tokens: Mapping[int, Mapping[str, float]], num_examples: Mapping[str, int]) -> JSON:
    """Bytes on disk, and what histories take an example: here, or as int32 lists copied into every row.

    Such lists are counted at their own truncated lengths, without padding or offsets.
    """
    parts = dict.fromkeys(DISK_PARTS, 0)
    for name, file in store.manifest["files"].items():
        part = name.split("/")[0].removesuffix(".arrow")
        parts[part] = parts.get(part, 0) + file["bytes"]
    total, behaviours = sum(num_examples.values()), store.manifest["behaviours"]
    pointers = len(behaviours) * np.dtype(np.uint32).itemsize
    copied = {
        str(length): ID_BYTES * sum(tokens[length][split] * number for split, number in num_examples.items()) / total
        for length in LENGTHS
    }
    return {
        "bytes": sum(parts.values()),
        "bytes_by_part": parts,
        "bytes_per_example": {name: number / total for name, number in parts.items()},
        "history_bytes_per_example": parts["events"] / total + pointers,
        "copied_history_bytes_per_example": copied,
    }
