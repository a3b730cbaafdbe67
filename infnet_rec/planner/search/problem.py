"""One question to the planner, taken apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import nn
from torchrec.distributed.planner.types import Storage, Topology
from torchrec.distributed.types import ModuleSharder

from infnet_rec.distributed.versions import estimator_sharders
from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.request import Controls, Workload
from infnet_rec.planner.search.estimates import Estimates, to_topology
from infnet_rec.planner.tables import ModelTable, plain_sharders, read_tables


@dataclass(frozen=True, slots=True, eq=False)
class PlanningProblem:
    """What is to be planned, for what, and what is known about it so far."""

    tables: tuple[ModelTable, ...]
    cluster: Cluster
    workload: Workload
    topology: Topology
    estimates: Estimates

    @property
    def room(self) -> Storage:
        """What tables may take on a rank; less than nothing where the reservation alone is too much."""
        cluster, workload = self.cluster, self.workload
        return Storage(
            hbm=cluster.hbm_bytes - workload.reserved_hbm_bytes if cluster.hardware.device == "cuda" else 0,
            ddr=cluster.host_memory_bytes - workload.reserved_host_bytes,
        )

    @classmethod
    def of(
        cls,
        model: nn.Module,
        cluster: Cluster,
        workload: Workload,
        controls: Controls,
        sharders: Sequence[ModuleSharder[Any]],
    ) -> Self:
        """Reads the model; see `search_plan`."""
        asked = list(sharders) or plain_sharders()
        topology = to_topology(
            cluster, reserved_hbm_bytes=workload.reserved_hbm_bytes, reserved_host_bytes=workload.reserved_host_bytes
        )
        return cls(
            tables=read_tables(model, workload.traffic, controls, asked),
            cluster=cluster,
            workload=workload,
            topology=topology,
            estimates=Estimates(cluster, topology, workload, estimator_sharders(asked)),
        )
