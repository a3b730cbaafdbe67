"""The folder of a run's checkpoints, and which of them are whole. No process group is needed here.

    step-00000040/            a checkpoint: 40 updates done
      __0_0.distcp, ...       what each rank wrote
      .metadata               which tensor lies where (torch.distributed.checkpoint)
      commit.json             the last file: step, metrics, what run it is, size and SHA-256 of every other file
    .step-00000080.writing/   one that is being written, or was when the run was killed
    .step-00000020.removing/  one that is being removed, or was

A checkpoint counts when its `commit.json` can be read and agrees with its own hash. On a local disk the folder gets its
name after that, by a rename; an object store has no rename, so there the marker alone, written last, makes it count.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from infnet_rec.config.toml import read_fields

MARKER = "commit.json"
WITHDRAWN = "commit.json.withdrawn"
NAME = re.compile(r"step-(\d{8,})")
UNFINISHED = re.compile(r"\.step-(\d{8,})\.(writing|removing)")
OURS = re.compile(r"__\d+_\d+\.distcp|\.metadata(\.tmp)?|commit\.json(\.writing|\.withdrawn)?")
UNFINISHED_WHY = {
    "writing": "it is being written, or the run was killed meanwhile",
    "removing": "it is being removed, or the run was killed meanwhile",
}
READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class CheckpointManifest:
    """What a checkpoint's marker says.

    Attributes:
        step: updates done.
        progress: see `Progress.to_json`.
        run: configuration, store, ranks and plan that wrote it.
        parts: size and hash of every file, by name.
        written_at: UTC, ISO 8601.
    """

    step: int
    progress: dict[str, Any]
    run: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    written_at: str

    @property
    def auc(self) -> float | None:
        """Mean AUC on valid at this step, if it was evaluated and could be judged."""
        return self.progress["auc"]

    @property
    def num_bytes(self) -> int:
        """Of all files but the marker."""
        return sum(part["bytes"] for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A folder on the store: committed, or torn for a reason."""

    name: str
    step: int
    commit: CheckpointManifest | None
    torn: str = ""


