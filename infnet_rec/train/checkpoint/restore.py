"""Reads checkpoints, on whatever number of ranks and under whatever plan the run has now.

Nothing is left as it was by chance: every weight and every state of an optimizer that the model has must be in the
checkpoint and the other way round, or nothing is loaded.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from infnet_rec.faults import Fault
from infnet_rec.train.checkpoint.match import Sizes, match
from infnet_rec.train.checkpoint.parts import PartsReader
from infnet_rec.train.checkpoint.progress import Progress
from infnet_rec.train.checkpoint.shelf import Commit, Shelf, name_of


class OptimizerState(Protocol):
    """Optimizers whose state can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Live tensors by parameter and name."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes such a state."""

    def allocate_state(self) -> None:
        """Makes state that is otherwise made in the first step."""

    def kernel_steps(self) -> int:
        """What fused kernels count for themselves."""
        ...

    def set_kernel_steps(self, count: int) -> None:
        """Sets that count."""


def newest_whole(shelf: Shelf, say: Callable[[str], None]) -> Commit | None:
    """The newest checkpoint whose every byte is as it was written; all ranks call it.

    Unfinished ones are cleared away. A broken one is named and withdrawn, so that an older one is the newest.
    """
    commits = None
    if dist.get_rank() == 0:
        for name in shelf.clear():
            say(f"checkpoint {name}: was never finished, removed")
        for found in shelf.found():
            if found.commit is None:
                say(f"checkpoint {found.name}: is torn ({found.torn}), skipped")
        commits = shelf.commits()
    for commit in reversed(_from_first(commits)):
        broken = broken_over_ranks(shelf, commit)
        if not broken:
            return commit
        say(f"checkpoint {name_of(commit.step)}: is torn ({'; '.join(broken)}), skipped")
        if dist.get_rank() == 0:
            shelf.withdraw(commit.step)
    return None


