"""A report's figures: time of a batch against parameters, and AUC along series of variants."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from infnet_rec.plotting import new_figure, styled, write_figure

OURS, OTHERS = "#B0503C", "#2F6DA8"
PANEL_IN = (4.6, 3.4)

JSON = dict[str, Any]


def draw_cost(cells: Sequence[JSON], path: Path) -> bool:
    """Time of a test batch against dense parameters, a point a variant.

    Points of a series, and models for one task each, are left to the table.

    Returns:
        Whether there is a picture: not of one point, nor where the names of variants would lie on each other.
    """
    points = []
    cells = [cell for cell in cells if not cell["series"] and cell["setting"] != "separate"]
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        mine = [cell for cell in cells if cell["variant"] == variant and cell["status"] == "done" and cell["scoring"]]
        if mine:
            times = [cell["scoring"]["ms_per_batch"] for cell in mine]
            points.append((variant, mine[0], fmean(times), stdev(times) if len(times) > 1 else 0.0))
    if len(points) < 2:
        return False
    with styled():
        figure = _figure(1, 1, 1.6)
        _points(figure.subplots(), points)
        if not _part_labels(figure):
            return False
        write_figure(figure, path, names_software=False)
    return True


def _points(axes: Axes, points: Sequence[tuple[str, JSON, float, float]]) -> None:
    for variant, cell, ms, spread in points:
        colour = OURS if cell["ours"] else OTHERS
        at = (cell["num_dense_parameters"] + 1, ms)
        axes.errorbar(*at, yerr=spread, fmt="o", color=colour, capsize=3)
        axes.annotate(variant, at, xytext=(7, 0), textcoords="offset points", va="center", color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2)
    axes.set_xlabel("dense parameters")
    axes.set_ylabel(f"ms a test batch of {points[0][1]['scoring']['batch_size']:,}, reading included")
    axes.set_title("Time of a batch against size; bars: deviation over seeds")
    axes.grid(visible=True)


def _part_labels(figure: Figure) -> bool:
    """A label that lies on another goes to its point's left; whether all can be read then."""
    figure.draw_without_rendering()
    placed: list[Annotation] = []

    def is_free(label: Annotation) -> bool:
        return not any(label.get_window_extent().overlaps(other.get_window_extent()) for other in placed)

    for label in (text for text in figure.axes[0].texts if isinstance(text, Annotation)):
        if not is_free(label):
            label.set(ha="right", position=(-7, 0))
            if not is_free(label):
                return False
        placed.append(label)
    return True


def draw_series(cells: Sequence[JSON], path: Path) -> bool:
    """AUC on test along each series, a row of panels a task; False where there is no series."""
    done = [cell for cell in cells if cell["series"] and cell["status"] == "done"]
    series = list(dict.fromkeys(cell["series"] for cell in done))
    if not series:
        return False
    tasks = list(dict.fromkeys(task for cell in done for task in cell["metrics"]["test"]))
    with styled():
        figure = _figure(len(tasks), len(series), 1.0)
        panels = figure.subplots(len(tasks), len(series), squeeze=False, sharey="row")
        for row, task in enumerate(tasks):
            for column, name in enumerate(series):
                _curve(panels[row][column], [cell for cell in done if cell["series"] == name], task)
                panels[row][column].set_title(name if row == 0 else "")
            panels[row][0].set_ylabel(f"{task} AUC")
        write_figure(figure, path, names_software=False)
    return True


def _curve(axes: Axes, cells: Sequence[JSON], task: str) -> None:
    cells = [cell for cell in cells if task in cell["metrics"]["test"]]
    places = list(dict.fromkeys(cell["at"] for cell in cells))
    values = [[c["metrics"]["test"][task]["auc"] for c in cells if c["at"] == place] for place in places]
    spread = [stdev(found) if len(found) > 1 else 0.0 for found in values]
    axes.errorbar(
        range(len(places)), [fmean(found) for found in values], yerr=spread, marker="o", color=OURS, capsize=3
    )
    axes.set_xticks(range(len(places)), [fill(place, 12) for place in places])
    axes.margins(x=0.15)
    axes.grid(visible=True)


def _figure(num_rows: int, num_columns: int, scale: float) -> Figure:
    return new_figure(PANEL_IN[0] * num_columns * scale, PANEL_IN[1] * num_rows * scale, w_pad=0.1, h_pad=0.1)
