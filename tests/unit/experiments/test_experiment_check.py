"""What an experiment says before its first cell, and with which exit code it ends."""

import sys
from pathlib import Path

import pytest

from experiment_files import SEARCH, TWO, written
from infnet_rec import cli
from infnet_rec.config.experiment import load_experiment
from infnet_rec.errors import UserError
from infnet_rec.experiments import runner as command
from infnet_rec.experiments import search
from infnet_rec.experiments.process import Job, RunEnded
from infnet_rec.experiments.runner import ExperimentArgs, check_against_store

ALONE = """
[[variants]]
name = "INFNet"
[[variants]]
name = "FM"
set = ['model={name="fm"}']
separate = ["clik"]
"""
WEIGHTED = '[[variants]]\nname = "a"\nset = ["train.loss.task_weights.lik=2.0"]'
SEARCHED = TWO + SEARCH + '"data.profile" = ["ctx89", "ctx98"]\n'
REFUSED = {
    "task": (TWO, ['train.tasks=["clik"]'], r"mine.toml: variant 'INFNet': train.tasks: 'clik'.*mean 'click'"),
    "task of one variant": (ALONE, [], r"variant 'FM \[clik\]': train.tasks: 'clik'.*did you mean 'click'"),
    "weight": (WEIGHTED, [], r"variant 'a': train.loss.task_weights.lik: .*did you mean 'like'"),
    "profile": (TWO, ["data.profile=ctx88"], "profile 'ctx88' is not in store .*did you mean 'ctx89'"),
    "choice": (SEARCHED, [], "variant 'INFNet': profile 'ctx98' is not in store .*did you mean 'ctx89'"),
    "managed table": (
        TWO,
        ['model.tables.vid={kind="managed", rows=4, interval_steps=2}'],
        "model.tables.vid: the run reads no such table",
    ),
    "rule": (
        TWO,
        ['sharding.tables=[{match="vido", precision="fp16"}]'],
        r"sharding.tables.0.match = 'vido': fits none",
    ),
    "batch": (TWO, ["train.global_batch_size=1000000"], "train.global_batch_size = 1000000: is larger"),
}


def starts_no_cell(job: Job, *_: object) -> RunEnded:
    raise AssertionError(f"started {job.command}")


@pytest.mark.parametrize(("text", "overrides", "said"), REFUSED.values(), ids=REFUSED)
def test_a_typo_that_the_store_shows_is_found_before_the_first_cell(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, overrides: list[str], said: str
) -> None:
    monkeypatch.setattr(command, "train_in_a_process", starts_no_cell)
    monkeypatch.setattr(search, "train_in_a_process", starts_no_cell)
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=said):
        command.run_experiment(path, [f'data.store="{small_store}"', *overrides], tmp_path / "out", ExperimentArgs())
    assert not (tmp_path / "out").exists()


def test_a_batch_that_the_ranks_of_a_cell_cannot_share_is_found_too(small_store: Path, tmp_path: Path) -> None:
    path = written(tmp_path, TWO)
    with pytest.raises(UserError, match=r"train\.global_batch_size = 64: does not divide by 3 ranks"):
        command.run_experiment(path, [f'data.store="{small_store}"'], tmp_path / "out", ExperimentArgs(num_ranks=3))


def test_a_hasty_patience_is_warned_of_once(small_store: Path, tmp_path: Path) -> None:
    """Two variants have it, one epoch has it not; said once, with the remedy."""
    hasty = ["train.sparse.each_epoch=fresh", "train.eval_every_steps=2", f'data.store="{small_store}"']
    path = written(tmp_path, TWO)
    (doubt,) = check_against_store(load_experiment(path, [*hasty, "train.num_epochs=3"]), path, 1)
    assert doubt.startswith("warning: INFNet: train.patience = 5, evaluations of 2 steps: are over in 10 steps")
    (doubt,) = check_against_store(load_experiment(path, hasty), path, 1)
    assert doubt.startswith("warning: w/o1: ")
    assert not check_against_store(load_experiment(path, [*hasty, "train.num_epochs=1"]), path, 1)


def test_cells_that_failed_end_the_command_with_one(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers come all the same; then how many failed, the first one's log and how to try again."""

    def fails(job: Job, wants_stop: object) -> RunEnded:
        return RunEnded("failed", reason="exit code 1: loss is NaN")

    monkeypatch.setattr(command, "train_in_a_process", fails)
    out = tmp_path / "out"
    words = ["experiment", str(written(tmp_path, TWO)), f"--out={out}", f'--set=data.store="{small_store}"']
    monkeypatch.setattr(sys, "argv", ["infnet-rec", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert said.out == f"0 cells done, 4 failed: {out}\n"
    *_, last = said.err.splitlines()
    assert last.startswith(
        f"infnet-rec: failed: 4 cells of {out} failed; the first one's log: {out}/cells/INFNet/3.log;"
    )
    assert "--retry-failed" in last
