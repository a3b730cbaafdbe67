"""Cells to the rows of a table: what belongs together is put together, what must not be mixed is refused."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infnet_rec.config.toml import read_json
from infnet_rec.errors import UserError
from infnet_rec.experiments.significance import Difference, compare_aucs, compare_gaucs
from infnet_rec.files import write_json

METRICS = ("auc", "gauc", "gauc_unweighted")
TITLES = {"auc": "AUC", "gauc": "gAUC", "gauc_unweighted": "gAUC, users alike"}

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """What there is of an experiment.

    Attributes:
        cells: the newest line of every cell, in the order of the experiment, not of the clock.
        missing: `variant`, `label` and `setting` of those that the experiment names and that have no cell.
        missing_seeds: those that the experiment names and that no cell has.
        generated: whether a note says that the dataset's rows are generated ones.
    """

    cells: list[JSON]
    missing: list[JSON]
    missing_seeds: list[int]
    generated: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: one variant, or the separate models of a label, one a task.

    Attributes:
        cells_of: for each task the cells that have it, in the order of seeds.
        failed: cells without numbers.
        missing: variants that have no cell.
    """

    label: str
    setting: str
    ours: bool
    cells_of: dict[str, list[JSON]]
    failed: list[JSON]
    missing: list[str]

    @property
    def title(self) -> str:
        """The label with its setting."""
        return f"{self.label} ({self.setting})" if self.setting else self.label

    def values(self, task: str, metric: str, split: str = "test") -> list[float]:
        """By seed; empty where the row has no such task or a seed of it failed."""
        return [cell["metrics"][split][task][metric] for cell in self.cells_of.get(task, [])]

    def mean(self, task: str, metric: str, split: str = "test") -> float | None:
        """The mean over seeds; None where there are no values."""
        values = self.values(task, metric, split)
        return statistics.fmean(values) if values else None

    def deviation(self, task: str, metric: str, split: str = "test") -> float | None:
        """Over seeds; None of one."""
        values = self.values(task, metric, split)
        return statistics.stdev(values) if len(values) > 1 else None


def check_cells(cells: Sequence[JSON], where: str) -> None:
    """Refuses what cannot stand in one table.

    Raises:
        UserError: no cells, several datasets or experiments, seeds that differ, a metric that is missing.
    """
    if not cells:
        raise UserError(f"{where}: holds no cell; run 'infnet-rec experiment' first")
    experiments = sorted({cell["experiment"] for cell in cells})
    if len(experiments) > 1:
        names = " and ".join(map(repr, experiments))
        raise UserError(
            f"{where}: has cells of different experiments, {names}; give every experiment a folder of its own"
        )
    datasets = {(cell["dataset"]["name"], cell["dataset"]["fingerprint"]) for cell in cells}
    if len(datasets) > 1:
        names = " and ".join(f"{name} ({fingerprint})" for name, fingerprint in sorted(datasets))
        raise UserError(f"{where}: has results from different datasets, {names}; they cannot stand in one table")
    seeds_of = {}
    for cell in cells:
        seeds_of.setdefault(cell["variant"], set()).add(cell["seed"])
    first, *others = seeds_of.items()
    for name, seeds in others:
        if seeds != first[1]:
            raise UserError(
                f"{where}: {first[0]!r} has seeds {sorted(first[1])}, {name!r} {sorted(seeds)}; a table compares the "
                "same seeds, so let the experiment finish, or take the lines of the others away"
            )
    for cell in cells:
        keys = {other["key"] for other in cells if other["variant"] == cell["variant"] and other["status"] == "done"}
        if len(keys) > 1:
            raise UserError(
                f"{where}: the seeds of {cell['variant']!r} have different settings; make them anew together"
            )
        if cell["status"] == "done":
            _check_metrics(cell, where)


def _check_metrics(cell: JSON, where: str) -> None:
    name = f"{where}: {cell['variant']!r}, seed {cell['seed']}"
    for split in ("valid", "test"):
        tasks = cell["metrics"].get(split)
        if not tasks:
            raise UserError(f"{name}: has no metrics of {split}; make the cell again")
        for task, metrics in tasks.items():
            for metric in METRICS:
                # A task with one class in a split that decides nothing says nothing, but is no fault of the table.
                if metrics.get(metric) is None and split == "test":
                    raise UserError(
                        f"{name}: {split} {task} {metric}: is missing; the split has no example of one class, or no "
                        "user of both, so leave the task out (train.tasks) or take a larger dataset"
                    )


def complete(cells: Sequence[JSON]) -> list[JSON]:
    """Cells of the variants that have no failed one: a mean over the seeds that happened to come through is none."""
    failed = {cell["variant"] for cell in cells if cell["status"] != "done"}
    return [cell for cell in cells if cell["variant"] not in failed]


