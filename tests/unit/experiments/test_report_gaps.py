"""Reports of what is not whole: one seed, variants that failed or are missing, lines that are no cells."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infnet_rec.cli import main
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.experiments import report_plot
from infnet_rec.experiments.paper import numbers_of
from infnet_rec.experiments.report import write_report
from infnet_rec.experiments.significance import spearman
from report_files import MODELS, SEEDS, make_results, write

Cells = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_results(folder)
    write_report(folder, None, with_paper=False)
    return folder


def read(folder: Path) -> Cells:
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def made(folder: Path, cells: Cells, *, with_paper: bool = False, experiment: dict[str, Any] | None = None) -> str:
    """The report of cells without predictions."""
    write(folder, cells)
    if experiment is not None:
        dataset = cells[0]["dataset"]
        known = {"experiment": "golden", "dataset": dataset, "search": None, **experiment}
        (folder / "experiment.json").write_text(json.dumps(known))
    write_report(folder, None, with_paper=with_paper)
    return (folder / "report.md").read_text()


def facts(cell: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: cell[name] for name in ("label", "setting", "series", "at", "ours")} | changes


def test_of_one_seed_nothing_is_called_significant(tmp_path: Path) -> None:
    cells = [cell for cell in make_results(tmp_path) if cell["seed"] == 0]
    text = made(tmp_path, cells)
    assert "One seed says nothing about another training run" in text.split("## Test")[0]
    table = text.split("## Significance")[1].split("## Size")[0]
    tested = [line for line in table.splitlines() if line.startswith("| click | AUC | INFNet |")]
    assert len(tested) == 1 and " to " in tested[0]
    assert "**" not in table and "| p |" not in table and tested[0].count("|") == 7


def test_in_each_setting_every_label_stands_once(results: Path, tmp_path: Path) -> None:
    """`recommended` is INFNet's alone: FM and DCNv2 stand there with their `shared` rows, MMoE with its only one."""
    cells = [cell for cell in read(results) if cell["variant"] != "PLE"]
    good = [
        {**cell, "variant": "INFNet 2", "setting": "recommended", "key": "2", "metrics": fm["metrics"]}
        for cell, fm in zip(
            (c for c in cells if c["variant"] == "INFNet"), (c for c in cells if c["variant"] == "FM"), strict=True
        )
    ]
    text = made(tmp_path, [*cells, *good], with_paper=True)
    mean = {
        name: np.mean([c["metrics"]["test"]["click"]["auc"] for c in cells if c["variant"] == name]) for name in MODELS
    }
    theirs = np.array([numbers_of("KuaiRand-Pure")[name, "click", "auc"].value for name in MODELS])
    for setting, ours in (("shared", mean), ("recommended", mean | {"INFNet": mean["FM"]})):
        agreed = spearman(np.array([ours[name] for name in MODELS], np.float64), theirs)
        assert f"| {setting} | click | AUC | 4 | {agreed:.2f} |" in text
    assert "or else with its first" in text


def test_variants_without_a_cell_are_missing(results: Path, tmp_path: Path) -> None:
    cells = [cell for cell in read(results) if cell["variant"] != "MMoE"]
    text = made(tmp_path, cells, experiment={"variants": {name: {} for name in (*MODELS, "PLE")}})
    assert "4 of 5 models, seeds 0, 1, 2." in text and "| MMoE | missing | missing | missing | missing |" in text
    assert "| MMoE | missing | - | - | - | - |" in text
    assert "The figures leave out what failed or is missing: PLE, MMoE." in text


def test_missing_seeds_and_halves_of_rows_are_known_from_the_experiment(results: Path, tmp_path: Path) -> None:
    cells = [cell for cell in read(results) if cell["variant"] != "PLE" and cell["seed"] < 2]
    for cell in cells:
        if cell["variant"] == "FM":
            cell["metrics"] = {split: {"click": found["click"]} for split, found in cell["metrics"].items()}
    of_variants = {cell["variant"]: facts(cell) for cell in cells}
    of_variants["FM [long_view]"] = of_variants["FM"]
    shown = {"paper": "", "reference": "", "seeds": SEEDS, "variants": of_variants}
    # "gone" was named once and has no cell: the file names it no more, so nothing of it is missing.
    text = made(tmp_path, cells, experiment={"variants": {"gone": {}, **dict.fromkeys(of_variants)}, "report": shown})
    assert "3 of 4 models, seeds 0, 1 (2 missing)." in text and "gone" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| FM (shared)"))
    assert row.endswith("| missing | missing |") and row.count("missing") == 2


