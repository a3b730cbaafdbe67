"""Batches against loops over a small store, and the threads that read ahead.

Shapes: B examples, F sequences, M features, N numbers.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import sharded_runs
from handmade import Handmade, schema, write_store
from infnet_rec.batch import Batch, Repeats
from infnet_rec.config.data import DataConfig
from infnet_rec.data import dedup as distinct_module
from infnet_rec.data.dedup import Distinct
from infnet_rec.data.inspect.check import ids_outside_tables
from infnet_rec.data.loader import BatchReader, Loader
from infnet_rec.data.sampler import BLOCK_EXAMPLES, BUFFER_BLOCKS, EvalOrder, ShuffledOrder
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.models.embeddings import make_bags
from infnet_rec.schema import Schema
from properties import num_examples
from rank_pair import RankPair

ALL_ROWS = np.arange(40)
ORDERS = [("user", "langs", "tags", "item", "price", "device", "places"), ("tags", "price", "device", "item", "user")]


@pytest.fixture(scope="module")
def handmade(tmp_path_factory: pytest.TempPathFactory) -> Handmade:
    return write_store(tmp_path_factory.mktemp("handmade"))


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(sharded_runs.world_of(0, 1)):
        yield


def jagged(keyed: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    """The ids of each key and example."""
    return {
        key: [part.tolist() for part in torch.split(tensor.values(), tensor.lengths().tolist())]
        for key, tensor in keyed.to_dict().items()
    }


def tokens_of(batch: Batch, schema: Schema) -> Iterator[list[int]]:
    """The ids behind `spread_K`, a shared feature or sequence at a time, all examples one after the other."""
    distinct, rows = batch.sequences.values(), batch.spread_K
    ends = torch.tensor(batch.sequences.length_per_key()).cumsum(0).tolist()
    limits = dict(zip(batch.sequences.keys(), zip([0, *ends], ends, strict=False), strict=True))
    shared = [(f.table, len(batch.user_B)) for f in schema.shared_features]
    reads = [(s.table, int(n)) for s, n in zip(schema.sequences, batch.lengths_FB.sum(1), strict=True)]
    start = 0
    for table, num in shared + reads:
        mine = rows[start : start + num]
        assert all(limits[table][0] <= row < limits[table][1] for row in mine.tolist()), "a row of another table"
        yield distinct[mine].tolist()
        start += num
    assert start == len(rows)


@pytest.mark.parametrize("order", ORDERS, ids=["all", "some"])
@pytest.mark.parametrize(("length", "copied_bytes"), [(1, 1 << 20), (3, 1 << 20), (100, 0)])
def test_batches_hold_what_the_arrays_hold(
    handmade: Handmade, order: tuple[str, ...], length: int, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the items' attributes are too large to copy."""
    monkeypatch.setattr(distinct_module, "COPIED_BYTES", copied_bytes)
    whole, rows = schema(order), np.array([3, 39, 0, 0, 17, 21, -1])
    batch = BatchReader(handmade.store, "train", whole, length, with_rarity=True).read(rows)
    real = [max(row, 0) for row in rows]
    categorical = jagged(batch.categorical)
    assert list(categorical) == [f.name for f in whole.bag_features]
    for name, ids in categorical.items():
        assert ids == [handmade.values("train", row, name) for row in real], name
    tokens = tokens_of(batch, whole)
    for feature in whole.shared_features:
        assert next(tokens) == [handmade.values("train", row, feature.name)[0] for row in real]
    for f, sequence in enumerate(whole.sequences):
        expected = [handmade.history("train", row, sequence, length) for row in real]
        assert batch.lengths_FB[f].tolist() == [len(ids) for ids in expected]
        assert next(tokens) == list(chain.from_iterable(expected)), sequence.name
    for m, feature in enumerate((*whole.bag_features, *whole.shared_features)):
        expected = [handmade.rarity("train", row, feature.name) for row in real]
        assert batch.rarity_BM[:, m].tolist() == pytest.approx(expected), feature.name
    examples = handmade.examples["train"]
    labels = [[examples[f"label_{task.name}"][row] for task in whole.tasks] for row in real]
    assert batch.labels_BT.tolist() == labels
    assert batch.user_B.tolist() == [examples["user"][row] for row in real]
    assert batch.weight_B.tolist() == [1, 1, 1, 1, 1, 1, 0]


def test_several_values_occur_and_some_histories_are_empty(handmade: Handmade) -> None:
    """Else the test above would say little."""
    batch = BatchReader(handmade.store, "train", schema(), 100).read(ALL_ROWS)
    lengths_MB = batch.categorical.lengths().view(-1, len(ALL_ROWS))
    several = dict(zip(batch.categorical.keys(), lengths_MB.amax(1).tolist(), strict=True))
    assert several == {"user": 1, "langs": 2, "tags": 3, "price": 1, "device": 1, "places": 2}
    assert lengths_MB.min() == 1 and batch.lengths_FB.min() == 0 and batch.lengths_FB.max() > 5


