"""What FBGEMM lacks on a CPU for managed tables: forgetting the optimizer state of rows that change hands."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchrec.distributed.mc_embedding_modules import BaseShardedManagedCollisionEmbeddingCollection


def forget_evicted(sharded: nn.Module) -> None:
    """Gives the kernels of managed tables on a CPU a way to reset rows: FBGEMM has none there for row-wise Adagrad.

    TorchRec calls it with the rows that go to other ids, and then draws their weights itself.
    """
    for module in sharded.modules():
        if isinstance(module, BaseShardedManagedCollisionEmbeddingCollection):
            for kernel, _ in module._table_to_tbe_and_index.values():
                kernel.reset_embedding_weight_momentum = partial(_forget, kernel)


def _forget(kernel: Any, *, pruned_indices: Tensor, logical_table_ids: Tensor, **_: Tensor) -> None:
    """Named and called as FBGEMM's, for the rows of one table."""
    states = kernel.split_optimizer_states()  # of SGD it is empty
    for state in states[int(logical_table_ids)] if states else ():
        state[pruned_indices] = 0
