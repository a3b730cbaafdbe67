"""Optimizers: fused into the backward pass for tables, ordinary for the dense tower."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
import torchrec.optim
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torch.distributed.tensor import DTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.shards_wrapper import LocalShardsWrapper
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from infnet_rec.config.train import DenseConfig, DenseOptimizer, SparseConfig, SparseOptimizer
from infnet_rec.errors import UserError
from infnet_rec.models.ranking_model import RankingModel


@dataclass(frozen=True, slots=True)
class DenseKind:
    """A dense optimizer.

    Attributes:
        make: takes parameters, `lr` and `weight_decay`.
        num_states: tensors of a parameter's size that it keeps for each parameter; the planner counts them.
    """

    make: Callable[..., torch.optim.Optimizer]
    num_states: int


@dataclass(frozen=True, slots=True)
class SparseKind:
    """An optimizer of tables.

    Attributes:
        fused: what FBGEMM's kernels know it by.
        copied: the same updates for tables that every rank holds whole, whose gradients DDP averages, with FBGEMM's
            eps; None where there is none.
        on_cpu: whether FBGEMM has a kernel for it there.
    """

    fused: type[torch.optim.Optimizer]
    copied: Callable[..., torch.optim.Optimizer] | None
    on_cpu: bool = True


# "fused" moves all parameters with one kernel for every few dozen of them; Adagrad's is for CPUs only.
DENSE: dict[DenseOptimizer, DenseKind] = {
    "adam": DenseKind(partial(torch.optim.Adam, fused=True), num_states=2),
    "adamw": DenseKind(partial(torch.optim.AdamW, fused=True), num_states=2),
    "adagrad": DenseKind(torch.optim.Adagrad, num_states=1),
}
SPARSE: dict[SparseOptimizer, SparseKind] = {
    "rowwise_adagrad": SparseKind(torchrec.optim.RowWiseAdagrad, partial(torchrec.optim.RowWiseAdagrad, eps=1e-8)),
    "adagrad": SparseKind(torchrec.optim.Adagrad, partial(torch.optim.Adagrad, eps=1e-8)),
    "sgd": SparseKind(torchrec.optim.SGD, torch.optim.SGD),
    # FBGEMM's moves the rows of a batch only, torch's would move all.
    "adam": SparseKind(torchrec.optim.Adam, None, on_cpu=False),
}
assert set(DENSE) == set(get_args(DenseOptimizer)) and set(SPARSE) == set(get_args(SparseOptimizer))
# Parameters of `RankingModel`'s collections, by the first part of their names.
TABLES = ("bags.", "events.", "managed.")


def check_sparse(config: SparseConfig, device: torch.device) -> None:
    """Refuses an optimizer that FBGEMM has no kernel for on this device.

    Raises:
        UserError: Adam on a CPU.
    """
    if device.type == "cpu" and not SPARSE[config.optimizer].on_cpu:
        raise UserError(
            f"train.sparse.optimizer = {config.optimizer!r}: has no fused kernel on CPU; use one of "
            f"{', '.join(name for name, kind in SPARSE.items() if kind.on_cpu)}"
        )


def fuse_sparse(model: RankingModel, config: SparseConfig) -> None:
    """Attaches the optimizer to every table's parameter (meta device), before planning and sharding.

    The update then happens inside the backward pass; no gradient of a table is ever stored. There is no weight decay
    here: FBGEMM's CPU kernels take one and ignore it. `MultiTaskLoss` regularises embeddings, on every device alike.
    """
    for collection in (model.bags, model.events, model.managed):
        if collection is not None:
            apply_optimizer_in_backward(SPARSE[config.optimizer].fused, collection.parameters(), {"lr": config.lr})


def dense_optimizer(params: Mapping[str, Tensor], config: DenseConfig) -> tuple[KeyedOptimizer, "GradientClip"]:
    """The optimizer of parameters that every rank has whole, and what clips their gradient before each of its steps.

    Args:
        params: by name.
        config: of the optimizer; its `lr` is the initial learning rate.
    """
    clip = GradientClip(config.max_grad_norm)

    def clipped(values: Any) -> torch.optim.Optimizer:
        optimizer = DENSE[config.optimizer].make(values, lr=config.lr, weight_decay=config.weight_decay)
        optimizer.register_step_pre_hook(clip)
        return optimizer

    return KeyedOptimizerWrapper(params, clipped), clip


class Optimizers:
    """The fused and the dense optimizer of a sharded model, and their learning rates."""

    def __init__(self, model: DistributedModelParallel, dense: DenseConfig, sparse: SparseConfig) -> None:
        """Wraps both.

        Args:
            model: the sharded model.
            dense: of all but the tables.
            sparse: what is fused into the sharded tables. TorchRec fuses none into data-parallel ones, and would leave
                them to the dense optimizer: they get the same one here, and neither decay nor clipping.
        """
        params = dict(in_backward_optimizer_filter(model.named_parameters()))
        copied = {key: params.pop(key) for key in list(params) if key.startswith(TABLES)}
        self._dense, self._clip = dense_optimizer(params, dense)
        self._sparse = model.fused_optimizer
        self._kernels: list[Any] = [module for module in model.modules() if hasattr(module, "set_optimizer_step")]
        self._copied: KeyedOptimizer | None = None
        parts: list[KeyedOptimizer | tuple[str, KeyedOptimizer]] = [("sparse", self._sparse), ("dense", self._dense)]
        if copied:
            same = SPARSE[sparse.optimizer].copied
            assert same is not None, "a rule for tables refuses what has none"
            self._copied = KeyedOptimizerWrapper(copied, lambda p: same(p, lr=sparse.lr))
            parts.append(("copied", self._copied))
        self.combined = CombinedOptimizer(parts)

    @property
    def gradient_norm(self) -> Tensor | None:
        """Norm of the last step's dense gradient before clipping, the same on all ranks; None where it had none."""
        return self._clip.norm

    def forget_sparse(self) -> None:
        """Sets the state of the tables' optimizers to zero, as at the start."""
        for name, value in self._sparse.state_dict()["state"].items():
            for state in value.values() if isinstance(value, dict) else ():
                for part in _local_parts(name, state):
                    part.zero_()
        for value in self._copied.state.values() if self._copied else ():
            for state in value.values():
                state.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The state of both by parameter and name; the values are the live tensors, not copies."""
        return self.combined.state_dict()["state"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state that `state_dict` gave, after `allocate_state`."""
        self.combined.load_state_dict({"state": state})

    def allocate_state(self) -> None:
        """Makes the state of what is not fused, as a first step would; weight decay may move the weights."""
        for optimizer in (self._dense, self._copied):
            if optimizer is not None:
                optimizer.init_state()
                optimizer.zero_grad(set_to_none=True)

    def kernel_steps(self) -> int:
        """What the fused kernels have counted, for Adam's correction of its first steps; 0 without tables."""
        return max([int(kernel.iter.item()) for kernel in self._kernels], default=0)

    def set_kernel_steps(self, count: int) -> None:
        """Sets the count of steps that fused kernels keep."""
        for kernel in self._kernels:
            kernel.set_optimizer_step(count)
            kernel.iter_cpu.fill_(count)

    def set_lr(self, *, sparse: float, dense: float) -> None:
        """Sets both learning rates for the next step.

        Call before the pipeline's `progress`: it begins with `zero_grad`, which hands the sparse rate to the kernels.
        """
        for optimizer, lr in ((self._sparse, sparse), (self._copied, sparse), (self._dense, dense)):
            groups: Any = optimizer.param_groups if optimizer else ()
            for group in groups:
                group["lr"] = lr


