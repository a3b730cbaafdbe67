"""From one rank's plan to every rank's: what the planner and the sharded model must agree on."""

from typing import Any

import torch
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder

from infnet_rec.config.sharding import Communication

CPU = torch.device("cpu")


def make_sharders(communication: Communication = "fp32", device: torch.device = CPU) -> list[ModuleSharder[Any]]:
    """How each kind of collection is sharded.

    Args:
        communication: precision in which embeddings and their gradients travel between ranks. TorchRec takes fp16 for
            bf16 on a CPU, so ask for what you mean.
        device: of the ranks.
    """
    kind = CommType(communication)
    codecs = get_qcomm_codecs_registry(QCommsConfig(forward_precision=kind, backward_precision=kind), device=device)
    return [
        EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        ManagedCollisionEmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
    ]
