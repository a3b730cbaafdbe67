"""Runs of several real processes that can be hurt, and what they did: examples, weights, messages.

Importing TorchRec takes longer than a run here, so this process imports everything once and forks: a rank begins as a
copy of it. It must therefore never train, open a process group or start a thread itself.
"""

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fault_rank
from infnet_rec.checkpoint.store import CheckpointManifest, CheckpointStore
from infnet_rec.config.load import load_config
from infnet_rec.data.run_data import open_data
from infnet_rec.trainer import train as _imported_before_forks  # noqa: F401
from infnet_rec.trainer.build import train_order
from infnet_rec.trainer.metric_logger import OF_THE_MACHINE

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "small.toml"
NUM_STEPS = 40
GLOBAL_BATCH_SIZE = 64  # as in CONFIG
SAVE_EVERY = 5
SETTINGS = (
    "data.profile='safe'",
    f"checkpoint.every_steps={SAVE_EVERY}",
    "checkpoint.keep_last=3",
    "model.dropout=0.1",
    "train.collective_timeout_s=60",
)
END_S = 30.0  # from SIGTERM to SIGKILL, as torchrun does it
LIMIT_S = 300.0


@dataclass
class Attempt:
    """Some ranks on the way; `exits` fills up as they end: exit codes, or minus the signal's number."""

    pids: list[int]
    log: Path
    notes: Path
    number: int
    exits: dict[int, int] = field(default_factory=dict)

    def alive(self) -> list[int]:
        """Ranks that have not ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.exits:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.exits[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(len(self.pids)) if rank not in self.exits]

    def kill(self, ranks: Sequence[int], number: int = signal.SIGKILL) -> None:
        """Sends a signal to ranks that are alive."""
        for rank in set(ranks) & set(self.alive()):
            os.kill(self.pids[rank], number)

    def step(self, rank: int = 0) -> int:
        """Steps that a rank has finished in this attempt or before it."""
        lines = _lines(self.notes / f"steps-{self.number}-{rank}.jsonl")
        return lines[-1]["step"] if lines else 0

    def until(self, reached: Callable[[], bool]) -> bool:
        """Waits for something, or for a rank to end; whether it came."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if reached():
                return True
            if self.exits or len(self.alive()) < len(self.pids):
                return reached()
            time.sleep(0.002)
        raise TimeoutError(f"nothing happened for {LIMIT_S} s; see {self.log}")

    def finish(self) -> dict[int, int]:
        """Waits for all; a rank that ended badly ends the others, as launchers do."""
        deadline, ending = time.monotonic() + LIMIT_S, math.inf
        while alive := self.alive():
            now = time.monotonic()
            if ending == math.inf and any(self.exits.values()):
                self.kill(alive, signal.SIGTERM)
                ending = now + END_S
            if now > min(deadline, ending):
                self.kill(alive)
            time.sleep(0.01)
        return self.exits

    @property
    def code(self) -> int:
        """Of the rank that ended first; what came of the others, the launcher may have had a hand in."""
        return next(iter(self.exits.values()))

    @property
    def said(self) -> str:
        """What its ranks printed."""
        return self.log.read_text(errors="replace")


