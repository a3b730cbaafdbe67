"""Reports: the golden one, what is refused, and the statistics against plain ones."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from infnet_rec.errors import UserError
from infnet_rec.experiments import significance
from infnet_rec.experiments.paper import numbers_of
from infnet_rec.experiments.report import write_report
from infnet_rec.metrics import auc, evaluate_scores
from report_files import MODELS, TASKS, make_results, write

GOLDEN = Path(__file__).parents[2] / "golden" / "report.md"
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    make_results(folder)
    write_report(folder, None, with_paper=True)
    return folder


def test_the_report_is_the_golden_one(folder: Path) -> None:
    assert (folder / "report.md").read_text() == GOLDEN.read_text()


def test_the_same_results_give_the_same_bytes_without_the_predictions_too(folder: Path, tmp_path: Path) -> None:
    """Predictions are large and need not be kept; what was tested with them is."""
    for name in ("cells.jsonl", "significance.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    files = write_report(tmp_path, tmp_path / "again", with_paper=True)["files"]
    assert [Path(file).name for file in files] == ["report.md", "report.csv", "efficiency.png"]
    for file in files:
        assert Path(file).read_bytes() == (folder / Path(file).name).read_bytes()


def test_results_without_predictions_are_not_tested(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.jsonl").write_bytes((folder / "cells.jsonl").read_bytes())
    write_report(tmp_path, None, with_paper=False)
    assert "not tested: no predictions" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "significance.json").exists()


def test_the_csv_has_every_number(folder: Path) -> None:
    lines = (folder / "report.csv").read_text().splitlines()
    assert len(lines) == 1 + len(MODELS) * len(TASKS) * 2 * 3
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    values = [c["metrics"]["test"]["click"]["auc"] for c in cells if c["variant"] == "FM"]
    row = next(line.split(",") for line in lines if line.startswith("FM,shared,click,test,auc,"))
    assert row[5:7] == [f"{np.mean(values):.6f}", f"{np.std(values, ddof=1):.6f}"]
    assert row[8] == "0.7206" and "merged" in row[9]


def test_a_part_of_the_dataset_is_not_set_beside_the_paper(folder: Path, tmp_path: Path) -> None:
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    for cell in cells:
        cell["dataset"]["num_examples"]["train"] = 100_000
    write(tmp_path, cells)
    write_report(tmp_path, None, with_paper=True)
    text = (tmp_path / "report.md").read_text()
    assert "only the order of models is compared" in text and "0.7206" not in text
    assert "0.7206" not in (tmp_path / "report.csv").read_text()


def test_separate_models_make_one_row_and_series_a_figure(folder: Path, tmp_path: Path) -> None:
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    taken = []
    for cell in cells:
        for task in TASKS if cell["variant"] == "FM" else ():
            metrics = {split: {task: found[task]} for split, found in cell["metrics"].items()}
            alone = {"variant": f"FM [{task}]", "key": task, "metrics": metrics, "series": "tasks", "at": task}
            taken.append({**cell, **alone})
    write(tmp_path, taken)
    files = write_report(tmp_path, None, with_paper=False)["files"]
    assert any(file.endswith("series.png") for file in files)
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| FM (shared)")]
    assert len(rows) == 1 and " - " not in rows[0]


def _without_metric(cells: list[dict[str, Any]]) -> None:
    cells[0]["metrics"]["test"]["click"]["gauc"] = None


def _of_another_dataset(cells: list[dict[str, Any]]) -> None:
    cells[4]["dataset"] = {**cells[4]["dataset"], "fingerprint": "beef"}


def _of_another_seed(cells: list[dict[str, Any]]) -> None:
    cells[1]["seed"] = 7


def _of_other_settings(cells: list[dict[str, Any]]) -> None:
    cells[1]["key"] = "other"


def _without_test(cells: list[dict[str, Any]]) -> None:
    del cells[1]["metrics"]["test"]


def _same_row(cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        cell["label"], cell["setting"] = "one", ""


REFUSED = {
    _without_metric: r"'FM', seed 0: test click gauc: is missing",
    _of_another_dataset: r"different datasets, kuairand_pure \(beef\) and kuairand_pure \(f00d\)",
    _of_another_seed: r"'FM' has seeds \[0, 2, 7\], 'DCNv2' \[0, 1, 2\]",
    _of_other_settings: r"the seeds of 'FM' have different settings",
    _without_test: r"has no metrics of test",
    _same_row: r"all have click; give them labels",
    list.clear: r"holds no cell",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_refused(folder: Path, tmp_path: Path, spoil: Any) -> None:
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    spoil(cells)
    write(tmp_path, cells)
    with pytest.raises(UserError, match=REFUSED[spoil]):
        write_report(tmp_path, None, with_paper=False)
    assert not (tmp_path / "report.md").exists()


def test_predictions_in_another_order_are_refused(folder: Path, tmp_path: Path) -> None:
    make_results(tmp_path)
    path = tmp_path / "cells" / "INFNet" / "1" / "predictions.npz"
    with np.load(path) as arrays:
        turned = {name: x if name == "tasks" else x[::-1] for name, x in arrays.items()}
    np.savez(path, **turned)
    with pytest.raises(UserError, match="stand in another order"):
        write_report(tmp_path, None, with_paper=False)


def test_no_results_and_no_paper_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        write_report(tmp_path, None, with_paper=False)
    cells = [{**json.loads(line), "paper": ""} for line in (folder / "cells.jsonl").read_text().splitlines()]
    write(tmp_path, cells)
    with pytest.raises(UserError, match="names no dataset of the paper"):
        write_report(tmp_path, None, with_paper=True)


def test_the_papers_numbers() -> None:
    found = numbers_of("KuaiRand-Pure")
    assert found["DCNv2", "click", "auc"].value == 0.7649 and not found["DCNv2", "click", "auc"].doubt
    assert found["FM", "click", "auc"].doubt
    assert found["w/o3", "long_view", "auc"].value == 0.7701
    assert len(found) == 13 * 3 * 2 + 3 * 3


def plain_delong(a_N: np.ndarray, b_N: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    """Difference and variance, pair by pair."""
    positives, negatives = np.flatnonzero(labels_N), np.flatnonzero(labels_N == 0)
    kernel = [
        np.array([[(x[i] > x[j]) + 0.5 * (x[i] == x[j]) for j in negatives] for i in positives]) for x in (a_N, b_N)
    ]
    s10 = np.cov([k.mean(axis=1) for k in kernel])
    s01 = np.cov([k.mean(axis=0) for k in kernel])
    covariance = s10 / len(positives) + s01 / len(negatives)
    return kernel[0].mean() - kernel[1].mean(), covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_delong_is_the_plain_one(seed: int) -> None:
    """Scores of few values, so that many are level."""
    rng = np.random.default_rng(seed)
    labels_N = (rng.random(60) < 0.3).astype(float)
    a_N, b_N = (np.round(labels_N * 0.5 + rng.standard_normal(60), 1) for _ in range(2))
    difference, variance = plain_delong(a_N, b_N, labels_N)
    found = significance.compare_aucs([a_N], [b_N], labels_N)
    assert found.value == pytest.approx(difference, abs=1e-12)
    assert found.value == pytest.approx(auc(a_N, labels_N) - auc(b_N, labels_N), abs=1e-12)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(math.sqrt(variance), abs=1e-12)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)), abs=1e-12)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    labels_N = (rng.random(4000) < 0.3).astype(float)
    good_N, poor_N = (labels_N * strength + rng.standard_normal(4000) for strength in (1.0, 0.8))
    same = significance.compare_aucs([good_N, good_N], [poor_N, poor_N], labels_N)
    mixed = significance.compare_aucs([good_N, poor_N], [poor_N, good_N], labels_N)
    assert same.is_significant and same.p_value is not None and same.p_value < 1e-3
    assert not mixed.is_significant and mixed.value == pytest.approx(0, abs=1e-12)
    apart = auc(good_N, labels_N) - auc(poor_N, labels_N)
    assert (mixed.high - mixed.low) / 2 / 1.96 == pytest.approx(apart, rel=1e-6)
    nothing = significance.compare_aucs([good_N], [good_N], labels_N)
    assert (nothing.value, nothing.p_value, nothing.is_significant) == (0.0, 1.0, False)


def test_gaucs_differ_by_users() -> None:
    rng = np.random.default_rng(0)
    labels_N, user_N = (rng.random(3000) < 0.4).astype(float), rng.integers(0, 60, 3000)
    good_N, poor_N = (labels_N * strength + rng.standard_normal(3000) for strength in (1.0, 0.2))
    weighted, alike = (
        significance.compare_gaucs([good_N], [poor_N], labels_N, user_N, weighted=w) for w in (True, False)
    )
    task = [evaluate_scores(x[:, None], labels_N[:, None], user_N, ["t"])["t"] for x in (good_N, poor_N)]
    assert weighted.value == pytest.approx(task[0].gauc - task[1].gauc)
    assert alike.value == pytest.approx(task[0].gauc_unweighted - task[1].gauc_unweighted)
    assert weighted.low < weighted.value < weighted.high and weighted.is_significant


@pytest.mark.parametrize("seed", range(5))
def test_orders_agree_as_scipy_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a_K, b_K = (np.round(rng.standard_normal(13), 1) for _ in range(2))
    assert significance.spearman(a_K, b_K) == pytest.approx(stats.spearmanr(a_K, b_K).statistic)
    assert significance.kendall(a_K, b_K) == pytest.approx(stats.kendalltau(a_K, b_K).statistic)


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(p.parent for p in RESULTS.glob("*/cells.jsonl")), ids=lambda p: p.name)
def test_the_committed_reports_are_those_of_the_committed_cells(tmp_path: Path, folder: Path) -> None:
    for path in folder.glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with_paper = "\n## The paper\n" in (folder / "report.md").read_text()
    write_report(tmp_path, None, with_paper=with_paper)
    for name in ("report.md", "report.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
