"""Several ranks on this machine from one command, through torchrun."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infnet_rec.commands.assemble import check_run, open_data
from infnet_rec.commands.run_dir import default_run_dir, refuse_used
from infnet_rec.config.load import load_config
from infnet_rec.shard.world import place


def check_before_launch(config_path: Path, overrides: Sequence[str], run_dir: Path | None, num_ranks: int) -> Path:
    """Finds every fault before a process is started, and names the run directory once for all ranks."""
    config = load_config(config_path, overrides)
    run_dir = run_dir or default_run_dir(config_path)
    refuse_used(run_dir)
    world = replace(place(), world_size=num_ranks, local_world_size=num_ranks)
    check_run(config, open_data(config), world)
    return run_dir


def launch(arguments: Sequence[str], num_ranks: int) -> int:
    """Runs `infnet-rec ARGUMENTS` as that many ranks and returns the exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    return subprocess.run([*command, "-m", "infnet_rec.cli", *arguments], env=environment, check=False).returncode
