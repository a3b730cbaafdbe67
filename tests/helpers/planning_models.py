"""Tables to plan for: a model of nothing else, on the meta device, and how it is read."""

import torch
import torchrec.optim
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from infnet_rec.planner.hardware import GIB, Cluster, Hardware, load_hardware, parse_cluster
from infnet_rec.planner.request import TableTraffic, Workload

META = torch.device("meta")


def make_tables(
    bags: dict[str, int],
    events: dict[str, int],
    *,
    width: int = 64,
    averaged: tuple[str, ...] = (),
    optimizer: type[torch.optim.Optimizer] | None = torchrec.optim.RowWiseAdagrad,
) -> nn.Module:
    """Rows by name to both collections, with the optimizer fused."""
    model = nn.Module()
    if bags:
        model.bags = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=name,
                    embedding_dim=width,
                    num_embeddings=rows,
                    feature_names=[f"feature_{name}"],
                    pooling=PoolingType.MEAN if name in averaged else PoolingType.SUM,
                )
                for name, rows in bags.items()
            ],
            device=META,
        )
    if events:
        model.events = EmbeddingCollection(
            tables=[
                EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name])
                for name, rows in events.items()
            ],
            device=META,
        )
    if optimizer is not None:
        apply_optimizer_in_backward(optimizer, model.parameters(), {"lr": 0.1})
    return model


def make_workload(
    bags: dict[str, int],
    events: dict[str, int],
    *,
    width: int = 64,
    batch: int = 512,
    lookups: float = 10.0,
    reserved_hbm_gib: float = 0.0,
) -> Workload:
    """Bags are read once an example, sequences `lookups` times, but no more often than they have rows."""
    traffic = {name: TableTraffic(name, "bags", rows, width) for name, rows in bags.items()}
    for name, rows in events.items():
        mean = min(lookups, rows / batch)
        traffic[name] = TableTraffic(name, "events", rows, width, (mean,), (1.2 * mean,))
    return Workload(batch, traffic, reserved_hbm_bytes=int(reserved_hbm_gib * GIB))


def gpu_cluster(text: str, *, hbm_gib: float = 79.0) -> Cluster:
    """Nodes like H100's with another amount of memory."""
    return parse_cluster(text, load_hardware("h100").model_copy(update={"hbm_gib": hbm_gib}))


def cpu_cluster(text: str) -> Cluster:
    hardware: Hardware = load_hardware("cpu-node")
    return parse_cluster(text, hardware)
