"""The picture of a store: six panels, each one of the distributions that `data stats` reports."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from infnet_rec.plotting import COLOURS, DPI, GREY, HEIGHT_PX, WIDTH_PX, new_figure, styled, write_figure

SHOWN_TABLES = 14
MAX_TICKS = 6
MAX_DATE_TICKS = 4  # with the year
MAX_SEPARATE_BARS = 60  # beyond that many periods the gaps between bars would be all that one sees
TITLE_CHARACTERS = 46
LEGEND_ROW = 0.075  # of a panel's height
STYLES = ("-", "--", ":", "-.")
SPLIT_COLOURS = {"train": "#0072B2", "valid": "#E69F00", "test": "#009E73"}
SEQUENCE_COLOUR, FEATURE_COLOUR = "#CC79A7", "#56B4E9"

JSON = dict[str, Any]


def draw_stats(report: JSON, path: Path) -> None:
    """Writes the picture, whole or not at all.

    Args:
        report: what `store_stats` gives.
        path: a PNG file.
    """
    with styled():
        write_figure(stats_figure(report), path)


def stats_figure(report: JSON) -> Figure:
    """Draws all six panels on one figure."""
    title = (
        f"{report['name']}: {report['num_examples']:,} examples of {report['num_users']:,} users "
        f"on {report['num_items']:,} items"
    )
    gaps = {"w_pad": 0.12, "h_pad": 0.14, "wspace": 0.03, "hspace": 0.04}
    figure = new_figure(WIDTH_PX / DPI, HEIGHT_PX / DPI, title, **gaps)
    panels: tuple[Callable[[Axes, JSON], None], ...] = (
        examples,
        users,
        items,
        histories_panel,
        label_rates,
        tables_panel,
    )
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        axes.grid(visible=True)
        panel(axes, report)
    return figure


def _title(axes: Axes, text: str) -> None:
    axes.set_title(textwrap.fill(text, TITLE_CHARACTERS))


def examples(axes: Axes, report: JSON) -> None:
    periods = report["periods"]
    bottom = [0] * len(periods["starts"])
    for split, facts in periods["splits"].items():
        numbers = facts["num_examples"]
        label = f"{split} {_percent(report['splits'][split]['num_examples'] / report['num_examples'])}"
        top = [b + n for b, n in zip(bottom, numbers, strict=True)]
        if len(top) <= MAX_SEPARATE_BARS:
            places = [place + 0.5 for place in range(len(top))]
            axes.bar(places, numbers, 0.86, bottom=bottom, color=SPLIT_COLOURS[split], label=label)
        else:
            axes.stairs(top, baseline=bottom, fill=True, color=SPLIT_COLOURS[split], label=label)
        bottom = top
    _period_axis(axes, periods)
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0, 1.15 * max(bottom))
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.legend(loc="upper left", ncols=3, handlelength=1, columnspacing=1.2)
    each = "day" if periods["unit"] == "day" else f"{periods['length']:,} rows of the log"
    _title(axes, f"Examples per {each}: median {sorted(bottom)[len(bottom) // 2]:,}, most {max(bottom):,}")


def users(axes: Axes, report: JSON) -> None:
    facts = report["examples_per_user"]
    points = facts["curve_at_least"]
    axes.plot(*zip(*points, strict=True), color=COLOURS[0])
    _log_axes(axes, xlabel="n", ylabel="share of users with at least n examples")
    marks = {facts[key]: f"{key[1:]} % have\n{facts[key]:,} or fewer" for key in ("p99", "p90", "p50")}
    for value, text in marks.items():
        share = next(share for at, share in points if at >= value)
        _mark(axes, value, share, text, COLOURS[0])
    half = f"Half of the users have {facts['p50']:,} or fewer examples, "
    most = f"99\u00a0% have {facts['p99']:,} or fewer"
    _title(axes, half + most if facts["p50"] < facts["p99"] else f"Examples per user: {most}")


def items(axes: Axes, report: JSON) -> None:
    facts = report["examples_per_item"]
    points = facts["curve_by_rank"]
    axes.plot(*zip(*points, strict=True), color=COLOURS[1])
    _log_axes(axes, xlabel="rank of the item", ylabel="examples of the item")
    marks = {}
    for percent, key in ((10, "top_10_percent_share"), (1, "top_1_percent_share")):
        at = next(point for point in points if point[0] >= -(-percent * facts["num"] // 100))
        marks[tuple(at)] = f"top {percent} %:\n{_percent(facts[key])} of the examples"
    for (rank, number), text in marks.items():
        _mark(axes, rank, number, text, COLOURS[1])
    _title(axes, f"The top 1 % of items hold {_percent(facts['top_1_percent_share'])} of examples")


def histories_panel(axes: Axes, report: JSON) -> None:
    histories = report["histories"]
    if not histories:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no behaviours, so no histories", ha="center", transform=axes.transAxes, color=GREY)
        return
    ranked = sorted(histories.items(), key=lambda pair: -pair[1]["train"]["mean"])
    longest = 10
    for k, (name, facts) in enumerate(ranked):
        points = [point for point in facts["train"]["curve_at_least"] if point[0] > 0] or [(1, 0.0)]
        longest = max(longest, points[-1][0])
        label = f"{name}: mean {_mean(facts)}"
        axes.plot(*zip(*points, strict=True), color=_colour(k), linestyle=_style(k), label=label)
    axes.set(xscale="log", xlabel="n", ylabel="share of training examples with at least n")
    axes.set_xlim(1, longest)
    axes.set_ylim(0, 1.02 / (1 - LEGEND_ROW * -(-len(ranked) // 2)))
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.legend(loc="upper left", ncols=2)
    name, facts = ranked[0]
    _title(axes, f"The longest history: {name}, {_mean(facts)} events before a training example")


def label_rates(axes: Axes, report: JSON) -> None:
    periods, splits = report["periods"], report["splits"]
    tasks, parts = list(splits["train"]["label_rates"]), list(periods["splits"].values())
    num_examples = [sum(numbers) for numbers in zip(*(part["num_examples"] for part in parts), strict=True)]
    places = [place + 0.5 for place in range(len(num_examples))]
    marker = "." if len(places) <= MAX_SEPARATE_BARS else ""
    for k, task in enumerate(tasks):
        positives = [sum(numbers) for numbers in zip(*(part["positives"][task] for part in parts), strict=True)]
        rates = [p / n if p else float("nan") for p, n in zip(positives, num_examples, strict=True)]
        train, test = (splits[split]["label_rates"][task] for split in ("train", "test"))
        label = f"{task}: train {train:.3g}, test {test:.3g}"
        axes.plot(places, rates, color=_colour(k), linestyle=_style(k), marker=marker, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** 0.12, high * (high / low) ** (1.3 * LEGEND_ROW * len(tasks)))
    _period_axis(axes, periods)
    _split_spans(axes, periods)
    axes.legend(loc="upper left")
    axes.set_ylabel("share of positive examples")
    _title(axes, "Label rate " + ("per day" if periods["unit"] == "day" else "along the log") + ", by task")


def tables_panel(axes: Axes, report: JSON) -> None:
    tables = report["tables"]
    shown = tables[:SHOWN_TABLES][::-1]
    for place, table in enumerate(shown):
        colour = SEQUENCE_COLOUR if table["looked_up_by_sequences"] else FEATURE_COLOUR
        axes.barh(place, table["num_rows"], color=colour, height=0.72)
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
    for colour, label in ((SEQUENCE_COLOUR, "read by sequences"), (FEATURE_COLOUR, "by features only")):
        axes.barh(0, 0, color=colour, label=label)
    axes.set_ylim(-0.6 - 0.09 * len(shown), len(shown) - 0.4)
    axes.legend(loc="lower left", ncols=2)
    total, largest = report["memory"]["num_rows"], tables[0]
    axes.set_xlabel(f"rows (the {len(shown)} largest of {len(tables)} tables)" if len(tables) > len(shown) else "rows")
    _title(axes, f"Tables: {largest['table']} has {_percent(largest['num_rows'] / total)} of {total:,} rows")


def _period_axis(axes: Axes, periods: JSON) -> None:
    """Ticks at the beginnings of periods, which are one wide each."""
    starts, by_day = periods["starts"], periods["unit"] == "day"
    clock = f"UTC{periods['utc_offset_hours']:+g} h" if by_day else ""
    within_a_year = by_day and starts[0][:4] == starts[-1][:4]
    step = -(-len(starts) // (MAX_TICKS if within_a_year or not by_day else MAX_DATE_TICKS))
    places = list(range(0, len(starts), step))
    if within_a_year:
        labels = [starts[place][5:] for place in places]
        axes.set_xlabel(f"day of {starts[0][:4]}, {clock}")
    elif by_day:
        labels = [starts[place] for place in places]
        axes.set_xlabel(f"day, {clock}")
    else:
        labels = [_short(starts[place]) for place in places]
        axes.set_xlabel("row of the log (it knows no time)")
    axes.set_xticks([place + (0.5 if by_day else 0) for place in places], labels)
    axes.set_xlim(0, len(starts))


def _split_spans(axes: Axes, periods: JSON) -> None:
    """The splits as coloured spans behind the lines; a period of two splits is the one's that has more of it."""
    splits = list(periods["splits"])
    numbers = zip(*(periods["splits"][split]["num_examples"] for split in splits), strict=True)
    owners = [splits[max(range(len(splits)), key=lambda k, row=row: row[k])] for row in numbers]
    for split in splits:
        owned = [place for place, owner in enumerate(owners) if owner == split]
        if not owned:
            continue
        start, stop = owned[0], owned[-1] + 1
        axes.axvspan(start, stop, color=SPLIT_COLOURS[split], alpha=0.1, linewidth=0)
        at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
        axes.annotate(split, ((start + stop) / 2, 0), xytext=(0, 4), fontsize=9, color=GREY, **at)


def _mark(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """A dot on a curve that falls ever more steeply, with its text where the room is."""
    axes.plot([x], [y], "o", color=colour, markersize=5)
    across = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0]
    left = across > 0.4
    axes.annotate(
        text,
        (x, y),
        xytext=(-7, -5) if left else (7, 5),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top" if left else "bottom",
        fontsize=9,
        color=GREY,
    )


def _log_axes(axes: Axes, **labels: str) -> None:
    """Both axes in the log, with room for a text above the curve's beginning and below its end."""
    axes.set(xscale="log", yscale="log", **labels)
    low, high = axes.get_ylim()
    room = (high / low) ** 0.1
    axes.set_ylim(low / room, high * room)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: _short(value))
        axis.set_minor_formatter(lambda value, _: "")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _mean(facts: dict[str, Any]) -> str:
    """The mean length of a history, as a person would say it."""
    mean = facts["train"]["mean"]
    return f"{mean:,.0f}" if mean >= 10 else f"{mean:.1f}"


def _short(value: float) -> str:
    """A number with a letter for its thousands: 1,200,000 as 1.2M."""
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
