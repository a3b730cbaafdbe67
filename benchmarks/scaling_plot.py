"""The picture of `benchmarks/scaling.py`.

What was measured has filled points and full bars; what was simulated has lines and hatched bars on a tinted ground, and
its assumptions beside it.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.scaling_page import WORDS, busy
from benchmarks.scaling_simulated import BASE_GPUS, KINDS, assumptions, efficiency
from infnet_rec.benchmark.trace import COMMUNICATION
from infnet_rec.planner.report.plot import STEP_COLOURS
from infnet_rec.plotting import DPI, GREY, HEIGHT_PX, PALE, WIDTH_PX, new_figure, styled, write_figure

COLOURS = {"weak": "#0072B2", "strong": "#D55E00"}
SIMULATED_GROUND = "#FFF8E5"
PART_COLOURS = {**STEP_COLOURS, "latency_ms": "#999999", "waits_ms": "#CC79A7"}
# Parts of measured steps, put together.
MEASURED = {
    "waiting for data": ("#CC79A7", ("data",)),
    "tables": ("#0072B2", ("lookup", "table_update")),
    "waiting for ranks": ("#E69F00", ()),
    "packing": ("#56B4E9", ()),
    "tower and loss": ("#009E73", ("tower_forward", "tower_backward")),
    "optimizer": ("#000000", ("optimizer",)),
    "the rest": ("#BBBBBB", ("rest",)),
}
TEXT_WIDTH = 66
# Parts below this share of the highest bar would be a hair, and a line in the legend.
UNSEEN = 0.01

JSON = dict[str, Any]


def draw(results: JSON, path: Path) -> None:
    """Writes the picture, whole or not at all."""
    with styled():
        write_figure(figure_of(results), path)


def figure_of(results: JSON) -> Figure:
    """Six panels; one of them is words."""
    title = "Scaling: measured on this machine, SIMULATED for 8 to 1,024 GPUs"
    gaps = {"w_pad": 0.12, "h_pad": 0.14, "wspace": 0.03, "hspace": 0.05}
    figure = new_figure(WIDTH_PX / DPI, HEIGHT_PX / DPI, title, **gaps)
    top, bottom = figure.subplots(2, 3, width_ratios=(1, 1, 1))
    simulated, measured = results.get("simulated"), results.get("measured")
    efficiencies(top[1], simulated, measured)
    if simulated:
        throughput(top[0], simulated)
        words(top[2], simulated)
        highest = max(row["step_ms"] for row in simulated["rows"] if "step_ms" in row)
        for axes, kind in zip(bottom, KINDS, strict=False):
            steps(axes, simulated, kind, highest)
    if measured:
        measured_steps(bottom[2], measured)
    for axes, there in (
        (top[0], simulated),
        (top[2], simulated),
        *((a, simulated) for a in bottom[:2]),
        (bottom[2], measured),
    ):
        if not there:
            axes.set_axis_off()
    return figure


def throughput(axes: Axes, simulated: JSON) -> None:
    """Both curves, with latency and without, and the line of a node's speed times nodes."""
    for kind in KINDS:
        rows = rows_of(simulated, kind)
        gpus = [row["gpus"] for row in rows]
        base = rows[0]["examples_per_s"] / BASE_GPUS
        axes.plot(gpus, [base * n for n in gpus], color=COLOURS[kind], linewidth=0.9, linestyle=":")
        for key, style in (("planned_examples_per_s", "--"), ("examples_per_s", "-")):
            axes.plot(
                gpus, [row[key] for row in rows], color=COLOURS[kind], linestyle=style, marker="o", **hollow(style)
            )
        last = rows[-1]
        axes.annotate(
            f"{last['examples_per_s'] / 1e6:.3g} M/s",
            (last["gpus"], last["examples_per_s"]),
            xytext=(6, -36 if kind == "weak" else -18),
            textcoords="offset points",
            color=COLOURS[kind],
            ha="right",
        )
    axes.plot([], [], color=GREY, linestyle="-", marker="o", **hollow("-"), label="with assumed latency")
    axes.plot([], [], color=GREY, linestyle="--", label="planner alone, no latency")
    axes.plot([], [], color=GREY, linestyle=":", linewidth=0.9, label="one node's speed, times nodes")
    for kind in KINDS:
        axes.plot([], [], color=COLOURS[kind], label=f"{kind}: {batch_of(simulated, kind)}")
    axes.set(xscale="log", yscale="log", ylabel="million examples/s, simulated")
    axes.set_yticks([1e6, 3e6, 1e7, 3e7, 1e8], ["1", "3", "10", "30", "100"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(f"SIMULATED throughput, {Path(simulated['config']).stem}")
    gpu_axis(axes, [row["gpus"] for row in rows_of(simulated, "weak")])
    ground(axes)
    axes.legend(loc="upper left")


def batch_of(simulated: JSON, kind: str) -> str:
    """What stays the same, in words."""
    first = rows_of(simulated, kind)[0]
    return (
        f"{first['local_batch_size']:,} examples a GPU"
        if kind == "weak"
        else f"batches of {first['global_batch_size']:,}"
    )


def efficiencies(axes: Axes, simulated: JSON | None, measured: JSON | None) -> None:
    """Points of this machine, curves of the other."""
    if simulated:
        axes.axvspan(BASE_GPUS / 1.42, 1024 * 1.4, color=SIMULATED_GROUND, zorder=0)
        for kind in KINDS:
            rows = rows_of(simulated, kind)
            for key, style in (("planned_examples_per_s", "--"), ("examples_per_s", "-")):
                values = [efficiency(row[key], row["gpus"], rows[0][key], BASE_GPUS) for row in rows]
                label = f"{kind}, SIMULATED" if style == "-" else None
                gpus = [row["gpus"] for row in rows]
                axes.plot(gpus, values, color=COLOURS[kind], linestyle=style, marker="o", label=label, **hollow(style))
    for row in (measured or {"scaling": ()})["scaling"]:
        # Beside each other where they would lie on each other.
        place = row["num_ranks"] * (0.95 if row["kind"] == "weak" else 1.05)
        below, above = row["efficiency"] - row["efficiency_low"], row["efficiency_high"] - row["efficiency"]
        axes.errorbar(
            place,
            row["efficiency"],
            yerr=[[below], [above]],
            color=COLOURS[row["kind"]],
            marker="s",
            markersize=7,
            capsize=4,
            linestyle="none",
            label=f"{row['kind']}, MEASURED (CPU ranks)" if row["num_ranks"] > 1 else None,
        )
    axes.axhline(1.0, color=GREY, linewidth=0.9, linestyle=":")
    axes.set(xscale="log", ylabel="efficiency", ylim=(0, 1.25))
    if simulated:
        axes.annotate(
            f"the second node: embeddings at\n{simulated['hardware']['inter_node_gb_per_s']:g} GB/s, "
            f"not {simulated['hardware']['intra_node_gb_per_s']:g}",
            (2 * BASE_GPUS, 0.55),
            xytext=(12, 44),
            textcoords="offset points",
            color=GREY,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8},
        )
    axes.set_title("Efficiency, to 1 rank or SIMULATED node of 8")
    gpu_axis(axes, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    axes.set_xlabel("ranks, one a CPU core (measured) or GPU (simulated)")
    axes.legend(loc="upper right", ncols=2, columnspacing=1.2)


def steps(axes: Axes, simulated: JSON, kind: str, highest_ms: float) -> None:
    """The slowest rank's step, stacked."""
    rows = rows_of(simulated, kind)
    bottom = np.zeros(len(rows))
    for part, title in WORDS.items():
        values = np.array([row["parts"][part] for row in rows])
        if values.max() < UNSEEN * highest_ms:
            continue
        bar = axes.bar(range(len(rows)), values, 0.74, bottom=bottom, color=PART_COLOURS[part], label=title)
        for patch in bar:
            patch.set(hatch="//", edgecolor="white", linewidth=0)
        bottom += values
    for place, (height, row) in enumerate(zip(bottom, rows, strict=True)):
        axes.text(place, height, f"{row['step_ms']:.3g}", ha="center", va="bottom", color=GREY, fontsize=9)
    axes.set_xticks(range(len(rows)), [f"{row['gpus']:,}" for row in rows])
    axes.set(ylim=(0, 1.5 * highest_ms), ylabel="ms a step, simulated", xlabel="GPUs")
    axes.set_title(f"SIMULATED step, {kind}: {batch_of(simulated, kind)}")
    axes.grid(visible=True, axis="y")
    ground(axes)
    axes.legend(loc="upper left", handlelength=1.4)


def measured_steps(axes: Axes, measured: JSON) -> None:
    """Where the steps of this machine go."""
    rows = [row for row in measured["scaling"] if row["kind"] == "weak" or row["num_ranks"] > 1]
    bottom = np.zeros(len(rows))
    for title, (colour, parts) in MEASURED.items():
        values = np.array([together(row["parts"], title, parts) for row in rows])
        axes.bar(range(len(rows)), values, 0.6, bottom=bottom, color=colour, label=title)
        bottom += values
    for place, row in enumerate(rows):
        text = f"{row['step_ms']:,.0f} ms\n{row['examples_per_s']:,.0f} examples/s"
        axes.text(place, bottom[place], text, ha="center", va="bottom", color=GREY, fontsize=9)
    heads = [
        f"{row['num_ranks']} rank{'s' * (row['num_ranks'] > 1)}"
        + (f", {row['kind']}" if row["num_ranks"] > 1 else "")
        + f"\nbatch {row['global_batch_size']:,}"
        for row in rows
    ]
    axes.set_xticks(range(len(rows)), heads)
    axes.set(ylim=(0, 1.75 * bottom.max()), ylabel="ms a step, measured")
    load = max(row["load_before"][1] for row in rows)
    machine = measured["machine"]
    axes.set_title(
        f"MEASURED step, {Path(measured['asked']['config']).stem}, {machine['cores']} cores of {machine['name']}"
    )
    note = "\nBUSY with other work: to be measured again" if busy(measured["scaling"], machine["cores"]) else ""
    axes.set_xlabel(f"{machine['date']}; load before runs up to {load:.1f}{note}")
    axes.grid(visible=True, axis="y")
    axes.legend(loc="upper left", ncols=2, handlelength=1.2)


def together(parts: Mapping[str, JSON], title: str, names: Sequence[str]) -> float:
    """Milliseconds; of communication, what waits apart from what works."""
    if names:
        return sum(parts[name]["ms"] for name in names)
    waits = sum(parts[name]["exposed_ms"] for name in COMMUNICATION)
    return waits if title == "waiting for ranks" else sum(parts[name]["ms"] for name in COMMUNICATION) - waits


def words(axes: Axes, simulated: JSON) -> None:
    """What the curves rest on."""
    axes.set_axis_off()
    axes.set_title("The SIMULATED curves rest on these assumptions")
    text = "\n".join(
        textwrap.fill(line, TEXT_WIDTH, initial_indent="- ", subsequent_indent="  ") for line in assumptions(simulated)
    )
    axes.text(-0.02, 1, text, transform=axes.transAxes, va="top", fontsize=8.6, color="black", linespacing=1.25)


def rows_of(simulated: JSON, kind: str) -> list[JSON]:
    """From one node on."""
    return [row for row in simulated["rows"] if row["kind"] == kind and row["gpus"] >= BASE_GPUS and "fault" not in row]


def hollow(style: str) -> dict[str, Any]:
    """Simulated points have no filling; curves without latency no points."""
    return {"markerfacecolor": "white", "markersize": 5 if style == "-" else 0}


def ground(axes: Axes) -> None:
    """Of what nobody measured."""
    axes.set_facecolor(SIMULATED_GROUND)


def gpu_axis(axes: Axes, gpus: Sequence[int]) -> None:
    """Powers of two by their names."""
    axes.set_xticks(list(gpus), [f"{n:,}" for n in gpus])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(gpus[0] / 1.3, gpus[-1] * 1.3)
    axes.set_xlabel("GPUs")
    axes.grid(visible=True, color=PALE)
