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

from infnet_rec.faults import Fault

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
WIDTH_PX, HEIGHT_PX, DPI = 1600, 1000, 100
SHOWN_TABLES = 14
MAX_TICKS = 6
# Okabe and Ito's colours, which colour-blind people tell apart; the yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
SPLIT_COLOURS = {"train": "#0072B2", "valid": "#E69F00", "test": "#009E73"}
GREY, PALE = "#555555", "#DDDDDD"
STYLE = {
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


def check_destination(path: Path) -> None:
    """Refuses a file that the picture cannot be written to; an older picture may give way.

    Raises:
        Fault: no .png, no such folder, or something that is not a PNG file stands there.
    """
    if path.suffix != ".png":
        raise Fault(f"--plot {path}: the picture is a PNG file; end its name with .png")
    if not path.parent.is_dir():
        raise Fault(f"--plot {path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return
    if not path.is_file():
        raise Fault(f"--plot {path}: is not a file; name another")
    with path.open("rb") as file:
        if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            raise Fault(f"--plot {path}: exists and is not a PNG file, so it is left alone; name another")


def draw(report: JSON, path: Path) -> None:
    """Writes the picture, whole or not at all.

    Args:
        report: what `store_stats` gives.
        path: a PNG file.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = figure_of(report)
        try:
            figure.savefig(temporary, format="png", dpi=DPI)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def figure_of(report: JSON) -> Figure:
    """All six panels."""
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.14, wspace=0.03, hspace=0.04)
    figure.suptitle(
        f"{report['name']}: {report['num_examples']:,} examples of {report['num_users']:,} users "
        f"on {report['num_items']:,} items",
        fontsize=15,
        x=0.012,
        ha="left",
    )
    panels: tuple[Callable[[Axes, JSON], None], ...] = (_examples, _users, _items, _histories, _label_rates, _tables)
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        axes.grid(visible=True)
        panel(axes, report)
    return figure


def _examples(axes: Axes, report: JSON) -> None:
    periods = report["periods"]
    bottom = [0] * len(periods["starts"])
    for split, facts in periods["splits"].items():
        top = [b + n for b, n in zip(bottom, facts["num_examples"], strict=True)]
        label = f"{split} {report['splits'][split]['num_examples'] / report['num_examples']:.0%}"
        axes.stairs(top, baseline=bottom, fill=True, color=SPLIT_COLOURS[split], label=label)
        bottom = top
    _period_axis(axes, periods)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1.18 * max(bottom))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.legend(loc="upper left", ncols=3, handlelength=1, columnspacing=1.2)
    each = "day" if periods["unit"] == "day" else f"{periods['length']:,} rows of the log"
    axes.set_title(f"Examples per {each}")


def _label_rates(axes: Axes, report: JSON) -> None:
    periods, tasks = report["periods"], list(report["splits"]["train"]["label_rates"])
    splits = list(periods["splits"].values())
    num_examples = [sum(numbers) for numbers in zip(*(s["num_examples"] for s in splits), strict=True)]
    overall = {}
    for k, task in enumerate(tasks):
        positives = [sum(numbers) for numbers in zip(*(s["positives"][task] for s in splits), strict=True)]
        overall[task] = sum(positives) / report["num_examples"]
        rates = [p / n if p else float("nan") for p, n in zip(positives, num_examples, strict=True)]
        places = [place + 0.5 for place in range(len(rates))]
        axes.plot(places, rates, color=_colour(k), linestyle=_style(k), label=f"{task} {overall[task]:.3g}")
        if len(rates) <= 60:
            axes.plot(places, rates, ".", color=_colour(k))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3)
    _period_axis(axes, periods)
    _split_spans(axes, periods)
    axes.legend(loc="upper left", ncols=2 if len(tasks) < 7 else 3)
    each = "per day" if periods["unit"] == "day" else "along the log"
    axes.set_title(f"Label rate {each} and task" if each == "per day" else f"Label rate {each}, by task")
    axes.set_ylabel("positive share of the examples")


def _users(axes: Axes, report: JSON) -> None:
    facts = report["examples_per_user"]
    axes.plot(*zip(*facts["curve_at_least"], strict=True), color=COLOURS[0])
    axes.set(xscale="log", yscale="log", xlabel="n", ylabel="share of users with at least n examples")
    _plain_ticks(axes)
    for key, share in (("p50", 0.5), ("p90", 0.1), ("p99", 0.01)):
        _mark(axes, facts[key], share, f"{key[1:]} % have\n{facts[key]:,} or fewer")
    axes.set_title(f"Examples per user: {facts['mean']:,.1f} on average, at most {facts['max']:,}")


def _items(axes: Axes, report: JSON) -> None:
    facts = report["examples_per_item"]
    axes.plot(*zip(*facts["curve_by_rank"], strict=True), color=COLOURS[1])
    axes.set(xscale="log", yscale="log", xlabel="rank of the item", ylabel="examples of the item")
    _plain_ticks(axes)
    title = f"Item popularity: the top 1 % hold {facts['top_1_percent_share']:.0%} of the examples"
    axes.set_title(title)


def _histories(axes: Axes, report: JSON) -> None:
    histories = report["histories"]
    axes.set_title("Events before a training example")
    if not histories:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no behaviours", ha="center", transform=axes.transAxes, color=GREY)
        return
    ranked = sorted(histories.items(), key=lambda pair: -pair[1]["train"]["mean"])
    longest = 1
    for k, (name, facts) in enumerate(ranked):
        points = [point for point in facts["train"]["curve_at_least"] if point[0] > 0] or [(1, 0.0)]
        longest = max(longest, points[-1][0])
        label = f"{name}: mean {facts['train']['mean']:.3g}"
        axes.plot(*zip(*points, strict=True), color=_colour(k), linestyle=_style(k), label=label)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="n", ylabel="share of examples with at least n earlier events")
    axes.set_xlim(1, max(10, longest))
    _plain_ticks(axes, y=False)
    axes.legend(loc="upper right")


def _tables(axes: Axes, report: JSON) -> None:
    tables = report["tables"]
    shown = tables[:SHOWN_TABLES][::-1]
    for place, table in enumerate(shown):
        in_sequences = table["looked_up_by_sequences"]
        axes.barh(place, table["num_rows"], color=SPLIT_COLOURS["test" if in_sequences else "train"], height=0.72)
        axes.annotate(
            f"{table['num_rows']:,}",
            (table["num_rows"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=GREY,
        )
    axes.set_yticks(range(len(shown)), [_cut(table["table"]) for table in shown])
    axes.set_xscale("log")
    axes.set_xlim(1, tables[0]["num_rows"] ** 1.28)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    for split, label in (("test", "looked up by sequences too"), ("train", "by features only")):
        axes.barh(0, 0, color=SPLIT_COLOURS[split], label=label)
    axes.legend(loc="lower right")
    which = f"the {len(shown)} largest of {len(tables)}" if len(tables) > len(shown) else f"all {len(tables)}"
    axes.set_title(f"Table rows, {which}: {report['memory']['num_rows']:,} in all")


def _period_axis(axes: Axes, periods: JSON) -> None:
    """Ticks at the beginnings of periods, which are one wide each."""
    starts = periods["starts"]
    step = -(-len(starts) // MAX_TICKS)
    places = list(range(0, len(starts), step))
    if periods["unit"] == "day":
        labels = [str(starts[place]) for place in places]
        if len({label[:4] for label in labels}) == 1:
            labels = [label[5:] for label in labels]
            axes.set_xlabel(f"day of {starts[0][:4]}, UTC{periods['utc_offset_hours']:+g} h")
        else:
            axes.set_xlabel(f"day, UTC{periods['utc_offset_hours']:+g} h")
    else:
        labels = [_short(starts[place]) for place in places]
        axes.set_xlabel("row of the log (it knows no time)")
    axes.set_xticks([place + (0.5 if periods["unit"] == "day" else 0) for place in places], labels)
    axes.set_xlim(0, len(starts))


def _split_spans(axes: Axes, periods: JSON) -> None:
    """The splits as coloured spans behind the lines."""
    for split, facts in periods["splits"].items():
        filled = [place for place, number in enumerate(facts["num_examples"]) if number]
        axes.axvspan(filled[0], filled[-1] + 1, color=SPLIT_COLOURS[split], alpha=0.1, linewidth=0)
        axes.annotate(
            split,
            ((filled[0] + filled[-1] + 1) / 2, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=GREY,
        )


def _mark(axes: Axes, x: float, y: float, text: str) -> None:
    axes.plot([x], [y], "o", color=COLOURS[0], markersize=5)
    axes.annotate(text, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9, color=GREY)


def _plain_ticks(axes: Axes, *, y: bool = True) -> None:
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    if y:
        axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """1,200,000 as 1.2M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:g}"


def _cut(name: str, length: int = 22) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _style(k: int) -> str:
    return STYLES[k // len(COLOURS) % len(STYLES)]
