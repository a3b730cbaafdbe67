"""A store on object storage, fetched once a machine.

Stores are read by memory mapping, so they have to lie on a local disk. A store that lies elsewhere is fetched whole,
every file checked against the manifest's hash while it streams, and is there for every later run.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import fsspec
from filelock import FileLock

from infnet_rec.console import amount_bar
from infnet_rec.data.store import HASH_CHUNK_BYTES, STORE_VERSION, Store
from infnet_rec.errors import UserError
from infnet_rec.files import named_faults, try_folder

MANIFEST = "manifest.json"
CACHE_VARIABLE = "INFNET_REC_CACHE"
# One stream of object storage seldom fills a line.
STREAMS = 4

Progress = Callable[[int, int], None]


def local_store(url_or_path: str, cache_folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Where a store lies on this machine; one that is named by a URL is fetched first, unless it was before.

    Processes that ask at the same time wait for the one that fetches. What an interrupted one had fetched is kept.
    The folder is named after the manifest, whose hashes name every byte: a store that changes is another store.

    Args:
        url_or_path: a folder, or a URL that fsspec reads, such as s3://bucket/stores/kuairand.
        cache_folder: where fetched stores are kept; default $INFNET_REC_CACHE or ~/.cache/infnet_rec, in stores/.
        progress: told now and then how many bytes of how many are there; from several threads, one at a time.

    Raises:
        UserError: there is no store, no driver for the URL, too little space, or a file that is not what the manifest
            says.
    """
    if not is_url(url_or_path):
        return Path(url_or_path)
    remote = Remote.connect(url_or_path)
    text = remote.read(MANIFEST)
    manifest = _checked_manifest(remote, text)
    fingerprint = hashlib.blake2b(text, digest_size=16).hexdigest()
    folder = cache_folder or default_folder("stores")
    place = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', manifest.get('name', 'store'))}-{fingerprint}"
    if place.is_dir():
        return place
    try_folder(f"${CACHE_VARIABLE}", folder)
    with named_faults(f"${CACHE_VARIABLE} {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f".{place.name}.lock")):
            if not place.is_dir():
                partial = place.with_name(f".{place.name}.partial")
                _fetch(remote, manifest["files"], partial, progress or (lambda done, total: None))
                _write(partial / MANIFEST, text)
                partial.rename(place)
    return place


def read_manifest(url_or_path: str) -> dict[str, Any]:
    """A store's manifest alone, wherever the store lies.

    Raises:
        UserError: there is no store, or no driver for the URL.
    """
    if is_url(url_or_path):
        remote = Remote.connect(url_or_path)
        return _checked_manifest(remote, remote.read(MANIFEST))
    return Store(Path(url_or_path)).manifest


def is_url(text: str) -> bool:
    """Whether a store is named by a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z0-9+.-]+)*://", text) is not None


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder that fsspec reads; whatever a driver raises becomes a `UserError`."""

    url: str
    files: Any
    root: str
    what: str = "store"

    @classmethod
    def connect(cls, url: str, what: str = "store") -> "Remote":
        """Opens a folder; `what` it is to a person."""
        try:
            files, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise UserError(f"{what} {url}: a package is missing that reads such URLs ({error})") from error
        except Exception as error:
            raise UserError(f"{what} {url}: cannot be opened ({first_line(error)})") from error
        return cls(url, files, root.rstrip("/"), what)

    def read(self, name: str) -> bytes:
        """A whole small file."""
        try:
            return self.files.cat_file(f"{self.root}/{name}")
        except Exception as error:
            self.fail(name, error)

    def stream(self, name: str) -> Iterator[bytes]:
        """A file in pieces."""
        try:
            with self.files.open(f"{self.root}/{name}", "rb") as file:
                while chunk := file.read(HASH_CHUNK_BYTES):
                    yield chunk
        except Exception as error:
            self.fail(name, error)

    def fail(self, name: str, error: Exception) -> NoReturn:
        """Turns what a driver raised about a file into a UserError."""
        if isinstance(error, FileNotFoundError):
            remedy = (
                "is there a store? 'infnet-rec data build' makes one" if name == MANIFEST else "copy the store again"
            )
            raise UserError(f"{self.what} {self.url}: holds no {name}; {remedy}") from error
        raise UserError(f"{self.what} {self.url}: {name} cannot be read ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """Of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def default_folder(kind: str) -> Path:
    """Where fetched things of one kind are kept."""
    own = os.environ.get(CACHE_VARIABLE)
    return (Path(own) if own else Path.home() / ".cache" / "infnet_rec") / kind


def _checked_manifest(remote: Remote, text: bytes) -> dict[str, Any]:
    """The manifest, if its store can be read here and its files stay inside their folder."""
    try:
        manifest = json.loads(text)
        version, names = manifest["store_version"], list(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"store {remote.url}: its {MANIFEST} is not that of a store") from error
    if version != STORE_VERSION:
        raise UserError(
            f"store {remote.url}: has store_version {version}, this package reads {STORE_VERSION}; build it again"
        )
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"store {remote.url}: its manifest names {name!r}, which is outside of the store")
    return manifest


def _fetch(remote: Remote, files: dict[str, dict[str, Any]], partial: Path, progress: Progress) -> None:
    """Fetches what is not there yet; a file gets its name when its hash was right."""
    missing = [name for name in files if not (partial / name).is_file()]
    total = sum(facts["bytes"] for facts in files.values())
    needed = sum(files[name]["bytes"] for name in missing)
    partial.mkdir(exist_ok=True)
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise UserError(
            f"store {remote.url}: {needed / 2**30:.1f} GiB are to be fetched to {partial.parent}, which has "
            f"{free / 2**30:.1f} GiB free; make room, or name another disk in ${CACHE_VARIABLE}"
        )
    done, lock, stopped = total - needed, threading.Lock(), threading.Event()

    def arrived(num_bytes: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise CancelledError
        with lock:
            done += num_bytes
            progress(done, total)

    arrived(0)
    with ThreadPoolExecutor(STREAMS, thread_name_prefix="fetch") as pool:
        largest_first = sorted(missing, key=lambda name: -files[name]["bytes"])
        fetched = [pool.submit(_fetch_file, remote, name, files[name], partial, arrived) for name in largest_first]
        try:
            for future in as_completed(fetched):
                future.result()
        finally:
            # After a fault, or Ctrl-C, the other streams end at their next piece.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch_file(
    remote: Remote, name: str, facts: dict[str, Any], partial: Path, arrived: Callable[[int], None]
) -> None:
    place = partial / name
    place.parent.mkdir(parents=True, exist_ok=True)
    digest, num_bytes = hashlib.sha256(), 0

    def hashed() -> Iterator[bytes]:
        nonlocal num_bytes
        for chunk in remote.stream(name):
            digest.update(chunk)
            num_bytes += len(chunk)
            arrived(len(chunk))
            yield chunk

    temporary = place.with_name(place.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.writelines(hashed())
            os.fsync(file.fileno())
        for what, found in (("bytes", num_bytes), ("sha256", digest.hexdigest())):
            if found != facts[what]:
                raise UserError(
                    f"store {remote.url}: {name} is not what the manifest says ({what} {found}, not {facts[what]}); "
                    "copy the store there again"
                )
        temporary.rename(place)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, text: bytes) -> None:
    with path.open("wb") as file:
        file.write(text)
        os.fsync(file.fileno())


def fetched(url_or_path: str) -> Path:
    """A store's folder on this machine; see `local_store`."""
    # Nothing is drawn where the store is here already.
    with amount_bar(None, "B", unit_divisor=1024, delay=0.5) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:
                bar.set_description_str(f"fetching {url_or_path}")
                bar.reset(total)
                if not sys.stderr.isatty():
                    print(f"fetching {url_or_path}: {total / 2**20:,.1f} MiB", file=sys.stderr, flush=True)
            bar.update(done - bar.n)

        return local_store(url_or_path, progress=progress)
