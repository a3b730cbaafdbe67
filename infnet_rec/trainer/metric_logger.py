"""What a run tells people and leaves behind: progress lines, metrics.jsonl, TensorBoard, result.json.

The AUC of the examples that were trained on lately is had at the price of keeping what the steps gave anyway: nothing
is copied and no device is waited for until somebody asks.

Shapes: B examples of a batch, N of the window, T tasks.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from infnet_rec.checkpoint.train_state import TimeSpent
from infnet_rec.console import log_line, no_bar, steps_bar
from infnet_rec.files import write_text
from infnet_rec.metrics import auc
from infnet_rec.models.ranking_model import Scores
from infnet_rec.trainer.rank_log import RankLog

GIB = 2**30
WINDOW_EXAMPLES = 8_192


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Of one rank.

    Attributes:
        rss_bytes: in the host's memory.
        mapped_bytes: of these, files such as the store's and what is shared with other processes; most of it goes
            without harm when memory is short. 0 where the system does not say.
        gpu_peak_bytes: the most that tensors held at a time on the GPU; None without one.
    """

    rss_bytes: int
    mapped_bytes: int
    gpu_peak_bytes: int | None

    def __str__(self) -> str:
        """For people."""
        gpu = "" if self.gpu_peak_bytes is None else f", GPU {_gib(self.gpu_peak_bytes)}"
        return f"{_gib(self.rss_bytes)}{gpu} GiB"


def _gib(num_bytes: int) -> str:
    gib = num_bytes / GIB
    return f"{gib:.1f}" if gib < 10 else f"{gib:.0f}"


def memory_now() -> ProcessMemory:
    """Reads counters that the system and torch's allocator keep anyway; waits for no device."""
    host = psutil.Process().memory_info()
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
    return ProcessMemory(host.rss, getattr(host, "shared", 0), gpu)


# What of a line in metrics.jsonl depends on the machine, and on where a run was stopped: the rest is the run's own.
OF_THE_MACHINE = ("elapsed_s", "examples_per_s", "left_s", "rss_bytes", "gpu_peak_bytes", "train_auc")
DROPPED = "metrics.dropped.jsonl"
REACHED = ".reached"


class TrainWindow:
    """The predictions of this rank's last examples, each made just before it was learned from.

    So the AUC is one of examples that the model had not seen in this epoch. It is of this rank's examples only, at most
    `WINDOW_EXAMPLES` of them: a sign of life beside the loss, no metric to choose by. A run that goes on from a
    checkpoint begins with an empty window.
    """

    def __init__(self) -> None:
        self._kept: deque[Scores] = deque()
        self._num_examples = 0

    def keep(self, scores: Scores) -> None:
        """Remembers a step; what lies too far back is let go of."""
        self._kept.append(scores)
        self._num_examples += len(scores.weight_B)
        while self._num_examples - len(self._kept[0].weight_B) >= WINDOW_EXAMPLES:
            self._num_examples -= len(self._kept.popleft().weight_B)

    def take(self) -> list[float]:
        """The AUC of each task (NaN where it has one class, or a prediction was not finite); the window is empty then.

        It waits for the device, so ask where that was waited for already.
        """
        if not self._kept:
            return []
        logits_NT, labels_NT = (
            torch.cat([getattr(scores, name) for scores in self._kept])[-WINDOW_EXAMPLES:].cpu().numpy()
            for name in ("logits_BT", "labels_BT")
        )
        self._kept.clear()
        self._num_examples = 0
        columns = zip(logits_NT.T.astype(np.float64), labels_NT.T.astype(np.float64), strict=True)
        return [auc(logits_N, labels_N) for logits_N, labels_N in columns]


