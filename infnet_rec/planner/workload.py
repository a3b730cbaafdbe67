"""What a rank's batch holds, read off a store's manifest: ids, events, repeats. No data is opened.

Shapes: B examples of a rank, M bag features, F sequences.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from infnet_rec.data.ingest.repeats import distinct_ids
from infnet_rec.errors import UserError
from infnet_rec.planner.request import TableTraffic
from infnet_rec.schema import Schema

# Standard deviations above the mean that one batch in twenty exceeds.
P95_DEVIATIONS = 1.645

JSON = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BatchShape:
    """How much of everything one rank's batch holds.

    Attributes:
        local_batch_size: B.
        ids_M: ids an example and bag feature; of a feature of several values the most it may have.
        events_F: mean events an example and sequence, of the newest `sequence_length`.
        p95_events_F: the same in a batch that one in twenty exceeds.
        tokens: ids of the unpooled tokens of each table that sequences read, those of shared features among them; of a
            feature of several values as many as it may have.
        distinct: distinct ids among them; each is looked up once.
        p95_distinct: likewise, in a batch that one in twenty exceeds.
        means: of tokens of several ids: one a shared feature and example, one an attribute and distinct
            event; in a batch that one in twenty exceeds.
        mean_rows: rows of these means, at most.
        weighs: whether examples have weights in the loss.
        entries_per_token: distinct sequence tokens of an example to all of its sequence tokens; 1 where nobody counted,
            which is the most that it can be.
        repeats_are_measured: whether the manifest knew how often ids repeat; if not, nothing but the size of a table
            holds the number of distinct ids down.
    """

    local_batch_size: int
    ids_M: tuple[float, ...]
    events_F: tuple[float, ...]
    p95_events_F: tuple[float, ...]
    tokens: Mapping[str, float]
    distinct: Mapping[str, float]
    p95_distinct: Mapping[str, float]
    repeats_are_measured: bool
    means: float = 0.0
    mean_rows: float = 0.0
    weighs: bool = False
    entries_per_token: float = 1.0


def batch_shape(manifest: JSON, schema: Schema, *, sequence_length: int, local_batch_size: int) -> BatchShape:
    """What a manifest says of a batch.

    Args:
        manifest: of a store, or one that stands in for it.
        schema: the features and sequences of the run.
        sequence_length: newest events of each behaviour that an example sees.
        local_batch_size: examples a rank and step.

    Raises:
        UserError: the manifest has no history lengths for a behaviour.
    """
    mean_of, p95_of = {}, {}
    for name in schema.behaviours:
        if name not in manifest.get("history_lengths", {}):
            raise UserError(
                f"manifest: history_lengths.{name}: missing; the planner needs the lengths of all histories"
            )
        mean = truncated_mean(manifest["history_lengths"][name], sequence_length)
        mean_of[name] = mean
        p95_of[name] = _p95_of_batch(mean, sequence_length, local_batch_size)
    tokens, p95_tokens = (_tokens(schema, events, local_batch_size) for events in (mean_of, p95_of))
    repeats = manifest.get("repeats")
    rows = {table.name: table.num_rows for table in schema.sequence_tables}
    distinct, p95_distinct = (
        {name: min(rows[name], distinct_ids(repeats, name, number, sequence_length)) for name, number in found.items()}
        for found in (tokens, p95_tokens)
    )
    p95_events_F = tuple(p95_of[s.behaviour] for s in schema.sequences)
    ratio = sum(p95_distinct.values()) / max(1.0, sum(p95_tokens.values()))
    means, mean_rows = means_of(schema, p95_events_F, local_batch_size, ratio)
    return BatchShape(
        local_batch_size=local_batch_size,
        ids_M=tuple(float(feature.max_values) for feature in schema.bag_features),
        events_F=tuple(mean_of[s.behaviour] for s in schema.sequences),
        p95_events_F=p95_events_F,
        tokens=tokens,
        distinct=distinct,
        p95_distinct=p95_distinct,
        repeats_are_measured=repeats is not None,
        means=means,
        mean_rows=mean_rows,
        weighs="weight" in manifest,
    )


def means_of(schema: Schema, events_F: tuple[float, ...], num_examples: float, ratio: float) -> tuple[float, float]:
    """Means that a batch's tokens need, and their rows; see `Batch.mean_row_Q`.

    Args:
        schema: of the run.
        events_F: events an example and sequence.
        num_examples: of the batch.
        ratio: distinct events to events; each distinct one has a mean.
    """
    means = rows = 0.0
    for feature in schema.shared_features:
        if feature.max_values > 1:
            means, rows = means + num_examples, rows + num_examples * feature.max_values
    for sequence, events in zip(schema.sequences, events_F, strict=True):
        if sequence.max_values > 1:
            number = num_examples * events * min(1.0, ratio)
            means, rows = means + number, rows + number * sequence.max_values
    return means, rows


def traffic_of(
    manifest: JSON, schema: Schema, *, width: int, sequence_length: int, local_batch_size: int, world_size: int
) -> dict[str, TableTraffic]:
    """How often each table is read, by table.

    Args:
        manifest: see `batch_shape`.
        schema: see `batch_shape`.
        width: of every table.
        sequence_length: see `batch_shape`.
        local_batch_size: examples a rank and step.
        world_size: ranks.
    """
    kept = {"sequence_length": sequence_length}
    shape = batch_shape(manifest, schema, local_batch_size=local_batch_size, **kept)
    whole = batch_shape(manifest, schema, local_batch_size=local_batch_size * world_size, **kept)
    traffic = {}
    for table in schema.bag_tables:
        lookups = tuple(float(f.max_values) for f in schema.bag_features if f.table == table.name)
        ids = sum(lookups) * local_batch_size * world_size
        fraction = min(1.0, table.num_rows / ids)
        kind = "managed" if table.managed else "bags"
        traffic[table.name] = TableTraffic(table.name, kind, table.num_rows, width, lookups, lookups, fraction)
    for table in schema.sequence_tables:
        name = table.name
        mean, p95 = shape.distinct[name] / local_batch_size, shape.p95_distinct[name] / local_batch_size
        fraction = min(1.0, whole.distinct[name] / max(1.0, shape.distinct[name] * world_size))
        traffic[name] = TableTraffic(name, "events", table.num_rows, width, (mean,), (p95,), fraction)
    return traffic


def truncated_mean(lengths: JSON, sequence_length: int) -> float:
    """Mean events of an example when only the newest are kept.

    Stores know it at a few lengths, between which it is nearly a straight line. An older one knows the mean and
    percentiles of whole histories only; then a straight line is drawn between those.

    Args:
        lengths: of one behaviour, from a manifest's "history_lengths".
        sequence_length: events kept.
    """
    if "mean_of_newest" in lengths:
        points = sorted((int(length), float(mean)) for length, mean in lengths["mean_of_newest"].items())
        return min(_on_line([(0, 0.0), *points], sequence_length), float(lengths["mean"]))
    shares, values = (0.0, 0.5, 0.95, 1.0), (0.0, lengths["p50"], lengths["p95"], lengths["max"])
    total = 0.0
    for (u0, u1), (x0, x1) in zip(pairwise(shares), pairwise(values), strict=True):
        low, high = min(x0, sequence_length), min(x1, sequence_length)
        # Within a stretch the lengths rise in a line up to the cut and stay there.
        below = 1.0 if x1 <= sequence_length or x1 == x0 else (high - low) / (x1 - x0)
        total += (u1 - u0) * (below * (low + high) / 2 + (1 - below) * high)
    return min(total, float(lengths["mean"]))


def _on_line(points: list[tuple[int, float]], at: int) -> float:
    """Linear between points; the last value beyond them."""
    place = bisect_left([x for x, _ in points], at)
    if place == len(points):
        return points[-1][1]
    (x1, y1), (x0, y0) = points[place], points[max(0, place - 1)]
    return y1 if x1 == x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _p95_of_batch(mean: float, most: int, batch_size: int) -> float:
    """Mean events an example in a batch that one batch in twenty exceeds.

    Lengths from 0 to `most` with this mean vary by no more than sqrt(mean (most - mean)); of independent examples a
    batch's mean varies by that over the root of their number.
    """
    deviation = math.sqrt(max(0.0, mean * (most - mean)) / batch_size)
    return min(float(most), mean + P95_DEVIATIONS * deviation)


def _tokens(schema: Schema, events_of: Mapping[str, float], batch_size: int) -> dict[str, float]:
    tokens = {table.name: 0.0 for table in schema.sequence_tables}
    for feature in schema.shared_features:
        tokens[feature.table] += batch_size * feature.max_values
    for sequence in schema.sequences:
        tokens[sequence.table] += batch_size * events_of[sequence.behaviour] * sequence.max_values
    return tokens
