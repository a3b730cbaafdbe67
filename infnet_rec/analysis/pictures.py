"""Attention's pictures: fields, parts of histories, positions, gates, and single examples.

Shapes: M fields, Q queries, F sequences, S positions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infnet_rec.analysis import panels
from infnet_rec.plotting import new_figure, styled, write_figure

MAX_FIELDS, ROWS_IN_COLUMN = 135, 45
MAPS_IN_ROW = 6
EXAMPLE_FIELDS = 24
# A mean over fewer examples says more of them than of the model.
LEAST_EXAMPLES = 30
ROW_IN, CELL_IN, LABEL_IN, HEAD_IN, LETTER_IN = 0.2, 0.62, 1.9, 1.3, 0.075

JSON = dict[str, Any]


def draw_attention(result: JSON, folder: Path, names: Sequence[str]) -> None:
    """Writes the pictures of these names into a folder that nobody looks at before it is complete."""
    examples = {f"example-{example['row']}.png": example for example in result["examples"]}
    figures: dict[str, Callable[[JSON], Figure]] = {
        "fields.png": fields,
        "sequences.png": sequences,
        "behaviours.png": behaviours,
        "gates.png": gates,
    }
    with styled():
        for name in names:
            figure = example_picture(result, examples[name]) if name in examples else figures[name](result)
            write_figure(figure, folder / name, names_software=False)


def _figure(width_in: float, height_in: float, title: str) -> Figure:
    gaps = {"w_pad": 0.06, "h_pad": 0.06, "wspace": 0.02, "hspace": 0.02}
    return new_figure(width_in, height_in, title, 12.5, **gaps)


def _cell_in(queries: Sequence[str]) -> float:
    """Wide enough for the name above it."""
    return max(CELL_IN, LETTER_IN * max(map(len, queries)) + 0.14)


def _of(result: JSON) -> str:
    """What the numbers are means over."""
    return f"{result['num_examples']:,} of {result['num_examples_of_split']:,} examples of {result['split']}"


def _shares(parts: Sequence[JSON], queries: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Share and times even of fields or parts of the history, [X, Q] each."""
    found = [[part["attention"][query] for query in queries] for part in parts]
    share, times = ([[a[key] for a in row] for row in found] for key in ("share", "times_even"))
    return np.array(share, dtype=float), np.array(times, dtype=float)


