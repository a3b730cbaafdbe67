"""What a command line of `infnet-rec plan` asks. No torch here: a slip of the pen is answered at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.faults import Fault
from infnet_rec.files import try_file
from infnet_rec.shard.hardware import Cluster, load_hardware, parse_cluster
from infnet_rec.strict import read_json


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked command line.

    Attributes:
        config_path: the run's file.
        overrides: laid on it.
        config: what comes of both.
        hardware_name: as it was given.
        clusters: one; several in a sweep.
    """

    config_path: Path
    overrides: tuple[str, ...]
    config: RunConfig
    hardware_name: str
    clusters: tuple[Cluster, ...]


def asked(config_path: Path, overrides: Sequence[str], sizes: Sequence[str], hardware: str | None) -> Asked:
    """Checks a command line.

    Args:
        config_path: a run's TOML file.
        overrides: laid on it, see `load_config`.
        sizes: NODESxRANKS each.
        hardware: a name of the catalogue or a TOML file; None takes what the run's configuration names.

    Raises:
        Fault: no such hardware or file, or a size that is none.
    """
    config = load_config(config_path, overrides)
    hardware = hardware or config.sharding.hardware
    if hardware is None:
        raise Fault("--hardware: is missing; name what to plan for, such as --hardware h100, or set sharding.hardware")
    kind = load_hardware(hardware)
    clusters = tuple(parse_cluster(size, kind) for size in sizes)
    return Asked(config_path, tuple(overrides), config, hardware, clusters)


def check_plan_destination(path: Path) -> None:
    """Refuses a file that a plan cannot be written to; an older plan may give way.

    Raises:
        Fault: no such folder, or something that is not a plan stands there.
    """
    try_file("--out", path, replaces=(b"", "a plan"))
    if not path.exists():
        return
    try:
        is_plan = path.is_file() and "fingerprint" in read_json(path)
    except Fault:
        is_plan = False
    if not is_plan:
        raise Fault(f"--out {path}: exists and is not a plan, so it is left alone; name another")
