"""The raw files that a recipe names: by name, by pattern, by folder, here or at a URL.

What stands at a URL is fetched, since the lines of bad rows are looked up in the file again: each file once, for it is
kept under its URL and what the server says of its version.
"""

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from infnet_rec.data.remote import CACHE_VARIABLE, Remote, default_folder, is_url
from infnet_rec.errors import UserError

PARTITION = re.compile(r"([^=]+)=(.*)")
# What drivers say of a file's version: object storage, HTTP, file systems.
VERSION_KEYS = frozenset(
    [
        "size",
        "etag",
        "lastmodified",
        "last_modified",
        "last-modified",
        "updated",
        "mtime",
        "created",
        "generation",
        "md5hash",
        "content-md5",
        "crc32c",
        "digest",
        "checksum",
    ]
)
NO_VALUE = ("", "__HIVE_DEFAULT_PARTITION__")
WILDCARDS = re.compile(r"[*?\[]")

# Told a line about what begins, the amount of work in it and its unit; then how much of it is done.
Stage = Callable[[str, int, str], None]
Done = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of raw rows.

    Attributes:
        path: where it lies on this machine.
        name: relative to the raw folder, with slashes.
    """

    path: Path
    name: str

    @property
    def partitions(self) -> dict[str, str | None]:
        """What the folders of the form `column=value` say, None where it is missing."""
        found = (PARTITION.fullmatch(part) for part in PurePosixPath(self.name).parts[:-1])
        return {unquote(match[1]): None if match[2] in NO_VALUE else unquote(match[2]) for match in found if match}


@dataclass(frozen=True, slots=True)
class RawFolder:
    """The raw files of a recipe.

    Attributes:
        files: a name, pattern or folder of the recipe -> the files that it means, in order.
        shown: path of a file that was fetched -> its URL.
    """

    files: Mapping[str, tuple[RawFile, ...]]
    shown: Mapping[str, str] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> list[RawFile]:
        """The files of some names, in order.

        One that several patterns mean is there once; one that is named more than once is there as often.
        """
        found: dict[Path, RawFile] = {}
        named: set[Path] = set()
        again = []
        for name in names:
            for file in self.files[name]:
                if file.name == name:
                    again += [file] if file.path in named else []
                    named.add(file.path)
                found.setdefault(file.path, file)
        return [*found.values(), *again]

    def in_words(self, text: str) -> str:
        """A text with URLs in the place of paths of fetched files."""
        for path, url in self.shown.items():
            text = text.replace(path, url)
        return text


def find_raw(raw: Path | str, names: Iterable[str], stage: Stage, done: Done) -> RawFolder:
    """Finds the files of a recipe, and fetches those of a URL that are not here yet.

    Args:
        raw: a folder, or the URL of one that fsspec reads.
        names: of the recipe: files, patterns and folders, relative to `raw`.
        stage: told what begins.
        done: told how much of it is done.

    Raises:
        UserError: there is no such folder or file, or a file cannot be fetched whole.
    """
    names = list(dict.fromkeys(names))
    if is_url(str(raw)):
        return _fetched(Remote.connect(str(raw), "--raw"), names, stage, done)
    folder = Path(raw)
    if not folder.is_dir():
        raise UserError(
            f"--raw {raw}: no such folder; it must hold the files that the recipe names, such as {names[0]}"
        )
    faults: list[str] = []
    files: dict[str, tuple[RawFile, ...]] = {}
    for name in names:
        matches = _local(folder, name)
        if not matches:
            faults.append(f"{folder / name}: {_nothing(name, is_folder=(folder / name).is_dir())}")
        files[name] = tuple(RawFile(folder / match, match) for match in matches)
    if faults:
        raise UserError(f"--raw {raw}: files are missing\n" + "\n".join(f"  {fault}" for fault in faults))
    return RawFolder(files)


def _nothing(name: str, *, is_folder: bool) -> str:
    if is_folder:
        return "is a folder that holds no file"
    return "no file fits this pattern" if WILDCARDS.search(name) else "no such file"


def _local(folder: Path, name: str) -> list[str]:
    """Names of the files that a name, a pattern or a folder means, in order."""
    # A file may have a name that looks like a pattern.
    if (folder / name).is_file():
        return [name]
    matches = [name] if (folder / name).is_dir() else []
    if not matches and WILDCARDS.search(name):
        matches = [match for match in _fitting(name, folder) if _is_shown(match, name)]
    found: set[str] = set()
    for match in matches:
        if not (folder / match).is_dir():
            found.add(match)
            continue
        inside = _fitting("**/*", folder / match)
        found |= {
            str(PurePosixPath(match, part)) for part in inside if (folder / match / part).is_file() and _is_shown(part)
        }
    return sorted(os.path.normpath(match) for match in found)


def _fitting(pattern: str, folder: Path) -> list[str]:
    # Path.glob takes no absolute pattern, and its ** passes by folders that are links.
    return glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207


def _is_shown(name: str, pattern: str = "") -> bool:
    """Whether a file counts that nobody named: Hive's and Spark's own begin with _ or a dot, as _SUCCESS does."""
    asked = PurePosixPath(pattern).parts
    return not any(
        part.startswith((".", "_")) and "=" not in part and not any(a.startswith(part[0]) for a in asked)
        for part in PurePosixPath(name).parts
    )


def _fetched(remote: Remote, names: list[str], stage: Stage, done: Done) -> RawFolder:
    """Fetches what is not here yet."""
    facts: dict[str, tuple[str, dict[str, Any]]] = {}
    of_name: dict[str, list[str]] = {}
    faults = []
    for name in names:
        try:
            found = _listed(remote, name)
        except FileNotFoundError:
            found = {}
        except Exception as error:
            remote.fail(name, error)
        if not found:
            faults.append(f"{remote.url.rstrip('/')}/{name}: {_nothing(name, is_folder=False)}")
        of_name[name] = sorted(found)
        facts |= found
    if faults:
        raise UserError(f"--raw {remote.url}: files are missing\n" + "\n".join(f"  {fault}" for fault in faults))
    folder = default_folder("raw")
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for name, (path, info) in facts.items():
        places[name] = folder / _version(remote, path, info) / PurePosixPath(name).name
    missing = {name: facts[name] for name, place in places.items() if not place.is_file()}
    _check_room(remote, folder, sum(info.get("size") or 0 for _, info in missing.values()))
    for name, (path, info) in missing.items():
        stage(f"fetching {name}", info.get("size") or 0, "B")
        place = places[name]
        place.parent.mkdir(exist_ok=True)
        with FileLock(place.parent / ".lock"):
            if not place.is_file():
                _fetch_file(remote, path, info.get("size"), place, done)
    files = {name: tuple(RawFile(places[match], match) for match in matches) for name, matches in of_name.items()}
    return RawFolder(files, {str(place): f"{remote.url.rstrip('/')}/{name}" for name, place in places.items()})


def _listed(remote: Remote, name: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> path and facts of the files that a name, a pattern or a folder means."""
    files, whole = remote.files, f"{remote.root}/{name.strip('/')}"
    if ".." in PurePosixPath(name).parts:
        raise UserError(f"--raw {remote.url}: {name!r} lies outside of it")
    # As in a folder here, a file may have a name that looks like a pattern.
    if files.isfile(whole):
        return {name: (whole, files.info(whole))}
    matches = {}
    if files.isdir(whole):
        matches[whole] = {"type": "directory"}
    elif WILDCARDS.search(name):
        matches = files.glob(whole, detail=True)
    found = {}
    for path, info in matches.items():
        inside = files.find(path, detail=True) if info["type"] == "directory" else {path: info}
        for match, facts in inside.items():
            relative = match.removeprefix(remote.root).lstrip("/")
            shown = _is_shown(match.removeprefix(path).lstrip("/")) and _is_shown(relative, name)
            if facts["type"] == "file" and shown:
                found[relative] = (match, facts)
    return found


