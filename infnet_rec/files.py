"""Files and folders that a command writes: tried before the work, and there whole or not at all.

Work may take hours, and what it cannot write at the end is lost. So whoever is given a destination tries it first with
a probe of some bytes, which finds what permissions do not say: a file system that is read-only or full, a quota, a name
that is too long. What is in the way and was not made by the same command is left alone.
"""

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infnet_rec.errors import Failure, UserError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a person mends by naming another place or changing a permission; everything else is the machine's failure.
OF_THE_PLACE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENOTEMPTY,
)
# How a file begins that may give way to a newer one, and what it is called.
Kind = tuple[bytes, str]
PNG: Kind = (b"\x89PNG\r\n\x1a\n", "a PNG file")
PROBE_BYTES = 4096  # one block: an empty file fits on a full disk


def is_full(error: BaseException) -> bool:
    """Whether the disk, or a quota on it, is full."""
    return isinstance(error, OSError) and error.errno in FULL_DISK


def not_written(what: str, error: OSError) -> UserError | Failure:
    """The error in one line: a Failure for a full or broken disk, a UserError for a place that cannot be written.

    Args:
        what: the option and the path, such as "--out plan.json".
        error: what the system said.
    """
    reason = str(error.strerror or error).lower()
    if is_full(error):
        return Failure(f"{what}: the disk is full ({reason}); free some space and run it again")
    if error.errno in OF_THE_PLACE:
        return UserError(f"{what}: cannot be written ({reason}); name another place")
    return Failure(f"{what}: cannot be written ({reason}); look after the disk and run it again")


def try_file(option: str, path: Path, *, replaces: Kind | None = None) -> None:
    """Finds out whether a file can be written, and leaves nothing behind.

    Args:
        option: what named it, such as "--out".
        path: the file.
        replaces: the kind of older files that give way; None leaves every file alone.

    Raises:
        UserError: something else stands there, its folder is missing, or it cannot be written.
        Failure: the disk is full.
    """
    what = f"{option} {path}"
    try:
        if path.is_dir():
            raise UserError(f"{what}: is a folder; name a file")
        if not path.parent.is_dir():
            _refuse_missing_folder(what, path.parent)
        if os.path.lexists(path):
            _refuse_foreign(what, path, replaces)
        _probe(path.parent, path.name)
    except OSError as error:
        raise not_written(what, error) from error


def _refuse_missing_folder(what: str, folder: Path) -> None:
    if os.path.lexists(folder):
        raise UserError(f"{what}: {folder} is not a folder; name another")
    raise UserError(f"{what}: there is no folder {folder}; make it first")


def _refuse_foreign(what: str, path: Path, replaces: Kind | None) -> None:
    if replaces is None:
        raise UserError(f"{what}: is there already and would be overwritten; name a new file, or move it")
    if not path.is_file():
        raise UserError(f"{what}: is not a file; name another")
    beginning, kind = replaces
    with path.open("rb") as file:
        if file.read(len(beginning)) != beginning:
            raise UserError(f"{what}: exists and is not {kind}, so it is left alone; name another")


def try_folder(option: str, path: Path) -> None:
    """Finds out whether files can be written into a folder, which may not be there yet; leaves nothing behind.

    Args:
        option: what named it, such as "--run-dir".
        path: the folder; missing parents are no fault.

    Raises:
        UserError: it, or a parent, is not a folder or cannot be written.
        Failure: the disk is full.
    """
    what = f"{option} {path}"
    try:
        there = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
        if not there.is_dir():
            whose = "is" if there == path.absolute() else f"{there} is"
            raise UserError(f"{what}: {whose} not a folder; name another")
        # The names that will be made, so that one which is too long is found.
        missing = path.absolute().relative_to(there).parts
        _probe(there, missing[0] if missing else "")
    except OSError as error:
        raise not_written(what, error) from error


def _probe(folder: Path, name: str) -> None:
    """Writes a block and removes it.

    Raises:
        OSError: it cannot be written.
    """
    probe = folder / f".{name}.{os.getpid()}.{threading.get_ident()}.try"
    try:
        with probe.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            # Network file systems and quotas speak up late.
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


@contextmanager
def named_faults(what: str) -> Iterator[None]:
    """Turns the system's errors in the block into one line that begins with `what`.

    Raises:
        UserError: a place cannot be written.
        Failure: the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise not_written(what, error) from error


@contextmanager
def whole_file(path: Path, what: str = "") -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when the block ends well and goes otherwise.

    Args:
        path: the file; an older one gives way.
        what: the option and the path, for the message; the path by default.

    Raises:
        UserError: it cannot be written there.
        Failure: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise not_written(what or str(path), error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, what: str = "") -> None:
    """Writes UTF-8 text, whole or not at all; see `whole_file`."""
    with whole_file(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file, whole or not at all; see `whole_file`."""
    write_text(path, json.dumps(data, indent=1) + "\n")


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """Makes the folders above `path`; when the block fails, those that are still empty go again."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise
