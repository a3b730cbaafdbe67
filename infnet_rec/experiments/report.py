"""`report`: an experiment's cells as Markdown, CSV and figures; the same cells give the same bytes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from infnet_rec.config.toml import StrictModel, read_json, validate_model
from infnet_rec.errors import UserError
from infnet_rec.experiments import report_plot, report_text
from infnet_rec.experiments.paper import is_of_that_size, numbers_of
from infnet_rec.experiments.report_rows import METRICS, Results, Row, check_cells, compared, complete, rows_of, tasks_of
from infnet_rec.experiments.results import CELLS, EXPERIMENT, all_cells, newest_of_each
from infnet_rec.files import PNG, Kind, named_faults, try_file, try_folder, write_text

JSON = dict[str, Any]


class _Dataset(StrictModel):
    model_config = ConfigDict(extra="ignore")

    generated: bool = False


class _Facts(StrictModel):
    label: str
    setting: str
    series: str
    at: str
    ours: bool


class _Shown(StrictModel):
    """See `shown` in `cells`."""

    paper: str
    reference: str
    seeds: tuple[int, ...]
    variants: dict[str, _Facts]


class _Folder(StrictModel):
    """Of experiment.json what is read here; folders of earlier versions have no `report`."""

    model_config = ConfigDict(extra="ignore")

    experiment: str
    dataset: _Dataset
    variants: JSON
    report: _Shown | None = None


def read_results(folder: Path) -> Results:
    """Reads the cells; without an experiment.json nothing is known to be missing.

    What is only shown (labels, settings, series, the paper's dataset, the reference) is what the experiment's file said
    when `experiment` was last started, not what it said when the cell was made.

    Raises:
        UserError: see `all_cells`; or experiment.json is none, or of another experiment.
    """
    found = newest_of_each(all_cells(folder))
    names = list(dict.fromkeys(name for name, _ in found))
    known = None
    if (folder / EXPERIMENT).is_file():
        known = validate_model(_Folder, read_json(folder / EXPERIMENT), str(folder / EXPERIMENT))
        names = list(dict.fromkeys([*known.variants, *names]))
    cells = [found[key] for key in sorted(found, key=lambda key: (names.index(key[0]), key[1]))]
    generated = any(cell["dataset"].get("generated", False) for cell in cells)
    if known is None:
        return Results(cells, [], [], generated)
    others = sorted({cell["experiment"] for cell in cells} - {known.experiment})
    if others:
        raise UserError(
            f"{folder / CELLS}: has cells of {', '.join(map(repr, others))}, but {EXPERIMENT} beside it is of "
            f"{known.experiment!r}; give every experiment a folder of its own"
        )
    generated |= known.dataset.generated
    made = {name for name, _ in found}
    if known.report is None:
        absent = [{"variant": name, "label": name, "setting": ""} for name in known.variants if name not in made]
        return Results(cells, absent, [], generated)
    # A variant that has gone from the file is not missing, and its cells say what it was.
    facts = {name: variant.model_dump() for name, variant in known.report.variants.items()}
    shared = {"paper": known.report.paper, "reference": known.report.reference}
    return Results(
        [{**cell, **shared, **facts.get(cell["variant"], {})} for cell in cells],
        [{"variant": name, **facts[name]} for name in facts if name not in made],
        sorted(set(known.report.seeds) - {seed for _, seed in found}),
        generated,
    )


MARKDOWN, TABLE = "report.md", "report.csv"
HEADER = ("model", "setting", "task", "split", "metric", "mean", "deviation", "by_seed", "paper", "paper_doubt")


def write_report(results: Path, out: Path | None, *, with_paper: bool) -> JSON:
    """Writes the report.

    Args:
        results: an experiment's folder.
        out: where the report goes; None is the same folder.
        with_paper: whether the paper's numbers stand beside ours.

    Returns:
        The files that were written.

    Raises:
        UserError: see `check_cells`; or the paper is asked for and the experiment names no dataset of it.
    """
    found = read_results(results)
    out = out or results
    _try_files(out)
    cells, missing = found.cells, found.missing
    where = str(results / CELLS)
    check_cells(cells, where)
    dataset = cells[0]["paper"]
    if with_paper and not dataset:
        raise UserError(
            f"{where}: --paper: the experiment names no dataset of the paper; set `paper` in its file and start "
            "'infnet-rec experiment' on it again, which makes no cell anew"
        )
    rows = rows_of(cells, missing)
    paper = numbers_of(dataset) if with_paper else {}
    num_examples = sum(cells[0]["dataset"]["num_examples"].values())
    same = bool(dataset) and not found.generated and is_of_that_size(dataset, num_examples)
    tests = compared(rows, cells[0]["reference"], results)
    out.mkdir(parents=True, exist_ok=True)
    files = [MARKDOWN, TABLE]
    lines = [*report_text.report_heading(found, rows), *report_text.main_table(rows)]
    lines += report_text.significance_table(tests, num_seeds=len({cell["seed"] for cell in cells}))
    if with_paper:
        lines += report_text.paper_tables(rows, paper, dataset, same=same)
    lines += report_text.cost_table(cells, missing)
    shown = complete(cells)
    for name, drawn, title in (
        ("efficiency.png", report_plot.draw_cost(shown, out / "efficiency.png"), "Time of a batch against parameters"),
        ("series.png", report_plot.draw_series(shown, out / "series.png"), "AUC along each series"),
    ):
        if drawn:
            files.append(name)
            lines += [f"![{title}]({name})", ""]
    if len(files) > 2:
        lines += report_text.not_drawn(cells, missing)
    write_text(out / MARKDOWN, "\n".join(lines))
    write_text(out / TABLE, _csv(rows, paper if same else {}))
    return {"files": [str(out / name) for name in files]}


def _try_files(out: Path) -> None:
    """Refuses a folder that cannot be written, and files in it that are no report's.

    Raises:
        UserError: something else stands there.
        Failure: the disk is full.
    """
    try_folder("--out", out)
    if not out.is_dir():
        return
    kinds: dict[str, Kind] = {TABLE: (HEADER[0].encode() + b",", "a report's table")}
    kinds |= dict.fromkeys(("efficiency.png", "series.png"), PNG)
    for name, kind in kinds.items():
        try_file("--out", out / name, replaces=kind)
    page = out / MARKDOWN
    try_file("--out", page, replaces=(b"#", "a report"))
    with named_faults(f"--out {out}"):
        if page.is_file() and report_text.MADE_BY not in page.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"--out {page}: exists and was not made by this command, so it is left alone; name another")


def _csv(rows: Sequence[Row], paper: report_text.Paper) -> str:
    """Every number: a line for each row, task, split and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row in rows:
        for task in tasks_of(rows):
            for split in ("valid", "test"):
                for metric in METRICS:
                    values = row.values(task, metric, split)
                    if not values or None in values:
                        continue
                    deviation = row.deviation(task, metric, split)
                    spread = "" if deviation is None else f"{deviation:.6f}"
                    by_seed = " ".join(f"{value:.6f}" for value in values)
                    theirs = paper.get((row.label, task, metric)) if split == "test" else None
                    said = ["", ""] if theirs is None else [f"{theirs.value:.4f}", theirs.doubt]
                    mean = f"{row.mean(task, metric, split):.6f}"
                    writer.writerow([row.label, row.setting, task, split, metric, mean, spread, by_seed, *said])
    return text.getvalue()
