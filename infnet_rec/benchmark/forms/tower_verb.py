"""`bench tower`: which shape, what to measure, and the tables of it.

Shapes: F sequences, B examples.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infnet_rec.benchmark.forms.forms import TowerShape, full_lengths, ragged_lengths
from infnet_rec.benchmark.forms.tower import measure_tower
from infnet_rec.benchmark.machine import ceilings, describe_machine
from infnet_rec.config.load import load_config, make_config
from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import open_data
from infnet_rec.data.sampler import ShuffledOrder
from infnet_rec.distributed.process_group import silence_third_party_warnings, use_threads, world_from_env
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.files import write_text
from infnet_rec.models.infnet.model import infnet_section
from infnet_rec.planner.run_plan import check_run
from infnet_rec.plotting import check_picture, new_figure, styled, write_figure

COLOURS = {"literal": "#B0503C", "eager": "#2F6DA8", "fused": "#3C8C5A"}
PANEL_WIDTH_IN, HEIGHT_IN = 5.6, 7.2

LENGTHS = (5, 10, 20, 40)
WIDTHS = (16, 64)
# A smaller batch than in training: the longest history in the literal form is to fit.
MAX_EXAMPLES = 256


def sweep(
    shape: TowerShape,
    config: InfnetConfig,
    device: torch.device,
    limits: Mapping[str, Any],
    *,
    num_rounds: int,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Measures every length at every width; yields as `measure_tower` returns, one point at a time."""
    num_sequences, batch_size = len(shape.group_of_sequence), min(MAX_EXAMPLES, shape.batch_size)
    for width in sorted({*WIDTHS, shape.width}):
        for length in LENGTHS:
            say(f"width {width}, {num_sequences} sequences of {length} events")
            lengths_FB = full_lengths(num_sequences, batch_size, length)
            point = replace(shape, width=width, lengths_FB=lengths_FB)
            yield measure_tower(point, config, device, limits, num_rounds=num_rounds, passes=("forward_backward",))


def slopes(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Straight lines through cost against events, for each width and form.

    Returns:
        Microseconds an example and event, microseconds an example whatever its events, and R squared: near 1 where the
        cost is linear.
    """
    lines = []
    for width in sorted({point["shape"]["width"] for point in points}):
        of_width = [point for point in points if point["shape"]["width"] == width]
        for form in ("literal", "eager", "fused"):
            found = [
                (
                    p["shape"]["events_per_example"],
                    1e6 / p["passes"]["forward_backward"]["forms"][form]["examples_per_s"],
                )
                for p in of_width
                if form in p["passes"]["forward_backward"]["forms"]
            ]
            if len(found) > 2:
                lines.append({"width": width, "form": form, **fit(found)})
    return lines


def fit(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Fits a line by least squares."""
    xs, ys = zip(*points, strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread_x = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread_x
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return {
        "us_per_event": slope,
        "us_per_example": mean_y - slope * mean_x,
        "r_squared": 1 - rest / sum((y - mean_y) ** 2 for y in ys),
    }


def check_sweep_files(picture: Path) -> Path:
    """Refuses files that cannot be written; an older sweep may give way.

    Returns:
        Where the points go, beside the picture.

    Raises:
        UserError: see `check_picture`; or something else stands where the points would.
    """
    check_picture(picture, "--sweep")
    points = picture.with_suffix(".jsonl")
    if points.exists() and not (points.is_file() and points.read_bytes().startswith(b'{"bench": "sweep"')):
        raise UserError(f"--sweep {picture}: {points} would hold the points, but exists and is no sweep; name another")
    return points


def draw_sweep(
    points: Sequence[Mapping[str, Any]], slopes: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], path: Path
) -> None:
    """Writes the picture, whole or not at all."""
    with styled():
        write_figure(sweep_figure(points, slopes, machine), path)


def sweep_figure(
    points: Sequence[Mapping[str, Any]], slopes: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]
) -> Figure:
    """Draws time and memory of each form against the number of events, a column of panels a width."""
    widths = sorted({point["shape"]["width"] for point in points})
    shape = points[0]["shape"]
    threads = f", {machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine["device"] == "cpu" else ""
    title = (
        f"Forward and backward of the tower, batch {shape['batch_size']:,}, {shape['num_features']} features\n"
        f"{machine['name']}{threads}"
    )
    figure = new_figure(PANEL_WIDTH_IN * len(widths), HEIGHT_IN, title, 13, w_pad=0.12, h_pad=0.12)
    panels = figure.subplots(2, len(widths), squeeze=False)
    for column, width in enumerate(widths):
        of_width = [point for point in points if point["shape"]["width"] == width]
        slope_of = {line["form"]: line["us_per_event"] for line in slopes if line["width"] == width}
        _curves(panels[0][column], of_width, "time", slope_of)
        _curves(panels[1][column], of_width, "memory", {})
        panels[0][column].set_title(f"width {width}: time")
        panels[1][column].set_title(f"width {width}: peak memory above weights and inputs")
    return figure


