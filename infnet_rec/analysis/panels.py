"""The panels of attention's pictures: tables of coloured cells, maps of positions, distributions of gates.

Colour is always the same: how many times its even share something gets, white at 1. It is stretched to what the panels
of one picture need, so the scale beside them is to be read first.

Shapes: X rows, Q queries, F sequences, S positions.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure

from infnet_rec.plotting import COLOURS, GREY

# A little of all cells may be off the scale, lest one of them leave the others pale.
ON_SCALE = 0.99
# The scale ends no nearer than this: where all is nearly even, the picture is to be pale.
LEAST_TIMES = 1.1
MISSING = "#E8E8E8"
SIDE_COLOURS = {"user": COLOURS[0], "item": COLOURS[1], "context": COLOURS[2]}
GATE_COLOURS = {"categorical": COLOURS[0], "sequence": COLOURS[3], "task": COLOURS[2]}

JSON = dict[str, Any]


class Scale:
    """From times even to colours: blue below 1, red above, as far either way; grey where there is nothing."""

    def __init__(self, *times: np.ndarray) -> None:
        """A scale for all cells of a picture."""
        logs = np.concatenate([np.abs(_log(values).ravel()) for values in times])
        logs = logs[np.isfinite(logs)]
        most = float(np.quantile(logs, ON_SCALE)) if len(logs) else 0.0
        self.limit = max(most, float(np.log2(LEAST_TIMES)))
        self.norm = Normalize(-self.limit, self.limit, clip=True)
        self.cmap: Colormap = matplotlib.colormaps["RdBu_r"].with_extremes(bad=MISSING)

    def image(self, axes: Axes, times_XQ: np.ndarray) -> None:
        """Cells, the first row at the top."""
        axes.imshow(_log(times_XQ), cmap=self.cmap, norm=self.norm, aspect="auto", interpolation="nearest")

    def bar(self, figure: Figure, panels: Sequence[Axes], **place: Any) -> None:
        """Draws the scale itself beside some panels."""
        bar = figure.colorbar(ScalarMappable(self.norm, self.cmap), ax=list(panels), extend="both", **place)
        ticks = np.linspace(-self.limit, self.limit, 5)
        bar.set_ticks(ticks.tolist(), labels=[f"{2**tick:.2f}" for tick in ticks])
        bar.set_label("times even", color=GREY)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - it is a patch, not a callable

    def is_dark(self, times: float) -> bool:
        """Whether words on such a cell must be white."""
        return bool(abs(_log(np.array(times))) > 0.65 * self.limit)


def _log(times: np.ndarray) -> np.ndarray:
    """Log2; what gets nothing is at the end of the scale, what is not there stays so."""
    times = np.asarray(times, dtype=float)
    return np.log2(np.where(times > 0, times, np.where(np.isnan(times), np.nan, 1e-30)))


def percent_text(share: float) -> str:
    """A share in percent, without the sign."""
    return f"{100 * share:.{2 if share < 0.1 else 1}f}"


def table(
    axes: Axes, scale: Scale, share_XQ: np.ndarray, times_XQ: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Shares in percent on coloured cells."""
    scale.image(axes, times_XQ)
    for (x, q), share in np.ndenumerate(share_XQ):
        colour = "white" if scale.is_dark(float(times_XQ[x, q])) else "black"
        word = axes.text(q, x, percent_text(share), ha="center", va="center", fontsize=8, color=colour)
        word.set_in_layout(False)  # it is inside, and there are hundreds
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, labelsize=9)
    for x in range(1, len(rows)):
        axes.axhline(x - 0.5, color="white", linewidth=0.8)
    for q in range(1, len(columns)):
        axes.axvline(q - 0.5, color="white", linewidth=2)
    _bare(axes)


def positions(axes: Axes, scale: Scale, times_FS: np.ndarray, title: str) -> None:
    """A row for each sequence, the newest event at the right."""
    scale.image(axes, times_FS)
    position_axis(axes, times_FS.shape[1], title)


def position_axis(axes: Axes, num_positions: int, title: str) -> None:
    """-1 is the newest event."""
    places = sorted({0, num_positions - 1})
    axes.set_xticks(places, [f"\N{MINUS SIGN}{num_positions - place}" for place in places])
    # Numbers at both ends stay over their own panel.
    for label, end in zip(axes.get_xticklabels(), ("left", "right"), strict=False):
        label.set_horizontalalignment(end)
    axes.tick_params(axis="both", length=0)
    axes.set_title(title, fontsize=10.5, pad=6)
    _bare(axes)


def sequence_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names of sequences, and a line wherever another behaviour begins."""
    axes.set_yticks(range(len(names)), list(names), fontsize=8.5)


def behaviour_lines(axes: Axes, names: Sequence[str]) -> None:
    """A line wherever another behaviour begins."""
    behaviours = [name.partition(":")[0] for name in names]
    for place in range(1, len(names)):
        if behaviours[place] != behaviours[place - 1]:
            axes.axhline(place - 0.5, color=GREY, linewidth=0.7)


def coverage(axes: Axes, share_FS: np.ndarray) -> None:
    """How many of the examples have an event there."""
    cmap, most = matplotlib.colormaps["Greys"], float(share_FS.max())
    # By the root, or rare behaviours could not be told from those that nobody showed.
    norm = PowerNorm(0.5, vmin=0, vmax=most)
    axes.imshow(share_FS, cmap=cmap, norm=norm, aspect="auto", interpolation="nearest")
    position_axis(axes, share_FS.shape[1], f"examples with an event\n(white 0, black {most:.0%})")


def gate(axes: Axes, found: JSON) -> None:
    """The distribution of one kind of gate."""
    parts = np.array(found["histogram"]) / max(sum(found["histogram"]), 1)
    colour, quantiles = GATE_COLOURS[found["tokens"]], found["quantiles"]
    axes.stairs(parts, np.linspace(0, 1, len(parts) + 1), fill=True, color=colour, alpha=0.75)
    axes.set_yscale("function", functions=(np.sqrt, np.square))
    axes.set_ylim(0, max(parts.max() * 1.25, 1e-9))
    low, *_, high = quantiles.values()
    top = parts.max() * 1.12
    axes.plot([low, high], [top, top], color=GREY, linewidth=1.2)
    axes.plot([quantiles["0.25"], quantiles["0.75"]], [top, top], color=GREY, linewidth=4, solid_capstyle="butt")
    axes.plot([found["mean"]], [top], marker="o", color="black", markersize=5)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.spines["left"].set_visible(False)
    axes.set_title(
        f"block {found['block']}, {found['tokens']} tokens: mean {found['mean']:.2f}, std {found['std']:.2f} "
        f"({found['std_between_examples']:.3f} between examples)",
        fontsize=10,
        pad=5,
    )


def _bare(axes: Axes) -> None:
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
