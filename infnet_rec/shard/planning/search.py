"""Which table goes where: `search_plan` is what to call.

No process group, no GPU, no data. Every rank gets the same answer for the same question, but under training only rank 0
should ask, so that a difference between machines cannot matter.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchrec.distributed.types import ModuleSharder

from infnet_rec.shard.hardware import Cluster
from infnet_rec.shard.planning.demand import NO_CONTROLS, Controls, Workload
from infnet_rec.shard.planning.planned import Planned


def search_plan(
    model: nn.Module,
    cluster: Cluster,
    workload: Workload,
    controls: Controls = NO_CONTROLS,
    *,
    sharders: Sequence[ModuleSharder[Any]] = (),
) -> Planned:
    """Plans the tables of a model.

    Args:
        model: on the meta device, with its fused optimizers attached (`fuse_sparse`) so that their state is counted;
            any module that holds one EmbeddingBagCollection, one EmbeddingCollection, or both.
        cluster: to plan for.
        workload: what a step does.
        controls: what tables may do, by name.
        sharders: that will shard the model; what they say about quantised communication enters the estimates. None given
            means plain ones.

    Returns:
        The plan with the least estimated time on its slowest rank that was found; the same for the same arguments.

    Raises:
        Fault: a control names a table that the model has not, or asks for what the device or the collection cannot do
            or is known to be wrong; a table has no traffic.
        DoesNotFit: no placement within the memory was found (a `Refusal`: exit code 3).
    """
    raise NotImplementedError