def _curves(axes: Axes, points: Sequence[Mapping[str, Any]], quantity: str, slope_of: Mapping[str, float]) -> None:
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


# Without a configuration: the paper's setting in size, 89 features and 28 sequences of 7 behaviours.
DEFAULT: dict[str, Any] = {"data": {"store": "(none)", "sequence_length": 20}}
NUM_FEATURES, NUM_BEHAVIOURS, NUM_ATTRIBUTES, NUM_TASKS = 89, 7, 4, 3
ROUNDS = 5
DEVICES = ("cpu", "cuda")

JSON = dict[str, Any]


def bench_tower(
    config_path: Path | None, overrides: Sequence[str], *, device: str | None, ragged: bool, num_rounds: int
) -> JSON:
    """Measures forward and forward with backward in every form, and the machine, in one run.

    Raises:
        UserError: no such device, or the configuration is at fault, or its model is not INFNet.
    """
    config, where = _config(config_path, overrides), device_of(device)
    section = infnet_section(config)
    shape = _shape(config, config_path, ragged=ragged)
    _prepare(config)
    limits = ceilings(where)
    precision = config.train.precision
    result = measure_tower(shape, section, where, limits, num_rounds=num_rounds, precision=precision)
    return {
        "bench": "tower",
        "machine": describe_machine(where),
        "ceilings": limits,
        "precision": precision,
        **_model(config),
        **result,
    }


def bench_sweep(
    config_path: Path | None, overrides: Sequence[str], picture: Path, *, device: str | None, num_rounds: int
) -> JSON:
    """Measures every length and width, writes a line of JSON for each, and draws them.

    Raises:
        UserError: the files cannot be written, no such device, or the configuration is at fault, or its model is not
            INFNet.
    """
    config, where = _config(config_path, overrides), device_of(device)
    section = infnet_section(config)
    points_path = check_sweep_files(picture)
    shape = _shape(config, config_path, ragged=False)
    _prepare(config)
    limits = ceilings(where)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    points = list(sweep(shape, section, where, limits, num_rounds=num_rounds, say=say))
    machine = describe_machine(where)
    lines = [json.dumps({"bench": "sweep", "machine": machine, "ceilings": limits, **p}) for p in points]
    write_text(points_path, "\n".join(lines) + "\n")
    fitted = slopes(points)
    draw_sweep(points, fitted, machine, picture)
    return {
        "bench": "sweep",
        "machine": machine,
        **_model(config),
        "batch_size": points[0]["shape"]["batch_size"],
        "slopes": fitted,
        "plot": str(picture),
        "points": str(points_path),
    }


def device_of(name: str | None) -> torch.device:
    """The device that was asked for; a GPU where there is one, if none was."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in DEVICES:
        raise UserError(f"--device {name!r}: is one of {', '.join(DEVICES)}{did_you_mean(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; take --device cpu, or ask `infnet-rec doctor`")
    return torch.device(name)


def _config(config_path: Path | None, overrides: Sequence[str]) -> RunConfig:
    if config_path is not None:
        return load_config(config_path, overrides)
    return make_config({name: dict(keys) for name, keys in DEFAULT.items()}, overrides, "the built-in shape")


def _shape(config: RunConfig, config_path: Path | None, *, ragged: bool) -> TowerShape:
    """The store's features, sequences and tasks, or the built-in ones."""
    batch_size, length, width = config.train.global_batch_size, config.data.sequence_length, config.model.width
    if config_path is None:
        groups = tuple(i // NUM_ATTRIBUTES for i in range(NUM_BEHAVIOURS * NUM_ATTRIBUTES))
        lengths_FB = (
            ragged_lengths(groups, batch_size, length) if ragged else full_lengths(len(groups), batch_size, length)
        )
        return TowerShape(NUM_FEATURES, groups, NUM_TASKS, width, lengths_FB)
    data = open_data(config)
    check_run(config, data, world_from_env())
    schema = data.schema
    lengths_FB = full_lengths(len(schema.sequences), batch_size, length)
    if ragged:
        order = ShuffledOrder(data.store.num_examples("train"), batch_size, config.train.seed)
        lengths_FB = BatchReader(data.store, "train", schema, length).read(np.asarray(order.global_batch(0))).lengths_FB
    return TowerShape(len(schema.features), schema.group_of_sequence, len(schema.tasks), width, lengths_FB)


def _prepare(config: RunConfig) -> None:
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world_from_env())