def fields(result: JSON) -> Figure:
    """All fields, or the most attended, by what they get of the task tokens on average."""
    queries, tasks = result["queries"], result["tasks"]
    ranked = sorted(result["fields"], key=lambda f: -sum(f["attention"][task]["share"] for task in tasks))
    shown = ranked[:MAX_FIELDS]
    share_XQ, times_XQ = _shares(shown, queries)
    scale = panels.Scale(times_XQ)
    num_columns = -(-len(shown) // ROWS_IN_COLUMN)
    num_rows = -(-len(shown) // num_columns)
    width_in = num_columns * (LABEL_IN + _cell_in(queries) * len(queries)) + 0.9
    left_out = f"; {len(ranked) - len(shown)} more in attention.csv" if len(shown) < len(ranked) else ""
    figure = _figure(
        width_in,
        HEAD_IN + ROW_IN * num_rows,
        f"Attention to {len(ranked)} categorical fields in percent, even: {100 / len(ranked):.2f}{left_out}\n"
        f"{_of(result)}",
    )
    all_axes = figure.subplots(1, num_columns, squeeze=False)[0]
    for column, axes in enumerate(all_axes):
        part = slice(column * num_rows, (column + 1) * num_rows)
        names = [field["name"] for field in shown[part]]
        panels.table(axes, scale, share_XQ[part], times_XQ[part], names, queries)
        # Columns of one height, the last one perhaps with room below.
        axes.set_ylim(num_rows - 0.5, -0.5)
        for label, field in zip(axes.get_yticklabels(), shown[part], strict=True):
            label.set_color(panels.SIDE_COLOURS[field["side"]])
    scale.bar(figure, all_axes, aspect=50, fraction=0.03, pad=0.01)
    _side_legend(figure, {field["side"] for field in shown})
    return figure


def _side_legend(figure: Figure, sides: set[str]) -> None:
    at_in = figure.get_figwidth() - 0.1
    for side in reversed([side for side in panels.SIDE_COLOURS if side in sides]):
        place = (at_in / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight())
        figure.text(*place, side, color=panels.SIDE_COLOURS[side], ha="right", va="top", size=10)
        at_in -= 0.1 * len(side) + 0.1


def behaviours(result: JSON) -> Figure:
    """Shares of whole behaviours, and of attributes over all behaviours."""
    queries = result["queries"]
    ways = [("behaviours", result["behaviours"]), ("attributes", result["attributes"])]
    found = [_shares(parts, queries) for _, parts in ways]
    scale = panels.Scale(*(times for _, times in found))
    num_rows = [len(parts) for _, parts in ways]
    figure = _figure(
        LABEL_IN + 1.2 + (_cell_in(queries) + 0.2) * len(queries) + 0.9,
        HEAD_IN + 0.9 + 0.3 * sum(num_rows),
        "Attention to parts of the history in percent\n"
        f"{result['num_examples_with_events']:,} examples of {result['split']} with events",
    )
    all_axes = figure.subplots(2, 1, height_ratios=num_rows)
    for axes, (_, parts), (share_XQ, times_XQ) in zip(all_axes, ways, found, strict=True):
        names = [f"{part['name']} (even {panels.percent_text(part['even'])})" for part in parts]
        panels.table(axes, scale, share_XQ, times_XQ, names, queries)
    scale.bar(figure, all_axes, aspect=30, fraction=0.05, pad=0.02)
    return figure


def sequences(result: JSON) -> Figure:
    """A map for each query, and how many examples stand behind every cell."""
    queries, found = result["queries"], result["positions"]
    names = [sequence["name"] for sequence in found]
    having_FS = np.array([sequence["num_examples"] for sequence in found])
    times = {
        query: np.where(
            having_FS >= LEAST_EXAMPLES, np.array([s["times_even"][query] for s in found], dtype=float), np.nan
        )
        for query in queries
    }
    title = (
        "Attention to events, newest at the right: times what an example's events would get if all got the same\n"
        f"{result['num_examples_with_events']:,} examples of {result['split']} with events; "
        f"grey: fewer than {LEAST_EXAMPLES} of them have an event there"
    )
    coverage_FS = having_FS / max(result["num_examples_with_events"], 1)
    return _maps(names, times, title, coverage_FS)


def _maps(names: Sequence[str], times: dict[str, np.ndarray], title: str, coverage_FS: np.ndarray) -> Figure:
    scale = panels.Scale(*times.values())
    num_maps = len(times) + 1
    num_columns = min(num_maps, MAPS_IN_ROW)
    num_rows = -(-num_maps // num_columns)
    width_in, height_in = LABEL_IN + 2.15 * num_columns + 0.9, HEAD_IN + 0.3 + ROW_IN * len(names)
    figure = _figure(width_in, 0.6 + num_rows * (height_in - 0.6), title)
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
    panels.coverage(grid[0][0], coverage_FS)
    for axes, (query, times_FS) in zip(grid.flat[1:num_maps], times.items(), strict=True):
        panels.positions(axes, scale, times_FS, query)
    for axes in grid.flat[:num_maps]:
        panels.behaviour_lines(axes, names)
        axes.set_xlabel("position")
    for axes in grid.flat[num_maps:]:
        axes.set_axis_off()
    for row in grid:
        panels.sequence_axis(row[0], names)
    scale.bar(figure, list(grid.flat), aspect=40, fraction=0.03, pad=0.01)
    return figure


def gates(result: JSON) -> Figure:
    """The distribution of every kind of gate."""
    found = result["gates"]
    figure = _figure(
        9.0,
        HEAD_IN + 1.25 * len(found),
        f"Gates, {_of(result)}\nheight of a bar: root of its part; "
        "dot: mean; thick line: half of all gates, thin line: 90 %",
    )
    for axes, gate in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        panels.gate(axes, gate)
    figure.axes[-1].set_xlabel("sigmoid")
    return figure


def example_picture(result: JSON, example: JSON) -> Figure:
    """Its most attended fields, and every event."""
    queries, tasks = result["queries"], result["tasks"]
    share_MQ = np.array([example["fields"][query] for query in queries]).T
    order_X = np.argsort(-share_MQ[:, : len(tasks)].mean(axis=1), kind="stable")[:EXAMPLE_FIELDS]
    share_XQ, times_XQ = share_MQ[order_X], share_MQ[order_X] * len(share_MQ)
    names = [sequence["name"] for sequence in result["positions"]]
    lengths = [len(events) for events in example["positions"][queries[0]]]
    kept = [f for f, length in enumerate(lengths) if length]
    num_positions = max(lengths, default=0)
    maps = {query: _right_aligned(example["positions"][query], kept, num_positions) for query in queries}
    maps = {query: shares * example["num_tokens"] for query, shares in maps.items()} if kept else {}
    table_in = _cell_in(queries) * len(queries)
    told = ", ".join(f"{t} {label} (predicted {example['predicted'][t]:.3f})" for t, label in example["labels"].items())
    figure = _figure(
        LABEL_IN + table_in + (LABEL_IN + 1.55 * len(maps) + 0.8 if maps else 1.0) + 0.8,
        HEAD_IN + ROW_IN * max(len(order_X), len(kept)),
        f"Example {example['row']} of {result['split']}, user {example['user']}, item {example['item']}: {told}\n"
        f"{len(order_X)} fields in percent (even: {100 / len(share_MQ):.2f}), and all {example['num_tokens']:,} "
        "tokens of events, newest at the right",
    )
    first, *others = figure.subplots(1, 1 + len(maps), squeeze=False, width_ratios=[table_in, *[1.55] * len(maps)])[0]
    scale = panels.Scale(times_XQ)
    panels.table(first, scale, share_XQ, times_XQ, [result["fields"][m]["name"] for m in order_X], queries)
    for label, m in zip(first.get_yticklabels(), order_X, strict=True):
        label.set_color(panels.SIDE_COLOURS[result["fields"][m]["side"]])
    scale.bar(figure, [first], aspect=40, fraction=0.04, pad=0.02)
    if maps:
        _example_maps(figure, others, maps, [names[f] for f in kept])
    return figure


def _example_maps(figure: Figure, all_axes: Sequence[Axes], maps: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Colours of their own: one event stands out more than any field."""
    scale = panels.Scale(*maps.values())
    for axes, (query, times_FS) in zip(all_axes, maps.items(), strict=True):
        panels.positions(axes, scale, times_FS, query)
        panels.behaviour_lines(axes, names)
        axes.set_xlabel("position")
        axes.set_yticks([])
    panels.sequence_axis(all_axes[0], names)
    scale.bar(figure, all_axes, aspect=40, fraction=0.03, pad=0.01)


def _right_aligned(events: Sequence[Sequence[float]], kept: Sequence[int], num_positions: int) -> np.ndarray:
    """[F, S] of the kept sequences; NaN where there is no event."""
    filled_FS = np.full((len(kept), num_positions), np.nan)
    for row, f in enumerate(kept):
        filled_FS[row, num_positions - len(events[f]) :] = events[f]
    return filled_FS
