"""Part 1: what `doctor` says of the machine, and how fast it copies, multiplies and starts kernels."""

import json
from typing import Any

import torch

from benchmarks.gpu.records import Settings, Writer
from infnet_rec.benchmark.forms.tower_verb import device_of
from infnet_rec.benchmark.machine import ceilings, describe_machine
from infnet_rec.benchmark.samples import timed, wait
from infnet_rec.diagnostics.doctor import diagnose

LAUNCHES = 1000
TRIALS = 5
GB, TERA = 1e9, 1e12
# Packages of ours that nothing on this way imports, and that a GPU machine without a package index need not have.
NOT_NEEDED = ("duckdb", "optuna", "torchx", "torchmetrics")


def run(settings: Settings, write: Writer) -> None:
    """Looks at everything that later parts rest on."""
    for check in diagnose():
        verdict = {"ok": "right", "warning": "measured", "fault": "wrong"}[check.state]
        if verdict == "wrong" and any(name in check.name for name in NOT_NEEDED):
            verdict = "measured"
        remedy = {"remedy": check.remedy} if check.remedy else {}
        write(f"doctor: {check.name}", verdict, note=check.found, **remedy)  # pyright: ignore[reportArgumentType]
    device = device_of(None)
    write("machine", "measured", **describe_machine(device))
    limits = measured_ceilings(settings, device)
    write("copy", "measured", limits["copy_bytes_per_s"] / GB, unit="GB/s", headline=True)
    for dtype, rate in limits["matmul_flops_per_s"].items():
        write(f"matrix product, {dtype}", "measured", rate / TERA, unit="TFLOP/s")
    for name, seconds in launch_costs(device).items():
        write(f"launch, {name}", "measured", seconds * 1e6, unit="us")


def measured_ceilings(settings: Settings, device: torch.device) -> dict[str, Any]:
    """See `infnet_rec.benchmark.machine.ceilings`; measured by the first part that asks, for all of one folder."""
    path = settings.out / f"ceilings_{device.type}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    limits = ceilings(device)
    path.write_text(json.dumps(limits), encoding="utf-8")
    return limits


def launch_costs(device: torch.device) -> dict[str, float]:
    """Seconds of one smallest operator among many: as torch starts them, and out of a CUDA graph."""
    value = torch.zeros(32, device=device)

    def eager() -> None:
        for _ in range(LAUNCHES):
            value.add_(1.0)

    eager()
    found = {"one by one": min(timed(eager, device).wall_s for _ in range(TRIALS)) / LAUNCHES}
    if device.type == "cuda":
        wait(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager()
        graph.replay()
        found["in a graph"] = min(timed(graph.replay, device).wall_s for _ in range(TRIALS)) / LAUNCHES
    return found
