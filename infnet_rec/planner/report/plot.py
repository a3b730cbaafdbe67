"""The picture of a plan: memory of every rank against what it has, a step by its parts, the largest tables."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from infnet_rec.console import format_bytes
from infnet_rec.planner.report.facts import PARTS, STEP_PARTS
from infnet_rec.planner.report.text import STEP_WORDS
from infnet_rec.plotting import DPI, GREY, HEIGHT_PX, WIDTH_PX, new_figure, styled, write_figure

GIB = 2**30
# Okabe and Ito's colours, as in the picture of a store; what is assumed and not counted is grey.
PART_COLOURS = {
    "weights": "#0072B2",
    "optimizer": "#56B4E9",
    "cache": "#CC79A7",
    "inputs": "#E69F00",
    "activations": "#009E73",
    "dense": "#000000",
    "reserve": "#BBBBBB",
}
STEP_COLOURS = dict(zip(STEP_PARTS, ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#000000"), strict=True))
SHARDING_COLOURS = {
    "table_wise": "#0072B2",
    "row_wise": "#D55E00",
    "column_wise": "#009E73",
    "table_row_wise": "#E69F00",
    "table_column_wise": "#56B4E9",
    "grid_shard": "#CC79A7",
    "data_parallel": "#777777",
}
CRITICAL = "#D55E00"
MAX_SEPARATE_BARS = 64
SHOWN_TABLES = 10
# Less than this part of the capacity would be a line along the bottom.
SMALL_USE = 0.3

JSON = dict[str, Any]


def draw_plan(result: JSON, path: Path) -> None:
    """Writes the picture, whole or not at all.

    Args:
        result: what `plan` gives.
        path: a PNG file.
    """
    with styled():
        write_figure(plan_figure(result), path)


def plan_figure(result: JSON) -> Figure:
    """All four panels."""
    cluster, batch, step = result["cluster"], result["batch"], result["step"]
    title = (
        f"{result['manifest']['name']} on {cluster['name']} {cluster['hardware']['name']}: "
        f"{result['model']['num_tables']} tables, {result['model']['num_rows']:,} rows of width "
        f"{result['model']['width']}\nbatch {batch['global_batch_size']:,}, {batch['local_batch_size']:,} a rank: "
        f"about {step['total_ms']:.3g} ms a step, {step['examples_per_s']:,.0f} examples/s (estimated)"
    )
    gaps = {"w_pad": 0.14, "h_pad": 0.16, "wspace": 0.03, "hspace": 0.05}
    figure = new_figure(WIDTH_PX / DPI, HEIGHT_PX / DPI, title, 14, **gaps)
    panels = figure.subplots(2, 2, width_ratios=(3, 2))
    memory(panels[0][0], result)
    step_parts(panels[0][1], result)
    rank_times(panels[1][0], result)
    tables_panel(panels[1][1], result)
    return figure


def memory(axes: Axes, result: JSON) -> None:
    """Stacked parts of every rank, and the line that they must stay below."""
    kind = "hbm" if result["ranks"][0]["hbm"] else "host"
    capacity = result["cluster"][f"{kind}_bytes_per_rank"] / GIB
    ranks = result["ranks"]
    bottom = np.zeros(len(ranks))
    for part in PARTS:
        values = np.array([rank[kind][part] for rank in ranks]) / GIB
        if not values.any():
            continue
        _bars(axes, values, bottom, PART_COLOURS[part], f"{part} {_span(values)}")
        bottom += values
    name = "HBM" if kind == "hbm" else "Host memory"
    most = float(bottom.max())
    if most > SMALL_USE * capacity:
        axes.set_ylim(0, capacity * 1.32)
        axes.axhline(capacity, color=CRITICAL, linestyle="--", linewidth=1.4)
        axes.text(len(ranks) - 0.5, capacity, f"{capacity:.1f} GiB ", color=CRITICAL, ha="right", va="bottom")
    else:
        axes.set_ylim(0, most * 1.45)
    fullest = min(ranks, key=lambda rank: rank[kind]["free"])
    _point_out(axes, fullest["rank"], float(bottom[fullest["rank"]]), len(ranks))
    axes.set_title(
        f"{name} of each rank: {fullest[kind]['free'] / GIB:.1f} of {capacity:.1f} GiB are free on the fullest"
    )
    axes.set_ylabel(f"GiB, of {capacity:.1f}")
    _rank_axis(axes, len(ranks))
    axes.legend(loc="upper left", ncols=4, handlelength=1, columnspacing=1.2)


def rank_times(axes: Axes, result: JSON) -> None:
    """What tables take of each rank's step; the slowest one is what all wait for."""
    ranks, critical = result["ranks"], result["step"]["critical_rank"]
    bottom = np.zeros(len(ranks))
    for label, colour, keys in (
        ("look-ups and updates", "#0072B2", ("forward_compute_ms", "backward_compute_ms", "prefetch_ms")),
        ("between ranks", "#E69F00", ("forward_comms_ms", "backward_comms_ms")),
    ):
        values = np.array([sum(rank["times"][key] for key in keys) for rank in ranks])
        _bars(axes, values, bottom, colour, f"{label} {_span(values)}")
        bottom += values
    _point_out(axes, critical, float(bottom[critical]), len(ranks))
    axes.set_ylim(0, 1.3 * max(bottom.max(), 1e-9))
    axes.set_title(
        f"Tables' part of a step: the slowest rank takes {result['step']['imbalance']:.2f} times the mean of all"
    )
    axes.set_ylabel("ms, estimated")
    _rank_axis(axes, len(ranks))
    axes.legend(loc="upper left", ncols=2, handlelength=1, columnspacing=1.2)