def test_the_experiments_file_has_the_last_word_on_what_is_shown(results: Path, tmp_path: Path) -> None:
    cells = [{**cell, "paper": ""} for cell in read(results) if cell["variant"] != "PLE"]
    of_variants = {cell["variant"]: facts(cell) for cell in cells}
    of_variants["MMoE"] |= {"label": "OMoE", "ours": True}
    shown = {"paper": "KuaiRand-Pure", "reference": "FM", "seeds": SEEDS, "variants": of_variants}
    known = {"variants": dict.fromkeys(of_variants), "report": shown}
    text = made(tmp_path, cells, with_paper=True, experiment=known)
    assert "| OMoE | 0.7" in text and "| MMoE | 0.7" not in text
    assert "| click | AUC | OMoE | FM (shared) |" in text


def test_generated_rows_are_not_set_beside_the_paper(results: Path, tmp_path: Path, small_store: Path) -> None:
    """As many as the paper's they may be; the store that is built from them says what they are."""
    assert Store(small_store).manifest["generated"] is True
    cells = read(results)
    for cell in cells:
        cell["dataset"]["generated"] = True
    text = made(tmp_path, cells, with_paper=True)
    assert "only the order of models is compared" in text and "0.7206" not in text
    assert "70,000 examples, generated and not observed." in text
    assert "0.7206" not in (tmp_path / "report.csv").read_text()


def test_a_failed_variant_has_no_number_anywhere(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Cells] = {}

    def remember(name: str) -> Callable[[Cells, Path], bool]:
        return lambda cells, _: bool(drawn.setdefault(name, cells))

    for name in ("draw_cost", "draw_series"):
        monkeypatch.setattr(report_plot, name, remember(name))
    text = made(tmp_path, read(results))
    assert "| PLE | failed | - | - | - | - |" in text
    assert "The figures leave out what failed or is missing: PLE." in text
    for name in ("draw_cost", "draw_series"):
        assert {cell["variant"] for cell in drawn[name]} == set(MODELS)


def _without(*keys: str) -> Callable[[dict[str, Any]], bytes]:
    def line(cell: dict[str, Any]) -> bytes:
        return json.dumps({name: value for name, value in cell.items() if name not in keys}).encode()

    return line


def _with(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda cell: json.dumps(cell | changes).encode()


BAD = {
    "number": (lambda _: b"42", "holds 42, not a JSON object"),
    "other": (
        lambda _: b'{"a": 1}',
        "is no cell: `experiment` is missing, `variant` is missing, `seed` is missing, and",
    ),
    "bytes": (lambda _: b"\xff\xfe", "not JSON: "),
    "more bytes": (lambda _: b'{"experiment": "\xff"}', "not JSON: "),
    "no metrics": (_without("metrics"), "is no cell: `metrics` is missing;"),
    "no tasks": (_with(metrics={"test": 3}), "is no cell: `metrics.test` = 3: "),
    "no reason": (_with(status="failed"), "is no cell: `reason` is missing, `log` is missing;"),
    "odd status": (_with(status="fine"), '`status` = "fine": '),
    "odd seed": (_with(seed="a"), '`seed` = "a": '),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_a_line_that_is_no_cell_is_one_line_and_exit_code_2(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: Callable[[dict[str, Any]], bytes],
    said: str,
) -> None:
    lines = (results / "cells.jsonl").read_bytes().splitlines()
    lines[1] = line(json.loads(lines[1]))
    (tmp_path / "cells.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    monkeypatch.setattr("sys.argv", ["infnet-rec", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    (told,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "take the line away" in told
    assert told.startswith(f"infnet-rec: fault: {tmp_path / 'cells.jsonl'}:2: ") and said in told


def test_cells_of_several_experiments_are_refused(results: Path, tmp_path: Path) -> None:
    cells = read(results)
    for cell in cells[3:6]:
        cell["experiment"] = "silver"
    with pytest.raises(UserError, match="has cells of different experiments, 'golden' and 'silver'"):
        made(tmp_path, cells)
    with pytest.raises(UserError, match=r"has cells of 'golden', but experiment\.json beside it is of 'bronze'"):
        made(tmp_path, read(results), experiment={"experiment": "bronze", "variants": {}})
    with pytest.raises(UserError, match=r"experiment\.json: 1 fault\n  variants: missing"):
        made(tmp_path, read(results), experiment={})
