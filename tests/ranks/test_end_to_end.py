"""The commands, driven as a user drives them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from infnet_rec import cli
from infnet_rec.planner.hardware import hardware_here

HERE = Path(__file__).parents[1]
CONFIG = HERE / "small.toml"
RECIPE = HERE.parent / "configs" / "datasets" / "kuairand_pure.toml"
INFNET_REC = Path(sys.executable).parent / "infnet-rec"
TIMEOUT_S = 240


def infnet_rec(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command; its output is kept."""
    return subprocess.run([INFNET_REC, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files, a store, and a run on two ranks, made by commands."""
    folder = tmp_path_factory.mktemp("end_to_end")
    raw, store, run = folder / "raw", folder / "store", folder / "run"
    for command in (
        ("data", "generate", "--examples", 4000, "--seed", 3, "--out", raw),
        ("data", "build", RECIPE, "--raw", raw, "--out", store),
        ("data", "check", store),
        ("train", CONFIG, "--set", f"data.store={store}", "--ranks", 2, "--run-dir", run),
    ):
        finished = infnet_rec(*command)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        (folder / "stdout.txt").write_text(finished.stdout)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    """The run's result."""
    return json.loads((folder / "run" / "result.json").read_text())


def test_the_run_directory_is_complete(folder: Path, result: dict[str, Any]) -> None:
    """What was run, where, how it was sharded and how it went."""
    run = folder / "run"
    assert json.loads((run / "config.json").read_text())["data"]["store"] == str(folder / "store")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["world_size"] == 2
    assert set(environment["preflight"]["agreed"]) == {"config", "code", "store", "versions"}
    assert len(json.loads((run / "plan.json").read_text())["tables"]) == 89
    assert any((run / "tensorboard").iterdir())
    kinds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in kinds if r["kind"] == "train"][-1] == result["steps_done"]
    assert {r["split"] for r in kinds if r["kind"] == "eval"} == {"valid", "test", "test_random"}
    assert result["num_ranks"] == 2 and result["examples_per_s"] > 0


def test_the_verb_makes_the_plan_of_the_run(folder: Path, tmp_path: Path) -> None:
    """Told of this machine's memory, `plan --out` writes the run's plan.json byte for byte."""
    here = hardware_here(torch.device("cpu")).model_dump(exclude_none=True)
    (tmp_path / "here.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in here.items()))
    made = infnet_rec(
        *("plan", CONFIG, "--set", f"data.store={folder / 'store'}", "-j", "1x2"),
        *("--hardware", tmp_path / "here.toml", "--out", tmp_path / "plan.json"),
    )
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "plan.json").read_bytes() == (folder / "run" / "plan.json").read_bytes()


def test_it_learns(result: dict[str, Any]) -> None:
    """One pass over a few thousand examples beats chance by far."""
    assert result["metrics"]["test"]["click"]["auc"] > 0.6
    low, high = result["metrics"]["test"]["click"]["gauc_interval"]
    assert low <= result["metrics"]["test"]["click"]["gauc"] <= high


def test_the_table_and_the_folder_end_the_output(folder: Path, result: dict[str, Any]) -> None:
    """The last lines say how good, how fast and where."""
    lines = (folder / "stdout.txt").read_text().splitlines()
    assert lines[-1] == f"results: {folder / 'run'}"
    for task in ("click", "like", "long_view"):
        row = next(line.split() for line in lines if line.startswith(task))
        assert row[3] == f"{result['metrics']['test'][task]['auc']:.4f}"


def test_eval_on_one_rank_repeats_the_test_metrics_of_two(folder: Path, result: dict[str, Any]) -> None:
    """The best weights were saved, and read back on another number of ranks they score the same."""
    finished = infnet_rec("eval", folder / "run", "--split", "test", "--json")
    assert finished.returncode == 0, finished.stderr
    for task, metrics in json.loads(finished.stdout)["metrics"].items():
        for name in ("auc", "gauc", "log_loss", "ne", "calibration"):
            assert metrics[name] == pytest.approx(result["metrics"]["test"][task][name], abs=1e-4), (task, name)


@pytest.mark.slow
def test_a_used_run_directory_is_not_overwritten(folder: Path) -> None:
    """The finished run gives its results again on as many ranks; another run is refused before any rank starts."""
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    again = ("train", CONFIG, "--set", f"data.store={folder / 'store'}", "--run-dir", folder / "run")
    finished = infnet_rec(*again, "--ranks", 2)
    assert finished.returncode == 0, finished.stderr
    assert "is finished" in finished.stderr
    assert finished.stdout.strip() == (folder / "stdout.txt").read_text().strip()
    refused = infnet_rec(*again, "--ranks", 2, "--set", "model.width=12")
    assert refused.returncode == 2
    assert "model.width = 12, was 8" in refused.stderr and "Traceback" not in refused.stderr
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_checkpoints_of_a_run_are_listed_shown_and_verified(folder: Path) -> None:
    """The verbs take a run directory; what is best is what `eval` scores."""
    listed = json.loads(infnet_rec("checkpoint", "ls", folder / "run", "--json").stdout)
    best = [c for c in listed["checkpoints"] if c["best"]]
    assert len(best) == 1
    shown = infnet_rec("checkpoint", "show", folder / "run")
    assert shown.returncode == 0 and f"step            {best[0]['step']}" in shown.stdout
    assert infnet_rec("checkpoint", "verify", folder / "run").returncode == 0
    copy = folder / "damaged"
    shutil.copytree(folder / "run", copy)
    part = copy / "checkpoints" / best[0]["name"] / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1])
    verified = infnet_rec("checkpoint", "verify", copy)
    assert verified.returncode == 3 and "__1_0.distcp: has" in verified.stdout
    evaluated = infnet_rec("eval", copy)
    assert evaluated.returncode == 2 and "__1_0.distcp" in evaluated.stderr and "Traceback" not in evaluated.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["train.dense.learning_rate=1", "modle.width=3"],
            ["train.dense.learning_rate", "modle", "did you mean 'model'"],
        ),
        (["data.profile=ctx98"], ["ctx98", "did you mean 'ctx89'"]),
        (["data.store=/nowhere"], ["/nowhere", "data build"]),
        (["train.global_batch_size=1000000"], ["1000000", "larger than the training split"]),
        (["train.global_batch_size=63"], ["63", "2 ranks"]),
        (["train.global_batch_size=1"], ["does not divide by 2 ranks"]),
        (["train.sparse.optimizer=adam"], ["adam", "CPU", "rowwise_adagrad"]),
        (["train.loss.task_weights.clik=2"], ["clik", "did you mean 'click'"]),
        (["model.num_blocks=1"], ["num_blocks"]),
        (["model.width=6"], ["model.width = 6", "multiple of 4"]),
    ],
)
def test_faults_end_before_any_rank_starts(
    folder: Path,
    overrides: list[str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One clear message, exit code 2, no process started, nothing written."""
    overrides = [f"data.store={folder / 'store'}", *overrides]
    run = folder / "refused"
    sets = [f"--set={override}" for override in overrides]
    monkeypatch.setattr(sys, "argv", ["infnet-rec", "train", str(CONFIG), *sets, "--ranks=2", f"--run-dir={run}"])
    monkeypatch.setattr(os, "execve", None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    text = capsys.readouterr().err
    assert ended.value.code == 2
    assert all(word in text for word in words), text
    assert text.startswith("infnet-rec: fault: ")
    assert not run.exists()


@pytest.mark.slow
def test_a_failing_rank_ends_the_others_with_its_own_error(folder: Path, tmp_path: Path) -> None:
    """The other rank waits in a collective; it is ended long before that gives up, and the first error is the cause."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [*command, HERE / "helpers" / "failing_rank.py", CONFIG, folder / "store", tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode != 0
    report = finished.stderr[finished.stderr.index("Root Cause") :]
    assert "the disk of rank 1 is on fire" in report and "rank      : 1" in report, report
