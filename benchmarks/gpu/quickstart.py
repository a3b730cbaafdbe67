"""Part 3: the quickstart on one rank: against the CPU, stopped and gone on to the bit, saved in both ways.

The golden losses lie beside the packed store; where there are none, the same run is made here on the CPU.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Settings, Writer
from benchmarks.gpu.small_runs import CONFIG, REHEARSED, guarded, store_of
from infnet_rec.checkpoint.store import CheckpointManifest, CheckpointStore, checkpoint_name
from infnet_rec.config.toml import read_json
from infnet_rec.data.store import Store
from infnet_rec.trainer.metric_logger import OF_THE_MACHINE
from infnet_rec.trainer.train import train

LOSS_LIMIT, AUC_LIMIT = 1e-3, 5e-3
# Afterwards rounding errors have grown, and losses of two devices are two runs'.
COMPARED_STEPS = 50
GOLDEN = "quickstart_golden.json"

JSON = dict[str, Any]


def run(settings: Settings, write: Writer) -> None:
    """Trains four times."""
    # cuBLAS reads it once, when it is first used, which is before the first deterministic run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    num_steps = settings.pick(6, 60, 0)
    folder = settings.out / "quickstart"
    shutil.rmtree(folder, ignore_errors=True)
    length = length_overrides(store_of(settings), settings, num_steps)
    guarded(write, "against the CPU", lambda: _against_cpu(settings, write, folder / "plain", length))
    save_every = max(2, num_steps // 3) if num_steps else 40
    exact = [
        *length,
        "train.deterministic=true",
        f"checkpoint.every_steps={save_every}",
        "checkpoint.keep_last=100",
    ]
    whole = folder / "whole"
    if not guarded(write, "deterministic, saved synchronously", lambda: _timed(write, "sync", whole, exact, settings)):
        return
    guarded(write, "stopped and gone on", lambda: _goes_on(settings, write, whole, exact, save_every))
    asynchronous = [*exact, "checkpoint.mode=async"]
    guarded(write, "saved asynchronously", lambda: _asynchronous(settings, write, whole, asynchronous))


def length_overrides(store: Path, settings: Settings, num_steps: int) -> list[str]:
    """What makes the run so many steps long, and lets it tell every loss; 0 leaves its length alone."""
    own = list(REHEARSED) if settings.is_rehearsal else []
    overrides = [f"data.store='{store}'", *own, "train.log_every_steps=1"]
    if not num_steps:
        return [*overrides, "train.num_epochs=1"]
    batch_size = 16 if settings.is_rehearsal else 512
    epochs = (num_steps + 0.5) * batch_size / Store(store).num_examples("train")
    return [*overrides, f"train.num_epochs={epochs}", "train.eval_every_steps=1000000"]


def _against_cpu(settings: Settings, write: Writer, run_dir: Path, overrides: list[str]) -> None:
    golden = _golden(settings, overrides)
    result = train(CONFIG, overrides, run_dir)
    assert result is not None
    losses = losses_of(run_dir)
    steps = sorted(losses.keys() & {int(step) for step in golden["losses"]})[:COMPARED_STEPS]
    worst = max(
        (abs(loss - golden["losses"][str(step)][task]), step, task)
        for step in steps
        for task, loss in losses[step].items()
    )
    facts: JSON = {"steps": len(steps), "worst_step": worst[1], "task": worst[2], "golden": golden["where"]}
    write.compared(f"losses of {len(steps)} steps", worst[0], LOSS_LIMIT, headline=True, **facts)
    if result["steps_done"] == golden["steps_done"]:
        for task, expected in golden["auc"].items():
            found = result["metrics"]["test"][task]["auc"]
            if expected is not None and found is not None:
                write.compared(f"test AUC, {task}", abs(found - expected), AUC_LIMIT, auc=found, golden=expected)
    else:
        aucs = {task: metrics["auc"] for task, metrics in result["metrics"]["test"].items()}
        write("test AUC", "measured", note=f"{result['steps_done']} steps of {golden['steps_done']}", auc=aucs)
    write("quickstart", "measured", result["examples_per_s"], unit="examples/s")


def _golden(settings: Settings, overrides: list[str]) -> JSON:
    """The CPU's run: from beside the store where it is of this store, else made now."""
    store = store_of(settings)
    packed = store.parent / GOLDEN
    if not settings.is_rehearsal and golden_is_of(store, packed):
        return read_json(packed) | {"where": "packed"}
    out = settings.out / "quickstart" / GOLDEN
    make_golden(store, overrides, out)
    return read_json(out) | {"where": "made on this machine's CPU"}