def _version(remote: Remote, path: str, info: Mapping[str, Any]) -> str:
    """A name for one version of one file: by what the server says of its size, its time or its hash."""
    # Not by the driver's ukey, which for HTTP is the URL alone.
    version = sorted((key, str(value)) for key, value in info.items() if key.lower() in VERSION_KEYS)
    return hashlib.blake2b(f"{remote.url}\n{path}\n{version}".encode(), digest_size=16).hexdigest()


def _check_room(remote: Remote, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"--raw {remote.url}: {needed / 2**30:.1f} GiB are to be fetched to {folder}, which has "
            f"{free / 2**30:.1f} GiB free; make room, or name another disk in ${CACHE_VARIABLE}"
        )


def _fetch_file(remote: Remote, path: str, size: int | None, place: Path, done: Done) -> None:
    """Fetches one file; it has its name when it is whole."""
    name = path.removeprefix(remote.root).lstrip("/")
    temporary, num_bytes = place.with_name(place.name + ".part"), 0
    try:
        with temporary.open("wb") as file:
            for chunk in remote.stream(name):
                num_bytes += file.write(chunk)
                done(num_bytes)
            os.fsync(file.fileno())
        if size is not None and num_bytes != size:
            raise UserError(
                f"--raw {remote.url}: {name} ended after {num_bytes:,} of {size:,} bytes; run it again to fetch it anew"
            )
        temporary.rename(place)
    finally:
        temporary.unlink(missing_ok=True)