class MetricLogger:
    """Rank 0's voice; other ranks say nothing, and write their own log only."""

    def __init__(self, run_dir: Path | None, num_steps: int, rank_log: RankLog | None = None) -> None:
        """Opens the run's files.

        Args:
            run_dir: where to write, None on all ranks but the first.
            num_steps: of the whole run, for the time left.
            rank_log: this rank's own.
        """
        self._run_dir, self._num_steps, self._rank_log = run_dir, num_steps, rank_log
        self._started_at = self._last_at = time.perf_counter()
        self._trains_since: float | None = None
        self._steps_done = 0
        self._examples_since, self._local_since, self._waited_s = 0, 0, 0.0
        self._window = TrainWindow()
        self._beside_bar = ""
        self._bar: Any = no_bar()
        self._train_s = 0.0
        self._train_examples = 0
        self._purged_from: int | None = None
        self._tensorboard: Any = None

    def reached(self, step: int) -> None:
        """Remembers how far the run got, about once a second, so that one that is killed can say what it redoes."""
        if self._run_dir is not None:
            (self._run_dir / REACHED).write_text(str(step), encoding="utf-8")

    def go_on(self, step: int, spent: TimeSpent) -> int:
        """Goes on where a checkpoint stands: what was reported after it did not happen, and is set aside.

        Returns:
            Steps beyond the checkpoint that are known to have been done, and will be done again.
        """
        self._started_at = time.perf_counter() - spent.elapsed_s
        self._train_s, self._train_examples = spent.train_s, spent.train_examples
        self._purged_from = step + 1
        if self._run_dir is not None:
            drop_lines_after(step, self._run_dir / "metrics.jsonl")
            with suppress(OSError, ValueError):
                return max(0, int((self._run_dir / REACHED).read_text(encoding="utf-8")) - step)
        return 0

    def settle(self) -> TimeSpent:
        """Puts all reports on disk, for a checkpoint taken now; time and examples so far."""
        if self._run_dir is not None and (path := self._run_dir / "metrics.jsonl").exists():
            with path.open("ab") as file:
                os.fsync(file.fileno())
        return TimeSpent(time.perf_counter() - self._started_at, self._train_s, self._train_examples)

    def step_done(self, num_examples: int, scores: Scores | None = None, waited_s: float = 0.0) -> None:
        """Counts a training step of so many examples over all ranks; waits for nothing.

        Args:
            num_examples: of the global batch.
            scores: what it left on this rank.
            waited_s: in which this rank had to wait for its loader.
        """
        self._steps_done += 1
        self._bar.update()
        self._examples_since += num_examples
        self._waited_s += waited_s
        if scores is not None:
            self._local_since += len(scores.weight_B)
            if self._run_dir is not None:
                self._window.keep(scores)

    @contextmanager
    def training(self, step: int) -> Iterator[None]:
        """The run trains on from `step` in the block: time outside of it (evaluation, saving) does not count as that.

        On a terminal a bar shows how far it is.
        """
        self._resume()
        with steps_bar(step, self._num_steps, self._beside_bar, speaks=self._run_dir is not None) as self._bar:
            yield
        self._pause()

    @property
    def examples_per_s(self) -> float:
        """Global training throughput of the run so far, evaluation and saving aside."""
        return self._train_examples / self._train_s if self._train_s else 0.0

    def progress(self, step: int, epoch: float, losses: Mapping[str, float], lr: Mapping[str, float]) -> None:
        """One line for people, one for machines, after step number `step` (from 1); all ranks call it.

        The time left is that of the whole training: the steps left at the pace of this process since it began to train,
        evaluations and checkpoints included. So it says too little before the first of them, and too much where
        training stops early. The AUC is that of `TrainWindow`.
        """
        now = time.perf_counter()
        since_s = max(now - self._last_at, 1e-9)
        rate, own_rate = self._examples_since / since_s, self._local_since / since_s
        memory = memory_now()
        self._pause()
        self._resume()
        if self._rank_log is not None:
            own = {"examples_per_s": round(own_rate, 1), "data_wait_s": round(self._waited_s, 4), **asdict(memory)}
            self._rank_log.report(step, own)
        self._waited_s = 0.0
        if self._run_dir is None:
            return
        trains_s = now - (self._trains_since or now)
        left_s = trains_s / max(self._steps_done, 1) * (self._num_steps - step)
        # Waits for the device, as the losses of this line did.
        aucs = dict(zip(losses, self._window.take(), strict=False))
        line = {"kind": "train", "step": step, "epoch": epoch, "examples_per_s": rate, "loss": losses, "lr": lr}
        line["train_auc"] = {task: None if math.isnan(value) else value for task, value in aucs.items()}
        held = {"rss_bytes": memory.rss_bytes, "gpu_peak_bytes": memory.gpu_peak_bytes}
        self._write({**line, "left_s": round(left_s, 3), **held})
        text = progress_line([f"{step}/{self._num_steps}", f"{epoch:.2f}"], rate, losses, aucs, left_s, memory)
        self._beside_bar = f"{rate:,.0f} examples/s, {format_duration(left_s)} left"
        self._bar.set_description_str(self._beside_bar, refresh=False)
        self.say(text)

    def evaluated(self, split: str, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """The metrics of one evaluation: numbers by name, by task."""
        self._write({"kind": "eval", "split": split, "step": step, "metrics": metrics})
        text = "  ".join(
            f"{task} AUC {format_number(m['auc'])} gAUC {format_number(m['gauc'])}" for task, m in metrics.items()
        )
        self.say(f"step {step}/{self._num_steps}  {split}: {text}")

    def say(self, line: str) -> None:
        """A line for people."""
        if self._run_dir is not None:
            log_line(line)

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _resume(self) -> None:
        self._last_at = time.perf_counter()
        self._trains_since = self._trains_since or self._last_at

    def _pause(self) -> None:
        self._train_s += time.perf_counter() - self._last_at
        self._train_examples += self._examples_since
        self._examples_since = self._local_since = 0

    def _write(self, record: dict[str, Any]) -> None:
        if self._run_dir is None:
            return
        record["elapsed_s"] = round(time.perf_counter() - self._started_at, 3)
        with (self._run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._run_dir / "tensorboard"), purge_step=self._purged_from)
        for name, value in _flat(record):
            self._tensorboard.add_scalar(name, value, record["step"])


