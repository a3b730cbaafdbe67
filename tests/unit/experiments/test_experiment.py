"""Experiments: each cell is made once, whatever happens."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiment_files import SEARCH, TWO, written
from fake_trainer import FakeTrainer, run
from infnet_rec.errors import Interrupted, UserError
from infnet_rec.experiments import results as cells_module
from infnet_rec.experiments import runner as command
from infnet_rec.experiments.process import Job, RunEnded, train_in_a_process
from infnet_rec.experiments.report import write_report
from infnet_rec.experiments.results import append_cell, read_cells
from infnet_rec.experiments.runner import ExperimentArgs
from infnet_rec.files import write_json


@pytest.fixture
def trainer(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    return FakeTrainer(str(small_store)).installed(monkeypatch)


def test_a_finished_cell_is_never_made_again(tmp_path: Path, trainer: FakeTrainer) -> None:
    assert run(tmp_path, TWO, trainer)["done"] == 4
    assert run(tmp_path, TWO, trainer, num_jobs=2)["done"] == 4
    assert len(trainer.jobs) == 4
    # A seed more is two cells more.
    assert run(tmp_path, TWO, trainer, "seeds=[3,1,2]")["done"] == 6
    assert [job.run_dir.name for job in trainer.jobs[4:]] == ["2", "2"]
    lines = read_cells(tmp_path / "out" / "cells.jsonl")
    assert [(line["variant"], line["seed"]) for line in lines[:2]] == [("INFNet", 3), ("w/o1", 3)]
    assert all("train.test=keep" in job.overrides for job in trainer.jobs)


def test_a_failed_cell_is_no_number_and_waits_to_be_asked_for(tmp_path: Path, trainer: FakeTrainer) -> None:
    trainer.ends = lambda job: (
        RunEnded("failed", reason="exit code 1: loss is NaN") if job.run_dir.name == "1" else None
    )
    log = str(tmp_path / "out" / "cells" / "INFNet" / "1.log")
    ended = {"out": str(tmp_path / "out"), "done": 2, "failed": 2, "missing": 0, "failed_log": log}
    assert run(tmp_path, TWO, trainer) == ended
    line = read_cells(tmp_path / "out" / "cells.jsonl")[-1]
    assert (line["status"], line["reason"]) == ("failed", "exit code 1: loss is NaN")
    assert line["log"] == "cells/w_o1/1.log" and "metrics" not in line
    trainer.ends = lambda job: None
    assert run(tmp_path, TWO, trainer)["failed"] == 2
    assert run(tmp_path, TWO, trainer, retry_failed=True)["done"] == 4
    assert len(trainer.jobs) == 6


def test_cells_at_the_same_time_have_gpus_of_their_own(
    tmp_path: Path, trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at a time, of two ranks each; a search's trials too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    both, held, lock = threading.Barrier(2), list[frozenset[tuple[str, ...]]](), threading.Lock()
    now: list[tuple[str, ...]] = []

    def ends(job: Job) -> RunEnded | None:
        with lock:
            now.append(job.gpus)
        if both.wait(30) == 0:
            held.append(frozenset(now))
            now.clear()
        both.wait(30)
        return None

    trainer.ends = ends
    assert run(tmp_path, TWO + SEARCH, trainer, num_jobs=2, num_ranks=2)["done"] == 4
    assert len(trainer.jobs) == 10 and held == [{("4", "5"), ("6", "7")}] * 5
    assert "GPUs" not in capsys.readouterr().err
    trainer.ends = lambda job: None
    (tmp_path / "more").mkdir()
    run(tmp_path / "more", TWO, trainer, num_jobs=4, num_ranks=2)
    assert "--jobs 4: 8 GPUs are wanted and 4 found, so some cells share one" in capsys.readouterr().err


def test_one_setting_is_trained_once(tmp_path: Path, trainer: FakeTrainer) -> None:
    same = '\n[[variants]]\nname = "again"\nseries = "s"\nat = "4"'
    assert run(tmp_path, TWO + same, trainer)["done"] == 6
    assert len(trainer.jobs) == 4
    line = next(c for c in read_cells(tmp_path / "out" / "cells.jsonl") if c["variant"] == "again")
    assert (line["series"], line["predictions"]) == ("s", "cells/INFNet/3/predictions.npz")


def test_a_search_has_its_budget_reads_valid_only_and_the_seeds_take_its_best(
    tmp_path: Path, trainer: FakeTrainer
) -> None:
    assert run(tmp_path, TWO + SEARCH.replace('"grid"', '"tpe"'), trainer, "search.sampler=random")["done"] == 4
    trials = [job for job in trainer.jobs if "trials" in job.run_dir.parts]
    assert len(trials) == 6 and all("train.test=skip" in job.overrides for job in trials)
    for variant in ("INFNet", "w_o1"):
        found = json.loads((tmp_path / "out" / "search" / f"{variant}.json").read_text())
        assert len(found["trials"]) == 3
        assert found["chosen"]["train.dense.lr"] == max(t["params"]["train.dense.lr"] for t in found["trials"])
    line = read_cells(tmp_path / "out" / "cells.jsonl")[0]
    assert f"train.dense.lr={line['chosen']['train.dense.lr']}" in line["overrides"]


def test_trials_may_be_cheaper_runs_than_cells(tmp_path: Path, trainer: FakeTrainer) -> None:
    text = TWO + SEARCH.replace("num_trials = 3", 'num_trials = 3\nset = ["train.num_epochs=0.5"]')
    assert run(tmp_path, text, trainer)["done"] == 4
    for job in trainer.jobs:
        assert ("train.num_epochs=0.5" in job.overrides) == ("trials" in job.run_dir.parts)


@pytest.mark.slow(smoke=["tpe"])
@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_search_that_was_cut_off_goes_on_as_if_it_was_not(tmp_path: Path, trainer: FakeTrainer, sampler: str) -> None:
    text = TWO + SEARCH.replace("num_trials = 3", f'num_trials = 6\nsampler = "{sampler}"')

    def trials(name: str) -> list[tuple[str, ...]]:
        found = json.loads((tmp_path / name / "out" / "search" / "INFNet.json").read_text())["trials"]
        return [tuple(map(str, t["params"].values())) for t in found]

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", text, trainer)
    start = len(trainer.jobs)
    trainer.ends = lambda job: RunEnded("stopped") if len(trainer.jobs) == start + 3 else None
    with pytest.raises(Interrupted, match="the same command goes on from there"):
        run(tmp_path / "cut", text, trainer)
    stopped = trainer.jobs[-1]
    run(tmp_path / "cut", text, trainer)
    assert trainer.jobs[start + 3].run_dir == stopped.run_dir
    assert trials("cut") == trials("whole")
    # A grid has no point twice, and a sampler does not begin with the same draw each time.
    assert len(set(trials("cut")[:3])) > 1
    if sampler == "grid":
        assert len(set(trials("cut"))) == 6


def test_a_hopeless_trial_is_ended_and_spends_its_share_of_the_budget(tmp_path: Path, trainer: FakeTrainer) -> None:
    """Two rates, three times each: after three trials one of the lower rate is below the median."""
    space = '"train.dense.lr" = [0.01, 0.1]\n"model.dropout" = [0.0, 0.1, 0.2]'
    text = TWO + f"[search]\nnum_trials = 6\nprune = true\n[search.space]\n{space}\n"
    run(tmp_path, text, trainer)
    found = json.loads((tmp_path / "out" / "search" / "INFNet.json").read_text())
    states = [(trial["state"], trial["params"]["train.dense.lr"]) for trial in found["trials"]]
    assert len(states) == 6 and ("pruned", 0.01) in states and ("pruned", 0.1) not in states
    assert found["chosen"]["train.dense.lr"] == 0.1
    assert sum("trials" in job.run_dir.parts for job in trainer.jobs) == 12


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "small.toml"
    job = Job(config, [f"data.store={tmp_path}/nowhere"], tmp_path / "run", tmp_path / "logs" / "0.log")
    ended = train_in_a_process(job, lambda: False)
    assert (ended.how, ended.result) == ("failed", None)
    assert ended.reason.startswith("exit code 2: fault: ") and "nowhere" in ended.reason
    assert "nowhere" in job.log.read_text()


@pytest.mark.parametrize("lock", [".lock", "0.lock"], ids=["its ranks", "what it was started by"])
def test_a_run_that_outlived_its_experiment_is_waited_for(
    lock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lock says that it lives; nothing is started beside it."""
    job = Job(tmp_path / "none.toml", [], tmp_path, tmp_path / "0.log")
    asked = []

    def stop_at_the_third() -> bool:
        asked.append(1)
        return len(asked) >= 3

    with (tmp_path / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert train_in_a_process(job, stop_at_the_third).how == "stopped"
    assert "waiting for the process that still trains" in capsys.readouterr().err
    assert not job.log.exists()


def test_a_search_without_an_end_fails_its_cells_and_no_others(tmp_path: Path, trainer: FakeTrainer) -> None:
    trainer.ends = lambda job: RunEnded("failed", reason="exit code 1: no") if "w_o1" in str(job.run_dir) else None
    assert run(tmp_path, TWO + SEARCH, trainer)["failed"] == 2
    line = next(c for c in read_cells(tmp_path / "out" / "cells.jsonl") if c["status"] == "failed")
    assert line["reason"].endswith("the last: exit code 1: no") and line["log"] == "trials/w_o1"
    trainer.ends = lambda job: None
    assert run(tmp_path, TWO + SEARCH, trainer, retry_failed=True)["done"] == 4


def test_a_folder_of_another_experiment_is_refused(tmp_path: Path, trainer: FakeTrainer) -> None:
    run(tmp_path, TWO, trainer)
    with pytest.raises(UserError, match="its variant 'INFNet' has other settings"):
        run(tmp_path, TWO, trainer, "train.dense.lr=0.5")
    with pytest.raises(UserError, match="belongs to another experiment: its search is null"):
        run(tmp_path, TWO + SEARCH, trainer)
    facts = {"name": "b", "fingerprint": "c", "num_examples": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells_module, "dataset_of", lambda _: facts)
        with pytest.raises(UserError, match="belongs to another experiment: its dataset is"):
            run(tmp_path, TWO, trainer)
    with pytest.raises(UserError, match="exists, is not empty and holds no experiment"):
        command.run_experiment(written(tmp_path, TWO), [f"data.store={trainer.store}"], tmp_path, ExperimentArgs())
    assert len(trainer.jobs) == 4


def test_a_line_that_a_kill_cut_off_is_none(tmp_path: Path, trainer: FakeTrainer) -> None:
    run(tmp_path, TWO, trainer)
    path = tmp_path / "out" / "cells.jsonl"
    made = read_cells(path)
    path.write_text(path.read_text() + '{"a": 2, "b')
    assert read_cells(path) == made
    append_cell(path, made[0])
    assert read_cells(path) == [*made, made[0]]
    path.write_text('{"a"\n' + path.read_text())
    with pytest.raises(UserError, match=r"cells\.jsonl:1: not JSON"):
        read_cells(path)


def test_what_is_only_shown_is_what_the_file_said_last(tmp_path: Path, trainer: FakeTrainer) -> None:
    """Cells that are made need not be made again for it; nor where a store has come to say that it is generated."""
    run(tmp_path, TWO, trainer)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="set `paper` in its file and start 'infnet-rec experiment' on it again"):
        write_report(out, None, with_paper=True)
    was = json.loads((out / "experiment.json").read_text())
    assert was["dataset"].pop("generated") is True
    write_json(out / "experiment.json", was)
    run(tmp_path, 'paper = "KuaiRand-Pure"\n' + TWO.replace("ours = true", 'label = "MMoE"\nours = true'), trainer)
    assert len(trainer.jobs) == 4
    write_report(out, None, with_paper=True)
    text = (out / "report.md").read_text()
    assert "\n| MMoE | " in text and "\n| INFNet | 1 |" in text
    assert "only the order of models is compared" in text and "generated and not observed" in text


