"""Our loader beside what it competes with, each on one thread; a benchmark calls these side by side in one process.

- Parquet: every example carries its own features and histories, as most trainers want their data.
- Padded arrays: the same in memory, histories padded to one length.
- A copy: what it costs to move a batch's ids once, the least that any loader must do.

Shapes: N examples of a file, B of a batch, M features, F sequences, L length of histories, T tasks.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch
from infnet_rec.data.dedup import Distinct
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.sampler import ShuffledOrder
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.schema import Schema

ROW_GROUP_EXAMPLES = 65_536
# Together larger than any cache, so that a copy reads from memory as a loader does.
COPY_SOURCES_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Columns:
    """Ids of some examples, one array a feature [B], and lengths and values a sequence."""

    features: dict[str, np.ndarray]
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    labels: dict[str, np.ndarray]


def columns_of(batch: Batch, schema: Schema) -> Columns:
    """A batch of ours with the distinct ids spread over examples again."""
    batch_size = len(batch.user_B)
    bag_MB = batch.categorical.values().view(-1, batch_size).numpy()
    tokens_K = batch.sequences.values()[batch.spread_K].numpy()
    num_shared = len(schema.shared_features) * batch_size
    shared_MB, tokens_L = tokens_K[:num_shared].reshape(-1, batch_size), tokens_K[num_shared:]
    names = [f.name for f in (*schema.bag_features, *schema.shared_features)]
    lengths_FB = batch.lengths_FB.numpy()
    values_F = np.split(tokens_L, np.cumsum(lengths_FB.sum(axis=1))[:-1])
    return Columns(
        dict(zip(names, [*bag_MB, *shared_MB], strict=True)),
        {s.name: (lengths_FB[f], values_F[f]) for f, s in enumerate(schema.sequences)},
        {task.name: batch.labels_BT[:, t].numpy() for t, task in enumerate(schema.tasks)},
    )


def pieces(
    store: Store, split: str, schema: Schema, sequence_length: int, rows_N: np.ndarray, piece_examples: int
) -> Iterator[Columns]:
    """Examples of a split, a piece at a time.

    Raises:
        UserError: a feature has several values.
    """
    several = [f.name for f in schema.features if f.max_values > 1]
    if several:
        raise UserError(f"profile: {', '.join(several)} has several values; the rivals hold one id a feature")
    reader = BatchReader(store, split, schema, sequence_length)
    for start in range(0, len(rows_N), piece_examples):
        yield columns_of(reader.read(rows_N[start : start + piece_examples]), schema)


def rows_of(store: Store, split: str, num_examples: int, order: Literal["stored", "shuffled"]) -> np.ndarray:
    """The first examples of a split as they stand, or some from all over it as a trainer wants to meet them.

    Stored, neighbours are examples of one user whose histories repeat: Parquet then compresses and decodes better than
    any training order allows.

    Raises:
        UserError: the split has fewer examples.
    """
    if num_examples > store.num_examples(split):
        raise UserError(f"num_examples = {num_examples}: split {split} has {store.num_examples(split)}")
    if order == "stored":
        return np.arange(num_examples)
    return np.random.default_rng(0).choice(store.num_examples(split), num_examples, replace=False)


def write_parquet(
    store: Store, split: str, schema: Schema, sequence_length: int, rows_N: np.ndarray, path: Path
) -> int:
    """Writes examples with their histories copied in, as zstd Parquet; returns its bytes."""
    writer: pq.ParquetWriter | None = None
    for piece in pieces(store, split, schema, sequence_length, rows_N, ROW_GROUP_EXAMPLES):
        columns = {name: pa.array(ids_B, pa.int32()) for name, ids_B in piece.features.items()}
        for name, (lengths_B, values) in piece.sequences.items():
            offsets = np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int32)
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()))
        columns |= {f"label_{name}": pa.array(label_B, pa.float32()) for name, label_B in piece.labels.items()}
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=ROW_GROUP_EXAMPLES)
    assert writer is not None
    writer.close()
    return path.stat().st_size


def parquet_batches(
    path: Path, schema: Schema, batch_size: int
) -> Iterator[tuple[KeyedJaggedTensor, KeyedJaggedTensor, torch.Tensor]]:
    """Reads that file in its own order into the two inputs a model needs, and labels [T, B]; no shuffle, one thread."""
    features = [f.name for f in (*schema.bag_features, *schema.shared_features)]
    sequences, labels = [s.name for s in schema.sequences], [f"label_{task.name}" for task in schema.tasks]
    file = pq.ParquetFile(path, memory_map=True)
    for rows in file.iter_batches(batch_size, columns=[*features, *sequences, *labels], use_threads=False):
        ids_MB = np.empty((len(features), rows.num_rows), np.int64)
        for m, name in enumerate(features):
            ids_MB[m] = rows.column(name).to_numpy()
        lists: list[pa.ListArray] = [rows.column(name) for name in sequences]
        lengths_FB = np.empty((len(lists), rows.num_rows), np.int64)
        values = [column.flatten().to_numpy() for column in lists]
        for f, column in enumerate(lists):
            np.subtract(column.offsets[1:].to_numpy(), column.offsets[:-1].to_numpy(), out=lengths_FB[f])
        label_TB = np.stack([rows.column(name).to_numpy() for name in labels])
        yield (
            _keyed(features, ids_MB.reshape(-1), np.ones(ids_MB.size, np.int64)),
            _keyed(sequences, np.concatenate(values, dtype=np.int64), lengths_FB.reshape(-1)),
            torch.from_numpy(label_TB),
        )


def _keyed(keys: list[str], values: np.ndarray, lengths: np.ndarray) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys, torch.from_numpy(values), lengths=torch.from_numpy(lengths))


def parquet_examples_per_s(path: Path, schema: Schema, batch_size: int = 4096) -> float:
    """One pass over the file."""
    num_examples, started_at = 0, time.perf_counter()
    for _, _, label_TB in parquet_batches(path, schema, batch_size):
        num_examples += label_TB.shape[1]
    return num_examples / (time.perf_counter() - started_at)


def parquet_distinct_examples_per_s(path: Path, schema: Schema, batch_size: int = 4096) -> float:
    """One pass over the file that ends in what our batches hold: each table's distinct ids, and every token's row.

    It has no items to find first, so it goes through all ids of a table, with the same code as ours.
    """
    tables = [t.name for t in schema.sequence_tables]
    readers = [(f.name, f.table) for f in schema.shared_features] + [(s.name, s.table) for s in schema.sequences]
    distinct = {t.name: Distinct(t.num_rows) for t in schema.sequence_tables}
    num_examples, started_at = 0, time.perf_counter()
    for categorical, sequences, label_TB in parquet_batches(path, schema, batch_size):
        ids = {key: x.values().numpy() for keyed in (categorical, sequences) for key, x in keyed.to_dict().items()}
        rows, start = {}, 0
        for table in tables:
            mine = [name for name, read in readers if read == table]
            id_X, row_N = distinct[table].of(np.concatenate([ids[name] for name in mine]))
            cuts = np.cumsum([len(ids[name]) for name in mine])[:-1]
            rows |= dict(zip(mine, np.split(row_N.astype(np.int64) + start, cuts), strict=True))
            start += len(id_X)
        np.concatenate([rows[name] for name, _ in readers])
        num_examples += label_TB.shape[1]
    return num_examples / (time.perf_counter() - started_at)


@dataclass(frozen=True, slots=True)
class Padded:
    """Examples in memory, every history padded with 0 to the same length; ids are int32, labels float32."""

    features_NM: np.ndarray
    sequences_NFL: np.ndarray
    labels_NT: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Memory taken."""
        return self.features_NM.nbytes + self.sequences_NFL.nbytes + self.labels_NT.nbytes