@dataclass
class Run:
    """A run directory and its attempts.

    Attributes:
        store: what to train on.
        folder: holds the run directory and the notes.
        overrides: settings of this run.
        checkpoints: where they are, if not in the run directory.
    """

    store: Path
    folder: Path
    overrides: tuple[str, ...] = ()
    checkpoints: Path | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def make(self) -> "Run":
        """Makes its folders."""
        self.run_dir.parent.mkdir(parents=True)
        self.notes.mkdir()
        return self

    @property
    def run_dir(self) -> Path:
        """Of the command."""
        return self.folder / "run"

    @property
    def notes(self) -> Path:
        """Of the spies."""
        return self.folder / "notes"

    def _arguments(self, *more: str) -> list[str]:
        """Of the command."""
        settings = (*self.settings(), *more)
        return ["train", str(CONFIG), f"--run-dir={self.run_dir}", *(f"--set={s}" for s in settings)]

    def settings(self) -> list[str]:
        """Of the run."""
        num_examples = json.loads((self.store / "manifest.json").read_text())["splits"]["train"]["num_examples"]
        epochs = (NUM_STEPS + 0.5) / (num_examples // GLOBAL_BATCH_SIZE)
        return [f"data.store='{self.store}'", f"train.num_epochs={epochs}", *SETTINGS, *self.overrides]

    def start(self, num_ranks: int = 2, *more: str, **spec: Any) -> Attempt:
        """Forks the ranks of the next attempt; `spec` as in `fault_rank.suffer`."""
        number = len(self.attempts)
        spec |= {"notes": str(self.notes), "attempt": number}
        log = self.folder / f"log-{number}.txt"
        port = _free_port()
        pids = [_fork(rank, num_ranks, port, self._arguments(*more), spec, log) for rank in range(num_ranks)]
        self.attempts.append(Attempt(pids, log, self.notes, number))
        return self.attempts[-1]

    def complete(self, num_ranks: int = 2, *more: str) -> Attempt:
        """Starts and waits for the end, whatever it is."""
        attempt = self.start(num_ranks, *more)
        attempt.finish()
        return attempt

    def elastic(self, max_restarts: int) -> subprocess.Popen[bytes]:
        """Two ranks under a real torchrun that restarts them."""
        command = [sys.executable, "-m", "infnet_rec.launcher.torchrun", "--standalone", "--nproc-per-node=2"]
        command += [f"--max-restarts={max_restarts}", "-m", "benchmarks.fault_rank", *self._arguments()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), fault_rank.SPEC: json.dumps({"notes": str(self.notes)})}
        with (self.folder / "log-torchrun.txt").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def commits(self) -> list[CheckpointManifest]:
        """Whole checkpoints."""
        return CheckpointStore(self.checkpoints or self.run_dir / "checkpoints").commits()

    def examples(self) -> "Examples":
        """Compares what was trained on, in the history that counts, with what the order says."""
        config = load_config(CONFIG, self.settings())
        order = train_order(config, open_data(config))
        counted = self._history()
        got, wanted = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for step in range(1, NUM_STEPS + 1):
            epoch = (step - 1) // order.steps_per_epoch
            wanted.update((epoch, row) for row in order.global_batch(step - 1).tolist())
            got.update((epoch, row) for row in counted.get(step, []))
        in_order = all(counted.get(s) == order.global_batch(s - 1).tolist() for s in range(1, NUM_STEPS + 1))
        return Examples((wanted - got).total(), (got - wanted).total(), in_order)

    def _history(self) -> dict[int, list[int]]:
        """Rows by step: an attempt that began after step k takes back what earlier ones did beyond k."""
        counted: dict[int, dict[int, list[int]]] = {}
        numbers = sorted({int(path.name.split("-")[1]) for path in self.notes.glob("steps-*")})
        for number in numbers:
            files = sorted(self.notes.glob(f"steps-{number}-*.jsonl"), key=lambda p: int(p.stem.split("-")[2]))
            notes = {int(path.stem.split("-")[2]): _lines(path) for path in files}
            began = min((lines[0]["step"] for lines in notes.values() if lines), default=NUM_STEPS + 1)
            counted = {step: ranks for step, ranks in counted.items() if step < began}
            for rank, lines in notes.items():
                for line in lines:
                    counted.setdefault(line["step"], {})[rank] = line["rows"]
        return {step: [row for rank in sorted(ranks) for row in ranks[rank]] for step, ranks in counted.items()}

    def final_parts(self) -> dict[str, str] | None:
        """Hashes of every rank's file of the last checkpoint, if that is of the last step: all weights and states."""
        commits = self.commits()
        if not commits or commits[-1].step != NUM_STEPS:
            return None
        return {name: part["sha256"] for name, part in commits[-1].parts.items() if name.endswith(".distcp")}

    def losses(self) -> np.ndarray:
        """Of all progress lines [lines, tasks]; they are what ranks of any number share."""
        lines = [line for line in _lines(self.run_dir / "metrics.jsonl") if line["kind"] == "train"]
        return np.array([list(line["loss"].values()) for line in lines])

    def log_lines(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says about learning, without times."""
        lines = _lines(self.run_dir / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in lines]


@dataclass(frozen=True)
class Examples:
    """Lost and doubled examples of a history, and whether every global batch was the right one in the right order."""

    lost: int
    doubled: int
    in_order: bool


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of JSON; the last one may be cut."""
    lines = []
    if path.exists():
        for line in path.read_text().split("\n")[:-1]:
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _fork(rank: int, world_size: int, port: int, arguments: list[str], spec: dict[str, Any], log: Path) -> int:
    """A child that becomes a rank; its output goes to the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_PORT": str(port)}
        random.seed()
        fault_rank.suffer(arguments, spec)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)