class CheckpointStore:
    """Checkpoints of one run, in a folder or behind a URL that fsspec knows."""

    def __init__(self, where: Path | str) -> None:
        """Opens it; nothing is made before the first checkpoint."""
        self.where = str(where)
        self.files: AbstractFileSystem
        self.files, root = url_to_fs(self.where)
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.files, LocalFileSystem)

    def path(self, *names: str) -> str:
        """A path as `files` takes it."""
        return "/".join([self.root, *names])

    def found(self) -> list[FoundCheckpoint]:
        """All checkpoints, whole or torn, by step; parts are not read, see `broken_parts`."""
        found = []
        for name in self._names(self.root):
            if match := NAME.fullmatch(name):
                found.append(self._look(name, int(match[1])))
            elif match := UNFINISHED.fullmatch(name):
                found.append(FoundCheckpoint(name, int(match[1]), None, UNFINISHED_WHY[match[2]]))
        return sorted(found, key=lambda f: (f.step, f.name))

    def commits(self) -> list[CheckpointManifest]:
        """Committed checkpoints, by step."""
        return [f.commit for f in self.found() if f.commit is not None]

    def broken_parts(self, commit: CheckpointManifest, names: Sequence[str] | None = None) -> Iterator[str]:
        """Reads files whole and says what is wrong with which.

        Args:
            commit: the checkpoint.
            names: some of its parts; None for all.
        """
        for name in commit.parts if names is None else names:
            part, path = commit.parts[name], self.path(checkpoint_name(commit.step), name)
            try:
                with self.files.open(path, "rb") as file:
                    size, found = _size_and_hash(file)
            except OSError as error:
                yield f"{name}: cannot be read ({error.strerror or type(error).__name__})"
                continue
            if size != part["bytes"]:
                yield f"{name}: has {size:,} bytes, not {part['bytes']:,}"
            elif found != part["sha256"]:
                yield f"{name}: has SHA-256 {found[:12]}..., not {part['sha256'][:12]}..."

    def begin(self, step: int) -> str:
        """Makes an empty folder to write the parts of a checkpoint to, and returns its path.

        Raises:
            FileExistsError: there is a committed checkpoint of this step.
        """
        if self._look(checkpoint_name(step), step).commit is not None:
            raise FileExistsError(f"{checkpoint_name(step)} is there already")
        self.discard(step)
        path = self._writing(step)
        self.files.makedirs(path, exist_ok=True)
        return path

    def discard(self, step: int) -> None:
        """Removes what was written since `begin`."""
        path = self._writing(step)
        if self.files.exists(path):
            self.files.rm(path, recursive=True)

    def commit(self, commit: CheckpointManifest) -> None:
        """Makes what was written since `begin` count; every part must be on disk."""
        writing, final = self._writing(commit.step), self.path(checkpoint_name(commit.step))
        marker = f"{writing}/{MARKER}"
        text = _marker_text(commit)
        if not self.is_local:
            self.files.pipe_file(marker, text)
            return
        _write_to_disk(f"{marker}.writing", text)
        os.rename(f"{marker}.writing", marker)  # noqa: PTH104
        _sync_folder(writing)
        if self.files.exists(final):  # one that does not count, or `begin` would not have been called
            self.remove(commit.step)
        os.rename(writing, final)  # noqa: PTH104
        _sync_folder(self.root)

    def withdraw(self, step: int) -> None:
        """Makes a committed checkpoint count no longer; its files stay until the step is saved again."""
        self.files.mv(self.path(checkpoint_name(step), MARKER), self.path(checkpoint_name(step), WITHDRAWN))

    def remove(self, step: int) -> None:
        """Removes a checkpoint; what is left of it when this is interrupted does not count."""
        path = self.path(checkpoint_name(step))
        if self.is_local:
            removing = self.path(f".{checkpoint_name(step)}.removing")
            os.rename(path, removing)  # noqa: PTH104
            path = removing
        else:
            with suppress(FileNotFoundError):
                self.files.rm_file(f"{path}/{MARKER}")
        self.files.rm(path, recursive=True)

    def clear(self) -> list[str]:
        """Removes what killed processes left unfinished, if every file in it is one that we write; returns names."""
        cleared = []
        for found in self.found():
            path = self.path(found.name)
            never_counted = UNFINISHED.fullmatch(found.name) or not self.is_local
            if found.commit is None and never_counted and self._is_ours(path):
                self.files.rm(path, recursive=True)
                cleared.append(found.name)
        return cleared

    def _is_ours(self, path: str) -> bool:
        names = self._names(path)
        return not {MARKER, WITHDRAWN} & set(names) and all(OURS.fullmatch(name) for name in names)

    def _writing(self, step: int) -> str:
        return self.path(f".{checkpoint_name(step)}.writing" if self.is_local else checkpoint_name(step))

    def _names(self, path: str) -> list[str]:
        # Listings of object stores are cached by fsspec, and other processes write here.
        self.files.invalidate_cache()
        if not self.files.exists(path):
            return []
        return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self.files.ls(path, detail=False)]

    def _look(self, name: str, step: int) -> FoundCheckpoint:
        try:
            return FoundCheckpoint(name, step, _read_marker(self.files.cat_file(self.path(name, MARKER)), step))
        except FileNotFoundError:
            return FoundCheckpoint(name, step, None, f"it has no {MARKER}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return FoundCheckpoint(name, step, None, f"its {MARKER} cannot be used: {error}")


def add_owed_evaluation(store: CheckpointStore, step: int, progress: dict[str, Any]) -> bool:
    """Adds what a run that goes on found of the very step that it was saved at, owing its evaluation.

    Args:
        store: of the run's checkpoints.
        step: at which the run stands.
        progress: `TrainState.to_json` after the evaluation.

    Returns:
        Whether there is such a checkpoint; its files stay as they are, its progress is the new one.
    """
    marker = store.path(checkpoint_name(step), MARKER)
    try:
        commit = _read_marker(store.files.cat_file(marker), step)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not commit.progress.get("owes_evaluation"):
        return False
    text = _marker_text(replace(commit, progress={**progress, "kernel_steps": commit.progress["kernel_steps"]}))
    if not store.is_local:
        store.files.pipe_file(marker, text)
        return True
    _write_to_disk(f"{marker}.writing", text)
    os.rename(f"{marker}.writing", marker)  # noqa: PTH104
    _sync_folder(store.path(checkpoint_name(step)))
    return True


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"step-{step:08}"


def best_checkpoint(commits: Sequence[CheckpointManifest]) -> CheckpointManifest | None:
    """The one with the highest mean AUC on valid, the earliest of several; None where none could be judged."""
    ranked = rank_checkpoints(commits)
    return ranked[0] if ranked else None


def rank_checkpoints(commits: Sequence[CheckpointManifest]) -> list[CheckpointManifest]:
    """Checkpoints that could be judged, best first."""
    return sorted((c for c in commits if c.auc is not None), key=lambda c: (-(c.auc or 0.0), c.step))


def _size_and_hash(file: Any) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    while chunk := file.read(READ_BYTES):
        size += len(chunk)
        digest.update(chunk)
    return size, digest.hexdigest()


def _marker_text(commit: CheckpointManifest) -> bytes:
    body = {name: getattr(commit, name) for name in CheckpointManifest.__slots__}
    return json.dumps({**body, "sha256": _hash_of(body)}, indent=1).encode() + b"\n"


def _read_marker(text: bytes | str, step: int) -> CheckpointManifest:
    body = json.loads(text)
    if body.pop("sha256") != _hash_of(body):
        raise ValueError("it does not agree with its own SHA-256")
    if body["step"] != step:
        raise ValueError(f"it is of step {body['step']}")
    return read_fields(CheckpointManifest, body, MARKER)


def _hash_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_to_disk(path: str, text: bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123 - paths of fsspec are strings
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