def _model(config: RunConfig) -> JSON:
    return {"model": config.model.model_dump(mode="json")}


def tower_lines(result: JSON) -> list[str]:
    """The measurement for people."""
    shape, limits = result["shape"], result["ceilings"]
    text = [
        f"batch {shape['batch_size']:,}: {shape['num_features']} features, {shape['num_sequences']} sequences with "
        f"{shape['events_per_example']:,.0f} events an example (longest {shape['most_events_of_a_sequence']}), "
        f"{shape['num_tasks']} tasks, width {shape['width']}, {result['model']['num_blocks']} blocks, "
        f"{result['precision']}",
        machine_line(result["machine"], limits),
    ]
    for kind, title in (("forward", "forward"), ("forward_backward", "forward and backward")):
        text += ["", *_table(title, result["passes"][kind])]
    return [*text, "", *_verdict(result)]


def machine_line(machine: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """What it ran on."""
    rates = limits["matmul_flops_per_s"]
    kind = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}" if machine["device"] == "cpu" else "GPU"
    return (
        f"{machine['name']}, {kind}: copies {limits['copy_bytes_per_s'] / 1e9:,.1f} GB/s, multiplies "
        f"{rates['float32'] / 1e9:,.0f} GFLOP/s in float32, {rates['bfloat16'] / 1e9:,.0f} in bfloat16"
    )


ROWS: tuple[tuple[str, str, float, str], ...] = (
    ("ms", "ms", 1, ",.1f"),
    ("processor ms", "processor_ms", 1, ",.1f"),
    ("examples/s", "examples_per_s", 1, ",.0f"),
    ("peak memory, MiB", "peak_bytes", 2**20, ",.1f"),
    ("GFLOP", "flops", 1e9, ",.2f"),
    ("GFLOP/s", "flops_per_s", 1e9, ",.1f"),
    ("  of the product's rate", "fraction_of_matmul", 1, ".1%"),
    ("GB moved by operators", "moved_bytes", 1e9, ",.2f"),
    ("GB/s", "moved_bytes_per_s", 1e9, ",.1f"),
    ("  of the copy's rate", "fraction_of_copy", 1, ".1%"),
    ("of the roofline", "fraction_of_roofline", 1, ".2%"),
)


def _table(title: str, facts: JSON) -> list[str]:
    names = ("literal", "eager", "fused")
    text = [f"{title:<26}" + "".join(f"{name:>12}" for name in names)]
    for label, key, unit, form in ROWS:
        cells = [format(facts["forms"][n][key] / unit, form) if n in facts["forms"] else "-" for n in names]
        text.append(f"{label:<26}" + "".join(f"{cell:>12}" for cell in cells))
    return [*text, f"{'GB that must be moved':<26}{facts['least_bytes'] / 1e9:>12,.3f}"]


def _verdict(result: JSON) -> list[str]:
    forms = result["passes"]["forward_backward"]["forms"]
    text = [f"no {name}: {reason}" for name, reason in result["missing"].items()]
    if "literal" in forms:
        literal = forms["literal"]
        for name in ("eager", "fused"):
            if name in forms:
                faster = forms[name]["examples_per_s"] / literal["examples_per_s"]
                memory = forms[name]["peak_bytes"] / literal["peak_bytes"]
                processor = literal["processor_ms"] / forms[name]["processor_ms"]
                text.append(
                    f"{name}: {faster:.2f} times the literal's examples/s ({processor:.2f} by processor time) in "
                    f"{memory:.3f} of its memory"
                )
    return text


def tower_sweep_lines(result: JSON) -> list[str]:
    """The slopes for people."""
    text = [f"{'width':<8}{'form':<10}{'us an event':>12}{'us an example':>15}{'R squared':>11}"]
    for line in result["slopes"]:
        text.append(
            f"{line['width']:<8}{line['form']:<10}{line['us_per_event']:>12.3f}{line['us_per_example']:>15.1f}"
            f"{line['r_squared']:>11.4f}"
        )
    return [*text, f"plot: {result['plot']}", f"points: {result['points']}"]
