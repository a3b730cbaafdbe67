"""Paired tests between rows of a report, from the predictions that the cells have kept."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from infnet_rec.commands.report_rows import METRICS, Row, best_of, tasks_of
from infnet_rec.faults import Fault
from infnet_rec.strict import read_json
from infnet_rec.train.report import write_json
from infnet_rec.train.significance import Difference, compare_aucs, compare_gaucs

SIGNIFICANCE = "significance.json"

JSON = dict[str, Any]


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
    ranked = best_of(rows, task, metric)
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
            raise Fault(
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
