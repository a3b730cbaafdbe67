"""The look that all pictures of the package share, and how they are written.

matplotlib's objects are used directly, without pyplot: no window, no state, nobody's style file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from infnet_rec.errors import UserError
from infnet_rec.files import PNG, try_file, whole_file

WIDTH_PX, HEIGHT_PX, DPI = 1600, 1000, 100
# Okabe and Ito's colours, which colour-blind people tell apart; the yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY, PALE = "#555555", "#DDDDDD"
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


def check_picture(path: Path, option: str = "--plot") -> None:
    """Refuses a file that a picture cannot be written to; an older picture may give way.

    Raises:
        UserError: no .png, no such folder, one that cannot be written, or something that is not a PNG file stands
            there.
        Failure: the disk is full.
    """
    if path.suffix != ".png":
        raise UserError(f"{option} {path}: the picture is a PNG file; end its name with .png")
    try_file(option, path, replaces=PNG)


@contextmanager
def styled() -> Iterator[None]:
    """Draws in our style in the block, and in nobody's file of styles."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width_in: float, height_in: float, title: str = "", title_size: float = 15, **gaps: Any) -> Figure:
    """An empty figure whose panels keep clear of each other.

    Args:
        width_in: inches.
        height_in: inches.
        title: stands above all panels, flush left; "" for none.
        title_size: points.
        gaps: `w_pad`, `h_pad` in inches and `wspace`, `hspace` in parts of a panel, see `ConstrainedLayoutEngine`.
    """
    figure = Figure(figsize=(width_in, height_in), layout=ConstrainedLayoutEngine(**gaps))
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=title_size, x=0.012, ha="left")
    return figure


def write_figure(figure: Figure, path: Path, *, names_software: bool = True) -> None:
    """Writes a PNG file, whole or not at all.

    Args:
        figure: drawn under `styled`, which is still open.
        path: an older file gives way.
        names_software: whether the file names the version of matplotlib; without it the same numbers give the same
            bytes.

    Raises:
        UserError: it cannot be written there.
        Failure: the disk is full.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata=None if names_software else {"Software": None})