@pytest.mark.slow
def test_a_killed_experiment_goes_on_where_its_cell_was(small_store: Path, tmp_path: Path) -> None:
    """The real thing: asked to stop in the middle of a cell, it saves; the same command trains the rest only."""
    path = written(tmp_path, 'seeds = [0]\n[[variants]]\nname = "INFNet"\n')
    out = tmp_path / "out"
    sets = [f"data.store={small_store}", "train.log_every_steps=2", "data.profile=safe", "data.sequence_length=4"]
    arguments = ["experiment", str(path), "--out", str(out), *(f"--set={o}" for o in sets)]
    process = subprocess.Popen([sys.executable, "-m", "infnet_rec.cli", *arguments], stderr=subprocess.PIPE, text=True)
    metrics, deadline = out / "cells" / "INFNet" / "0" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert not (out / "cells.jsonl").exists()
    finished = subprocess.run(
        [sys.executable, "-m", "infnet_rec.cli", *arguments, "--json"], capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    ended = {"out": str(out), "done": 1, "failed": 0, "missing": 0, "failed_log": None}
    assert json.loads(finished.stdout) == ended
    assert "goes on from step" in (out / "cells" / "INFNet" / "0.log").read_text()
    (cell,) = read_cells(out / "cells.jsonl")
    assert cell["metrics"]["test"]["click"]["auc"] is not None and cell["scoring"]["ms_per_batch"] > 0
    assert (out / cell["predictions"]).is_file()
    assert os.path.commonpath([out / cell["predictions"], out]) == str(out)
