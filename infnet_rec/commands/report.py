"""`report`: an experiment's cells as Markdown, CSV and figures; the same cells give the same bytes."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet_rec.commands import report_plot, report_text
from infnet_rec.commands.cells import CELLS
from infnet_rec.commands.paper import is_of_that_size, numbers_of
from infnet_rec.commands.report_folder import read_results
from infnet_rec.commands.report_rows import METRICS, Row, check_cells, complete, rows_of, tasks_of
from infnet_rec.commands.report_tests import compared
from infnet_rec.faults import Fault
from infnet_rec.files import PNG, Kind, named_faults, try_file, try_folder, write_text

MARKDOWN, TABLE = "report.md", "report.csv"
HEADER = ("model", "setting", "task", "split", "metric", "mean", "deviation", "by_seed", "paper", "paper_doubt")

JSON = dict[str, Any]


def report(results: Path, out: Path | None, *, with_paper: bool) -> JSON:
    """Writes the report.

    Args:
        results: an experiment's folder.
        out: where the report goes; None is the same folder.
        with_paper: whether the paper's numbers stand beside ours.

    Returns:
        The files that were written.

    Raises:
        Fault: see `check_cells`; or the paper is asked for and the experiment names no dataset of it.
    """
    found = read_results(results)
    out = out or results
    _try_files(out)
    cells, missing = found.cells, found.missing
    where = str(results / CELLS)
    check_cells(cells, where)
    dataset = cells[0]["paper"]
    if with_paper and not dataset:
        raise Fault(
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
    lines = [*report_text.heading(found, rows), *report_text.main_table(rows)]
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
        Fault: something else stands there.
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
            raise Fault(f"--out {page}: exists and was not made by this command, so it is left alone; name another")


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
