"""What a cluster is made of: memory, bandwidths and prices, by name from a small catalogue or from one's own file.

The catalogue is one TOML file a kind of node in `catalogue/`; each says where its numbers come from. No torch here, so
that slips of the pen are found at once; `search/estimates.py` turns a cluster into TorchRec's terms.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.config.ranges import NotNegative, Positive
from infnet_rec.config.toml import StrictModel, read_toml, validate_model
from infnet_rec.errors import UserError, did_you_mean
from infnet_rec.launcher.job import parse_size

if TYPE_CHECKING:
    import torch

    from infnet_rec.distributed.process_group import World

CATALOGUE = Path(__file__).parent / "catalogue"
GIB = 2**30

Device = Literal["cuda", "cpu"]


class Hardware(StrictModel):
    """One kind of node. GB is 10^9 bytes, GiB is 2^30; every bandwidth is in one direction.

    Attributes:
        name: for people.
        device: what computes.
        ranks_per_node: GPUs of a node; on a CPU, how many processes one usually starts.
        hbm_gib: memory of a GPU that a program can use; 0 on a CPU.
        host_memory_gib: of a node.
        hbm_gb_per_s: bandwidth of a GPU's memory; 0 on a CPU.
        host_memory_gb_per_s: of a node.
        pcie_gb_per_s: host to device, a rank; 0 on a CPU.
        intra_node_gb_per_s: between ranks of a node (NVLink, PCIe, shared memory), a rank.
        inter_node_gb_per_s: between nodes (network), a rank.
        bf16_tflops: peak of dense matrix products, a rank.
        fp32_tflops: likewise.
        price_per_node_hour: None leaves money out.
        currency: of the price.
    """

    name: str
    device: Device
    ranks_per_node: Annotated[int, Field(ge=1)]
    hbm_gib: NotNegative
    host_memory_gib: Positive
    hbm_gb_per_s: NotNegative
    host_memory_gb_per_s: Positive
    pcie_gb_per_s: NotNegative
    intra_node_gb_per_s: Positive
    inter_node_gb_per_s: Positive
    bf16_tflops: Positive
    fp32_tflops: Positive
    price_per_node_hour: NotNegative | None = None
    currency: str | None = None

    @model_validator(mode="after")
    def _fits_device(self) -> Self:
        gpu_only = ("hbm_gib", "hbm_gb_per_s", "pcie_gb_per_s")
        wrong = [name for name in gpu_only if (getattr(self, name) > 0) != (self.device == "cuda")]
        if wrong:
            rule = "must be more than 0" if self.device == "cuda" else "must be 0"
            raise ValueError(f'{", ".join(wrong)}: {rule} where device = "{self.device}"')
        if (self.price_per_node_hour is None) != (self.currency is None):
            raise ValueError("price_per_node_hour and currency: give both or neither")
        return self


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes of one kind; what a node has is shared evenly among its ranks."""

    hardware: Hardware
    num_nodes: int
    ranks_per_node: int

    @property
    def name(self) -> str:
        """As in `-j`."""
        return f"{self.num_nodes}x{self.ranks_per_node}"

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.ranks_per_node

    @property
    def hbm_bytes(self) -> int:
        """A rank's; 0 on a CPU."""
        return int(self.hardware.hbm_gib * GIB)

    @property
    def host_memory_bytes(self) -> int:
        """A rank's share."""
        return int(self.hardware.host_memory_gib * GIB / self.ranks_per_node)

    @property
    def price_per_hour(self) -> float | None:
        """Of all nodes, used in full or not."""
        price = self.hardware.price_per_node_hour
        return None if price is None else price * self.num_nodes


def catalogue() -> tuple[str, ...]:
    """Names that `load_hardware` knows."""
    return tuple(sorted(path.stem for path in CATALOGUE.glob("*.toml")))


def load_hardware(name_or_path: str) -> Hardware:
    """Reads hardware from the catalogue or, where the name ends in .toml, from a file.

    Raises:
        UserError: an unknown name; a file that is missing or wrong, with every fault at once.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    elif name_or_path in catalogue():
        path = CATALOGUE / f"{name_or_path}.toml"
    else:
        raise UserError(
            f"--hardware {name_or_path}: is not in the catalogue{did_you_mean(name_or_path, catalogue())}; it has "
            f"{', '.join(catalogue())}; for other hardware give a TOML file of your own"
        )
    return validate_model(Hardware, read_toml(path), str(path))


def parse_cluster(text: str, hardware: Hardware) -> Cluster:
    """Reads NODESxRANKS.

    Args:
        text: such as "4x8": 4 nodes with 8 ranks each.
        hardware: of each node.

    Raises:
        UserError: not of that form, a zero, or more ranks than a node has GPUs.
    """
    size = parse_size(text)
    if size.is_elastic:
        raise UserError(f"-j {text}: a plan is for one number of nodes; ask for {size.max_nodes}x{size.ranks_per_node}")
    if hardware.device == "cuda" and size.ranks_per_node > hardware.ranks_per_node:
        raise UserError(
            f"-j {text}: a node of {hardware.name} has {hardware.ranks_per_node} GPUs and a rank needs one of its own; "
            f"ask for at most {hardware.ranks_per_node} ranks a node"
        )
    return Cluster(hardware, size.max_nodes, size.ranks_per_node)


def cluster_of(hardware: Hardware, world: "World") -> Cluster:
    """The ranks of this run on such nodes.

    Raises:
        UserError: the ranks are not spread evenly over the nodes.
    """
    if world.world_size % world.local_world_size:
        raise UserError(
            f"{world.world_size} ranks with {world.local_world_size} on this machine: plans need as many on every "
            "machine; start them evenly"
        )
    return Cluster(hardware, world.world_size // world.local_world_size, world.local_world_size)


def group_cluster(cluster: Cluster, replica_groups: int) -> Cluster:
    """What one replica group has: TorchRec deals the ranks of every node out to the groups in turn.

    Raises:
        UserError: the groups do not divide the ranks of a node.
    """
    if replica_groups == 1:
        return cluster
    if cluster.ranks_per_node % replica_groups:
        raise UserError(
            f"sharding.replica_groups = {replica_groups}: must divide the {cluster.ranks_per_node} ranks of a node, "
            "which are dealt out to the groups in turn"
        )
    hardware = cluster.hardware
    share = {key: getattr(hardware, key) / replica_groups for key in ("host_memory_gib", "host_memory_gb_per_s")}
    ranks_per_node = cluster.ranks_per_node // replica_groups
    return Cluster(hardware.model_copy(update=share), cluster.num_nodes, ranks_per_node)


# The first that the GPU's name contains. One that is in no line is taken for the slowest; only the choice between
# shardings depends on it, and what fits depends on the memory that was found.
GPUS = {"B200": "b200", "H200": "h200", "H100": "h100", "H800": "h100", "A100": "a100-40g", "L20": "l20"}
SLOWEST = "l20"
LARGE_A100_GIB = 60.0
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def hardware_here(device: "torch.device") -> Hardware:
    """What this rank runs on."""
    host_gib = _host_memory_bytes() / GIB
    if device.type != "cuda":
        return load_hardware("cpu-node").model_copy(update={"host_memory_gib": host_gib})
    import torch

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
