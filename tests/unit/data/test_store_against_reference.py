"""Stores against the slow reference, example by example: a made-up shop, generated rows, real rows.

Shapes: B examples, F sequences, N examples of a split.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import pytest

from data_fixtures import Dataset
from infnet_rec.batch import Batch
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.store import Examples, Store
from infnet_rec.schema import Feature, Schema, Sequence
from slow_reference import FIRST_RANGE, FIRST_VALUE, NULL, SPLITS, UNSEEN, ZERO, Key, Reference

NUM_SAMPLED = {"train": 150, "valid": 75, "test": 75}
WHOLE_HISTORY, SHORT_HISTORY = 100_000, 3


@dataclass(frozen=True)
class Case:
    """A store, what it should hold, and the borders of its quantile ranges."""

    data: Dataset
    reference: Reference
    edges: dict[str, list[float]]

    @property
    def store(self) -> Store:
        return self.data.store

    def sample(self, split: str) -> np.ndarray:
        num_examples = self.store.num_examples(split)
        chosen = random.Random(split).sample(range(num_examples), min(NUM_SAMPLED[split], num_examples))
        return np.array(chosen)

    def key_of(self, examples: Examples, row: int) -> tuple[Key, Key, int]:
        """User, item and time of an example."""
        user, item = self.store.user_keys[examples.user_N[row]], self.store.item_keys[examples.item_N[row]]
        return user.as_py(), item.as_py(), int(examples.time_N[row])


CASES = [
    "shop",
    "rich_shop",
    "random_shop",
    "generated",
    "qb_video",
]


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("shop_in_csv", "last_rows_shop", "kuairand_27k", "kuairand_1k")
]


@pytest.fixture(scope="module", params=[*CASES, *SLOW, pytest.param("real", marks=pytest.mark.real)])
def case(request: pytest.FixtureRequest) -> Case:
    data: Dataset = request.getfixturevalue(request.param)
    reference = data.reference
    edges = {
        name: data.store.vocabulary(name).column("low").to_pylist()[2:]
        for name, (feature, _) in reference.features.items()
        if feature["encoding"] == "quantile"
    }
    return Case(data, reference, edges)


def test_every_row_of_the_log_is_an_example_once(case: Case) -> None:
    """Rows are compared with all that an example keeps of them, as multisets: twins stay twins."""
    store, reference = case.store, case.reference
    context, found_rows = list(dict.fromkeys(store.columns_of("context"))), 0
    for split in SPLITS:
        expected = Counter(
            (
                row.user,
                row.item,
                row.time,
                *row.labels,
                *(reference.context_id(n, row.time, row.context) for n in context),
            )
            for row in reference.rows_of(split)
        )
        examples = store.examples(split)
        columns = [store.user_keys.take(examples.user_N).to_pylist(), store.item_keys.take(examples.item_N).to_pylist()]
        columns += [examples.time_N.tolist(), *(examples.labels[task].tolist() for task in reference.tasks)]
        columns += [[_plain(ids) for ids in examples.context[name].tolist()] for name in context]
        assert Counter(zip(*columns, strict=True)) == expected
        assert store.num_examples(split) == len(examples) == expected.total() > len(expected) / 2
        facts = store.manifest["splits"][split]["label_rates"]
        assert facts == {task: pytest.approx(examples.labels[task].mean()) for task in reference.tasks}
        found_rows += len(examples)
    early = sum(row.split is None for row in reference.rows)
    assert found_rows + early == len(reference.rows)


def test_ids_of_values_go_by_falling_number_of_training_lookups(case: Case) -> None:
    """The counts stand in the vocabulary files, those of users and items (the weights) among them."""
    rows_of = {table.name: table.num_rows for table in case.store.schema.tables}
    for name, expected in case.reference.vocabularies.items():
        columns = case.store.vocabulary(name).to_pydict()
        assert columns["value"] == list(expected), name
        assert columns["count"] == list(expected.values()), name
        assert columns["id"] == list(range(FIRST_VALUE, rows_of[name])), name


def test_only_what_training_looks_up_has_an_id(case: Case) -> None:
    """Over all users and items: 0 for those that only valid, test or nobody met."""
    store, log, met_later = case.store, case.data.recipe["log"], set()
    for side, keys, ids in (("user", store.user_keys, store.user_ids), ("item", store.item_keys, store.item_ids)):
        own = next(n for n, (f, c) in case.reference.features.items() if f["side"] == side and c == log[side])
        id_of = dict(zip(keys.to_pylist(), ids[:, store.columns_of(side).index(own)].tolist(), strict=True))
        looked_up = {key for key, weight in case.reference.weights[side].items() if weight}
        assert {key for key, id_ in id_of.items() if id_ >= FIRST_VALUE} == looked_up
        assert {key for key, id_ in id_of.items() if id_ == UNSEEN} == id_of.keys() - looked_up
        met_later |= {getattr(row, side) for split in SPLITS[1:] for row in case.reference.rows_of(split)} - looked_up
    assert met_later or case.reference.shares, "everything in valid and test was met in training, so this tests nothing"


def test_quantile_ranges_are_equally_frequent(case: Case) -> None:
    """No range outweighs its share by more than one value does, nor could two neighbours make one."""
    for name, edges in case.edges.items():
        columns = case.store.vocabulary(name).to_pydict()
        assert columns["id"] == list(range(ZERO, FIRST_RANGE + len(edges) + 1))
        assert (columns["low"][0], columns["high"][0]) == (0.0, 0.0)
        assert columns["low"][1] == -math.inf and columns["high"][-1] == math.inf
        assert columns["high"][1:-1] == edges and all(a < b for a, b in pairwise(edges))
        side, reference = case.reference.features[name][0]["side"], case.reference
        weight_of: Counter[float] = Counter()
        if side == "context":
            place = reference.texts_of_context.index(name)
            numbers = [reference.number_of(name, row.context[place]) for row in reference.rows_of("train")]
            weight_of.update(number for number in numbers if number)
        else:
            for key, weight in reference.weights[side].items():
                if number := reference.number(name, key):
                    weight_of[number] += weight
        share = sum(weight_of.values()) / case.reference.features[name][0].get("buckets", 64)
        ranges = [
            {v: w for v, w in weight_of.items() if w and low <= v < high}
            for low, high in pairwise([-math.inf, *edges, math.inf])
        ]
        for inside in ranges:
            assert sum(inside.values()) - max(inside.values(), default=0) <= share, name
        if edges and edges[-1] == max(weight_of):
            ranges[-2:] = [ranges[-2] | ranges[-1]]  # the largest value may have a range of its own
        for first, second in pairwise(ranges):
            assert sum(first.values()) + sum(second.values()) >= share, name


def _plain(ids: int | list[int]) -> int | tuple[int, ...]:
    """The ids of a context feature; empty slots of one of several values are left out."""
    return ids if isinstance(ids, int) else tuple(id_ for id_ in ids if id_ != -1)


def _unpack(batch: Batch, schema: Schema) -> tuple[dict[str, list[list[int]]], dict[str, list[list[list[int]]]]]:
    """Feature -> ids of each example, sequence -> ids of each of its events. Rows must be of their own table's part."""
    num_examples = len(batch.user_B)
    lengths = batch.categorical.lengths().reshape(len(schema.bag_features), num_examples).tolist()
    ids = iter(batch.categorical.values().tolist())
    bags = [[[next(ids) for _ in range(length)] for length in of_examples] for of_examples in lengths]
    features = dict(zip((f.name for f in schema.bag_features), bags, strict=True))
    assert batch.categorical.keys() == list(features) and next(ids, None) is None
    sizes = batch.sequences.lengths().reshape(len(schema.sequence_tables), num_examples).sum(dim=1).tolist()
    starts = dict(zip(batch.sequences.keys(), np.cumsum([0, *sizes]).tolist(), strict=False))
    size_of = dict(zip(batch.sequences.keys(), sizes, strict=True))
    distinct, rows, place = batch.sequences.values().tolist(), batch.spread_K.tolist(), 0
    assert len(distinct) == sum(sizes)
    mean_of: list[list[int]] = []
    if batch.mean_row_Q is not None and batch.mean_start_P is not None:
        mean_of = [part.tolist() for part in np.split(batch.mean_row_Q.numpy(), batch.mean_start_P.numpy()[1:])]

    def take(part: Feature | Sequence, length: int) -> list[list[int]]:
        nonlocal place
        mine, place = rows[place : place + length], place + length
        assert all((row >= len(distinct)) == (part.max_values > 1) for row in mine)
        of_tokens = [mean_of[row - len(distinct)] if part.max_values > 1 else [row] for row in mine]
        start, end = starts[part.table], starts[part.table] + size_of[part.table]
        assert all(start <= row < end for of_token in of_tokens for row in of_token)
        return [[distinct[row] for row in of_token] for of_token in of_tokens]

    for feature in schema.shared_features:
        features[feature.name] = take(feature, num_examples)
    sequences = {
        sequence.name: [take(sequence, length) for length in lengths]
        for sequence, lengths in zip(schema.sequences, batch.lengths_FB.tolist(), strict=True)
    }
    assert place == len(rows)
    return features, sequences