def test_ids_of_the_embedding_collection_are_distinct_and_all_used(handmade: Handmade) -> None:
    batch = BatchReader(handmade.store, "train", schema(), 2).read(ALL_ROWS[::3])
    for key, ids in jagged(batch.sequences).items():
        flat = list(chain.from_iterable(ids))
        assert len(set(flat)) == len(flat), key
    assert set(batch.spread_K.tolist()) == set(range(batch.sequences.values().numel()))


def test_torchrec_counts_the_ids_of_a_key_as_we_do(handmade: Handmade) -> None:
    batch = BatchReader(handmade.store, "train", schema(), 5).read(ALL_ROWS)
    for keyed in (batch.categorical, batch.sequences):
        plain = KeyedJaggedTensor(keyed.keys(), keyed.values(), lengths=keyed.lengths())
        assert keyed.length_per_key_or_none() == plain.length_per_key()
        assert keyed.stride() == len(ALL_ROWS)


def test_types_are_what_the_batch_says(handmade: Handmade) -> None:
    batch = BatchReader(handmade.store, "train", schema(), 5).read(ALL_ROWS)
    assert {f.name: getattr(batch, f.name).values().dtype for f in fields(Batch)[:2]} == {
        "categorical": torch.int64,
        "sequences": torch.int64,
    }
    given = {f.name: getattr(batch, f.name) for f in fields(Batch)[2:] if f.name != "repeats"}
    assert batch.repeats is not None and {x.dtype for x in batch.repeats.tensors()} == {torch.int32}
    types = {name: value.dtype for name, value in given.items() if value is not None}
    assert given.keys() - types.keys() == {"managed", "mean_row_Q", "mean_start_P", "loss_weight_B"}
    floats = ("labels_BT", "rarity_BM", "weight_B")
    assert types == {name: torch.float32 if name in floats else torch.int64 for name in types}
    assert batch.rarity_BM.shape == (40, 0)


def same(a: Batch, b: Batch) -> bool:
    """Every number of two batches."""

    def tensors(batch: Batch) -> Iterator[torch.Tensor]:
        for value in (getattr(batch, field.name) for field in fields(Batch)):
            if value is None:
                continue
            if isinstance(value, Repeats):
                yield from value.tensors()
            else:
                yield from (value.values(), value.lengths()) if isinstance(value, KeyedJaggedTensor) else (value,)

    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_threads_may_share_a_reader(handmade: Handmade) -> None:
    """Each has its own scratch; sixteen threads are started at once and read the same batches."""
    reader = BatchReader(handmade.store, "train", schema(), 100)
    wanted = [np.random.default_rng(k).integers(0, 40, 2000) for k in range(16)]
    expected = [BatchReader(handmade.store, "train", schema(), 100).read(rows) for rows in wanted]
    with ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            assert all(map(same, pool.map(reader.read, wanted), expected))


@settings(deadline=None, max_examples=num_examples(60), derandomize=True)
@given(st.lists(st.lists(st.integers(0, 30), max_size=60), min_size=1, max_size=5))
def test_distinct_numbers_whatever_came_before(lists: list[list[int]]) -> None:
    """The scratch is never cleared, so a call must not see what an earlier one left."""
    distinct = Distinct(31)
    for numbers in lists:
        number_X, row_N = distinct.of(np.array(numbers, np.int32))
        assert sorted(number_X.tolist()) == sorted(set(numbers))
        assert number_X[row_N].tolist() == numbers


def test_the_check_allows_empty_slots_behind_the_first_value_only(tmp_path: Path) -> None:
    made = write_store(tmp_path)
    assert ids_outside_tables(made.store, made.store.schema) == []
    for column, id_, fault in ((1, -1, "tags: has ids -1 to 7"), (2, -2, "tags: has ids -1 to 7"), (3, 8, "0 to 8")):
        ids = made.ids["item"].copy()
        ids[5, column] = id_
        made.store.__dict__["item_ids"] = ids
        assert [f for f in ids_outside_tables(made.store, made.store.schema) if fault in f], (column, id_)


def test_a_sequence_has_as_many_values_as_what_it_reads() -> None:
    whole = schema().to_json()
    by_name = {f["name"]: f for f in whole["features"]}
    by_name["item"]["max_values"] = 2
    with pytest.raises(UserError, match="view_item has up to 1 values an event and reads item, which has up to 2"):
        Schema.from_json(whole)
    by_name["item"]["max_values"] = 1
    by_name["tags"]["table"] = "brand"
    assert Schema.from_json(whole).averages_tokens and not schema().averages_tokens
    by_name["tags"] |= {"table": "tags", "max_values": 0}
    with pytest.raises(UserError, match="tags has max_values 0; it must be 1 or more"):
        Schema.from_json(whole)


