"""Part 5: the tower in its three forms, literal, eager and fused: how many times faster, how far from the floor."""

import torch

from benchmarks.gpu.ceilings import measured_ceilings
from benchmarks.gpu.records import Settings, Writer
from benchmarks.gpu.small_runs import free_memory, guarded
from infnet_rec.benchmark.forms.forms import TowerShape, full_lengths, ragged_lengths
from infnet_rec.benchmark.forms.tower import Precision, measure_tower
from infnet_rec.benchmark.forms.tower_verb import NUM_ATTRIBUTES, NUM_BEHAVIOURS, NUM_FEATURES, NUM_TASKS, device_of
from infnet_rec.config.model import InfnetConfig

# What the fused form is meant to reach in bf16: times as fast as the literal form, and a share of the speed at which
# this machine could copy the bytes that must be moved.
TIMES_LITERAL, SHARE_OF_FLOOR = 10.0, 0.5
GROUPS = tuple(g for g in range(NUM_BEHAVIOURS) for _ in range(NUM_ATTRIBUTES))


def run(settings: Settings, write: Writer) -> None:
    """Measures short and long histories, in bf16 and in fp32, and one ragged batch."""
    device = device_of(None)
    limits = measured_ceilings(settings, device)
    batch_size = settings.pick(2, 1024, 2048)
    width = settings.pick(16, 64, 64)
    # 28 sequences: L = 560 and 2,800 tokens an example.
    lengths = settings.pick((1,), (20, 100), (20, 100))
    rounds = settings.pick(1, 3, 7)

    def measure(shape: TowerShape, precision: Precision, title: str) -> None:
        guarded(write, title, lambda: _measure(shape, precision, title, write, device, limits, rounds))

    for length in lengths:
        full = full_lengths(len(GROUPS), batch_size, length)
        shape = TowerShape(NUM_FEATURES, GROUPS, NUM_TASKS, width, full)
        precisions: tuple[Precision, ...] = ("bf16", "fp32") if settings.size == "full" else ("bf16",)
        for precision in precisions:
            measure(shape, precision, f"width {width}, L {length * len(GROUPS):,}, {precision}")
    if settings.size == "full":
        shape = TowerShape(NUM_FEATURES, GROUPS, NUM_TASKS, width, ragged_lengths(GROUPS, batch_size, lengths[-1]))
        measure(shape, "bf16", f"width {width}, L 0 to {lengths[-1] * len(GROUPS):,}, bf16")


def _measure(
    shape: TowerShape, precision: Precision, title: str, write: Writer, device: torch.device, limits: dict, rounds: int
) -> None:
    """One shape: forward and backward of every form."""
    result = measure_tower(
        shape,
        InfnetConfig(),
        device,
        limits,
        num_rounds=rounds,
        passes=("forward_backward",),
        precision=precision,
        interpreted=device.type == "cpu",
    )
    facts = result["passes"]["forward_backward"]
    forms = facts["forms"]
    for name, form in forms.items():
        peak_gib = form["peak_bytes"] / 2**30
        write(
            f"{title}, {name}",
            "measured",
            form["ms"],
            unit="ms",
            peak_gib=peak_gib,
            examples_per_s=form["examples_per_s"],
        )
    for name, why in result["missing"].items():
        write(f"{title}, {name}", "not run", note=why)
    write.compared(f"{title}: forms agree", result["logit_difference"], 1e-3, shape=result["shape"])
    # What is aimed at is meant for a GPU and bf16; elsewhere the numbers are kept.
    on_gpu = device.type == "cuda" and precision == "bf16"
    if "fused" not in forms:
        raise RuntimeError(f"no fused form: {result['missing'].get('fused')}")
    floor_s = facts["least_bytes"] / limits["copy_bytes_per_s"]
    share = floor_s / (forms["fused"]["ms"] / 1e3)
    figures = {f"{title}: fused, of the byte floor": (share, SHARE_OF_FLOOR)}
    if "literal" in forms:
        figures[f"{title}: fused, times literal"] = (forms["literal"]["ms"] / forms["fused"]["ms"], TIMES_LITERAL)
    for check, (figure, aim) in figures.items():
        if on_gpu:
            write.aimed(check, figure, aim, headline=True)
        else:
            write(check, "measured", figure, headline=True)
    free_memory()
