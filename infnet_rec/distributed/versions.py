"""What differs between the versions of TorchRec that pyproject.toml allows, so that no other module has to know.

Each function looks at what TorchRec offers rather than at its version. Oldest here: torch 2.11 with torchrec 1.6.
"""

import copy
import inspect
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torchrec.distributed.planner.shard_estimators import calculate_shard_storages
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.types import CommOp, ModuleSharder

_FP32_CODEC: Any = SimpleNamespace(
    forward=SimpleNamespace(quantized_dtype=torch.float32), backward=SimpleNamespace(quantized_dtype=torch.float32)
)
_FP32_BYTES = 4.0


def estimator_sharders(sharders: Iterable[ModuleSharder[Any]]) -> dict[str, Any]:
    """Sharders as TorchRec's estimators take them, second argument of `estimate`.

    What they look up travels as fp32 unless a sharder says otherwise; left alone, TorchRec takes the size of the
    weights, and what fp16 tables look up is fp32.

    Args:
        sharders: left as they are.

    Returns:
        By the full name of the module type: `SharderData` from torchrec 1.7 on, sharders before.
    """
    by_name = {sharder_name(sharder.module_type): sharder for sharder in sharders}
    if "sharder_data" in inspect.signature(calculate_shard_storages).parameters:
        found = build_sharder_data_map(by_name)
        for data in found.values():
            for operation in CommOp:
                data.qcomm_dtype_sizes.setdefault(operation.name, (_FP32_BYTES, _FP32_BYTES))
        return found
    return {name: _with_fp32_codecs(sharder) for name, sharder in by_name.items()}


def _with_fp32_codecs(sharder: ModuleSharder[Any]) -> ModuleSharder[Any]:
    """A copy for estimators only: the codecs that it adds have a size and do not encode."""
    copied = copy.copy(sharder)
    codecs = {operation.name: _FP32_CODEC for operation in CommOp} | (sharder.qcomm_codecs_registry or {})
    copied._qcomm_codecs_registry = codecs
    return copied