def test_several_values_are_averaged(handmade: Handmade) -> None:
    whole = schema()
    bags = make_bags(whole, 4).to_empty(device="cpu")
    weights = {name: torch.randn_like(weight) for name, weight in bags.state_dict().items()}
    bags.load_state_dict(weights)
    batch = BatchReader(handmade.store, "train", whole, 5).read(ALL_ROWS)
    pooled = bags(batch.categorical).to_dict()
    for feature in whole.bag_features:
        table = weights[f"embedding_bags.{feature.table}.weight"]
        expected = [table[handmade.values("train", int(row), feature.name)].mean(0) for row in ALL_ROWS]
        torch.testing.assert_close(pooled[feature.name], torch.stack(expected))


SMALL = ["data.profile='all'", "train.global_batch_size=8", "train.eval_batch_size=8", "sharding.row_wise_min_rows=10"]


@pytest.mark.slow(smoke=["plain"])
@pytest.mark.parametrize("more", [[], ["train.loss.embedding_l2=0.1"]], ids=["plain", "l2"])
def test_sharded_tables_average_too(alone: None, handmade: Handmade, ranks: RankPair, more: list[str]) -> None:
    """On two ranks, on one, and unsharded, training with features of several values loses the same."""
    store, overrides = str(handmade.store.path), [*SMALL, *more]
    initial = sharded_runs.initial_weights(store, overrides)
    one = sharded_runs.train_steps(0, 1, store, overrides, 8)["losses"]
    plain = sharded_runs.unsharded_losses(store, overrides, initial, 8)
    two = ranks(sharded_runs.train_steps, store, overrides, 8)[0]["losses"]
    np.testing.assert_allclose(one, plain, atol=1e-6, rtol=0)
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)


class Slow:
    """A reader that counts what it is asked for, and fails at one step; the batch is the first index."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[int] = []
        self.fails_at = fails_at

    def read(self, indices_B: np.ndarray) -> int:
        step = int(indices_B[0]) // 4
        self.asked.append(step)
        time.sleep(0.002 * (step % 3))
        if step == self.fails_at:
            raise OSError("the disk is on fire")
        return step


def loader_of(reader: Any, **options: Any) -> Loader:
    return Loader(reader, EvalOrder(400, 4), **options)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("read_ahead", [1, 4])
def test_reading_ahead_is_bounded_and_in_order(read_ahead: int, num_threads: int) -> None:
    reader = Slow()
    batches = loader_of(reader, read_ahead=read_ahead, num_threads=num_threads).batches(7, 30)
    for place, step in enumerate(batches):
        assert step == 7 + place
        time.sleep(0.004)
        assert len(reader.asked) <= place + 1 + read_ahead
    assert sorted(reader.asked) == list(range(7, 37)) and loader_threads() == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_closing_early_ends_the_threads(num_threads: int) -> None:
    reader = Slow()
    batches = loader_of(reader, num_threads=num_threads).batches(0, 90)
    assert [next(batches) for _ in range(5)] == list(range(5)) and loader_threads()
    batches.close()
    assert loader_threads() == [] and len(reader.asked) <= 5 + 4
    assert list(batches) == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_failure_is_raised_in_its_place_and_names_its_step(num_threads: int) -> None:
    reader, met = Slow(fails_at=12), []
    batches = loader_of(reader, num_threads=num_threads, rank=1, world_size=2).batches(10, 40)
    with pytest.raises(OSError, match="on fire") as caught:
        met.extend(batches)
    assert met == [10, 11] and caught.value.__notes__ == ["raised while rank 1 read the batch of step 12"]
    assert loader_threads() == [] and list(batches) == []


def test_any_number_of_threads_reads_the_same_batches(handmade: Handmade) -> None:
    order = ShuffledOrder(40, 6, seed=3, block_examples=4, buffer_blocks=3)
    reader = BatchReader(handmade.store, "train", schema(), 5)
    one, three = (list(Loader(reader, order, num_threads=n).batches(2, 20)) for n in (1, 3))
    assert len(one) == 20 and all(map(same, one, three))
    assert all(map(same, one, (reader.read(order.global_batch(step)) for step in range(2, 22))))


def test_the_configured_order_is_the_default_one() -> None:
    config = DataConfig(store="store")
    assert (config.block_examples, config.buffer_blocks) == (BLOCK_EXAMPLES, BUFFER_BLOCKS)
