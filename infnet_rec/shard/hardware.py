"""What a cluster is made of: memory, bandwidths and prices, by name from a small catalogue or from one's own file.

The catalogue is one TOML file a kind of node in `catalogue/`; each says where its numbers come from. No torch here:
`planning/topology.py` turns a cluster into TorchRec's terms.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infnet_rec.faults import Fault, did_you_mean
from infnet_rec.strict import StrictModel, check, read_toml

CATALOGUE = Path(__file__).parent / "catalogue"
GIB = 2**30

Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


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
    device: Literal["cuda", "cpu"]
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
        Fault: an unknown name; a file that is missing or wrong, with every fault at once.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    elif name_or_path in catalogue():
        path = CATALOGUE / f"{name_or_path}.toml"
    else:
        raise Fault(
            f"--hardware {name_or_path}: is not in the catalogue{did_you_mean(name_or_path, catalogue())}; it has "
            f"{', '.join(catalogue())}; for other hardware give a TOML file of your own"
        )
    return check(Hardware, read_toml(path), str(path))


@dataclass(frozen=True, slots=True)
class Size:
    """Nodes and ranks that a command line asks for; where the two numbers of nodes differ, nodes may come and go."""

    min_nodes: int
    max_nodes: int
    ranks_per_node: int

    @property
    def is_elastic(self) -> bool:
        return self.min_nodes != self.max_nodes

    @property
    def nodes(self) -> str:
        """As torchrun's --nnodes takes it."""
        return f"{self.min_nodes}:{self.max_nodes}" if self.is_elastic else str(self.max_nodes)

    @property
    def words(self) -> str:
        """For people."""
        nodes = f"{self.min_nodes} to {self.max_nodes}" if self.is_elastic else str(self.max_nodes)
        return f"{nodes} node{'s' * (self.max_nodes > 1)} x {self.ranks_per_node} rank{'s' * (self.ranks_per_node > 1)}"


def parse_size(text: str) -> Size:
    """Reads NODESxRANKS or MIN:MAXxRANKS, such as "4x8" or "2:4x8".

    Raises:
        Fault: not of that form, a zero, or a least number of nodes that is larger than the largest.
    """
    found = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6})x(\d{1,6})", text.strip(), re.ASCII)
    least, most, ranks = (int(part or found[2]) for part in found.groups()) if found else (0, 0, 0)
    if not least or not ranks:
        raise Fault(
            f"-j {text}: must be NODESxRANKS, both at least 1, such as 4x8 for 4 nodes with 8 ranks each, "
            "or MIN:MAXxRANKS where nodes may come and go"
        )
    if least > most:
        raise Fault(f"-j {text}: the least number of nodes, {least}, is larger than the largest, {most}; swap them")
    return Size(least, most, ranks)


def parse_cluster(text: str, hardware: Hardware) -> Cluster:
    """Reads NODESxRANKS.

    Args:
        text: such as "4x8": 4 nodes with 8 ranks each.
        hardware: of each node.

    Raises:
        Fault: not of that form, a zero, or more ranks than a node has GPUs.
    """
    size = parse_size(text)
    if size.is_elastic:
        raise Fault(f"-j {text}: a plan is for one number of nodes; ask for {size.max_nodes}x{size.ranks_per_node}")
    if hardware.device == "cuda" and size.ranks_per_node > hardware.ranks_per_node:
        raise Fault(
            f"-j {text}: a node of {hardware.name} has {hardware.ranks_per_node} GPUs and a rank needs one of its own; "
            f"ask for at most {hardware.ranks_per_node} ranks a node"
        )
    return Cluster(hardware, size.max_nodes, size.ranks_per_node)