def golden_is_of(store: Path, golden: Path) -> bool:
    """Whether the file holds what a CPU makes of this store."""
    return golden.is_file() and read_json(golden)["fingerprint"] == Store(store).fingerprint


def make_golden(store: Path, overrides: list[str], out: Path) -> None:
    """Trains on the CPU in another process and writes its losses and AUCs.

    Args:
        store: what is trained on.
        overrides: of the quickstart's configuration.
        out: the JSON file.
    """
    run_dir = out.parent / "golden_run"
    shutil.rmtree(run_dir, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    sets = [f"--set={override}" for override in overrides]
    command = [sys.executable, "-m", "infnet_rec.cli", "train", str(CONFIG), f"--run-dir={run_dir}", *sets]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the CPU's run failed: {done.stderr.strip().splitlines()[-1:]}")
    result = read_json(run_dir / "result.json")
    golden = {
        "fingerprint": Store(store).fingerprint,
        "steps_done": result["steps_done"],
        "losses": losses_of(run_dir),
        "auc": {task: metrics["auc"] for task, metrics in result["metrics"]["test"].items()},
    }
    out.write_text(json.dumps(golden) + "\n", encoding="utf-8")
    shutil.rmtree(run_dir)


def losses_of(run_dir: Path) -> dict[int, dict[str, float]]:
    """Every logged loss, by step and task."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def _timed(write: Writer, mode: str, run_dir: Path, overrides: list[str], settings: Settings) -> None:
    started_at = time.perf_counter()
    train(CONFIG, overrides, run_dir)
    commits = CheckpointStore(run_dir / "checkpoints").commits()
    num_bytes = commits[-1].num_bytes if commits else 0
    facts: JSON = {"checkpoints": len(commits), "bytes": num_bytes}
    write(f"whole run, {mode} checkpoints", "measured", time.perf_counter() - started_at, unit="s", **facts)


def _goes_on(settings: Settings, write: Writer, whole: Path, overrides: list[str], step: int) -> None:
    """A copy of the run in which the checkpoint of a step is the newest goes on, and ends as the whole one did."""
    cut = whole.with_name("cut")
    shutil.copytree(whole, cut)
    (cut / "result.json").unlink()
    shelf = CheckpointStore(cut / "checkpoints")
    if step not in {commit.step for commit in shelf.commits()}:
        raise RuntimeError(f"the run has no checkpoint of step {step} to go on from")
    for commit in shelf.commits():
        if commit.step > step:
            shutil.rmtree(shelf.path(checkpoint_name(commit.step)))
    train(CONFIG, overrides, cut)
    _compare(write, "stopped and gone on to the bit", whole, cut, headline=True)


def _asynchronous(settings: Settings, write: Writer, whole: Path, overrides: list[str]) -> None:
    """Saved while training goes on, out of pinned memory on a GPU: the checkpoints are those of the other run."""
    other = whole.with_name("async")
    _timed(write, "async", other, overrides, settings)
    _compare(write, "asynchronous checkpoints are the synchronous ones", whole, other)


def _compare(write: Writer, check: str, left: Path, right: Path, *, headline: bool = False) -> None:
    """The same lines but for times, and the same bytes in the parts of the last checkpoint."""
    lines = sum(a != b for a, b in zip(_own_lines(left), _own_lines(right), strict=True))
    last, other = (_last_commit(run_dir) for run_dir in (left, right))
    parts = sum(last.parts[name]["sha256"] != other.parts[name]["sha256"] for name in _weights(last))
    facts: JSON = {"lines": len(_own_lines(left)), "lines_that_differ": lines, "files_that_differ": parts}
    write.compared(check, lines + parts, 0, headline=headline, step=last.step, other_step=other.step, **facts)


def _weights(commit: CheckpointManifest) -> list[str]:
    return [name for name in commit.parts if name.endswith(".distcp")]


def _last_commit(run_dir: Path) -> CheckpointManifest:
    return CheckpointStore(run_dir / "checkpoints").commits()[-1]


def _own_lines(run_dir: Path) -> list[JSON]:
    """What the run logged, but for what depends on the machine."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MACHINE} for line in lines]
