"""How often a training batch repeats the ids of its sequences: what naming each distinct id once saves.

Measured on a few batches as training draws them, when a store is built, and kept in its manifest under "repeats". A
planner reads it: lookups, exchanges between ranks and gradients of sequence tables go by distinct ids.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np

from infnet_rec.data.dedup import UnpooledTokens
from infnet_rec.data.gather import ExampleRows, FeatureIds, Histories
from infnet_rec.data.sampler import ShuffledOrder
from infnet_rec.data.store import Store

BATCH_SIZES = (256, 1024, 4096)
LENGTHS = (10, 50, 200)
# Longer histories in larger batches are left out: building a store must not need much memory for this.
MAX_TOKENS = 8_000_000

JSON = dict[str, Any]


def measure_repeats(store: Store) -> JSON | None:
    """Counts tokens and distinct ids of the first shuffled batch of several sizes; None without sequences.

    Args:
        store: a store whose files are all written.
    """
    schema, num_examples = store.schema, store.num_examples("train")
    if not schema.sequences:
        return None
    examples = store.examples("train")
    rows, shared = ExampleRows(store, examples), FeatureIds(store, schema.shared_features)
    unpooled = UnpooledTokens(store, schema)
    tables = [table.name for table in schema.sequence_tables]
    samples: list[JSON] = []
    sizes = sorted({min(size, num_examples) for size in BATCH_SIZES})
    batches = {size: ShuffledOrder(num_examples, size, seed=0).global_batch(0) for size in sizes}
    for length in LENGTHS:
        histories = Histories(store, examples, schema, length)
        for size, indices_B in batches.items():
            if size * length * len(schema.sequences) > MAX_TOKENS:
                continue
            side_rows, user_B = rows.read(indices_B)
            events = histories.read(indices_B, user_B)
            found = unpooled.read(shared.jagged(side_rows), events)
            num_events = dict(zip(schema.behaviours, events.num_V, strict=True))
            counts = _tokens_of_tables(store, num_events, size)
            samples.append(
                {
                    "num_examples": size,
                    "sequence_length": length,
                    "tables": {
                        name: {"num_tokens": counts[name], "num_distinct": len(ids)}
                        for name, ids in zip(tables, found.ids, strict=True)
                    },
                }
            )
    return {"order": "shuffled", "samples": samples}


def _tokens_of_tables(store: Store, num_events: Mapping[str, int], num_examples: int) -> dict[str, int]:
    """Looked-up ids of each table; of a feature of several values as many as it may have."""
    schema = store.schema
    counts = {table.name: 0 for table in schema.sequence_tables}
    for feature in schema.shared_features:
        counts[feature.table] += num_examples * feature.max_values
    for sequence in schema.sequences:
        counts[sequence.table] += num_events[sequence.behaviour] * sequence.max_values
    return counts


def distinct_ids(repeats: JSON | None, table: str, num_tokens: float, sequence_length: int) -> float:
    """Distinct ids among so many tokens of a table in one batch.

    Between measured batches their number follows a power of the number of tokens, and beyond the largest the same
    power goes on. The samples of the nearest measured sequence length are used.

    Args:
        repeats: a manifest's "repeats"; None, or a table that was not measured, counts every token as distinct.
        table: a table that sequences read.
        num_tokens: of the batch.
        sequence_length: newest events of each behaviour that an example sees.
    """
    points = _curve(repeats, table, sequence_length)
    if not points or num_tokens <= 1:
        return num_tokens
    logs = [(math.log(tokens), math.log(distinct)) for tokens, distinct in points]
    at = math.log(num_tokens)
    if len(logs) == 1 or at <= logs[0][0]:
        # A smaller batch repeats less: from one token, which is distinct, to the first sample.
        (x0, y0), (x1, y1) = (0.0, 0.0), logs[0]
    else:
        place = min(max(1, bisect_left([x for x, _ in logs], at)), len(logs) - 1)
        (x0, y0), (x1, y1) = logs[place - 1], logs[place]
    slope = float(np.clip((y1 - y0) / max(x1 - x0, 1e-9), 0.0, 1.0))
    return min(num_tokens, math.exp(y1 + slope * (at - x1)))


def _curve(repeats: JSON | None, table: str, sequence_length: int) -> list[tuple[int, int]]:
    """Measured (tokens, distinct ids), both growing."""
    samples = [s for s in (repeats or {}).get("samples", ()) if s["tables"].get(table, {}).get("num_tokens", 0) > 1]
    if not samples:
        return []
    nearest = min({s["sequence_length"] for s in samples}, key=lambda length: abs(math.log(length / sequence_length)))
    found = {
        s["tables"][table]["num_tokens"]: s["tables"][table]["num_distinct"]
        for s in samples
        if s["sequence_length"] == nearest
    }
    return sorted(found.items())
