"""A store appears whole or not at all: it is made in a hidden folder beside its place and takes the place at once."""

import ctypes
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGTERM

from filelock import FileLock, Timeout

from infnet_rec.errors import UserError
from infnet_rec.files import not_written, parents_of

AT_FDCWD, RENAME_EXCHANGE = -100, 2
# Not at once: a lock whose holder has just removed it is opened anew.
BUSY_AFTER_S = 0.3


@contextmanager
def new_store(out: Path, *, replace: bool) -> Iterator[Path]:
    """A work folder; what stands in its `store` becomes `out` when the block ends well. Nothing is left otherwise.

    What an earlier, killed build of the same store left is removed. A lock, which dies with its process, keeps two
    builds of one store apart.

    Raises:
        UserError: `out` exists (and is not a store to be replaced), cannot be made, or is being built elsewhere.
    """
    refuse_what_exists(out, replace=replace)
    parent = out.absolute().parent
    work, lock = parent / f".{out.name}.building", parent / f".{out.name}.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(parents_of(out))
            stack.enter_context(FileLock(lock, timeout=BUSY_AFTER_S))
        except Timeout as error:
            raise UserError(
                f"--out {out}: another process is building it; wait for it or name another folder"
            ) from error
        except OSError as error:
            raise not_written(f"--out {out}", error) from error
        stack.enter_context(_stopped_in_order())
        try:
            refuse_what_exists(out, replace=replace)  # it may have been finished just now
            shutil.rmtree(work, ignore_errors=True)
            (work / "store").mkdir(parents=True)
            yield work
            _sync(work / "store")
            _take_place(work / "store", out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.unlink(missing_ok=True)


def refuse_what_exists(out: Path, *, replace: bool) -> None:
    """Raises a UserError if something stands at `out` that may not be replaced."""
    is_store = (out / "manifest.json").is_file()
    if (out.exists() or out.is_symlink()) and not (replace and is_store):
        remedy = "use --replace to build it anew" if is_store else "it is not a store; name another folder"
        raise UserError(f"--out {out}: exists already; {remedy}")


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does, so that it clears up."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: object) -> None:
        raise SystemExit(128 + SIGTERM)

    signal.signal(SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(SIGTERM, signal.SIG_DFL)


def _sync(store: Path) -> None:
    """Waits until the files are on disk, so that a power cut after the renaming leaves no empty ones."""
    for path in (*store.rglob("*"), store):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _take_place(store: Path, out: Path) -> None:
    """Renames the store; where one stands already the two change places at once, and the old one goes with the work."""
    if not out.exists():
        store.rename(out)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(store), AT_FDCWD, os.fsencode(out), RENAME_EXCHANGE) != 0:
        # A file system without the exchange: two renames, and the old store can be found in between.
        old = out.parent / f".{out.name}.replaced"
        out.rename(old)
        store.rename(out)
        shutil.rmtree(old)


# Raw files that lie beside it are generated; a store that is built from them says so.
NOTES = "generated.json"
