"""torchx components, for every scheduler as it would get them, and once for real.

INFNET_REC_WRITE_GOLDEN=1 writes the renderings in tests/golden/launch anew.
"""

import configparser
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torchx.runner import get_runner
from torchx.specs import named_resources

from launch import components

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "launch"
AROUND = ["-h", "aws_p3.16xlarge", "--env", "FI_PROVIDER=efa", "--mounts", "type=bind,src=/data,dst=/data"]
OPTIONS = {
    "local_cwd": {"log_dir": "runs/torchx"},
    "local_docker": {},
    "slurm": {"partition": "gpu", "time": "12:00:00"},
    "kubernetes": {"queue": "default"},
    "aws_batch": {"queue": "default"},
}
ARGUMENTS = {
    "train": ["-j", "1:2x8", "--config", "a.toml", "--run_dir", "runs/$USER", *AROUND, "--", "train.dense.lr=3e-4"],
    "evaluate": ["-j", "2x8", "--run_dir", "runs/a", "--split", "valid", *AROUND],
    "bench": ["-j", "1x8", "--config", "a.toml", *AROUND, "--", "train.global_batch_size=4096"],
    "plan": ["-j", "4x8", "--config", "a.toml", "--hardware", "h100", "--", "model.width=32"],
    "experiment": ["-j", "3", "--experiment", "e.toml", "--out", "runs/$USER", *AROUND, "--", "--jobs=2", "--set=a=$b"],
    "data_build": ["--recipe", "r.toml", "--raw", "raw", "--out", "store", "--", "--memory-gib=64"],
}
CASES = [("train", scheduler) for scheduler in OPTIONS] + [(name, "slurm") for name in ARGUMENTS if name != "train"]
CASES += [("experiment", "local_cwd"), ("experiment", "aws_batch")]


def golden(name: str, text: str) -> None:
    """Compares a text with the committed one, or commits it."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("INFNET_REC_WRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names on every machine and at every run."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("torchx.schedulers.ids.random_id", lambda: "b0123456789012")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "nobody")


@pytest.mark.filterwarnings("ignore:(?s).*Volcano")
@pytest.mark.parametrize(("component", "scheduler"), CASES)
def test_each_scheduler_gets_what_it_got_before(nobody: None, component: str, scheduler: str) -> None:
    arguments, options = ARGUMENTS[component], OPTIONS[scheduler]
    with get_runner() as runner:
        dry = runner.dryrun_component(f"launch/components.py:{component}", arguments, scheduler, cfg=options)
    text = str(dry)
    if scheduler == "local_cwd":
        # torchx prints it folded, and where it folds depends on how long the paths are.
        text = json.dumps(dataclasses.asdict(dry.request), indent=1, default=str) + "\n"
    golden(f"{component}_{scheduler}", text.replace(str(ROOT), "REPOSITORY"))


def test_arguments_arrive_as_they_were_given() -> None:
    """Every argument, on as many nodes and ranks as asked for; torchx fills in no dollar of a person's."""
    app = components.train("a.b='$x'", config="a b.toml", run_dir="runs/a", j="2:3x4", env={"OMP_NUM_THREADS": "3"})
    (role,) = app.roles
    assert (role.min_replicas, role.num_replicas) == (2, 3)
    assert role.env["OMP_NUM_THREADS"] == "3"
    command = role.args[1]
    assert "--nnodes=2:3 --nproc-per-node=4 --max-restarts=3" in command
    assert """train 'a b.toml' --run-dir=runs/a '--set=a.b='"'"'$$x'"'"''""" in command


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda: components.train(config="a", run_dir="b", j="2by4"), "-j 2by4: must be NODESxRANKS"),
        (lambda: components.train(config="a", run_dir="b", j="4:2x4"), "swap them"),
        (lambda: components.bench(config="a", what="embeding"), "did you mean 'embedding'?"),
        (lambda: components.experiment(experiment="a", out="b", j="2x4"), "-j 2x4: must be a number of parts"),
        (lambda: components.train(config="a", run_dir="b", h="aws_p3.16xlarg"), "aws_p3.16xlarge"),
        (lambda: components.train(config="a", run_dir="b", mounts=["src=/a"]), "src=/a"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys: pytest.CaptureFixture[str], start, words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        start()
    said = capsys.readouterr().err
    assert said.startswith("infnet-rec: fault: ")
    assert words in said
    assert said.count("\n") == 1


def test_slurm_without_sbatch_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["torchx", "run", "-s", "slurm", "--dryrun", "launch/components.py:train", "-j", "1x2"]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", asked)
    components.train(config="a", run_dir="b")
    monkeypatch.setattr("sys.argv", [word for word in asked if word != "--dryrun"])
    with pytest.raises(SystemExit, match="2"):
        components.train(config="a", run_dir="b")
    said = capsys.readouterr().err
    assert said.startswith("infnet-rec: fault: -s slurm: there is no sbatch on ")
    assert said.count("\n") == 1
    (tmp_path / "sbatch").touch(0o755)
    # torchx asks it after it has handed in; without accounting it does not answer.
    for sacct, words in (
        (None, "there is no sacct on "),
        ("#!/bin/sh\necho Slurm accounting storage is disabled >&2; exit 1\n", "storage is disabled; 'infnet-rec sub"),
    ):
        if sacct is not None:
            (tmp_path / "sacct").write_text(sacct)
            (tmp_path / "sacct").chmod(0o755)
        with pytest.raises(SystemExit, match="2"):
            components.train(config="a", run_dir="b")
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    (tmp_path / "sacct").write_text("#!/bin/sh\n")
    components.train(config="a", run_dir="b")


@pytest.mark.parametrize("what", ["run", "embedding", "step", "input", "tower"])
def test_every_bench_starts_as_it_is_asked_for(what: str) -> None:
    """Alone where one rank is measured, and on two where several may be."""
    ranks = re.search(r"--nproc-per-node=(\d)", components.bench(config="a", what=what).roles[0].args[1])
    assert ranks is not None and ranks[1] == ("2" if what in ("run", "embedding") else "1")
    asked = re.search(r"--nproc-per-node=(\d)", components.bench(config="a", what=what, j="1x4").roles[0].args[1])
    assert asked is not None and asked[1] == "4"


def test_the_example_of_a_configuration_names_what_schedulers_know() -> None:
    example = configparser.ConfigParser()
    example.read(ROOT / "configs" / "torchxconfig.example")
    with get_runner() as runner:
        for scheduler in OPTIONS:
            known = {name for name, _ in runner.scheduler_run_opts(scheduler)}
            assert set(example[scheduler]) <= known
            runner.scheduler_run_opts(scheduler).resolve(dict(example[scheduler]))
    assert "aws_p3.16xlarge" in named_resources


@pytest.mark.slow
def test_two_ranks_train_under_torchx(small_store: Path, tmp_path: Path) -> None:
    torchx = [sys.executable, "-c", "from torchx.cli.main import main; main()"]
    component = ["launch/components.py:train", "-j", "1x2", "--config", "tests/small.toml"]
    overrides = [f'data.store="{small_store}"', "train.num_epochs=0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    finished = subprocess.run(
        [*torchx, "run", "-s", "local_cwd", *component, "--run_dir", tmp_path / "run", "--", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["num_ranks"] == 2
