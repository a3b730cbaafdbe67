"""What happens to a run whose weights valid cannot judge, at some evaluations or at all."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sharded_runs
from data_fixtures import QUIET
from experiment_files import SEARCH, TWO, written
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.experiment import load_experiment
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.run_schema import one_class_tasks, unjudgeable
from infnet_rec.data.store import Store
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.experiments import search
from infnet_rec.experiments.process import Job, RunEnded
from infnet_rec.experiments.runner import ExperimentArgs, check_against_store, run_experiment
from infnet_rec.metrics import TaskMetrics, evaluate_scores, mean_over_tasks
from infnet_rec.trainer.loop import RunLength
from kiosk import kiosk
from properties import num_examples
from test_training_loop import training

NAN = math.nan
CLI = [sys.executable, "-m", "infnet_rec.cli"]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(sharded_runs.world_of(0, 1)):
        yield


def expected_end(aucs: list[float], patience: int) -> tuple[int, int]:
    """Evaluations until training ends and the number of the best one, counted from 1; written out."""
    best, best_at, since = -math.inf, 0, 0
    for at, auc in enumerate(aucs, 1):
        if auc == auc:
            since += 1
            if auc > best:
                best, best_at, since = auc, at, 0
        if patience and since >= patience:
            return at, best_at
    return len(aucs), best_at or len(aucs)


SCRIPTS = [
    ([NAN, NAN, NAN, NAN, NAN, NAN], 2),
    ([0.6, NAN, NAN, NAN, NAN, 0.5], 2),
    ([NAN, 0.6, 0.5, NAN, 0.5, 0.9], 2),
    ([0.6, 0.7, NAN, 0.65, NAN, 0.66, 0.9], 2),
    ([NAN, 0.2, NAN, NAN, 0.3, NAN], 1),
]


@pytest.mark.slow(smoke=["aucs0-2"])
@pytest.mark.parametrize(("aucs", "patience"), SCRIPTS)
def test_what_cannot_be_judged_costs_no_patience_and_is_not_best(
    alone: None, small_store: Path, tmp_path: Path, aucs: list[float], patience: int
) -> None:
    """The model holds the weights of the best evaluation; where there was none, the last."""
    pace = RunLength(len(aucs), 50, 1, 10, patience=patience, global_batch_size=64, fresh_tables=False)
    built, _ = training(small_store, tmp_path, pace, aucs)
    trained = built.run(TrainState())
    assert (trained.steps_done, trained.best_step) == expected_end(aucs, patience)
    held = sharded_runs.dense_of(built.valid.sharded)["tower.heads.towers.0.layers.0.weight"]
    assert np.array_equal(held, built.valid.seen[trained.best_step - 1])
    assert trained.best_valid["click"].auc == pytest.approx(aucs[trained.best_step - 1], nan_ok=True)


def task_metrics(auc: float, positives: int, users: int = 2) -> TaskMetrics:
    return TaskMetrics(10, positives, auc, auc, auc, users, 0.5, 1.0, 1.0)


def test_a_mean_over_tasks_is_of_the_same_tasks_at_every_evaluation() -> None:
    """A task of one class says nothing; one that could say something and does not takes the mean with it."""
    silent = task_metrics(NAN, 0)
    known = {"a": task_metrics(0.6, 5), "b": task_metrics(0.8, 5), "c": silent, "d": task_metrics(NAN, 10)}
    assert mean_over_tasks(known, "auc") == pytest.approx(0.7)
    assert math.isnan(mean_over_tasks({"c": silent}, "auc")) and math.isnan(mean_over_tasks({}, "auc"))
    assert math.isnan(mean_over_tasks({"a": task_metrics(0.6, 5), "b": task_metrics(NAN, 5)}, "auc"))
    no_user = {"a": task_metrics(0.6, 5), "b": TaskMetrics(10, 5, 0.5, NAN, NAN, 0, 0.5, 1.0, 1.0)}
    for metric in ("auc", "gauc"):
        for found in (known, no_user, {"a": task_metrics(NAN, 5)}, {"c": silent}):
            written_down = {name: task.to_json() for name, task in found.items()}
            searched = search.mean_over_tasks(written_down, metric)
            assert searched == pytest.approx(mean_over_tasks(found, metric), nan_ok=True)
    assert mean_over_tasks(no_user, "gauc") == 0.6 and mean_over_tasks(no_user, "auc") == pytest.approx(0.55)


@settings(max_examples=num_examples(60), deadline=None)
@given(st.data())
def test_the_tasks_that_are_judged_depend_on_the_labels_alone(data: st.DataObject) -> None:
    """For any finite predictions the mean is that of the tasks with both classes."""
    num, tasks = data.draw(st.integers(1, 12)), ["a", "b", "c"]
    labels_NT = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=num, max_size=num))
    )
    logits_NT = np.array(
        data.draw(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=num, max_size=num))
    )
    found = evaluate_scores(logits_NT, labels_NT, np.arange(num) % 3, tasks)
    both = [t for t in range(3) if 0 < labels_NT[:, t].sum() < num]
    pairs = [
        np.mean(
            [
                (a > b) + (a == b) / 2
                for a in logits_NT[labels_NT[:, t] == 1, t]
                for b in logits_NT[labels_NT[:, t] == 0, t]
            ]
        )
        for t in both
    ]
    assert mean_over_tasks(found, "auc") == pytest.approx(np.mean(pairs) if both else NAN, nan_ok=True)


def test_progress_of_an_earlier_version_forgets_a_best_that_was_none() -> None:
    """It kept a step, and spent patience, where nothing could be judged."""
    silent = {"click": task_metrics(NAN, 0).to_json()}
    at = TrainState(step=8, judged=(NAN, {"click": task_metrics(NAN, 0)})).to_json()
    at |= {"best_step": 2, "best_auc": None, "best_valid": silent, "evaluations_since_best": 3}
    read = TrainState.from_json(json.loads(json.dumps(at)))
    assert (read.best_step, read.best_valid, read.evaluations_since_best) == (0, {}, 0)
    assert read.judged is not None and math.isnan(read.judged[0]) and read.judged[1]["click"].num_positives == 0


def one_class_kiosk(folder: Path, *, two_tasks: bool) -> Path:
    """The kiosk's store, where nobody clicks on the second and third day; a second task has both classes."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        for name in ("log_1.csv", "log_2.csv"):
            header, *rows = list(csv.reader((raw / name).open()))
            rows = [
                [*row[:3], "0" if int(row[2]) >= 86_400 else row[3], *row[4:], str(int(row[2]) // 8640 % 2)]
                for row in rows
            ]
            with (raw / name).open("w", newline="") as file:
                csv.writer(file).writerows([[*header, "like"], *rows])
        if two_tasks:
            recipe["tasks"].append({"name": "like", "label": "like"})

    recipe, raw = kiosk(folder, edit)
    build_store(recipe, raw, folder / "store", QUIET)
    return folder / "store"


SETTINGS = [
    "data.sequence_length=5",
    "train.global_batch_size=4",
    "train.num_epochs=6",
    "train.eval_every_steps=1",
    "train.patience=2",
    "model.width=4",
]


def trained(store: Path, folder: Path) -> tuple[dict[str, Any], str]:
    config = folder / "run.toml"
    config.write_text(f'[data]\nstore = "{store}"\n')
    words = [*CLI, "train", str(config), f"--run-dir={folder / 'run'}", "--json"]
    done = subprocess.run([*words, *(f"--set={s}" for s in SETTINGS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "result.json").read_text()), done.stderr


@pytest.mark.slow
def test_a_run_that_valid_can_never_judge_is_told_so_once_and_trains_all_its_steps(tmp_path: Path) -> None:
    store = one_class_kiosk(tmp_path, two_tasks=False)
    result, said = trained(store, tmp_path)
    assert result["steps_done"] == result["best_step"] == 12
    assert said.count("cannot be judged") == 1 and said.count("warning:") == 1
    told = "".join(
        subprocess.run([*CLI, *words, str(tmp_path / "run")], capture_output=True, text=True, check=True).stdout
        for words in (["eval"], ["checkpoint", "show"])
    )
    assert "none: no evaluation of valid could be judged" in told
    assert "best" not in said


@pytest.mark.slow
def test_a_task_that_valid_cannot_judge_leaves_the_judging_to_the_others(tmp_path: Path) -> None:
    store = one_class_kiosk(tmp_path, two_tasks=True)
    opened = Store(store)
    assert one_class_tasks(opened, opened.schema, "train") == {}
    assert one_class_tasks(opened, opened.schema, "valid") == {"click": "no positives"}
    assert unjudgeable(opened, opened.schema) == (
        "valid has one class only in click (no positives): early stopping and the best weights go by like"
    )
    result, said = trained(store, tmp_path)
    assert said.count("go by like") == 1 and "cannot be judged" not in said
    assert result["metrics"]["valid"]["like"]["auc"] is not None


def test_an_experiment_hears_of_it_before_its_first_cell(tmp_path: Path) -> None:
    """A search cannot choose by it at all."""
    store = one_class_kiosk(tmp_path, two_tasks=False)
    sets = [f'data.store="{store}"', "data.profile=all", *SETTINGS]
    path = written(tmp_path, TWO)
    doubts = check_against_store(load_experiment(path, sets), path, 1)
    assert len(doubts) == 2
    assert "cannot be judged" in doubts[0] and "the report will refuse that" in doubts[1]
    searched = written(tmp_path, TWO + SEARCH)
    with pytest.raises(UserError, match="search: valid has one class only in every task"):
        run_experiment(searched, sets, tmp_path / "out", ExperimentArgs())
    assert not (tmp_path / "out").exists()


def test_a_trial_is_not_pruned_for_an_evaluation_that_cannot_be_judged(
    small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's pruner takes NaN for the worst value; each trial here begins with one."""
    silent, known = ({"click": task_metrics(auc, 5).to_json()} for auc in (NAN, 0.6))
    pruned: list[bool] = []

    def ends(job: Job, wants_stop: object, is_hopeless: Any) -> RunEnded:
        pruned.extend(is_hopeless(step, m) for step, m in ((1, silent), (2, known)))
        job.log.parent.mkdir(parents=True, exist_ok=True)
        return RunEnded("done", {"metrics": {"valid": known}, "wall_s": 1.0})

    monkeypatch.setattr(search, "train_in_a_process", ends)
    text = TWO + SEARCH.replace("num_trials = 3", "num_trials = 6\nprune = true")
    planned = load_experiment(written(tmp_path, text), [f'data.store="{small_store}"'])
    assert planned.config.search is not None
    variant = planned.variants[0]
    job = Job(tmp_path / "mine.toml", [], tmp_path / "run", tmp_path / "log")
    result = search.choose(variant, planned.config.search, tmp_path / "out", job, lambda: False)
    assert not any(pruned) and len(pruned) == 12
    assert {trial["state"] for trial in result["trials"]} == {"complete"}
