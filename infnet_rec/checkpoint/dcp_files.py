"""Files of a checkpoint as torch.distributed.checkpoint writes and reads them, hashed on their way out.

Training changes the original while a copy in the host's memory is written. torch's own stager copies a sharded tensor's
whole storage; TorchRec's tables are views of one storage, so it would copy all tables once for each of them.
"""

import copy
import hashlib
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
from torch.distributed._shard.sharding_spec import ShardMetadata
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem
from torch.distributed.checkpoint._nested_dict import flatten_state_dict

from infnet_rec.checkpoint.store import CheckpointStore


class HashedStream(io.IOBase):
    """Passes on what is written and keeps its size and hash: the hash is of what was meant, not of what a disk made."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._hash, self._size = stream, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        return self._stream.write(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def part(self) -> dict[str, Any]:
        """Size and hash so far."""
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}


class _Files(FileSystem):
    """The store's file system, for local folders and URLs alike."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__()
        self.fs = store.files
        self.parts: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[Any, None, None]:
        with super().create_stream(path, mode) as stream:
            if "w" not in mode:
                yield stream
                return
            hashed = HashedStream(stream)
            yield hashed
            self.parts[_last(path)] = hashed.part

    def init_path(self, path: str | os.PathLike[str], **kwargs: Any) -> str | os.PathLike[str]:
        return path

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.parts[_last(new_path)] = self.parts.pop(_last(path))


class PartsWriter(FileSystemWriter):
    """Writes one file a rank and syncs it; `parts` then says what this rank wrote."""

    def __init__(self, store: CheckpointStore, folder: str) -> None:
        # Object stores have written a file when it is closed; without a descriptor dcp would sync the whole machine.
        super().__init__(folder, sync_files=store.is_local, overwrite=False)
        self.fs = self._files = _Files(store)
        self.path = folder

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every file, by name."""
        return self._files.parts


class PartsReader(FileSystemReader):
    """Reads what `PartsWriter` wrote."""

    def __init__(self, store: CheckpointStore, folder: str) -> None:
        super().__init__(folder)
        self.fs = _Files(store)
        self.path = folder


def _last(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).rsplit("/", 1)[-1]


class Snapshot:
    """Memory for a copy, allocated once and written again by every `take`."""

    def __init__(self) -> None:
        self._copies: dict[str, Any] = {}

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copies all tensors; returns them by their flattened names, on the CPU and sharded as they were."""
        flat: dict[str, Any] = flatten_state_dict(state)[0]
        for name, value in flat.items():
            self._copies[name] = _copied(value, self._copies.get(name))
        if torch.cuda.is_available():
            # Copies to page-locked memory are under way; the next step must not change what they read.
            torch.cuda.synchronize()
        return {name: self._copies[name] for name in flat}


def _copied(value: Any, room: Any) -> Any:
    if isinstance(value, ShardedTensor):
        room = _room_sharded(value) if room is None else room
        for shard, original in zip(room.local_shards(), value.local_shards(), strict=True):
            shard.tensor.copy_(original.tensor.detach(), non_blocking=True)
        return room
    if type(value) in (Tensor, torch.nn.Parameter):
        room = _room(value) if room is None else room
        return room.copy_(value.detach(), non_blocking=True)
    return copy.deepcopy(value)


def _room(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=torch.cuda.is_available() and value.numel() > 0)


def _room_sharded(value: ShardedTensor) -> ShardedTensor:
    metadata = value.metadata()
    shards = [Shard(_room(shard.tensor), _on_cpu(shard.metadata)) for shard in value.local_shards()]
    properties = replace(metadata.tensor_properties, requires_grad=False, pin_memory=torch.cuda.is_available())
    on_cpu = ShardedTensorMetadata([_on_cpu(shard) for shard in metadata.shards_metadata], metadata.size, properties)
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, on_cpu, process_group=value._process_group)


def _on_cpu(shard: ShardMetadata) -> ShardMetadata:
    assert shard.placement is not None and not isinstance(shard.placement, str)
    return ShardMetadata(shard.shard_offsets, shard.shard_sizes, placement=f"rank:{shard.placement.rank()}/cpu")