def rows_of(cells: Sequence[JSON], missing: Sequence[JSON] = ()) -> list[Row]:
    """The table's rows, in the order of the experiment; those of which there is nothing come last.

    Args:
        cells: in the order of the experiment.
        missing: `variant`, `label` and `setting` of variants without a cell.

    Raises:
        UserError: variants of one row have the same task.
    """
    groups: dict[tuple[str, str], list[JSON]] = {}
    for cell in cells:
        groups.setdefault((cell["label"], cell["setting"]), []).append(cell)
    missing_of: dict[tuple[str, str], list[str]] = {}
    for variant in missing:
        key = (variant["label"], variant["setting"])
        groups.setdefault(key, [])
        missing_of.setdefault(key, []).append(variant["variant"])
    rows = []
    for (label, setting), members in groups.items():
        failed = [cell for cell in members if cell["status"] != "done"]
        cells_of: dict[str, list[JSON]] = {}
        for cell in sorted(complete(members), key=lambda c: c["seed"]):
            for task in cell["metrics"]["test"]:
                cells_of.setdefault(task, []).append(cell)
        for task, found in cells_of.items():
            if len({cell["variant"] for cell in found}) > 1:
                names = json.dumps(sorted({cell["variant"] for cell in found}))
                raise UserError(
                    f"row {label!r} {setting}: {names} all have {task}; give them labels or settings of their own"
                )
        ours = any(cell["ours"] for cell in members)
        rows.append(Row(label, setting, ours, cells_of, failed, missing_of.get((label, setting), [])))
    return rows


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """All tasks, in the order in which they come."""
    return list(dict.fromkeys(task for row in rows for task in row.cells_of))


def best_of_column(rows: Sequence[Row], task: str, metric: str) -> list[Row]:
    """The rows that have the metric, the best first; the earlier one where two are level."""
    known = [(mean, row) for row in rows if (mean := row.mean(task, metric)) is not None]
    return [row for _, row in sorted(known, key=lambda pair: -pair[0])]


SIGNIFICANCE = "significance.json"


def compared(rows: Sequence[Row], reference: str, folder: Path) -> list[JSON]:
    """Each of our rows against the best of the others, or every row against the reference; by task and metric.

    What was found is kept beside the cells, so that a report can be made again without the predictions, which are
    large.

    Returns:
        Task, metric, row and other (titles), and the `Difference`, which is None where there are no predictions.
    """
    kept: JSON = read_json(folder / SIGNIFICANCE) if (folder / SIGNIFICANCE).is_file() else {}
    found: JSON = {}
    lines = []
    for task in tasks_of(rows):
        for metric in METRICS:
            for row, other in _pairs(rows, reference, task, metric):
                key = _key(row, other, task, metric)
                result = _compare(row, other, task, metric, folder)
                found[key] = kept.get(key) if result is None else asdict(result)
                lines.append(
                    {"task": task, "metric": metric, "row": row.title, "other": other.title, "difference": found[key]}
                )
    known = {key: value for key, value in found.items() if value is not None}
    if known and known != kept:
        write_json(folder / SIGNIFICANCE, known)
    return lines


def _pairs(rows: Sequence[Row], reference: str, task: str, metric: str) -> list[tuple[Row, Row]]:
    ranked = best_of_column(rows, task, metric)
    if reference:
        of_reference = [row for row in ranked if row.label == reference]
        return [
            (row, of_reference[0]) for row in rows if row in ranked and row not in of_reference[:1] and of_reference
        ]
    baselines = [row for row in ranked if not row.ours]
    return [(row, baselines[0]) for row in rows if row.ours and row in ranked and baselines]


def _key(row: Row, other: Row, task: str, metric: str) -> str:
    names = [f"{cell['variant']}:{cell['key']}:{cell['seed']}" for r in (row, other) for cell in r.cells_of[task]]
    return " ".join([task, metric, *names])


def _compare(row: Row, other: Row, task: str, metric: str, folder: Path) -> Difference | None:
    ours, others = (_predictions(r, task, folder) for r in (row, other))
    if ours is None or others is None:
        return None
    labels_N, user_N = ours[0]["labels"], ours[0]["users"]
    for seed in (*ours, *others):
        if not np.array_equal(seed["labels"], labels_N) or not np.array_equal(seed["users"], user_N):
            raise UserError(
                f"{row.title} and {other.title}, {task}: their predictions stand in another order; make the cells on "
                "the same number of ranks"
            )
    ours_SN, others_SN = ([seed["logits"] for seed in seeds] for seeds in (ours, others))
    if metric == "auc":
        return compare_aucs(ours_SN, others_SN, labels_N)
    return compare_gaucs(ours_SN, others_SN, labels_N, user_N, weighted=metric == "gauc")


def _predictions(row: Row, task: str, folder: Path) -> list[dict[str, np.ndarray]] | None:
    """Logits and labels [N] of one task and users [N], seed by seed; None unless all are there."""
    found = []
    for cell in row.cells_of[task]:
        path = folder / cell["predictions"]
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            t = arrays["tasks"].tolist().index(task)
            logits_N, labels_N = (arrays[name][:, t].astype(np.float64) for name in ("logits", "labels"))
            found.append({"logits": logits_N, "labels": labels_N, "users": arrays["users"]})
    return found
