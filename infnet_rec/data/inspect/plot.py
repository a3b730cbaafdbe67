"""The picture of a store: six panels, drawn from the numbers of `data stats`.

matplotlib's objects are used directly, without pyplot: no window, no state, nobody's style file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from infnet_rec.data.inspect import panels as stats_panels
from infnet_rec.errors import UserError
from infnet_rec.files import PNG, try_file, whole_file

WIDTH_PX, HEIGHT_PX, DPI = 1600, 1000, 100
GREY, PALE = stats_panels.GREY, "#DDDDDD"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}

JSON = dict[str, Any]


def check_destination(path: Path, option: str = "--plot") -> None:
    """Refuses a file that the picture cannot be written to; an older picture may give way.

    Raises:
        UserError: no .png, no such folder, one that cannot be written, or something that is not a PNG file stands
            there.
        Failure: the disk is full.
    """
    if path.suffix != ".png":
        raise UserError(f"{option} {path}: the picture is a PNG file; end its name with .png")
    try_file(option, path, replaces=PNG)


def draw_stats(report: JSON, path: Path) -> None:
    """Writes the picture, whole or not at all.

    Args:
        report: what `store_stats` gives.
        path: a PNG file.
    """
    with matplotlib.rc_context(), whole_file(path) as temporary:
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        stats_figure(report).savefig(temporary, format="png", dpi=DPI)


def stats_figure(report: JSON) -> Figure:
    """All six panels."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14, wspace=0.03, hspace=0.04)
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{report['name']}: {report['num_examples']:,} examples of {report['num_users']:,} users "
        f"on {report['num_items']:,} items",
        fontsize=15,
        x=0.012,
        ha="left",
    )
    panels: tuple[Callable[[Axes, JSON], None], ...] = (
        stats_panels.examples,
        stats_panels.users,
        stats_panels.items,
        stats_panels.histories_panel,
        stats_panels.label_rates,
        stats_panels.tables_panel,
    )
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        axes.grid(visible=True)
        panel(axes, report)
    return figure