def broken_over_ranks(shelf: Shelf, commit: Commit) -> list[str]:
    """What is wrong with a checkpoint's files; all ranks read their share of them and get the whole answer."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    broken_of_ranks: list[Any] = [None] * world_size
    mine = list(shelf.broken_parts(commit, sorted(commit.parts)[rank::world_size]))
    # Collective: hashing is the slow part of a resume, and every rank must know what any of them found.
    dist.all_gather_object(broken_of_ranks, mine)
    return [line for lines in broken_of_ranks for line in lines]


def restore(
    shelf: Shelf, commit: Commit, model: nn.Module, optimizers: OptimizerState, sharding_types: Mapping[str, str]
) -> Progress:
    """Brings a sharded model, its optimizers and the random state to where a checkpoint left them; all ranks call it.

    On the number of ranks that wrote it, training goes on to the bit. On another, each rank starts a new stretch of
    random numbers; they only choose what dropout drops.

    Args:
        shelf: where it is.
        commit: which one.
        model: sharded, under any plan.
        optimizers: of the model.
        sharding_types: how each table is sharded now.

    Raises:
        Fault: a weight or a state has no counterpart in the checkpoint, or the other way round.
    """
    optimizers.allocate_state()
    state: dict[str, Any] = {"model": model.state_dict(), "optim": optimizers.state_dict()}
    ranks = _load(shelf, commit, state, sharding_types)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optim"])
    optimizers.set_kernel_steps(commit.progress["kernel_steps"])
    at = Progress.from_json(commit.progress)
    _restore_random_state(ranks.get(str(dist.get_rank()), {}), commit)
    return at


def load_weights(shelf: Shelf, commit: Commit, model: nn.Module) -> None:
    """Reads weights alone into a sharded model; all ranks call it.

    Raises:
        Fault: the checkpoint is broken or of another model.
    """
    if broken := broken_over_ranks(shelf, commit):
        raise Fault(f"checkpoint {name_of(commit.step)} in {shelf.where}: is torn: {'; '.join(broken)}")
    state: dict[str, Any] = {"model": model.state_dict()}
    _load(shelf, commit, state, {})
    model.load_state_dict(state["model"])


def _load(
    shelf: Shelf, commit: Commit, state: dict[str, Any], sharding_types: Mapping[str, str]
) -> dict[str, dict[str, Tensor]]:
    """Reads into the live tensors of `state`; what belongs to single ranks is returned."""
    reader = PartsReader(shelf, shelf.path(name_of(commit.step)))
    saved = _sizes(reader)
    flat: dict[str, Any] = {k: v for k, v in flatten_state_dict(state)[0].items() if hasattr(v, "size")}
    of_ranks: list[Any] = [None] * dist.get_world_size()
    # Collective: a table's optimizer state is known to the ranks that hold a part of it only.
    dist.all_gather_object(of_ranks, {name: tuple(value.size()) for name, value in flat.items()})
    wanted = {name: size for part in of_ranks for name, size in part.items()}
    _check_parts(wanted, commit, shelf)
    there = {name: size for name, size in saved.items() if name.split(".", 1)[0] in state}
    try:
        matched = match(wanted, there, was=commit.run["plan"], now=sharding_types)
    except Fault as fault:
        raise Fault(f"checkpoint {name_of(commit.step)} in {shelf.where}: {fault}") from None
    translated = {mine: saved_name for mine, saved_name in matched.translated.items() if mine in flat}
    whole = {saved_name: torch.empty(saved[saved_name]) for saved_name in translated.values()}
    ranks = _allocate_ranks(saved, commit) if "optim" in state else {}
    request = {name: flat[name] for name in matched.as_is if name in flat}
    request |= {f"ranks.{rank}.{name}": value for rank, own in ranks.items() for name, value in own.items()}
    # Collective: every rank reads what its shards need.
    dcp.load({**request, **whole}, storage_reader=reader)
    for mine, saved_name in translated.items():
        _copy_whole(whole[saved_name], flat[mine])
    for name in matched.counted:
        if name in flat:
            flat[name].fill_(commit.step)
    return ranks


def _check_parts(wanted: Sizes, commit: Commit, shelf: Shelf) -> None:
    """Refuses to split the parts of managed tables: their ids and rows would not be where TorchRec looks for them."""
    was, now = commit.run["world_size"], dist.get_world_size()
    if was % now and any(name.endswith("._output_segments_tensor") for name in wanted):
        raise Fault(
            f"checkpoint {name_of(commit.step)} in {shelf.where}: has managed tables in {was} parts, which {now} ranks "
            f"cannot share; go on with {was} ranks, or a number that divides it"
        )


def _copy_whole(whole: Tensor, into: Any) -> None:
    """Copies a whole tensor into a live one of as many values; of a sharded one into this rank's part."""
    whole = whole.reshape(tuple(into.size()))
    if not isinstance(into, ShardedTensor):
        into.copy_(whole)
        return
    for shard in into.local_shards():
        part = whole
        for dim, (offset, length) in enumerate(
            zip(shard.metadata.shard_offsets, shard.metadata.shard_sizes, strict=True)
        ):
            part = part.narrow(dim, offset, length)
        shard.tensor.copy_(part)


def _from_first(value: Any) -> Any:
    answer = [value]
    # Collective: ranks that list a shared folder at different moments may see different things.
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _sizes(reader: PartsReader) -> Sizes:
    saved = reader.read_metadata().state_dict_metadata
    return {name: tuple(md.size) for name, md in saved.items() if isinstance(md, TensorStorageMetadata)}


def _allocate_ranks(saved: Sizes, commit: Commit) -> dict[str, dict[str, Tensor]]:
    """Room for this rank's own state; none when the number of ranks was another."""
    if commit.run["world_size"] != dist.get_world_size():
        return {}
    rank = str(dist.get_rank())
    names = _random_names(saved, rank)
    return {rank: {name: torch.empty(saved[f"ranks.{rank}.{name}"], dtype=torch.uint8) for name in names}}


def _random_names(saved: Sizes, rank: str) -> list[str]:
    return [name for name in ("rng_cpu", "rng_cuda") if f"ranks.{rank}.{name}" in saved]


def _restore_random_state(own: dict[str, Tensor], commit: Commit) -> None:
    if "rng_cpu" not in own:
        seed = commit.run["config"]["train"]["seed"]
        torch.manual_seed((seed * 100_003 + dist.get_rank()) * 1_000_003 + commit.step)
        return
    torch.set_rng_state(own["rng_cpu"])
    if "rng_cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["rng_cuda"])
