"""What a run directory holds already, and whether the run that is asked for may go on there."""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infnet_rec.checkpoint.locate import run_checkpoints
from infnet_rec.checkpoint.store import checkpoint_name
from infnet_rec.config.load import flatten_config, validate_run
from infnet_rec.config.plugins import check_plugin
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import read_json
from infnet_rec.data.remote import is_url
from infnet_rec.data.run_data import RunData
from infnet_rec.errors import Busy, UserError
from infnet_rec.files import named_faults, try_folder

# What may differ from the run as it was: it changes where and how fast the same examples are learned from, how long,
# and what is said about it, but no step that was done.
MAY_CHANGE = (
    "checkpoint",
    "data.loader_threads",
    "data.manifest",
    "data.read_ahead",
    "data.store",  # the contents are compared by fingerprint
    "model.attention",
    "model.checkpoint_blocks",
    "model.compile",
    "sharding",
    "train.collective_timeout_s",
    "train.deterministic",
    "train.eval_batch_size",
    "train.eval_every_steps",
    "train.log_every_steps",
    "train.max_skipped",
    "train.num_epochs",
    "train.num_threads",
    "train.on_nonfinite",
    "train.patience",
)
DYING_S = 3.0
PLUGIN_FILE = "plugin.json"
NOT_A_RUN_YET = re.compile(r"\.lock|\.config\.json\.writing|logs")


@dataclass(frozen=True, slots=True)
class RunDirState:
    """What is in a run directory.

    Attributes:
        is_new: nothing of a run is there.
        changed: settings that differ from the run as it was, each as a line; all of them may.
        result: of the finished run, if there is nothing left to train.
    """

    is_new: bool
    changed: list[str]
    result: dict[str, Any] | None


def inspect_run_dir(run_dir: Path, config: RunConfig, data: RunData) -> RunDirState:
    """Finds out what stands in a run directory; nothing is changed there.

    Raises:
        UserError: it is no run directory and not empty, or another run's.
    """
    was = former_config(run_dir)
    commits = run_checkpoints(config.checkpoint, run_dir).commits()
    changed: list[str] = []
    if was is not None:
        changed = _compare(was, config, f"--run-dir {run_dir}")
        _check_folder(was, config, run_dir)
        environment = run_dir / "environment.json"
        if environment.is_file():
            _check_store(read_json(environment)["store"], data, f"--run-dir {run_dir}")
    if commits:
        newest, where = (
            commits[-1],
            f"checkpoint {checkpoint_name(commits[-1].step)} in {run_checkpoints(config.checkpoint, run_dir).where}",
        )
        check_plugin(newest.run.get("plugin"), where)
        saved = validate_run(newest.run["config"], where)
        changed = _compare(saved, config, where)
        _check_store(newest.run["store"], data, where)
    result = None
    if was is not None and (run_dir / "result.json").is_file() and not _trains_longer(was, config):
        result = read_json(run_dir / "result.json")
    return RunDirState(was is None and not commits, changed, result)


def read_run_config(run_dir: Path) -> RunConfig:
    """The configuration that a run directory holds.

    Raises:
        UserError: there is none, or it is of a plugin that was not given.
    """
    if (record := run_dir / PLUGIN_FILE).is_file():
        check_plugin(read_json(record), str(run_dir))
    path = run_dir / "config.json"
    return validate_run(read_json(path), str(path))


def former_config(run_dir: Path) -> RunConfig | None:
    """The configuration of the run that a folder holds; None for a folder that is empty or not there.

    Raises:
        UserError: the folder holds something else.
    """
    if (run_dir / "config.json").is_file():
        return read_run_config(run_dir)
    if run_dir.exists() and (
        not run_dir.is_dir() or any(not NOT_A_RUN_YET.fullmatch(p.name) for p in run_dir.iterdir())
    ):
        raise UserError(f"--run-dir {run_dir}: exists, is not empty and holds no run; name a new folder or a run's own")
    return None


