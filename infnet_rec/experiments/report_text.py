"""A report's tables, as Markdown."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from infnet_rec.experiments.paper import PaperNumber
from infnet_rec.experiments.report_rows import TITLES, Results, Row, best_of_column, complete, tasks_of
from infnet_rec.experiments.significance import kendall, spearman

SHOWN = ("auc", "gauc")
Paper = Mapping[tuple[str, str, str], PaperNumber]

MADE_BY = "Made by `infnet-rec report`"
ONE_SEED = "One seed says nothing about another training run"

JSON = dict[str, Any]


def report_heading(results: Results, rows: Sequence[Row]) -> list[str]:
    """What the numbers stand on, and what of the experiment is missing."""
    cells = results.cells
    dataset, seeds = cells[0]["dataset"], sorted({cell["seed"] for cell in cells})
    num_there = sum(not row.missing for row in rows)
    models = f"{len(rows)} models" if num_there == len(rows) else f"{num_there} of {len(rows)} models"
    lacks = f" ({', '.join(map(str, results.missing_seeds))} missing)" if results.missing_seeds else ""
    sizes = ", ".join(f"{split} {n:,}" for split, n in dataset["num_examples"].items())
    environments = [cell["environment"] for cell in cells if cell["status"] == "done"]
    versions = sorted({f"{n} {v}" for e in environments for n, v in e["versions"].items() if n.startswith("torch")})
    made = ", generated and not observed" if results.generated else ""
    return [
        f"# {cells[0]['experiment']}",
        "",
        f"{MADE_BY} from `cells.jsonl`; not to be edited.",
        "",
        f"Dataset {dataset['name']}, fingerprint `{dataset['fingerprint']}`: {sizes} examples{made}. {models}, "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}{lacks}. {'; '.join(versions)}.",
        "",
        *([] if len(seeds) > 1 else [f"{ONE_SEED}: differences between models may be those of two runs of one.", ""]),
    ]


def main_table(rows: Sequence[Row]) -> list[str]:
    """AUC and gAUC on test, best bold and second underlined."""
    tasks = tasks_of(rows)
    columns = [(task, metric) for task in tasks for metric in SHOWN]
    ranked = {column: best_of_column(rows, *column) for column in columns}
    absent = " Missing: named by the experiment, without a cell so far." if any(row.missing for row in rows) else ""
    lines = [
        "## Test",
        "",
        "Mean ± standard deviation over seeds; the best is bold, the second underlined. gAUC: mean over users with "
        f"both classes, weighted by their impressions.{absent}",
        "",
        *header(["model", *(f"{task} {TITLES[metric]}" for task, metric in columns)]),
    ]
    for row in rows:
        texts = [_number(row, task, metric, ranked[task, metric]) for task, metric in columns]
        lines.append(line([row.title, *texts]))
    failed = [cell for row in rows for cell in row.failed]
    lines += ["", *(f"- {c['variant']}, seed {c['seed']}: **failed**: {c['reason']}; log: {c['log']}" for c in failed)]
    return [*lines, ""] if failed else lines


def _number(row: Row, task: str, metric: str, ranked: Sequence[Row]) -> str:
    mean, deviation = row.mean(task, metric), row.deviation(task, metric)
    if mean is None:
        return "failed" if row.failed else "missing" if row.missing else "-"
    text = f"{mean:.4f}"
    if row is ranked[0]:
        text = f"**{text}**"
    elif row is ranked[1]:
        text = f"<u>{text}</u>"
    return text if deviation is None else f"{text} ± {deviation:.4f}"


SEVERAL_SEEDS = (
    "Differences on the same test examples, mean over seeds paired by number, with 95 % intervals. AUC: DeLong's test, "
    "the spread over seeds added to its variance. gAUC: users resampled 1,000 times, for these seeds. Intervals "
    "without 0 are bold; nothing is corrected for the number of comparisons."
)
OF_ONE_SEED = (
    "Differences on the same test examples between two trained models, with 95 % intervals of what other test examples "
    f"would say. AUC: DeLong's. gAUC: users resampled 1,000 times. {ONE_SEED}, which may differ by more than these "
    "intervals, so none is bold and no p is given."
)


def significance_table(tests: Sequence[JSON], *, num_seeds: int) -> list[str]:
    """Who differs from whom by more than chance; of one seed only by how much."""
    if not tests:
        return []
    has_p = num_seeds > 1
    columns = ["task", "metric", "model", "against", "difference", "95 % interval", *(["p"] if has_p else [])]
    lines = ["## Significance", "", SEVERAL_SEEDS if has_p else OF_ONE_SEED, "", *header(columns)]
    for test in tests:
        found = test["difference"]
        texts = [test["task"], TITLES[test["metric"]], test["row"], test["other"]]
        if found is None:
            texts += ["not tested: no predictions", "-", "-"]
        else:
            interval = f"{found['low']:+.4f} to {found['high']:+.4f}"
            is_bold = has_p and (found["low"] > 0 or found["high"] < 0)
            p_value = "-" if found["p_value"] is None else f"{found['p_value']:.2g}"
            texts += [f"{found['value']:+.4f}", f"**{interval}**" if is_bold else interval, p_value]
        lines.append(line(texts[: len(columns)]))
    return [*lines, ""]


def paper_tables(rows: Sequence[Row], paper: Paper, dataset: str, *, same: bool) -> list[str]:
    """The paper's numbers beside ours, where they are of the same dataset, and how well the orders agree."""
    if not any((row.label, task, metric) in paper for row in rows for task in tasks_of(rows) for metric in SHOWN):
        return ["## The paper", "", f"It has none of these models on {dataset}.", ""]
    lines = ["## The paper", ""]
    if same:
        lines += [
            f"Its numbers on {dataset}, and ours less them. By the number of examples these are its rows, and the "
            "store has no note that they are generated. `?`: doubtful, since the copy that it was read from runs "
            "two cells of the table together. What the paper says of its gAUC (that it weighs users more alike) fits "
            "the plain mean over users, not the weighted one; `report.csv` has both of ours.",
            "",
            *_beside(rows, paper),
            "",
        ]
    else:
        lines += [f"These are not the rows of the whole of {dataset}, so only the order of models is compared.", ""]
    lines += [
        "Agreement of the order of models by test mean with the paper's (1: the same, 0: none, -1: reversed). "
        "Doubtful cells are left out in the last two columns. In each setting a model stands with its row of that "
        "setting; where it has none with the one without a setting, or else with its first.",
        "",
        *header(["setting", "task", "metric", "models", "Spearman", "Kendall", "Spearman, sure", "Kendall, sure"]),
    ]
    return [*lines, *_agreement(rows, paper), ""]