def progress_line(
    at: Sequence[str],
    rate: float,
    losses: Mapping[str, float],
    aucs: Mapping[str, float],
    left_s: float,
    memory: ProcessMemory,
) -> str:
    """The line for people; `at` is the step of how many, and the epoch."""
    tasks = "  ".join(
        f"{task} {loss:.4f}" + (f" AUC {aucs[task]:.3f}" if math.isfinite(aucs.get(task, math.nan)) else " AUC -")
        for task, loss in losses.items()
    )
    where = f"step {at[0]}  epoch {at[1]}"
    return f"{where}  {rate:,.0f} examples/s  loss {tasks}  {format_duration(left_s)} left  {memory}"


def drop_lines_after(step: int, path: Path) -> None:
    """Moves reports of later steps, and a line that was cut off, to a file beside; so does a test, which comes last."""
    if not path.exists():
        return
    kept, dropped = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        (kept if _stays(line, step) else dropped).append(line + "\n")
    if not dropped:
        return
    # In this order, so that a kill in between leaves a line twice rather than nowhere.
    with path.with_name(DROPPED).open("a", encoding="utf-8") as file:
        file.writelines(dropped)
    write_text(path, "".join(kept))


def _stays(line: str, step: int) -> bool:
    try:
        record = json.loads(line)
        return record["step"] <= step and record.get("split") in (None, "valid")
    except (ValueError, KeyError, TypeError):
        return False


def _flat(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Numbers of one report under TensorBoard's names."""
    if record["kind"] == "train":
        numbers = [(f"train/loss_{k}", v) for k, v in record["loss"].items()]
        numbers += [(f"train/lr_{k}", v) for k, v in record["lr"].items()]
        numbers += [(f"train/auc_{k}", v) for k, v in record["train_auc"].items() if v is not None]
        held = [("train/rss_gib", record["rss_bytes"]), ("train/gpu_peak_gib", record["gpu_peak_bytes"])]
        numbers += [(name, held_bytes / GIB) for name, held_bytes in held if held_bytes is not None]
        return [*numbers, *((f"train/{name}", record[name]) for name in ("examples_per_s", "epoch"))]
    return [
        (f"{record['split']}_{task}/{name}", value)
        for task, metrics in record["metrics"].items()
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]


def format_number(value: float | None) -> str:
    """A metric for people; "-" where the examples could not answer."""
    return "-" if value is None else f"{value:.4f}"


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
