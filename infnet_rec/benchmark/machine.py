"""The machine: what it is, how fast it copies and how fast it multiplies."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from infnet_rec.benchmark.samples import timed
from infnet_rec.distributed.host import num_cores

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "triton", "infnet_rec")
# Far larger than any cache of the last level.
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
MATMUL_SIZES = (256, 512, 1024, 2048, 4096, 8192)
# A square product that takes longer than this says enough; a larger one is not tried. Some processors multiply
# bfloat16 a hundred times slower than float32.
LONG_PRODUCT_S = 0.05
TRIALS = 3


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "load": psutil.getloadavg()[0],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "versions": versions,
    }


def ceilings(device: torch.device) -> dict[str, Any]:
    """The best of a few trials of a large copy and of square products, as torch does them.

    A copy of N bytes moves 2 N: read once and written once.
    """
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), device)
    return {
        "copy_bytes_per_s": 2 * source.numel() * 4 / copy_s,
        "matmul_flops_per_s": {
            str(dtype).removeprefix("torch."): _matmul_rate(dtype, device) for dtype in (torch.float32, torch.bfloat16)
        },
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """The best rate of square products of growing size."""
    best = 0.0
    for size in MATMUL_SIZES:
        left = torch.ones(size, size, device=device, dtype=dtype)
        right, out = torch.ones_like(left), torch.empty_like(left)
        product_s = _best_s(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), device)
        best = max(best, 2 * size**3 / product_s)
        if product_s > LONG_PRODUCT_S:
            break
    return best


def free_bytes(device: torch.device) -> int:
    """Memory that a measurement may take without pushing anything out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _best_s(run: Any, device: torch.device) -> float:
    timed(run, device)
    return min(timed(run, device).wall_s for _ in range(TRIALS))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
