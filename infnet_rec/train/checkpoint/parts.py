"""Files of a checkpoint as torch.distributed.checkpoint writes and reads them, hashed on their way out."""

import hashlib
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem

from infnet_rec.train.checkpoint.shelf import Shelf


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
    """The shelf's file system, for local folders and URLs alike."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.fs = shelf.files
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

    def __init__(self, shelf: Shelf, folder: str) -> None:
        # Object stores have written a file when it is closed; without a descriptor dcp would sync the whole machine.
        super().__init__(folder, sync_files=shelf.is_local, overwrite=False)
        self.fs = self._files = _Files(shelf)
        self.path = folder

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every file, by name."""
        return self._files.parts


class PartsReader(FileSystemReader):
    """Reads what `PartsWriter` wrote."""

    def __init__(self, shelf: Shelf, folder: str) -> None:
        super().__init__(folder)
        self.fs = _Files(shelf)
        self.path = folder


def _last(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).rsplit("/", 1)[-1]