def step_parts(axes: Axes, result: JSON) -> None:
    """The critical rank's step."""
    step, sent = result["step"], result["sent_bytes_per_step"]
    names = list(STEP_PARTS)
    values = [step[name] for name in names]
    places = range(len(names))[::-1]
    axes.barh(list(places), values, 0.62, color=[STEP_COLOURS[name] for name in names])
    for place, value in zip(places, values, strict=True):
        share = value / step["total_ms"] if step["total_ms"] else 0.0
        axes.text(value, place, f"  {value:.3g} ms, {share:.0%}", va="center", color=GREY)
    words = {name: STEP_WORDS[name] for name in names}
    words["tower_ms"] += f"\n(held up by {step['tower_bound']})"
    axes.set_yticks(list(places), list(words.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.4 * max(*values, 1e-9))
    axes.set_xlabel(f"ms, estimated; ranks send one another {format_bytes(sent['total_bytes'])} a step")
    axes.set_title(f"A step of rank {step['critical_rank']}: {step['total_ms']:.3g} ms")
    axes.grid(visible=True, axis="x")


def tables_panel(axes: Axes, result: JSON) -> None:
    """The largest tables by bytes on all ranks together, coloured by how they are cut."""
    ranked = sorted(result["tables"], key=lambda t: -(t["hbm_bytes"] + t["host_bytes"]))
    shown = ranked[:SHOWN_TABLES]
    places = list(range(len(shown)))[::-1]
    values = [(t["hbm_bytes"] + t["host_bytes"]) / GIB for t in shown]
    axes.barh(places, values, 0.68, color=[SHARDING_COLOURS[t["sharding"]] for t in shown])
    for place, table, value in zip(places, shown, values, strict=True):
        parts = f"{table['num_shards']} parts" if table["num_shards"] > 1 else f"rank {table['ranks'][0]}"
        host = ", host memory" if table["kernel"].startswith("fused_uvm") else ""
        axes.text(
            value, place, f" {format_bytes(value * GIB)}, {table['sharding']}, {parts}{host}", va="center", color=GREY
        )
    axes.set_yticks(places, [t["table"] for t in shown])
    axes.tick_params(axis="y", length=0)
    axes.set(xscale="log", xlabel="GiB on all ranks together")
    # Words stand to the right of the bars; the scale ends where the bars do.
    low, high = min(values) / 3, max(values)
    axes.set_xlim(low, high * (high / low) ** 0.8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([10.0**k for k in range(-9, 9) if low <= 10.0**k <= high])
    kinds = {kind: sum(t["sharding"] == kind for t in ranked) for kind in SHARDING_COLOURS}
    counted = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    axes.set_title(f"Largest of {len(ranked)} tables ({counted})")
    axes.grid(visible=True, axis="x")


def _bars(axes: Axes, values: Any, bottom: Any, colour: str, label: str) -> None:
    """A layer; with many ranks without gaps, which would be all that one sees."""
    if len(values) <= MAX_SEPARATE_BARS:
        axes.bar(range(len(values)), values, 0.8, bottom=bottom, color=colour, label=label)
        return
    edges = np.arange(len(values) + 1) - 0.5
    axes.stairs(bottom + values, edges, baseline=bottom, fill=True, color=colour, label=label)


def _point_out(axes: Axes, rank: int, height: float, num_ranks: int) -> None:
    """A rank among many is a hair's breadth."""
    axes.plot([rank], [height], marker="v", color=CRITICAL, markersize=8, linestyle="none")
    left = rank < num_ranks / 2
    axes.annotate(
        f"rank {rank}",
        (rank, height),
        xytext=(8 if left else -8, 4),
        textcoords="offset points",
        color=CRITICAL,
        ha="left" if left else "right",
    )


def _rank_axis(axes: Axes, num_ranks: int) -> None:
    axes.set_xlabel("rank")
    axes.set_xlim(-0.7, num_ranks - 0.3)
    if num_ranks <= 16:
        axes.set_xticks(range(num_ranks))
    axes.grid(visible=True, axis="y")
    axes.grid(visible=False, axis="x")


def _span(values: Any) -> str:
    """One number, or the least and the most."""
    low, high = (float(f"{end:.2g}") for end in (values.min(), values.max()))
    return f"{high:g}" if low == high else f"{low:g} to {high:g}"
