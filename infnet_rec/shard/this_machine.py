"""This machine in the catalogue's terms: its own name and memory, and the bandwidths of its kind."""

import os
from pathlib import Path

import torch

from infnet_rec.shard.hardware import GIB, Hardware, load_hardware

# The first that the GPU's name contains. One that is in no line is taken for the slowest; only the choice between
# shardings depends on it, and what fits depends on the memory that was found.
GPUS = {"B200": "b200", "H200": "h200", "H100": "h100", "H800": "h100", "A100": "a100-40g", "L20": "l20"}
SLOWEST = "l20"
LARGE_A100_GIB = 60.0
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def hardware_here(device: torch.device) -> Hardware:
    """What this rank runs on."""
    host_gib = _host_memory_bytes() / GIB
    if device.type != "cuda":
        return load_hardware("cpu-node").model_copy(update={"host_memory_gib": host_gib})
    found = torch.cuda.get_device_properties(device)
    hbm_gib = found.total_memory / GIB
    known = next((name for part, name in GPUS.items() if part in found.name.upper()), None)
    if known == "a100-40g" and hbm_gib > LARGE_A100_GIB:
        known = "a100-80g"
    hardware = load_hardware(known or SLOWEST)
    name = hardware.name if known else found.name
    return hardware.model_copy(update={"name": name, "hbm_gib": hbm_gib, "host_memory_gib": host_gib})


def _host_memory_bytes() -> int:
    """Of the machine, or what a container is allowed of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP_LIMIT.read_text(encoding="utf-8").strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine
