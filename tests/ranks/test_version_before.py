"""What the version before wrote goes on working: stores, runs, plans, launch scripts, experiments."""

import csv
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_slurm import FakeSlurm
from infnet_rec import cli
from infnet_rec.data.store import SPLITS, Store

ROOT = Path(__file__).parents[2]
ARCHIVE = Path(__file__).parents[1] / "golden" / "old" / "old.tar.xz"
STEPS, STOPPED_AT = 48, 33
Verb = Callable[..., tuple[int, str]]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is in the archive, as the working directory: its files name each other by relative paths."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Runs a command in this process: its exit code and what it printed."""

    def verb(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["infnet-rec", *words])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return int(code or 0), said.out

    return verb


def numbers(result: dict[str, Any], split: str) -> dict[str, float]:
    return {
        f"{task} {name}": value
        for task, found in result["metrics"][split].items()
        for name, value in found.items()
        if isinstance(value, float)
    }


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


def test_a_store_opens_and_is_sound(old: Path, verb: Verb) -> None:
    store = Store(Path("store"))
    assert [len(store.examples(split)) for split in SPLITS] == [197, 101, 84]
    code, said = verb("data", "check", "store")
    assert code == 0, said


def test_checkpoints_are_listed_and_whole(old: Path, verb: Verb) -> None:
    code, said = verb("checkpoint", "ls", "run")
    assert code == 0 and all(re.search(rf"\b{step}\b", said) for step in (10, 30, STOPPED_AT)), said
    assert verb("checkpoint", "verify", "run")[0] == 0


def test_a_run_goes_on_to_its_end_and_is_evaluated(old: Path, verb: Verb) -> None:
    """As if nothing had stopped it, and as the version before would have ended."""
    code, said = verb("train", "run.toml", "--run-dir", "run")
    assert code == 0, said
    result = json.loads((old / "run" / "result.json").read_text())
    expected = json.loads((old / "whole" / "result.json").read_text())
    assert (result["steps_done"], result["best_step"]) == (STEPS, expected["best_step"])
    for split in ("valid", "test"):
        assert numbers(result, split) == pytest.approx(numbers(expected, split), abs=1e-5)
    steps = [json.loads(line)["step"] for line in (old / "run" / "metrics.jsonl").read_text().splitlines()]
    assert min(steps) < STOPPED_AT < max(steps)
    code, said = verb("eval", "run", "--split", "test", "--json")
    assert code == 0
    for task, found in json.loads(said)["metrics"].items():
        assert found["auc"] == pytest.approx(expected["metrics"]["test"][task]["auc"], abs=1e-5)


def test_plans_are_compared_and_checked(old: Path, verb: Verb) -> None:
    assert verb("plan", "diff", "plan_1x1.json", "plan_1x1.json")[0] == 0
    code, said = verb("plan", "diff", "plan_1x1.json", "plan_1x2.json")
    assert code == 0 and "sku" in said, said
    command = ("train", "run.toml", "--run-dir", "planned", "--set=train.num_epochs=1")
    code, said = verb(*command, "--set=sharding.plan=plan_1x2.json")
    assert code == 2, "a plan for two ranks was taken by one"


def test_a_report_has_the_same_numbers(old: Path, verb: Verb) -> None:
    before = list(csv.reader((old / "experiment" / "report.csv").read_text().splitlines()))
    code, said = verb("report", "experiment")
    assert code == 0, said
    assert list(csv.reader((old / "experiment" / "report.csv").read_text().splitlines())) == before


def test_an_experiment_is_there_already(old: Path, verb: Verb) -> None:
    cells = (old / "experiment" / "cells.jsonl").read_bytes()
    code, said = verb("experiment", "experiment.toml", "--out", "experiment")
    assert code == 0, said
    assert (old / "experiment" / "cells.jsonl").read_bytes() == cells


def test_modules_that_scripts_name_are_there(old: Path) -> None:
    named = {
        module
        for script in ("train.sbatch", "train_torchrun.sh")
        for module in re.findall(r"-m (infnet_rec[\w.]+)", (old / script).read_text())
    }
    assert named == {"infnet_rec.shard.torchrun", "infnet_rec.cli"}
    for module in sorted(named):
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0 and "usage:" in done.stdout.lower(), done.stderr


def test_a_batch_script_starts_what_it_started(old: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slurm"
    folder.mkdir()
    slurm = FakeSlurm(folder)
    done = slurm.run((old / "train.sbatch").read_text(), 2)
    assert done.returncode == 0, done.stderr
    assert len(started := slurm.asked("python")) == 2 and all("infnet_rec.shard.torchrun" in line for line in started)


@pytest.mark.slow
def test_a_script_for_two_ranks_goes_on_with_the_run(old: Path) -> None:
    done = subprocess.run(["bash", "train_torchrun.sh"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((old / "run" / "result.json").read_text())
    assert (result["steps_done"], result["num_ranks"]) == (STEPS, 2)
