"""Columns of unknown length, collected on disk and then written as one Arrow file."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa

COPY_BYTES = 1 << 24
MAP_NORESERVE = 0x4000  # of Linux; Python 3.11 does not name it


class ColumnSpool:
    """Collects columns on disk, then writes them as one Arrow file; memory stays constant."""

    def __init__(self, folder: Path, dtypes: Mapping[str, str]) -> None:
        """Opens one file a column.

        Args:
            folder: where the spool's own files stand until `finish`.
            dtypes: numpy type of each column, such as "int32", or "(3,)int32" for three values a row.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self._paths = {name: folder / f"{name}.bin" for name in dtypes}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}
        self.num_rows = 0

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Appends rows; every column must be given, all of one length."""
        lengths = {len(column) for column in columns.values()}
        assert columns.keys() == self._files.keys() and len(lengths) == 1, (columns.keys(), lengths)
        for name, column in columns.items():
            self._files[name].write(np.ascontiguousarray(column, dtype=self._dtypes[name].base).data)
        self.num_rows += lengths.pop()

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """The rows of one column so far, some at a time, read from its file: a mapped file would count as memory."""
        self._files[name].flush()
        dtype = self._dtypes[name]
        rows = max(1, COPY_BYTES // max(1, dtype.itemsize))
        with self._paths[name].open("rb") as file:
            for start in range(0, self.num_rows, rows):
                yield np.fromfile(file, dtype, min(rows, self.num_rows - start))

    def finish(self, path: Path, **more: pa.Array) -> None:
        """Writes the Arrow file, a single record batch with `more` columns in front, and removes the spool's own files.

        The kernel copies file to file: pages of a mapped file would count as this process's memory.
        """
        sink = _SpooledSink()
        arrays = dict(more)
        for name, file in self._files.items():
            file.close()
            arrays[name] = self._array(name, sink)
        path.parent.mkdir(parents=True, exist_ok=True)
        batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
        with path.open("wb") as sink.out, pa.ipc.new_file(pa.PythonFile(sink, "w"), batch.schema) as writer:
            writer.write_batch(batch)
        assert sink.all_copied, "this pyarrow copies buffers before it writes them"
        for spooled in self._paths.values():
            spooled.unlink()

    def _array(self, name: str, sink: "_SpooledSink") -> pa.Array:
        """An array of the column's type and length whose bytes `sink` takes from the file."""
        dtype = self._dtypes[name]
        width = dtype.shape[0] if dtype.shape else 1
        if not width:
            return pa.nulls(self.num_rows)  # Arrow has no list of no elements
        kind, values = pa.from_numpy_dtype(dtype.base), self.num_rows * width
        buffer = sink.stand_in(self._paths[name]) if values else pa.py_buffer(b"")
        flat = pa.Array.from_buffers(kind, values, [None, buffer])
        return pa.FixedSizeListArray.from_arrays(flat, width) if dtype.shape else flat


class _SpooledSink:
    """A file that Arrow writes to; where a buffer only stands in for a spooled file, the file's bytes are copied."""

    closed = False

    def __init__(self) -> None:
        self.out: BinaryIO
        self._files: dict[int, Path] = {}
        self._maps: list[mmap.mmap] = []

    def stand_in(self, path: Path) -> pa.Buffer:
        """A buffer as large as the file; its memory is reserved and never touched."""
        reserved = mmap.mmap(-1, path.stat().st_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        buffer = pa.py_buffer(reserved)
        self._maps.append(reserved)
        self._files[buffer.address] = path
        return buffer

    @property
    def all_copied(self) -> bool:
        return not self._files

    def write(self, data: Any) -> int:
        """Called by Arrow with bytes, or with one of the buffers above."""
        path = self._files.pop(data.address, None) if isinstance(data, pa.Buffer) else None
        if path is None:
            return self.out.write(data)
        self.out.flush()
        with path.open("rb") as spooled:
            left, offset = path.stat().st_size, 0
            while left:
                sent = os.sendfile(self.out.fileno(), spooled.fileno(), offset, min(left, COPY_BYTES))
                offset, left = offset + sent, left - sent
        self.out.seek(0, os.SEEK_END)
        return offset

    def flush(self) -> None:
        self.out.flush()

    def tell(self) -> int:
        return self.out.tell()

    def close(self) -> None:
        self.closed = True


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Yields `function(item)` of all items in order; at most `num_threads + 1` results wait to be taken."""
    with ThreadPoolExecutor(num_threads, thread_name_prefix="build") as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