class GradientClip:
    """Scales all gradients of an optimizer down to a norm, before each of its steps.

    TorchRec has a wrapper that does so too, but before torchrec 1.8 it keeps the norm to itself.

    Attributes:
        norm: of the last step, before clipping; a scalar, None where no parameter had a gradient.
    """

    def __init__(self, max_norm: float) -> None:
        self.norm: Tensor | None = None
        self._max_norm = max_norm

    def __call__(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook for `Optimizer.register_step_pre_hook`."""
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Without a limit the norm is still taken: it is how a gradient that is not finite is noticed.
        self.norm = nn.utils.get_total_norm([p.grad for p in params]) if params else None
        if self.norm is not None and self._max_norm > 0:
            nn.utils.clip_grads_with_norm_(params, self._max_norm, self.norm)


def _local_parts(name: str, state: Any) -> list[Tensor]:
    """What this rank has of one state of one table."""
    if isinstance(state, DTensor):
        parts = state.to_local()
        assert isinstance(parts, LocalShardsWrapper), (name, type(parts))
        return parts.local_shards()
    assert isinstance(state, ShardedTensor), (name, type(state))
    return [shard.tensor for shard in state.local_shards()]


def count_dense(model: nn.Module) -> int:
    """Trainable values outside the tables."""
    params = in_backward_optimizer_filter(model.named_parameters())
    return sum(p.numel() for name, p in params if not name.startswith(TABLES))
