"""Store and order to batches, read ahead.

An example in the store only points into its user's history; features and events are gathered here, a whole batch at a
time, with a few vectorised reads.

Shapes: B examples, M features, E events of one behaviour in this batch.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch
from infnet_rec.data.order import Order, local_slice
from infnet_rec.data.store import Examples, Store
from infnet_rec.schema import FIRST_VALUE_ID, Feature, Schema

MARKING_ROWS_PER_ID = 16


@dataclass(frozen=True, slots=True)
class _Gather:
    """Where a list of features is read from: per side, the columns to read and the rows of the result they fill."""

    num_features: int
    columns: dict[str, np.ndarray]
    places: dict[str, np.ndarray]


class BatchReader:
    """Reads any set of examples of one split as a `Batch`."""

    def __init__(
        self, store: Store, split: str, schema: Schema, sequence_length: int, *, with_rarity: bool = False
    ) -> None:
        """Opens a split.

        Args:
            store: the dataset.
            split: train, valid or test.
            schema: the features and sequences to read (a profile of the store's own schema).
            sequence_length: newest events kept of each behaviour.
            with_rarity: whether batches carry `rarity_BM`; it takes four bytes a row of every index table.
        """
        self.schema = schema
        self.sequence_length = sequence_length
        self._examples: Examples = store.examples(split)
        self._user_ids, self._item_ids, self._starts = store.user_ids, store.item_ids, store.starts
        self._events = {name: store.events(name)[0] for name in schema.behaviours}
        self._bag = _gather(store, schema.bag_features)
        self._shared = _gather(store, schema.shared_features)
        features = (*schema.bag_features, *schema.shared_features) if with_rarity else ()
        self._rarity = [_rarity(store, feature) for feature in features]
        self._context_names = store.columns_of("context")
        behaviours = list(store.manifest["behaviours"])
        self._behaviour_column = {name: behaviours.index(name) for name in schema.behaviours}
        item_columns = store.columns_of("item")
        self._attribute_columns = {
            name: np.array([item_columns.index(s.attribute) for s in schema.sequences if s.behaviour == name])
            for name in schema.behaviours
        }
        self._bag_keys = [f.name for f in schema.bag_features]
        by_behaviour = [s.name for name in schema.behaviours for s in schema.sequences if s.behaviour == name]
        assert by_behaviour == [s.name for s in schema.sequences], "sequences must be grouped by behaviour"

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices_B: np.ndarray) -> Batch:
        """Gathers examples; index -1 is padding (example 0 at weight 0)."""
        real_B = indices_B >= 0
        rows_B = np.where(real_B, indices_B, 0)
        user_B = self._examples.user_N[rows_B]
        bag_MB = self._features(self._bag, rows_B, user_B)
        shared_MB = self._features(self._shared, rows_B, user_B)
        rarity = [rarity[ids_B] for rarity, ids_B in zip(self._rarity, [*bag_MB, *shared_MB], strict=False)]
        ids = list(shared_MB)
        lengths_FB = []
        for behaviour in self.schema.behaviours:
            ids_AE, length_B = self._history(behaviour, rows_B, user_B)
            ids += list(ids_AE)
            lengths_FB += [length_B] * len(ids_AE)
        sequences, spread_K = self._distinct(ids, len(rows_B))
        labels_TB = np.stack([self._examples.labels[t.name][rows_B] for t in self.schema.tasks])
        return Batch(
            categorical=_keyed(self._bag_keys, bag_MB.reshape(-1), np.ones(bag_MB.size, np.int64)),
            sequences=sequences,
            spread_K=torch.from_numpy(spread_K),
            lengths_FB=torch.from_numpy(np.stack(lengths_FB)),
            labels_BT=torch.from_numpy(labels_TB.T.astype(np.float32)),
            user_B=torch.from_numpy(user_B.astype(np.int64)),
            rarity_BM=torch.from_numpy(np.stack(rarity, axis=1) if rarity else np.empty((len(rows_B), 0), np.float32)),
            weight_B=torch.from_numpy(real_B.astype(np.float32)),
        )

    def _distinct(self, ids: list[np.ndarray], batch_size: int) -> tuple[KeyedJaggedTensor, np.ndarray]:
        """Each table's distinct ids, and where every token finds its own among them.

        Args:
            ids: the ids of each shared feature and each sequence, int64.
            batch_size: B.
        """
        tables = self.schema.sequence_tables
        readers = [f.table for f in self.schema.shared_features] + [s.table for s in self.schema.sequences]
        rows: list[np.ndarray] = [np.empty(0, np.int64)] * len(ids)
        values, lengths_KB, start = [], np.zeros((len(tables), batch_size), np.int64), 0
        for k, table in enumerate(tables):
            mine = [place for place, name in enumerate(readers) if name == table.name]
            distinct, inverse = _distinct(np.concatenate([ids[place] for place in mine]), table.num_rows)
            for place, part in zip(mine, np.split(inverse, np.cumsum([len(ids[p]) for p in mine])[:-1]), strict=True):
                rows[place] = part + start
            values.append(distinct)
            lengths_KB[k, 0] = len(distinct)
            start += len(distinct)
        return _keyed([t.name for t in tables], np.concatenate(values), lengths_KB.reshape(-1)), np.concatenate(rows)

    def _features(self, gather: _Gather, rows_B: np.ndarray, user_B: np.ndarray) -> np.ndarray:
        """Ids of one list of features, int64 [M, B]."""
        ids_MB = np.empty((gather.num_features, len(rows_B)), np.int64)
        ids_MB[gather.places["user"]] = self._user_ids[user_B][:, gather.columns["user"]].T
        item_B = self._examples.item_N[rows_B]
        ids_MB[gather.places["item"]] = self._item_ids[item_B][:, gather.columns["item"]].T
        for place, column in zip(gather.places["context"], gather.columns["context"], strict=True):
            ids_MB[place] = self._examples.context[self._context_names[column]][rows_B]
        return ids_MB

    def _history(self, behaviour: str, rows_B: np.ndarray, user_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of one behaviour's attributes, int64 [A, E], and the number of events of each example, int64 [B]."""
        seen_B = self._examples.seen[behaviour][rows_B].astype(np.int64)
        length_B = np.minimum(seen_B, self.sequence_length)
        first_B = self._starts[user_B, self._behaviour_column[behaviour]] + seen_B - length_B
        offset_B = np.cumsum(length_B) - length_B
        position_E = np.repeat(first_B - offset_B, length_B) + np.arange(length_B.sum())
        item_E = self._events[behaviour][position_E]
        return self._item_ids[item_E][:, self._attribute_columns[behaviour]].T.astype(np.int64), length_B


def _gather(store: Store, features: tuple[Feature, ...]) -> _Gather:
    columns: dict[str, np.ndarray] = {}
    places: dict[str, np.ndarray] = {}
    for side in ("user", "item", "context"):
        names = store.columns_of(side)
        mine = [(place, names.index(f.name)) for place, f in enumerate(features) if f.side == side]
        places[side] = np.array([place for place, _ in mine], np.int64)
        columns[side] = np.array([column for _, column in mine], np.int64)
    return _Gather(len(features), columns, places)


def _rarity(store: Store, feature: Feature) -> np.ndarray:
    """One over the number of training look-ups of each id of a feature, float32."""
    rarity = np.zeros({t.name: t.num_rows for t in store.schema.tables}[feature.table], np.float32)
    if store.manifest["encodings"][feature.name] == "index":
        counts = store.vocabulary(feature.name).column("count").to_numpy()
        rarity[FIRST_VALUE_ID:] = 1.0 / counts
    return rarity


def _distinct(ids: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct ids and each id's place among them, int64; by marking where the table is small."""
    if num_rows > MARKING_ROWS_PER_ID * len(ids):
        return np.unique(ids, return_inverse=True)
    place = np.zeros(num_rows, np.int64)
    place[ids] = 1
    distinct = np.flatnonzero(place)
    place[distinct] = np.arange(len(distinct))
    return distinct, place[ids]


def _keyed(keys: list[str], values: np.ndarray, lengths: np.ndarray) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=keys, values=torch.from_numpy(values), lengths=torch.from_numpy(lengths))


class Loader:
    """Batches of one rank, gathered by a thread while the last one is being used."""

    def __init__(
        self,
        reader: BatchReader,
        order: Order,
        *,
        rank: int = 0,
        world_size: int = 1,
        read_ahead: int = 4,
        pin_memory: bool = False,
    ) -> None:
        """Joins a reader with an order.

        Args:
            reader: the split.
            order: which examples make which global batch.
            rank: whose slice to read.
            world_size: number of slices.
            read_ahead: batches gathered in advance.
            pin_memory: whether batches go to page-locked memory, for copies to a GPU.
        """
        self._reader, self._order = reader, order
        self._rank, self._world_size = rank, world_size
        self._read_ahead, self._pin_memory = read_ahead, pin_memory

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of `num_steps` steps from `first_step` on; closing the iterator stops the thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                for step in range(first_step, first_step + num_steps):
                    ahead.append(pool.submit(self._read, step))
                    if len(ahead) > self._read_ahead:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _read(self, step: int) -> Batch:
        indices = local_slice(self._order.global_batch(step), self._rank, self._world_size)
        batch = self._reader.read(indices)
        return batch.pin_memory() if self._pin_memory else batch