@pytest.mark.parametrize("split", SPLITS)
def test_batches_hold_the_features_and_labels_of_the_raw_files(case: Case, split: str) -> None:
    store, reference, rows = case.store, case.reference, case.sample(split)
    batch = BatchReader(store, split, store.schema, 1).read(rows)
    features, _ = _unpack(batch, store.schema)
    assert features.keys() == reference.features.keys()
    examples, met = store.examples(split), Counter()
    for place, row in enumerate(rows):
        user, item, time = case.key_of(examples, row)
        labels = tuple(int(label) for label in batch.labels_BT[place])
        ids = {name: values[place] for name, values in features.items()}
        for name, (feature, _) in reference.features.items():
            if feature["side"] != "context":
                key = user if feature["side"] == "user" else item
                assert ids[name] == reference.side_ids(name, key, case.edges), (name, key)
        several = {f.name for f in store.schema.features if f.max_values > 1}
        context = {n: tuple(ids[n]) if n in several else ids[n][0] for n in store.columns_of("context")}
        twins = [r for r in reference.by_user[user] if (r.item, r.time, r.labels) == (item, time, labels)]
        assert context in [{n: reference.context_id(n, time, r.context) for n in context} for r in twins]
        assert store.user_keys[int(batch.user_B[place])].as_py() == user
        met.update(chain.from_iterable(ids.values()))
    assert met[NULL] and met[ZERO] and met[FIRST_RANGE] and (met[UNSEEN] or split == "train")


