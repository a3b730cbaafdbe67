"""An experiment made in parts: by several processes at once, one folder, each cell once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiment_files import SEARCH, TWO, written
from fake_trainer import FakeTrainer, run
from infnet_rec.config.experiment import load_experiment
from infnet_rec.errors import Interrupted, UserError
from infnet_rec.experiments.process import RunEnded
from infnet_rec.experiments.report import read_results, write_report
from infnet_rec.experiments.results import append_cell, cells_files, read_cells
from infnet_rec.experiments.shards import ExperimentShard, cells_of_shard, held, parse_shard
from report_files import describe

FIRST, SECOND = ExperimentShard(1, 2), ExperimentShard(2, 2)
AGAIN = '\n[[variants]]\nname = "again"\n[[variants]]\nname = "w/o2"\nset = ["model.ablation=no_gates"]'
CELLS = [("INFNet", 1), ("INFNet", 3), ("w/o1", 1), ("w/o1", 3)]


@pytest.fixture
def trainer(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    return FakeTrainer(str(small_store)).installed(monkeypatch)


def test_parts_are_equal_and_what_is_trained_once_is_in_one(tmp_path: Path) -> None:
    """ "again" is INFNet over again."""
    whole = load_experiment(written(tmp_path, TWO + AGAIN))
    names = [[v.name for v in cells_of_shard(whole, part).variants] for part in (FIRST, SECOND, ExperimentShard(4, 4))]
    assert names == [["INFNet", "again", "w/o2"], ["w/o1"], []]
    assert cells_of_shard(whole, ExperimentShard()) == whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    assert parse_shard("2/3") == ExperimentShard(2, 3)
    with pytest.raises(UserError, match="must be K/N with K from 1 to N"):
        parse_shard(text)


def test_each_part_makes_its_own_and_another_number_of_parts_makes_nothing_again(
    tmp_path: Path, trainer: FakeTrainer
) -> None:
    """One part fails, and what is left is made by the whole; a search is part of one part."""
    out, text = tmp_path / "out", TWO + SEARCH
    assert run(tmp_path, text, trainer, part=FIRST)["done"] == 2
    assert {job.run_dir.parent.name for job in trainer.jobs} == {"INFNet"}
    trainer.ends = lambda job: RunEnded("failed", reason="no") if job.run_dir.name == "1" else None
    ended = run(tmp_path, text, trainer, part=SECOND)
    assert (ended["done"], ended["failed"], ended["failed_log"]) == (1, 1, str(out / "cells" / "w_o1" / "1.log"))
    assert run(tmp_path, text, trainer, part=ExperimentShard(3, 3))["done"] == 0
    assert [path.name for path in cells_files(out)] == ["cells-1-of-2.jsonl", "cells-2-of-2.jsonl"]
    num_jobs = len(trainer.jobs)
    trainer.ends = lambda job: None
    assert run(tmp_path, text, trainer, retry_failed=True)["done"] == 4
    assert [job.run_dir.name for job in trainer.jobs[num_jobs:]] == ["1"]
    assert [(cell["variant"], cell["seed"]) for cell in read_results(out).cells] == CELLS
    assert {cell["status"] for cell in read_results(out).cells} == {"done"}
    # The line that failed is in a file that is read after the one that is done.
    assert [cell["seed"] for cell in read_cells(out / "cells.jsonl")] == [1]


def test_a_part_that_was_cut_off_goes_on(tmp_path: Path, trainer: FakeTrainer) -> None:
    trainer.ends = lambda job: RunEnded("stopped") if len(trainer.jobs) == 2 else None
    with pytest.raises(Interrupted, match="the same command goes on from there"):
        run(tmp_path, TWO, trainer, part=SECOND)
    assert run(tmp_path, TWO, trainer, part=SECOND)["done"] == 2
    assert [(job.run_dir.parent.name, job.run_dir.name) for job in trainer.jobs] == [
        ("w_o1", "3"),
        ("w_o1", "1"),
        ("w_o1", "1"),
    ]


def test_two_processes_never_make_one_variant(tmp_path: Path, trainer: FakeTrainer) -> None:
    """Neither the same part, nor the whole, nor a part of another number; the other part may."""
    out, whole = tmp_path / "out", load_experiment(written(tmp_path, TWO))
    out.mkdir()
    with held(out, cells_of_shard(whole, FIRST), FIRST):
        for part in (FIRST, ExperimentShard(), ExperimentShard(1, 3)):
            with (
                pytest.raises(UserError, match="another process works on it"),
                held(out, cells_of_shard(whole, part), part),
            ):
                pass
        with held(out, cells_of_shard(whole, SECOND), SECOND):
            pass
    with held(out, whole, ExperimentShard()):
        pass


def test_a_part_may_begin_while_another_makes_the_folder(tmp_path: Path, trainer: FakeTrainer) -> None:
    """What is there for a moment is no foreign folder's; anything else is."""
    out = tmp_path / "out"
    out.mkdir()
    for name in (".lock", ".experiment.json.writing"):
        (out / name).touch()
    (out / "mine.txt").touch()
    with pytest.raises(UserError, match="holds no experiment"):
        run(tmp_path, TWO, trainer, part=FIRST)
    (out / "mine.txt").unlink()
    assert run(tmp_path, TWO, trainer, part=FIRST)["done"] == 2


def test_a_cell_that_is_done_is_done_in_whatever_file(tmp_path: Path) -> None:
    cell = {**describe("a", 0), "metrics": {"test": {}}}
    append_cell(tmp_path / "cells.jsonl", cell)
    append_cell(tmp_path / "cells-1-of-2.jsonl", {**cell, "status": "failed", "reason": "?", "log": "a/0.log"})
    assert [cell["status"] for cell in read_results(tmp_path).cells] == ["done"]


@pytest.mark.slow
def test_two_parts_at_once_and_a_kill(small_store: Path, tmp_path: Path, trainer: FakeTrainer) -> None:
    """The real thing: two processes, one of them killed in its cell and started again; then nothing is left to make.

    The runs end early, just after a change of tables, and say so.
    """
    small = ["model.width=4", "train.num_epochs=2", "data.profile=safe", "data.sequence_length=4"]
    hasty = ["train.sparse.each_epoch=fresh", "train.eval_every_steps=5"]
    sets = [f'data.store="{small_store}"', "seeds=[0]", *small, *hasty]
    out, path = tmp_path / "out", written(tmp_path, TWO)
    words = [sys.executable, "-m", "infnet_rec.cli", "experiment", str(path), f"--out={out}", "--json"]
    words += [f"--set={override}" for override in sets]

    def started(part: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([*words, f"--part={part}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first, second = started("1/2"), started("2/2")
    log, deadline = out / "cells" / "INFNet" / "0.log", time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.communicate(timeout=120)
    first = started("1/2")
    for process in (first, second):
        said, complained = process.communicate(timeout=240)
        assert process.returncode == 0, complained
        ended = json.loads(said)
        assert (ended["done"], ended["failed"], ended["missing"]) == (1, 0, 0)
        assert "warning: " in complained and "train.patience = 5, evaluations of 5 steps" in complained
    assert [path.name for path in cells_files(out)] == ["cells-1-of-2.jsonl", "cells-2-of-2.jsonl"]
    assert "warning: train.patience = 5, evaluations of 5 steps" in log.read_text()
    assert run(tmp_path, TWO, trainer, *sets[1:])["done"] == 2
    assert not trainer.jobs
    write_report(out, None, with_paper=False)
    assert "w/o1" in (out / "report.md").read_text()
