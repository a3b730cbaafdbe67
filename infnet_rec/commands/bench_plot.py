"""The picture of a sweep: a column a width; time above, memory below, against the events of an example."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from infnet_rec.commands.stats_plot import DPI, STYLE, check_destination
from infnet_rec.faults import Fault
from infnet_rec.files import whole_file

COLOURS = {"literal": "#B0503C", "eager": "#2F6DA8", "fused": "#3C8C5A"}
PANEL_WIDTH_IN, HEIGHT_IN = 5.6, 7.2

JSON = Mapping[str, Any]


def check_sweep_files(picture: Path) -> Path:
    """Refuses files that cannot be written; an older sweep may give way.

    Returns:
        Where the points go, beside the picture.

    Raises:
        Fault: see `stats_plot.check_destination`; or something else stands where the points would.
    """
    check_destination(picture, "--sweep")
    points = picture.with_suffix(".jsonl")
    if points.exists() and not (points.is_file() and points.read_bytes().startswith(b'{"bench": "sweep"')):
        raise Fault(f"--sweep {picture}: {points} would hold the points, but exists and is no sweep; name another")
    return points


def draw_sweep(points: Sequence[JSON], slopes: Sequence[JSON], machine: JSON, path: Path) -> None:
    """Writes the picture, whole or not at all."""
    with matplotlib.rc_context(), whole_file(path) as temporary:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure_of(points, slopes, machine).savefig(temporary, format="png", dpi=DPI)


def figure_of(points: Sequence[JSON], slopes: Sequence[JSON], machine: JSON) -> Figure:
    """All panels."""
    widths = sorted({point["shape"]["width"] for point in points})
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(PANEL_WIDTH_IN * len(widths), HEIGHT_IN), layout=layout)
    FigureCanvasAgg(figure)
    shape = points[0]["shape"]
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine["device"] == "cpu" else ""
    figure.suptitle(
        f"Forward and backward of the tower, batch {shape['batch_size']:,}, {shape['num_features']} features\n"
        f"{machine['name']}{threads}",
        fontsize=13,
        x=0.012,
        ha="left",
    )
    panels = figure.subplots(2, len(widths), squeeze=False)
    for column, width in enumerate(widths):
        of_width = [point for point in points if point["shape"]["width"] == width]
        slope_of = {line["form"]: line["us_per_event"] for line in slopes if line["width"] == width}
        _curves(panels[0][column], of_width, "time", slope_of)
        _curves(panels[1][column], of_width, "memory", {})
        panels[0][column].set_title(f"width {width}: time")
        panels[1][column].set_title(f"width {width}: peak memory above weights and inputs")
    return figure


def _curves(axes: Axes, points: Sequence[JSON], quantity: str, slope_of: Mapping[str, float]) -> None:
    for form, colour in COLOURS.items():
        found = [
            (point["shape"]["events_per_example"], point["passes"]["forward_backward"]["forms"][form])
            for point in points
            if form in point["passes"]["forward_backward"]["forms"]
        ]
        if not found:
            continue
        ys = [facts["ms"] if quantity == "time" else facts["peak_bytes"] / 2**20 for _, facts in found]
        slope = f": {slope_of[form]:.3g} µs an example and event" if form in slope_of else ""
        axes.plot([events for events, _ in found], ys, marker="o", color=colour, label=f"{form}{slope}")
    axes.set_xlabel("events of an example, all sequences together")
    axes.set_ylabel("ms a batch" if quantity == "time" else "MiB a batch")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True)
    axes.legend(loc="upper left")