def padded_arrays(store: Store, split: str, schema: Schema, sequence_length: int, rows_N: np.ndarray) -> Padded:
    """Examples as padded arrays, newest event last."""
    num_examples = len(rows_N)
    features_NM = np.empty((num_examples, len(schema.features)), np.int32)
    sequences_NFL = np.zeros((num_examples, len(schema.sequences), sequence_length), np.int32)
    labels_NT = np.empty((num_examples, len(schema.tasks)), np.float32)
    start = 0
    for piece in pieces(store, split, schema, sequence_length, rows_N, ROW_GROUP_EXAMPLES):
        features_BM = np.stack(list(piece.features.values()), axis=1)
        stop = start + len(features_BM)
        features_NM[start:stop] = features_BM
        labels_NT[start:stop] = np.stack(list(piece.labels.values()), axis=1)
        for f, (lengths_B, values) in enumerate(piece.sequences.values()):
            filled_BL = np.arange(sequence_length) >= sequence_length - lengths_B[:, None]
            sequences_NFL[start:stop, f][filled_BL] = values
        start = stop
    return Padded(features_NM, sequences_NFL, labels_NT)


def padded_examples_per_s(padded: Padded, batch_size: int = 4096, num_batches: int = 100, seed: int = 0) -> float:
    """Shuffled batches of the arrays as int64 tensors, the usual loader of an in-memory trainer."""
    num_examples = len(padded.features_NM)
    rows_N = np.random.default_rng(seed).permutation(num_examples)
    steps = num_examples // batch_size
    started_at = time.perf_counter()
    for step in range(num_batches):
        rows_B = rows_N[step % steps * batch_size :][:batch_size]
        torch.from_numpy(padded.features_NM[rows_B]).long()
        torch.from_numpy(padded.sequences_NFL[rows_B]).long()
        torch.from_numpy(padded.labels_NT[rows_B])
    return num_batches * batch_size / (time.perf_counter() - started_at)


def our_examples_per_s(
    reader: BatchReader, batch_size: int = 4096, num_batches: int = 100, *, first_step: int = 5, seed: int = 0
) -> float:
    """Shuffled batches of ours, read by the calling thread; the steps before `first_step` warm up."""
    order = ShuffledOrder(len(reader), batch_size, seed)
    for step in range(first_step):
        reader.read(order.global_batch(step))
    started_at = time.perf_counter()
    for step in range(first_step, first_step + num_batches):
        reader.read(order.global_batch(step))
    return num_batches * batch_size / (time.perf_counter() - started_at)


def id_bytes(reader: BatchReader, batch_size: int = 4096, num_batches: int = 5, seed: int = 0) -> float:
    """Mean bytes of the ids that a batch stands for, as int64: one a feature and example, one an event's attribute."""
    order = ShuffledOrder(len(reader), batch_size, seed)
    batches = [reader.read(order.global_batch(step)) for step in range(num_batches)]
    return sum(8 * (b.categorical.values().numel() + b.spread_K.numel()) for b in batches) / num_batches


def copy_examples_per_s(bytes_per_batch: int, batch_size: int = 4096, num_batches: int = 100) -> float:
    """Batches whose ids are only copied from memory once, with numpy."""
    num_ids = bytes_per_batch // 8
    sources = [np.full(num_ids, k) for k in range(COPY_SOURCES_BYTES // bytes_per_batch + 1)]
    target = np.zeros(num_ids, np.int64)
    started_at = time.perf_counter()
    for k in range(num_batches):
        np.copyto(target, sources[k % len(sources)])
    return num_batches * batch_size / (time.perf_counter() - started_at)
