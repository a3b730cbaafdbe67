"""Part 9: this machine as a hardware file for the planner, with what it really reaches in the place of data sheets."""

import os
from typing import Any

import torch

from benchmarks.gpu.ceilings import launch_costs, measured_ceilings
from benchmarks.gpu.records import Settings, Writer
from infnet_rec.benchmark.forms.tower_verb import device_of
from infnet_rec.benchmark.samples import timed
from infnet_rec.planner.hardware import Hardware, hardware_here, load_hardware

FILE = "hardware.toml"
COPY_BYTES = 1 << 30
REHEARSED_BYTES = 1 << 26
TRIALS = 5
GB, TERA = 1e9, 1e12
HEAD = """# Measured by `python -m benchmarks.gpu`: what programs reach on this machine, in one direction.
# {measured}.
# Not measured, and taken from the catalogue: {taken}.
"""


def run(settings: Settings, write: Writer) -> None:
    """Measures, writes `hardware.toml`, and lets the planner read it."""
    device = device_of(None)
    known = hardware_here(device)
    limits = measured_ceilings(settings, device)
    measured = measure(device, limits, REHEARSED_BYTES if settings.is_rehearsal else COPY_BYTES)
    own = {"name": f"{known.name}, measured", "ranks_per_node": _num_ranks(known)}
    hardware = known.model_copy(update=measured | own)
    path = settings.out / FILE
    text = to_toml(hardware, measured)
    path.write_text(text, encoding="utf-8")
    again = load_hardware(str(path))
    wrong = [name for name, value in measured.items() if abs(getattr(again, name) - value) > 0.01 * value]
    write.compared("the planner reads the file", len(wrong), 0, note=", ".join(wrong), toml=text)
    for name, value in measured.items():
        counts = name in ("hbm_gb_per_s", "fp32_tflops")
        write(name, "measured", value, getattr(known, name), unit=name.rsplit("_", 1)[-1], headline=counts)
    for name, seconds in launch_costs(device).items():
        write(f"launch, {name}", "measured", seconds * 1e6, unit="us")


def measure(device: torch.device, limits: dict[str, Any], num_bytes: int) -> dict[str, float]:
    """Rates of this machine under the catalogue's keys.

    Args:
        device: what computes.
        limits: see `infnet_rec.benchmark.machine.ceilings`.
        num_bytes: of each copy; far larger than any cache.
    """
    products = {name: rate / TERA for name, rate in limits["matmul_flops_per_s"].items()}
    host = torch.ones(num_bytes // 4)
    other = torch.empty_like(host)
    found = {
        "bf16_tflops": products["bfloat16"],
        "fp32_tflops": products["float32"],
        # A copy reads and writes: twice its bytes.
        "host_memory_gb_per_s": 2 * num_bytes / _best_s(lambda: other.copy_(host), torch.device("cpu")) / GB,
    }
    if device.type == "cuda":
        pinned, target = host.pin_memory(), torch.empty_like(host, device=device)
        found["pcie_gb_per_s"] = num_bytes / _best_s(lambda: target.copy_(pinned, non_blocking=True), device) / GB
        found["hbm_gb_per_s"] = limits["copy_bytes_per_s"] / GB
        found["hbm_gib"] = torch.cuda.get_device_properties(device).total_memory / 2**30
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def to_toml(hardware: Hardware, measured: dict[str, float]) -> str:
    """The file."""
    values = hardware.model_dump(exclude_none=True)
    taken = [name for name in values if name.endswith(("per_s", "tflops")) and name not in measured]
    head = HEAD.format(measured=", ".join(measured), taken=", ".join(taken) or "nothing")
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    return head + "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # A JSON string is a TOML string, as long as it has no odd characters; names of GPUs have none.
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _num_ranks(known: Hardware) -> int:
    return torch.cuda.device_count() if known.device == "cuda" else max(1, (os.cpu_count() or 1) // 2)


def _best_s(run_once: object, device: torch.device) -> float:
    assert callable(run_once)
    timed(run_once, device)
    return min(timed(run_once, device).wall_s for _ in range(TRIALS))
