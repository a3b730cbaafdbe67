"""`experiment`: every cell of a grid in a process of its own, each once."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from infnet_rec.config.experiment import Experiment, Variant, key_of, load_experiment, override_of
from infnet_rec.config.load import make_config
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import read_json, read_toml
from infnet_rec.config.train import hasty_patience
from infnet_rec.data.remote import fetched
from infnet_rec.data.run_schema import check_managed, one_class_tasks, run_schema, unjudgeable
from infnet_rec.data.sampler import check_divides, check_fits
from infnet_rec.data.store import Store
from infnet_rec.distributed.host import num_cores
from infnet_rec.errors import Failure, Interrupted, UserError
from infnet_rec.experiments.process import Job, RunEnded, gpus_here, gpus_of_jobs, shortage, train_in_a_process
from infnet_rec.experiments.results import all_cells, append_cell, cells_files, newest_of_each, opened
from infnet_rec.experiments.shards import WHOLE, ExperimentShard, cells_of_shard, held
from infnet_rec.launcher.rank_environment import is_rank
from infnet_rec.planner.table_rules import precisions_of
from infnet_rec.schema import Schema
from infnet_rec.trainer.metric_logger import format_duration, format_number
from infnet_rec.trainer.signals import GracefulStop

JSON = dict[str, Any]

# A choice of any other key changes nothing that a store knows of.
ASKED_OF_STORE = ("data", "train", "model.tables", "sharding")


def check_against_store(experiment: Experiment, path: Path, num_ranks: int) -> list[str]:
    """Checks every variant, and every choice of its search, against the store that all read.

    Args:
        experiment: whose runs these are.
        path: its file, for messages.
        num_ranks: of a cell.

    Returns:
        What is doubtful, a line each.

    Raises:
        UserError: no such store, or no cell of a variant could start.
    """
    store = Store(fetched(experiment.variants[0].config.data.store))
    doubts: dict[str, str] = {}
    for variant in experiment.variants:
        for config in _configs(experiment, variant):
            try:
                schema = _check(config, store, num_ranks)
                _check_search(experiment, variant, store, schema)
            except UserError as fault:
                raise UserError(f"{path}: variant {variant.name!r}: {fault}") from fault
            hasty = hasty_patience(config.train, store.num_examples("train"))
            for doubt in (hasty, unjudgeable(store, schema), _unreportable(store, schema)):
                if doubt is not None:
                    doubts.setdefault(doubt, f"warning: {variant.name}: {doubt}")
    return list(doubts.values())


def _configs(experiment: Experiment, variant: Variant) -> Iterator[RunConfig]:
    """The variant as it stands, as its trials are, and with every choice that a store may refuse."""
    yield variant.config
    base, search = read_toml(experiment.config.base), experiment.config.search
    if search is None:
        return

    def trial(*more: str) -> RunConfig:
        # Overrides change what they are laid on.
        return make_config(json.loads(json.dumps(base)), [*variant.overrides, *search.set, *more], variant.name)

    yield trial()
    for key, choices in variant.space.items():
        if key.startswith(ASKED_OF_STORE):
            yield from (trial(override_of(key, choice)) for choice in choices)


def _check_search(experiment: Experiment, variant: Variant, store: Store, schema: Schema) -> None:
    if experiment.config.search is None or not variant.space:
        return
    if len(one_class_tasks(store, schema, "valid")) == len(schema.tasks):
        raise UserError(
            "search: valid has one class only in every task, so no trial could be judged; leave the search out, or "
            "build a store with other [splits]"
        )


def _unreportable(store: Store, schema: Schema) -> str | None:
    if not (one_class := one_class_tasks(store, schema, "test")):
        return None
    which = ", ".join(f"{name} ({what})" for name, what in one_class.items())
    return f"test has one class only in {which}: the report will refuse that; leave it out of train.tasks"


def _check(config: RunConfig, store: Store, num_ranks: int) -> Schema:
    check_divides("train.global_batch_size", config.train.global_batch_size, num_ranks)
    check_fits(config.train.global_batch_size, store.num_examples("train"))
    schema = run_schema(config, store)
    check_managed(config, schema)
    precisions_of(config, schema)
    return schema


@dataclass(frozen=True, slots=True)
class ExperimentArgs:
    """How the cells are made.

    Attributes:
        num_ranks: processes of a cell.
        num_jobs: cells at the same time.
        retry_failed: whether cells that failed are tried again.
        part: what this process makes.
    """

    num_ranks: int = 1
    num_jobs: int = 1
    retry_failed: bool = False
    part: ExperimentShard = WHOLE


@dataclass(slots=True)
class Work:
    """What the jobs share; `free_gpus` has an entry for each job that could begin now."""

    experiment: Experiment
    out: Path
    dataset: JSON
    asked: ExperimentArgs
    wants_stop: Callable[[], bool]
    cells: dict[tuple[str, int], JSON]
    free_gpus: SimpleQueue[tuple[str, ...]] = field(default_factory=SimpleQueue)
    is_broken: bool = False
    running: set[tuple[str, int]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def state(work: Work, variant: Variant, seed: int) -> str:
    """done, failed, running or missing."""
    if (variant.name, seed) in work.running:
        return "running"
    cell = work.cells.get((variant.name, seed))
    return "missing" if cell is None else cell["status"]


def is_due(work: Work, variant: Variant, seed: int) -> bool:
    return state(work, variant, seed) in (("missing", "failed") if work.asked.retry_failed else ("missing",))


def work_summary(cell: JSON) -> str:
    """A cell in a line."""
    if cell["status"] == "failed":
        return f"failed: {cell['reason']}; log: {cell['log']}"
    tasks = (f"{t} {format_number(m['auc'])}/{format_number(m['gauc'])}" for t, m in cell["metrics"]["test"].items())
    return f"test AUC/gAUC {', '.join(tasks)}; {format_duration(cell['wall_s'])}"


def work_table(work: Work) -> str:
    """Where the experiment stands: a line a variant, a column a seed."""
    seeds = work.experiment.config.seeds
    width = max(len(variant.name) for variant in work.experiment.variants) + 2
    lines = [f"{'variant':<{width}}" + "".join(f"{f'seed {seed}':>10}" for seed in seeds)]
    for variant in work.experiment.variants:
        lines.append(f"{variant.name:<{width}}" + "".join(f"{state(work, variant, seed):>10}" for seed in seeds))
    return "\n".join(lines)


def log_work(text: str) -> None:
    """To people, who watch stderr."""
    print(text, file=sys.stderr, flush=True)


def run_experiment(path: Path, overrides: Sequence[str], out: Path | None, asked: ExperimentArgs) -> JSON:
    """Makes what is missing of an experiment, and says how much there is.

    Args:
        path: an experiment's TOML file.
        overrides: laid on it and on its runs, see `load_experiment`.
        out: its folder; None is `runs/<experiment>`.
        asked: how.

    Returns:
        Where it is, how many cells of the part are done, failed and missing, and the log of the first that failed.

    Raises:
        UserError: the experiment or the folder is at fault; nothing was started.
        Failure: a search found nothing.
        Interrupted: somebody asked us to stop; what was done is saved.
    """
    planned = load_experiment(path, overrides)
    if is_rank():
        raise UserError(
            "experiment: starts its own processes; run it outside torchrun, with --ranks for several a cell"
        )
    out = out or Path("runs") / planned.name
    for doubt in check_against_store(planned, path, asked.num_ranks):
        log_work(doubt)
    mine = cells_of_shard(planned, asked.part)
    if not mine.variants:
        log_work(
            f"--part {asked.part.words}: nothing is left for it; the experiment has {len(planned.variants)} variants"
        )
        return {"out": str(out), "done": 0, "failed": 0, "missing": 0, "failed_log": None}
    with opened(out, planned) as dataset, held(out, mine, asked.part), GracefulStop(speaks=True) as stop:
        cells = newest_of_each(all_cells(out)) if cells_files(out) else {}
        work = Work(mine, out, dataset, asked, lambda: stop.wanted, cells)
        _deal_gpus(work)
        log_work(work_table(work))
        try:
            _search_and_run(work)
        except Interrupted as stopped:
            raise Interrupted(f"{stopped}; the same command goes on from there") from stopped
        finally:
            log_work(work_table(work))
    states = [state(work, variant, seed) for variant, seed in mine.cells]
    logs = [work.cells[v.name, s]["log"] for v, s in mine.cells if state(work, v, s) == "failed"]
    counts = {name: states.count(name) for name in ("done", "failed", "missing")}
    return {"out": str(out), **counts, "failed_log": str(out / logs[0]) if logs else None}


def _search_and_run(work: Work) -> None:
    chosen = {variant.name: dict[str, Any]() for variant in work.experiment.variants}
    todo = [cell for cell in work.experiment.cells if is_due(work, *cell)]
    with ThreadPoolExecutor(work.asked.num_jobs, thread_name_prefix="cell") as pool:
        if work.experiment.config.search is not None:
            variants = {variant.name: variant for variant, _ in todo}
            searches = {name: pool.submit(_unless_over, work, _search, variant) for name, variant in variants.items()}
            _finish(list(searches.values()))
            found = {name: future.result() for name, future in searches.items()}
            chosen |= {name: result["chosen"] for name, result in found.items() if result is not None}
            todo = [(variant, seed) for variant, seed in todo if found[variant.name] is not None]
        _finish([pool.submit(_unless_over, work, _run_cell, *cell, chosen[cell[0].name]) for cell in todo])


def _unless_over(work: Work, job: Callable[..., Any], *arguments: Any) -> Any:
    """Does a job, unless we were asked to stop or another job broke; those that run then are let finish."""
    if work.wants_stop() or work.is_broken:
        raise Interrupted("the experiment was asked to stop; its cells are saved")
    try:
        return job(work, *arguments)
    except BaseException:
        work.is_broken = True
        raise


def _finish(futures: list[Future[Any]]) -> None:
    """Waits for all; what broke is raised before what it kept from beginning."""
    wait(futures)
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Interrupted))


def _search(work: Work, variant: Variant) -> JSON | None:
    """What was chosen; None where nothing was, and then the variant's cells have failed."""
    # Optuna takes a second to import, and only a search needs it.
    from infnet_rec.experiments.search import choose

    search = work.experiment.config.search
    assert search is not None
    job = _job(work)
    try:
        with _on_gpus(work, job) as mine:
            return choose(variant, search, work.out, mine, work.wants_stop)
    except Failure as failure:
        log = replace(job, log=work.out / "trials" / variant.folder)
        with work.lock:
            for planned, seed in work.experiment.cells:
                if planned is variant and is_due(work, variant, seed):
                    _write_down(work, line_of(work, variant, seed, {}, log, RunEnded("failed", reason=str(failure))))
        return None


