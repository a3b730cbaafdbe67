"""What a run tells people and leaves behind: progress lines, metrics.jsonl, TensorBoard, result.json."""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from infnet_rec.train.checkpoint.progress import Spent

DROPPED = "metrics.dropped.jsonl"
REACHED = ".reached"


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


class Report:
    """Rank 0's voice; on other ranks nothing is written or said."""

    def __init__(self, run_dir: Path | None, num_steps: int) -> None:
        """Opens the run's files.

        Args:
            run_dir: where to write, None on all ranks but the first.
            num_steps: of the whole run, for the time left.
        """
        self._run_dir, self._num_steps = run_dir, num_steps
        self._started_at = self._last_at = time.perf_counter()
        self._examples_since = 0
        self._train_s = 0.0
        self._train_examples = 0
        self._purged_from: int | None = None
        self._tensorboard: Any = None

    def reached(self, step: int) -> None:
        """Remembers how far the run got, about once a second, so that one that is killed can say what it redoes."""
        if self._run_dir is not None:
            (self._run_dir / REACHED).write_text(str(step))

    def go_on(self, step: int, spent: Spent) -> int:
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
                return max(0, int((self._run_dir / REACHED).read_text()) - step)
        return 0

    def settle(self) -> Spent:
        """Puts all reports on disk, for a checkpoint taken now; time and examples so far."""
        if self._run_dir is not None and (path := self._run_dir / "metrics.jsonl").exists():
            with path.open("ab") as file:
                os.fsync(file.fileno())
        return Spent(time.perf_counter() - self._started_at, self._train_s, self._train_examples)

    def step_done(self, num_examples: int) -> None:
        """Counts a training step."""
        self._examples_since += num_examples

    def training_paused(self) -> None:
        """Time from here to `training_resumed` (evaluation, saving) does not count as training."""
        now = time.perf_counter()
        self._train_s += now - self._last_at
        self._train_examples += self._examples_since
        self._examples_since = 0

    def training_resumed(self) -> None:
        """See `training_paused`."""
        self._last_at = time.perf_counter()

    @property
    def examples_per_s(self) -> float:
        """Global training throughput of the run so far, evaluation and saving aside."""
        return self._train_examples / self._train_s if self._train_s else 0.0

    def progress(self, step: int, epoch: float, losses: Mapping[str, float], lr: Mapping[str, float]) -> None:
        """One line for people, one for machines, after step number `step` (from 1)."""
        now = time.perf_counter()
        rate = self._examples_since / max(now - self._last_at, 1e-9)
        self.training_paused()
        self.training_resumed()
        left_s = (now - self._started_at) / step * (self._num_steps - step)
        self._write({"kind": "train", "step": step, "epoch": epoch, "examples_per_s": rate, "loss": losses, "lr": lr})
        text = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        at = f"step {step}/{self._num_steps}  epoch {epoch:.2f}"
        self.say(f"{at}  {rate:,.0f} examples/s  loss {text}  {clock(left_s)} left")

    def evaluated(self, split: str, step: int, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """The metrics of one evaluation: numbers by name, by task."""
        self._write({"kind": "eval", "split": split, "step": step, "metrics": metrics})
        text = "  ".join(f"{task} AUC {number(m['auc'])} gAUC {number(m['gauc'])}" for task, m in metrics.items())
        self.say(f"step {step}/{self._num_steps}  {split}: {text}")

    def say(self, line: str) -> None:
        """A line for people."""
        if self._run_dir is not None:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

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
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


def _stays(line: str, step: int) -> bool:
    try:
        record = json.loads(line)
        return record["step"] <= step and record.get("split") != "test"
    except (ValueError, KeyError, TypeError):
        return False


def _flat(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Numbers of one report under TensorBoard's names."""
    if record["kind"] == "train":
        numbers = [(f"train/loss_{k}", v) for k, v in record["loss"].items()]
        numbers += [(f"train/lr_{k}", v) for k, v in record["lr"].items()]
        return [*numbers, ("train/examples_per_s", record["examples_per_s"]), ("train/epoch", record["epoch"])]
    return [
        (f"{record['split']}_{task}/{name}", value)
        for task, metrics in record["metrics"].items()
        for name, value in metrics.items()
        if isinstance(value, int | float)
    ]


def number(value: float | None) -> str:
    """A metric for people; "-" where the examples could not answer."""
    return "-" if value is None else f"{value:.4f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
