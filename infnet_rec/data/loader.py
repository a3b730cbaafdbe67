"""Store and order to batches, read ahead.

An example in the store only points into its user's history; features and events are gathered here, a whole batch at a
time, with a few vectorised reads.

Shapes: B examples, M features, E events of one behaviour in this batch.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch, Repeats
from infnet_rec.data.dedup import TokenIds, UnpooledTokens, count_repeats
from infnet_rec.data.gather import ExampleRows, FeatureIds, Histories
from infnet_rec.data.sampler import Order, local_slice
from infnet_rec.data.store import Examples, Store
from infnet_rec.schema import Schema


class BatchReader:
    """Reads any set of examples of one split as a `Batch`; threads may share it."""

    def __init__(
        self, store: Store, split: str, schema: Schema, sequence_length: int, *, with_rarity: bool = False
    ) -> None:
        """Opens a split.

        Args:
            store: the dataset.
            split: train, valid, test or a further test.
            schema: the features and sequences to read (a profile of the store's own schema).
            sequence_length: newest events kept of each behaviour.
            with_rarity: whether batches carry `rarity_BM`; it takes four bytes a row of every index table.
        """
        self.schema = schema
        self._examples: Examples = store.examples(split)
        self._mean_weight = store.mean_weight
        self._rows = ExampleRows(store, self._examples)
        self._bag = FeatureIds(store, schema.bag_features, with_rarity=with_rarity)
        self._plain = FeatureIds(store, schema.plain_bag_features)
        self._managed = FeatureIds(store, schema.managed_features)
        self._shared = FeatureIds(store, schema.shared_features, with_rarity=with_rarity)
        self._histories = Histories(store, self._examples, schema, sequence_length)
        self._unpooled = UnpooledTokens(store, schema)
        self._plain_keys = [f.name for f in schema.plain_bag_features]
        self._managed_keys = [f.name for f in schema.managed_features]
        self._table_keys = [t.name for t in schema.sequence_tables]
        behaviours = schema.behaviours
        self._behaviour_of_sequence = np.array([behaviours.index(s.behaviour) for s in schema.sequences], np.int64)

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices_B: np.ndarray) -> Batch:
        """Gathers examples; index -1 is padding (example 0 at weight 0)."""
        real_B = indices_B >= 0
        rows_B = np.where(real_B, indices_B, 0)
        rows, user_B = self._rows.read(rows_B)
        events = self._histories.read(rows_B, user_B)
        tokens = self._unpooled.read(self._shared.jagged(rows), events)
        length_FB = events.length_VB[self._behaviour_of_sequence]
        labels_TB = np.stack([self._examples.labels[t.name][rows_B] for t in self.schema.tasks])
        rarity_BM = np.concatenate([self._bag.rarity(rows), self._shared.rarity(rows)], axis=1)
        return Batch(
            categorical=_keyed(self._plain_keys, *self._plain.jagged(rows)),
            sequences=self._sequences(tokens.ids, len(rows_B)),
            spread_K=torch.from_numpy(tokens.spread_K),
            lengths_FB=torch.from_numpy(length_FB),
            labels_BT=torch.from_numpy(labels_TB.T.astype(np.float32)),
            user_B=torch.from_numpy(user_B.astype(np.int64)),
            rarity_BM=torch.from_numpy(rarity_BM),
            weight_B=torch.from_numpy(real_B.astype(np.float32)),
            mean_row_Q=None if tokens.mean_row_Q is None else torch.from_numpy(tokens.mean_row_Q),
            mean_start_P=None if tokens.mean_start_P is None else torch.from_numpy(tokens.mean_start_P),
            loss_weight_B=self._loss_weights(rows_B, real_B),
            managed=_keyed(self._managed_keys, *self._managed.jagged(rows)) if self._managed_keys else None,
            repeats=_repeats(tokens, length_FB),
        )

    def _loss_weights(self, rows_B: np.ndarray, real_B: np.ndarray) -> Tensor | None:
        if self._examples.weight_N is None:
            return None
        return torch.from_numpy((self._examples.weight_N[rows_B] * real_B / self._mean_weight).astype(np.float32))

    def _sequences(self, ids: list[np.ndarray], batch_size: int) -> KeyedJaggedTensor:
        """Distinct ids keyed by table; all are counted to the first example."""
        num_ids = [len(ids_X) for ids_X in ids]
        lengths_TB = np.zeros((len(ids), batch_size), np.int64)
        lengths_TB[:, 0] = num_ids
        return _keyed(self._table_keys, np.concatenate(ids), lengths_TB.reshape(-1), num_ids)


def _repeats(tokens: TokenIds, length_FB: np.ndarray) -> Repeats:
    num_means = 0 if tokens.mean_start_P is None else len(tokens.mean_start_P)
    row_L = tokens.spread_K[len(tokens.spread_K) - int(length_FB.sum()) :]
    found = count_repeats(row_L, length_FB, sum(map(len, tokens.ids)) + num_means)
    return Repeats(*(torch.from_numpy(getattr(found, f.name)) for f in fields(Repeats)))


def _keyed(keys: list[str], values: np.ndarray, lengths: np.ndarray, length_per_key: list[int]) -> KeyedJaggedTensor:
    """The ids of each key are counted here: TorchRec would wait for the GPU to do it."""
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(values),
        lengths=torch.from_numpy(lengths),
        length_per_key=length_per_key,
    )


class Loader:
    """Batches of one rank, gathered by threads while the last one is being used.

    Threads are enough: numpy lets go of the interpreter while it gathers.
    """

    def __init__(
        self,
        reader: BatchReader,
        order: Order,
        *,
        rank: int = 0,
        world_size: int = 1,
        read_ahead: int = 4,
        num_threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Joins a reader with an order.

        Args:
            reader: the split.
            order: which examples make which global batch.
            rank: whose slice to read.
            world_size: number of slices.
            read_ahead: batches gathered in advance, at most.
            num_threads: batches gathered at the same time, at most; they come in order all the same.
            pin_memory: whether batches go to page-locked memory, for copies to a GPU; the threads do that too.
        """
        self._reader, self._order = reader, order
        self._rank, self._world_size = rank, world_size
        self._read_ahead, self._num_threads, self._pin_memory = read_ahead, num_threads, pin_memory
        self._one_at_a_time = threading.Lock()

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yields the batches of `num_steps` steps from `first_step` on; closing the iterator ends the threads.

        What goes wrong in a thread is raised here, in the place of its batch, with a note that names the step.
        """
        # A new thread would work for GPU 0, whichever this rank's is.
        device = torch.cuda.current_device() if self._pin_memory else None
        with ThreadPoolExecutor(self._num_threads, "loader", initializer=_use_gpu, initargs=(device,)) as pool:
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
        try:
            # Threads that need the same new buffer of the order would each shuffle it.
            with self._one_at_a_time:
                global_G = self._order.global_batch(step)
            batch = self._reader.read(local_slice(global_G, self._rank, self._world_size))
            return batch.pin_memory() if self._pin_memory else batch
        except Exception as error:
            error.add_note(f"raised while rank {self._rank} read the batch of step {step}")
            raise


def _use_gpu(device: int | None) -> None:
    if device is not None:
        torch.cuda.set_device(device)
