"""A copy of a run's state in the host's memory, to be written while training changes the original.

torch's own stager copies a sharded tensor's whole storage. TorchRec's tables are views of one storage, so it would copy
all tables once for each of them.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
from torch.distributed._shard.sharding_spec import ShardMetadata
from torch.distributed.checkpoint._nested_dict import flatten_state_dict


class Snapshot:
    """Memory for a copy, allocated once and written again by every `take`."""

    def __init__(self) -> None:
        self._copies: dict[str, Any] = {}

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copies all tensors; returns them by their flattened names, on the CPU and sharded as they were."""
        flat: dict[str, Any] = flatten_state_dict(state)[0]
        for name, value in flat.items():
            self._copies[name] = _copied(value, self._copies.get(name))
        if torch.cuda.is_available():
            # Copies to page-locked memory are under way; the next step must not change what they read.
            torch.cuda.synchronize()
        return {name: self._copies[name] for name in flat}


def _copied(value: Any, room: Any) -> Any:
    if isinstance(value, ShardedTensor):
        room = _room_sharded(value) if room is None else room
        for shard, original in zip(room.local_shards(), value.local_shards(), strict=True):
            shard.tensor.copy_(original.tensor.detach(), non_blocking=True)
        return room
    if type(value) in (Tensor, torch.nn.Parameter):
        room = _room(value) if room is None else room
        return room.copy_(value.detach(), non_blocking=True)
    return copy.deepcopy(value)


def _room(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=torch.cuda.is_available() and value.numel() > 0)


def _room_sharded(value: ShardedTensor) -> ShardedTensor:
    metadata = value.metadata()
    shards = [Shard(_room(shard.tensor), _on_cpu(shard.metadata)) for shard in value.local_shards()]
    properties = replace(metadata.tensor_properties, requires_grad=False, pin_memory=torch.cuda.is_available())
    on_cpu = ShardedTensorMetadata([_on_cpu(shard) for shard in metadata.shards_metadata], metadata.size, properties)
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, on_cpu, process_group=value._process_group)


def _on_cpu(shard: ShardMetadata) -> ShardMetadata:
    assert shard.placement is not None and not isinstance(shard.placement, str)
    return ShardMetadata(shard.shard_offsets, shard.shard_sizes, placement=f"rank:{shard.placement.rank()}/cpu")
