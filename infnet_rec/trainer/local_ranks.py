"""Several ranks on this machine from one command, through torchrun."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from infnet_rec.config.load import load_config
from infnet_rec.config.plugins import plugin_words
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.distributed.host import num_cores
from infnet_rec.distributed.process_group import world_from_env
from infnet_rec.errors import UserError
from infnet_rec.launcher.rank_environment import hold_signals, is_rank, read_rank_environment
from infnet_rec.planner.run_plan import check_run
from infnet_rec.trainer.resume import inspect_run_dir, try_destinations
from infnet_rec.trainer.run_dir import default_run_dir


def check_before_launch(config_path: Path, overrides: Sequence[str], run_dir: Path | None, num_ranks: int) -> Path:
    """Finds every fault before a process is started, and names the run directory once for all ranks."""
    run_dir = run_dir or default_run_dir(config_path)
    config, data = check_ranks(config_path, overrides, num_ranks)
    if inspect_run_dir(run_dir, config, data).result is None:
        try_destinations(config, run_dir)
    return run_dir


def check_ranks(config_path: Path, overrides: Sequence[str], num_ranks: int) -> tuple[RunConfig, RunData]:
    """Finds every fault of a run on that many ranks of this machine; its configuration and data."""
    check_own(num_ranks)
    config = load_config(config_path, overrides)
    world = replace(world_from_env(), world_size=num_ranks, local_world_size=num_ranks)
    data = open_data(config)
    check_run(config, data, world)
    return config, data


def check_own(num_ranks: int) -> None:
    """Refuses ranks within ranks.

    Raises:
        UserError: torchrun started this process, or the environment says half of that.
    """
    read_rank_environment()
    if is_rank():
        raise UserError(f"--ranks {num_ranks}: is for a run of its own; under torchrun leave it out")


def launch_local_ranks(arguments: Sequence[str], num_ranks: int) -> NoReturn:
    """Becomes torchrun with `infnet-rec ARGUMENTS` as that many ranks; see `launcher/torchrun.py` for signals."""
    command = [sys.executable, "-m", "infnet_rec.launcher.torchrun", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = {"OMP_NUM_THREADS": str(max(1, num_cores() // num_ranks)), **os.environ}
    hold_signals()
    os.execve(sys.executable, [*command, "-m", "infnet_rec.cli", *arguments, *plugin_words()], environment)