def try_destinations(config: RunConfig, run_dir: Path) -> None:
    """Finds out whether a run could be written where it is to be, and leaves nothing behind.

    Raises:
        UserError: the run directory, or the folder of its checkpoints, cannot be written.
        Failure: the disk is full.
    """
    try_folder("--run-dir", run_dir)
    if config.checkpoint.folder and not is_url(config.checkpoint.folder):
        try_folder("checkpoint.folder", Path(config.checkpoint.folder))


@contextmanager
def lock_run_dir(run_dir: Path) -> Iterator[None]:
    """Makes the folder if it is not there, and keeps other processes from training in it; a lock dies with its process.

    Raises:
        UserError: the folder cannot be made.
        Busy: another process trains in it, which the message names.
    """
    with named_faults(f"--run-dir {run_dir}"):
        run_dir.mkdir(parents=True, exist_ok=True)
        # Not emptied: who has the lock has written there who it is.
        file = (run_dir / ".lock").open("a+", encoding="utf-8")
    with file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            raise Busy(
                f"--run-dir {run_dir}: {_holder(file)} trains in it; wait for its end, or end it, and run this again"
            ) from error
        except OSError as error:
            raise UserError(
                f"--run-dir {run_dir}: its file system cannot lock ({str(error.strerror).lower()}), so two processes "
                "could train in it; name a folder on another"
            ) from error
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        yield


def _lock(file: IO[str]) -> None:
    """Locks a file; a process that was killed keeps its locks until the last of its threads is gone."""
    deadline = time.monotonic() + DYING_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _holder(file: IO[str]) -> str:
    """Who has the lock, as it wrote itself; earlier versions wrote nothing."""
    try:
        file.seek(0)
        holder = json.load(file)
        return f"process {int(holder['pid'])} on host {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def config_differences(was: RunConfig, now: RunConfig) -> dict[str, str]:
    """By key, a line on each setting that is not what it was."""
    old, new = (flatten_config(config.model_dump(mode="json")) for config in (was, now))
    return {
        key: f"{key} = {new.get(key)!r}, was {old.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def _compare(was: RunConfig, now: RunConfig, where: str) -> list[str]:
    """Lines on settings that changed and may.

    Raises:
        UserError: others changed too; all are listed.
    """
    lines = config_differences(was, now)
    refused = [line for key, line in lines.items() if not key.startswith(MAY_CHANGE)]
    if refused:
        text = "\n".join(f"  {line}" for line in refused)
        raise UserError(
            f"{where}: is of a run with other settings, so it cannot go on there\n{text}\nset them as they were, or "
            "name a new folder (with --from it starts from these weights)"
        )
    if "train.num_epochs" in lines and "cosine" in (now.train.sparse.schedule.kind, now.train.dense.schedule.kind):
        lines["train.num_epochs"] += " (the cosine of the learning rate is now that of a run of this length)"
    return list(lines.values())


def _check_store(fingerprint: str, data: RunData, where: str) -> None:
    if data.store.fingerprint != fingerprint:
        raise UserError(
            f"store {data.store.path}: is not the one that {where} was trained on (it has fingerprint "
            f"{data.store.fingerprint}, that one {fingerprint}); set data.store to the right one"
        )


def _check_folder(was: RunConfig, now: RunConfig, run_dir: Path) -> None:
    before, after = (run_checkpoints(config.checkpoint, run_dir) for config in (was, now))
    if before.root != after.root and before.commits() and not after.commits():
        raise UserError(
            f"checkpoint.folder = {now.checkpoint.folder!r}: holds no checkpoint, but {before.where} does; move them "
            "there, or leave the setting as it was"
        )


def _trains_longer(was: RunConfig, now: RunConfig) -> bool:
    more_patience = was.train.patience and (not now.train.patience or now.train.patience > was.train.patience)
    return now.train.num_epochs > was.train.num_epochs or bool(more_patience)
