"""`bench tower`: which shape, what to measure, and the tables of it.

Shapes: F sequences, B examples.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infnet_rec.bench.forms import TowerShape, full_lengths, ragged_lengths
from infnet_rec.bench.machine import ceilings, describe
from infnet_rec.bench.sweep import slopes, sweep
from infnet_rec.bench.tower import Precision, measure_tower
from infnet_rec.commands import bench_plot
from infnet_rec.commands.assemble import check_run, open_data
from infnet_rec.commands.towers import infnet_options
from infnet_rec.commands.train import quieten, use_threads
from infnet_rec.config.load import load_config, make_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.order import ShuffledOrder
from infnet_rec.faults import Fault, did_you_mean
from infnet_rec.files import write_text
from infnet_rec.shard.world import place

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
        Fault: no such device, or the configuration is at fault, or its model is not INFNet.
    """
    config, where = _config(config_path, overrides), device_of(device)
    options = infnet_options(config)
    shape = _shape(config, config_path, ragged=ragged)
    _prepare(config)
    limits = ceilings(where)
    # Where a run has no such key, it computes in float32.
    precision: Precision = getattr(config.train, "precision", "fp32")
    result = measure_tower(shape, options, where, limits, num_rounds=num_rounds, precision=precision)
    return {
        "bench": "tower",
        "machine": describe(where),
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
        Fault: the files cannot be written, no such device, or the configuration is at fault, or its model is not
            INFNet.
    """
    config, where = _config(config_path, overrides), device_of(device)
    options = infnet_options(config)
    points_path = bench_plot.check_sweep_files(picture)
    shape = _shape(config, config_path, ragged=False)
    _prepare(config)
    limits = ceilings(where)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    points = list(sweep(shape, options, where, limits, num_rounds=num_rounds, say=say))
    machine = describe(where)
    lines = [json.dumps({"bench": "sweep", "machine": machine, "ceilings": limits, **p}) for p in points]
    write_text(points_path, "\n".join(lines) + "\n")
    fitted = slopes(points)
    bench_plot.draw_sweep(points, fitted, machine, picture)
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
        raise Fault(f"--device {name!r}: is one of {', '.join(DEVICES)}{did_you_mean(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise Fault("--device cuda: torch sees no GPU here; take --device cpu, or ask `infnet-rec doctor`")
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
    check_run(config, data, place())
    schema = data.schema
    lengths_FB = full_lengths(len(schema.sequences), batch_size, length)
    if ragged:
        order = ShuffledOrder(data.store.num_examples("train"), batch_size, config.train.seed)
        lengths_FB = BatchReader(data.store, "train", schema, length).read(np.asarray(order.global_batch(0))).lengths_FB
    return TowerShape(len(schema.features), schema.group_of_sequence, len(schema.tasks), width, lengths_FB)


def _prepare(config: RunConfig) -> None:
    quieten()
    use_threads(config.train.num_threads, place())


def _model(config: RunConfig) -> JSON:
    return {"model": config.model.model_dump(mode="json")}


def lines(result: JSON) -> list[str]:
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


def sweep_lines(result: JSON) -> list[str]:
    """The slopes for people."""
    text = [f"{'width':<8}{'form':<10}{'us an event':>12}{'us an example':>15}{'R squared':>11}"]
    for line in result["slopes"]:
        text.append(
            f"{line['width']:<8}{line['form']:<10}{line['us_per_event']:>12.3f}{line['us_per_example']:>15.1f}"
            f"{line['r_squared']:>11.4f}"
        )
    return [*text, f"plot: {result['plot']}", f"points: {result['points']}"]