@pytest.mark.parametrize("split", SPLITS)
def test_histories_are_what_the_user_did_strictly_before(case: Case, split: str) -> None:
    """As the batch has them (whole, and cut to the newest), and as the store has them."""
    store, reference, rows = case.store, case.reference, case.sample(split)
    examples, attributes = store.examples(split), case.data.recipe["sequences"]["attributes"]
    whole, short = (
        _unpack(BatchReader(store, split, store.schema, length).read(rows), store.schema)[1]
        for length in (WHOLE_HISTORY, SHORT_HISTORY)
    )
    assert len(whole) == len(reference.behaviours) * len(attributes)
    longest = 0
    for place, row in enumerate(rows):
        user, _, time = case.key_of(examples, row)
        for behaviour in reference.behaviours:
            expected = reference.history(behaviour, user, time)
            assert _stored_history(store, examples, behaviour, row) == [(e.time, e.item) for e in expected]
            longest = max(longest, len(expected))
            for attribute in attributes:
                ids = [reference.event_ids(attribute, event, case.edges) for event in expected]
                assert whole[f"seq_{behaviour}_{attribute}"][place] == ids
                assert short[f"seq_{behaviour}_{attribute}"][place] == ids[-SHORT_HISTORY:]
    assert longest > SHORT_HISTORY


def _stored_history(store: Store, examples: Examples, behaviour: str, row: int) -> list[tuple[int, Key]]:
    """Time and item of each event."""
    items, times = store.events(behaviour).item_E, store.events(behaviour).time_E
    start = store.starts[examples.user_N[row], list(store.manifest["behaviours"]).index(behaviour)]
    place = slice(int(start), int(start) + int(examples.seen[behaviour][row]))
    return list(zip(times[place].tolist(), store.item_keys.take(items[place]).to_pylist(), strict=True))


def test_no_example_sees_its_own_or_later_events(case: Case) -> None:
    """All examples of the store: the newest event that is seen is earlier, the next one is not."""
    store = case.store
    for v, behaviour in enumerate(store.manifest["behaviours"]):
        items, time_E = store.events(behaviour).item_E, store.events(behaviour).time_E
        starts_U, stops_U = store.starts[:, v], np.append(store.starts[1:, v], len(items))
        assert len(items) == sum(map(len, case.reference.events[behaviour].values()))
        user_E = np.repeat(np.arange(len(starts_U)), stops_U - starts_U)
        assert np.all((np.diff(time_E) >= 0) | (np.diff(user_E) > 0)), "events are sorted by user and time"
        for split in SPLITS:
            examples = store.examples(split)
            first_N, stop_N = starts_U[examples.user_N], stops_U[examples.user_N]
            next_N = first_N + examples.seen[behaviour]
            assert np.all(next_N <= stop_N)
            seen_N, unseen_N = next_N > first_N, next_N < stop_N
            assert np.all(time_E[next_N[seen_N] - 1] < examples.time_N[seen_N])
            assert np.all(time_E[next_N[unseen_N]] >= examples.time_N[unseen_N])


def test_padding_is_example_0_at_weight_0(case: Case) -> None:
    reader = BatchReader(case.store, "valid", case.store.schema, SHORT_HISTORY)
    padded, first = reader.read(np.array([5, -1, -1])), reader.read(np.array([5, 0, 0]))
    assert padded.weight_B.tolist() == [1, 0, 0] and first.weight_B.tolist() == [1, 1, 1]
    assert _unpack(padded, case.store.schema) == _unpack(first, case.store.schema)


def test_the_store_is_what_its_manifest_says(case: Case) -> None:
    assert check_store(case.store) == []
    longest = {name: case.store.examples("train").seen[name].max() for name in case.reference.behaviours}
    assert {n: stats["max"] for n, stats in case.store.manifest["history_lengths"].items()} == longest