def _beside(rows: Sequence[Row], paper: Paper) -> list[str]:
    columns = [(task, metric) for task in tasks_of(rows) for metric in SHOWN]
    lines = header(["model", *(f"{task} {TITLES[metric]}" for task, metric in columns)])
    for row in rows:
        texts = []
        for task, metric in columns:
            theirs, ours = paper.get((row.label, task, metric)), row.mean(task, metric)
            if theirs is None:
                texts.append("-")
                continue
            apart = "" if ours is None else f" ({ours - theirs.value:+.4f})"
            texts.append(f"{theirs.value:.4f}{'?' if theirs.doubt else ''}{apart}")
        lines.append(line([row.title, *texts]))
    return lines


def _agreement(rows: Sequence[Row], paper: Paper) -> list[str]:
    settings = list(dict.fromkeys(row.setting for row in rows))
    named = [setting for setting in settings if setting] or [""]
    lines = []
    for setting in named:
        of_setting = _one_of_each(rows, setting)
        for task in tasks_of(rows):
            for metric in SHOWN:
                pairs = [
                    (mean, paper[row.label, task, metric])
                    for row in of_setting
                    if (mean := row.mean(task, metric)) is not None and (row.label, task, metric) in paper
                ]
                sure = [pair for pair in pairs if not pair[1].doubt]
                lines.append(line([setting or "-", task, TITLES[metric], str(len(pairs)), *_both(pairs), *_both(sure)]))
    return lines


def _one_of_each(rows: Sequence[Row], setting: str) -> list[Row]:
    """A row a label: that of the setting, or the one without any (a multi-task model), or the label's first."""
    of_label: dict[str, list[Row]] = {}
    for row in rows:
        of_label.setdefault(row.label, []).append(row)
    return [min(found, key=lambda row: (setting, "", row.setting).index(row.setting)) for found in of_label.values()]


def _both(pairs: Sequence[tuple[float, PaperNumber]]) -> list[str]:
    if len(pairs) < 3:
        return ["-", "-"]
    ours, theirs = np.array([ours for ours, _ in pairs]), np.array([theirs.value for _, theirs in pairs])
    return ["-" if math.isnan(x) else f"{x:.2f}" for x in (spearman(ours, theirs), kendall(ours, theirs))]


def cost_table(cells: Sequence[JSON], missing: Sequence[JSON] = ()) -> list[str]:
    """Size and speed of every variant, and what its search chose; one that has a failed cell has no numbers."""
    whole = complete(cells)
    lines = [
        "## Size, speed, settings",
        "",
        "Means over seeds. Speeds are those of the machine that made the cells, with whatever else ran on it; a test "
        "batch includes reading it.",
        "",
        *header(
            [
                "variant",
                "dense parameters",
                "table parameters",
                "training examples/s",
                "test batch, ms",
                "chosen on valid",
            ]
        ),
    ]
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        mine = [cell for cell in whole if cell["variant"] == variant]
        if not mine:
            lines.append(line([variant, "failed", *["-"] * 4]))
            continue
        first, scoring = mine[0], [cell["scoring"] for cell in mine if cell["scoring"]]
        batch = f"{fmean(s['ms_per_batch'] for s in scoring):,.1f} of {scoring[0]['batch_size']:,}" if scoring else "-"
        chosen = ", ".join(f"{key} {value}" for key, value in first["chosen"].items()) or "as configured"
        sizes = [f"{first[f'num_{kind}_parameters']:,}" for kind in ("dense", "sparse")]
        lines.append(line([variant, *sizes, f"{fmean(c['examples_per_s'] for c in mine):,.0f}", batch, chosen]))
    lines += [line([variant["variant"], "missing", *["-"] * 4]) for variant in missing]
    return [*lines, ""]


def not_drawn(cells: Sequence[JSON], missing: Sequence[JSON]) -> list[str]:
    """Says what the figures leave out."""
    drawn = {cell["variant"] for cell in complete(cells)}
    names = [*dict.fromkeys(c["variant"] for c in cells if c["variant"] not in drawn), *(v["variant"] for v in missing)]
    return [f"The figures leave out what failed or is missing: {', '.join(names)}.", ""] if names else []


def header(names: Sequence[str]) -> list[str]:
    """Head and rule of a table; numbers stand at the right."""
    return [line(names), line(["---", *["---:"] * (len(names) - 1)])]


def line(texts: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