def _deal_gpus(work: Work) -> None:
    asked, gpus = work.asked, gpus_here(os.environ)
    for mine in gpus_of_jobs(gpus, asked.num_jobs, asked.num_ranks):
        work.free_gpus.put(mine)
    if (note := shortage(gpus, asked.num_jobs, asked.num_ranks)) is not None:
        log_work(note)


def _job(work: Work) -> Job:
    """What all runs of an experiment have in common."""
    asked, here = work.asked, work.out
    num_threads = max(1, num_cores() // (asked.num_jobs * asked.num_ranks)) if asked.num_jobs > 1 else 0
    return Job(work.experiment.config.base, (), here, here, asked.num_ranks, num_threads)


@contextmanager
def _on_gpus(work: Work, job: Job) -> Iterator[Job]:
    """The job with GPUs that no other has meanwhile."""
    gpus = work.free_gpus.get()
    try:
        yield replace(job, gpus=gpus)
    finally:
        work.free_gpus.put(gpus)


def _run_cell(work: Work, variant: Variant, seed: int, chosen: JSON) -> None:
    """Makes one cell and writes its line."""
    overrides = [*variant.overrides, *(override_of(key, value) for key, value in chosen.items())]
    folder = work.out / "cells" / variant.folder
    job = replace(
        _job(work),
        overrides=[*overrides, f"train.seed={seed}", "train.test=keep"],
        run_dir=folder / str(seed),
        log=folder / f"{seed}.log",
    )
    key = key_of(_config(work, overrides))
    with work.lock:
        twins = [c for c in work.cells.values() if (c["key"], c["seed"], c["status"]) == (key, seed, "done")]
        if twins:
            # One setting may be a point of several series: it is the same run.
            _write_down(work, {**twins[0], "variant": variant.name, **variant.facts})
            return
    log_work(f"{variant.name}, seed {seed}: starts; log: {job.log}")
    with work.lock:
        work.running.add((variant.name, seed))
    with _on_gpus(work, job) as mine:
        ended = train_in_a_process(mine, work.wants_stop)
    with work.lock:
        work.running.discard((variant.name, seed))
        if ended.how == "stopped":
            raise Interrupted(f"{variant.name}, seed {seed}: was asked to stop; it is saved")
        _write_down(work, line_of(work, variant, seed, chosen, job, ended))


def _write_down(work: Work, cell: JSON) -> None:
    append_cell(work.out / work.asked.part.cells_file, cell)
    work.cells[cell["variant"], cell["seed"]] = cell
    states = [state(work, *planned) for planned in work.experiment.cells]
    num_ended = len(states) - states.count("missing") - states.count("running")
    log_work(f"[{num_ended}/{len(states)}] {cell['variant']}, seed {cell['seed']}: {work_summary(cell)}")


def _config(work: Work, overrides: Sequence[str]) -> RunConfig:
    path = work.experiment.config.base
    return make_config(read_toml(path), overrides, str(path))


def line_of(work: Work, variant: Variant, seed: int, chosen: JSON, job: Job, ended: RunEnded) -> JSON:
    """What a cell's line says; a cell that failed has no numbers."""
    overrides = [*variant.overrides, *(override_of(key, value) for key, value in chosen.items())]
    config, settings = _config(work, overrides), work.experiment.config
    line: JSON = {
        "experiment": work.experiment.name,
        "variant": variant.name,
        "seed": seed,
        "status": ended.how,
        **variant.facts,
        "model": config.model.name,
        "key": key_of(config),
        "overrides": [o for o in overrides if not o.startswith("data.store")],
        "chosen": chosen,
        "dataset": work.dataset,
        "paper": settings.paper,
        "reference": settings.reference,
    }
    if ended.result is None:
        return {**line, "reason": ended.reason, "log": str(job.log.relative_to(work.out))}
    environment = read_json(job.run_dir / "environment.json")
    if environment["store"] != work.dataset["fingerprint"]:
        raise Failure(
            f"{job.run_dir}: was trained on another store than the experiment's; was it built anew meanwhile?"
        )
    taken = ("steps_done", "best_step", "num_ranks", "num_sparse_parameters", "num_dense_parameters")
    return {
        **line,
        **{name: ended.result[name] for name in (*taken, "examples_per_s", "wall_s", "scoring", "metrics")},
        "environment": environment,
        "predictions": str((job.run_dir / "predictions.npz").relative_to(work.out)),
    }
