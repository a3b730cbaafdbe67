"""Settings of a variant, chosen by Optuna on the validation split; the test split stays unread."""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import optuna
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from infnet_rec.config.experiment import Metric, SearchConfig, Variant, grid_size, override_of
from infnet_rec.config.toml import read_json
from infnet_rec.errors import Failure, Interrupted
from infnet_rec.experiments.process import Job, RunEnded, train_in_a_process
from infnet_rec.files import write_json
from infnet_rec.metrics import TaskMetrics

JSON = dict[str, Any]
assert set(get_args(Metric)) <= {field.name for field in fields(TaskMetrics)}


def choose(variant: Variant, search: SearchConfig, out: Path, job: Job, wants_stop: Callable[[], bool]) -> JSON:
    """Finds the variant's best settings within the budget, or reads what an earlier search found.

    Every trial's value is kept in Optuna's storage as soon as it is known; a trial that was cut off goes on.

    Args:
        variant: whose space is searched.
        search: how.
        out: the experiment's folder.
        job: how a run is made; overrides, folder and log are each trial's own.
        wants_stop: whether somebody asked this process to stop.

    Returns:
        `chosen` (value by key), `value` on valid and all `trials`.

    Raises:
        Interrupted: we were asked to stop.
        Failure: no trial came to an end.
    """
    found = out / "search" / f"{variant.folder}.json"
    if found.is_file():
        return read_json(found)
    found.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{found.with_suffix('.db').resolve()}",
        study_name=variant.name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3) if search.prune else optuna.pruners.NopPruner(),
    )
    num_trials = search.num_trials
    if search.sampler == "grid":
        num_trials = min(num_trials, grid_size(variant.space))
    while (num_done := sum(trial.state.is_finished() for trial in study.trials)) < num_trials:
        study.sampler = sampler_of(search, variant, num_done)
        cut_off = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
        trial = Trial(study, cut_off[0]._trial_id) if cut_off else study.ask()
        params = {key: trial.suggest_categorical(key, choices) for key, choices in variant.space.items()}
        # Optuna's grid wants to stop a loop that is ours, when it is told of its last point.
        study.sampler = RandomSampler()
        _try(study, trial, params, search, _job_of(job, variant, params, search, out), wants_stop)
        print(f"search {variant.name}: trial {num_done + 1}/{num_trials}: {_said(study, trial)}", file=sys.stderr)
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    if not done:
        why = study.trials[-1].user_attrs.get("reason", "all were pruned")
        # Whoever tries again wants the whole budget.
        found.with_suffix(".db").unlink()
        raise Failure(f"search {variant.name}: none of {num_trials} trials came to an end; the last: {why}")
    result = {
        "variant": variant.name,
        "metric": f"valid {search.metric}",
        "chosen": study.best_trial.params,
        "value": study.best_value,
        "trials": [
            {"params": t.params, "state": t.state.name.lower(), "value": t.value, **t.user_attrs} for t in study.trials
        ],
    }
    write_json(found, result)
    return result


def sampler_of(search: SearchConfig, variant: Variant, num_done: int) -> BaseSampler:
    """The sampler of one trial: its draws hang on how many are done, so a search that goes on draws as if uncut."""
    if search.sampler == "grid":
        return GridSampler(dict(variant.space), seed=search.seed)
    seed = search.seed * 10_000 + num_done
    # Half of a small budget at random, the rest by what was learned from it.
    return (
        RandomSampler(seed)
        if search.sampler == "random"
        else TPESampler(seed=seed, n_startup_trials=max(1, search.num_trials // 2))
    )


def _job_of(job: Job, variant: Variant, params: Mapping[str, Any], search: SearchConfig, out: Path) -> Job:
    """Where the same settings come again, the run is there already."""
    name = hashlib.blake2b(json.dumps(params, sort_keys=True).encode(), digest_size=6).hexdigest()
    folder = out / "trials" / variant.folder
    overrides = [
        *variant.overrides,
        *search.set,
        *(override_of(key, value) for key, value in params.items()),
        f"train.seed={search.seed}",
        "train.test=skip",
    ]
    return replace(job, overrides=overrides, run_dir=folder / name, log=folder / f"{name}.log")


def _try(
    study: optuna.Study,
    trial: Trial,
    params: Mapping[str, Any],
    search: SearchConfig,
    job: Job,
    wants_stop: Callable[[], bool],
) -> None:
    """Makes a trial's run and tells Optuna how it ended.

    Raises:
        Interrupted: we were asked to stop; the trial stays open.
    """

    def is_hopeless(step: int, metrics: Mapping[str, Mapping[str, Any]]) -> bool:
        value = mean_over_tasks(metrics, search.metric)
        if math.isnan(value):
            # Optuna takes what is not known for the worst there is.
            return False
        trial.report(value, step)
        return trial.should_prune()

    ended = train_in_a_process(job, wants_stop, is_hopeless if search.prune else None)
    if ended.how == "stopped":
        raise Interrupted("the search was asked to stop; its trials are saved")
    value = _value(ended, search.metric)
    # As the experiment's folder sees it, so that the folder can be moved.
    trial.set_user_attr("log", "/".join(job.log.parts[-3:]))
    if ended.how == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    elif math.isnan(value):
        trial.set_user_attr("reason", ended.reason or f"valid has no {search.metric}")
        study.tell(trial, state=TrialState.FAIL)
    else:
        assert ended.result is not None
        trial.set_user_attr("wall_s", ended.result["wall_s"])
        study.tell(trial, value)


def _value(ended: RunEnded, metric: str) -> float:
    return math.nan if ended.result is None else mean_over_tasks(ended.result["metrics"]["valid"], metric)


def mean_over_tasks(metrics: Mapping[str, Mapping[str, Any]], metric: str) -> float:
    """What is searched for: see `train.metrics.mean_over_tasks`, of metrics as a run writes them down."""
    values = [task[metric] for task in metrics.values() if task[metric] is not None or _is_answerable(task, metric)]
    return math.nan if None in values or not values else sum(values) / len(values)


def _is_answerable(task: Mapping[str, Any], metric: str) -> bool:
    has_both_classes = 0 < task.get("num_positives", 0) < task.get("num_examples", 0)
    return has_both_classes and (not metric.startswith("gauc") or task.get("num_users", 0) > 0)


def _said(study: optuna.Study, trial: Trial) -> str:
    frozen = next(t for t in study.trials if t.number == trial.number)
    settings = ", ".join(f"{key} {value}" for key, value in frozen.params.items())
    value = "" if frozen.value is None else f" {frozen.value:.4f}"
    return f"{frozen.state.name.lower()}{value} with {settings}"
