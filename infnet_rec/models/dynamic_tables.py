"""Tables that give their rows to ids as they come (see `infnet_rec.config.model.ManagedTable`)."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    ManagedCollisionModule,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from infnet_rec.config.model import Eviction
from infnet_rec.schema import Schema

EVICTION: Mapping[Eviction, Callable[[], MCHEvictionPolicy]] = {
    "lfu": LFU_EvictionPolicy,
    "lru": LRU_EvictionPolicy,
    "distance_lfu": DistanceLFU_EvictionPolicy,
}


class CountingTable(MCHManagedCollisionModule):
    """TorchRec's, which misses no id.

    TorchRec's own makes room for 1.25 times the ids of the first batch, on each rank, and drops what comes beyond; on a
    rank that had no id in the first batch no id would ever get a row.
    """

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Counts the ids of a training step, and every so many steps gives rows away."""
        if self.training:
            if self._input_history_buffer_size == -1:
                self._init_history_buffers(features)
            num_ids = sum(feature.values().numel() for feature in features.values())
            missing = self._current_history_buffer_offset + num_ids - self._input_history_buffer_size
            if missing > 0:
                self._make_room(self._input_history_buffer_size + missing)
        return super().profile(features)

    def _make_room(self, size: int) -> None:
        """Doubles the room, so that it is rarely done; there may be none yet."""
        more = 2 * size - self._input_history_buffer_size
        self._input_history_buffer_size += more
        self._history_accumulator = nn.functional.pad(self._history_accumulator, (0, more))
        for name, values in self._history_metadata.items():
            self._history_metadata[name] = nn.functional.pad(values, (0, more))
            setattr(self, f"_history_{name}", self._history_metadata[name])


def make_managed(schema: Schema, width: int, table_std: float) -> ManagedCollisionEmbeddingBagCollection | None:
    """The managed tables, on the meta device; None where there are none.

    They need a collection of their own: TorchRec manages all tables of one or none.

    Args:
        schema: of the run.
        width: of every table.
        table_std: standard deviation of a row that is given to another id.
    """
    if not schema.managed_tables:
        return None
    meta = torch.device("meta")
    configs = [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=width,
            num_embeddings=table.num_rows,
            feature_names=[f.name for f in schema.managed_features if f.table == table.name],
            pooling=PoolingType.SUM,
            init_fn=partial(nn.init.normal_, std=table_std),
        )
        for table in schema.managed_tables
    ]
    modules: dict[str, ManagedCollisionModule] = {
        table.name: CountingTable(
            zch_size=table.num_rows,
            device=meta,
            eviction_policy=EVICTION[table.managed.eviction](),
            eviction_interval=table.managed.interval_steps,
            # Ids are hashes already, so ranges of them are parts of about equal size.
            input_hash_size=table.managed.num_ids,
        )
        for table in schema.managed_tables
        if table.managed
    }
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=configs, device=meta), ManagedCollisionCollection(modules, configs)
    )
