"""The run directory: one folder that says what was run, where, and how it went."""

import os
import platform
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from infnet_rec.config.plugins import plugin_of
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import read_json
from infnet_rec.data.store import Store
from infnet_rec.distributed.process_group import World
from infnet_rec.files import write_json
from infnet_rec.trainer.resume import PLUGIN_FILE

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyarrow", "duckdb", "torchmetrics", "infnet_rec")


def default_run_dir(config_path: Path) -> Path:
    """A new folder named after the configuration and the time."""
    return Path("runs") / f"{config_path.stem}-{datetime.now():%Y%m%d-%H%M%S}"


def environment(world: World, store: Store) -> dict[str, Any]:
    """What the result depends on besides the configuration."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "world_size": world.world_size,
        "local_world_size": world.local_world_size,
        "store": store.fingerprint,
    }


def _git_commit() -> str | None:
    """The commit this package was run from, with "+" when the tree was changed; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+" if _git(here, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    return found.stdout.strip()


def prepare_run_dir(run_dir: Path, config: RunConfig) -> None:
    """Writes the configuration, and takes away the result of a run that is to go on."""
    result = run_dir / "result.json"
    if result.is_file():
        steps_done = read_json(result)["steps_done"]
        result.rename(run_dir / f"result.step-{steps_done}.json")
    if (plugin := plugin_of(config.model)) is not None:
        write_json(run_dir / PLUGIN_FILE, plugin.record)
    write_json(run_dir / "config.json", config.model_dump(mode="json"))
