"""Reads checkpoints, on whatever number of ranks and under whatever plan the run has now.

Nothing is left as it was by chance: every weight and every state of an optimizer that the model has must be in the
checkpoint and the other way round, or nothing is loaded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from infnet_rec.checkpoint.dcp_files import PartsReader
from infnet_rec.checkpoint.match import Sizes, match_tensors
from infnet_rec.checkpoint.store import CheckpointManifest, CheckpointStore, checkpoint_name
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.errors import UserError

TABLE_WEIGHT = re.compile(r"(?:.+\.)?(?:embedding_bags|embeddings)\.(?P<table>[^.]+)\.weight")


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
        """Sets the count of steps that fused kernels keep."""


def newest_whole(store: CheckpointStore, say: Callable[[str], None]) -> CheckpointManifest | None:
    """The newest checkpoint whose every byte is as it was written; all ranks call it.

    Unfinished ones are cleared away. A broken one is named and withdrawn, so that an older one is the newest.
    """
    commits = None
    if dist.get_rank() == 0:
        for name in store.clear():
            say(f"checkpoint {name}: was never finished, removed")
        for found in store.found():
            if found.commit is None:
                say(f"checkpoint {found.name}: is torn ({found.torn}), skipped")
        commits = store.commits()
    for commit in reversed(_from_first(commits)):
        broken = broken_over_ranks(store, commit)
        if not broken:
            return commit
        say(f"checkpoint {checkpoint_name(commit.step)}: is torn ({'; '.join(broken)}), skipped")
        if dist.get_rank() == 0:
            store.withdraw(commit.step)
    return None


def broken_over_ranks(store: CheckpointStore, commit: CheckpointManifest) -> list[str]:
    """What is wrong with a checkpoint's files; all ranks read their share of them and get the whole answer."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    broken_of_ranks: list[Any] = [None] * world_size
    mine = list(store.broken_parts(commit, sorted(commit.parts)[rank::world_size]))
    # Collective: hashing is the slow part of a resume, and every rank must know what any of them found.
    dist.all_gather_object(broken_of_ranks, mine)
    return [line for lines in broken_of_ranks for line in lines]


def restore(
    store: CheckpointStore,
    commit: CheckpointManifest,
    model: nn.Module,
    optimizers: OptimizerState,
    sharding_types: Mapping[str, str],
) -> TrainState:
    """Brings a sharded model, its optimizers and the random state to where a checkpoint left them; all ranks call it.

    On the number of ranks that wrote it, training goes on to the bit. On another, each rank starts a new stretch of
    random numbers; they only choose what dropout drops.

    Args:
        store: where it is.
        commit: which one.
        model: sharded, under any plan.
        optimizers: of the model.
        sharding_types: how each table is sharded now.

    Raises:
        UserError: a weight or a state has no counterpart in the checkpoint, or the other way round.
    """
    optimizers.allocate_state()
    state: dict[str, Any] = {"model": model.state_dict(), "optim": optimizers.state_dict()}
    ranks = _load(store, commit, state, sharding_types)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optim"])
    optimizers.set_kernel_steps(commit.progress["kernel_steps"])
    at = TrainState.from_json(commit.progress)
    _restore_random_state(ranks.get(str(dist.get_rank()), {}), commit)
    return at


def load_weights(
    store: CheckpointStore,
    commit: CheckpointManifest,
    model: nn.Module,
    moved: Mapping[str, NDArray[np.int64]] | None = None,
) -> None:
    """Reads weights alone into a sharded model; all ranks call it.

    Args:
        store: where the checkpoint is.
        commit: which one.
        model: sharded, under any plan.
        moved: for tables whose ids mean something else than when they were saved: table -> for each of its rows [R] the
            saved row that it takes, or -1 where it keeps what it has. A rank reads such a table whole.

    Raises:
        UserError: the checkpoint is broken or of another model.
    """
    if broken := broken_over_ranks(store, commit):
        raise UserError(f"checkpoint {checkpoint_name(commit.step)} in {store.where}: is torn: {'; '.join(broken)}")
    weights = model.state_dict()
    sources = {name: moved[table] for name in weights if (table := _table_of(name)) in (moved or {})} if moved else {}
    state: dict[str, Any] = {"model": {name: value for name, value in weights.items() if name not in sources}}
    _load(store, commit, state, {}, apart=[f"model.{name}" for name in sources])
    _move_rows(store, commit, weights, sources)
    model.load_state_dict(weights)


def _table_of(name: str) -> str:
    """The table whose weight this is; "" if it is no table's."""
    found = TABLE_WEIGHT.fullmatch(name)
    return found["table"] if found else ""


def _move_rows(
    store: CheckpointStore,
    commit: CheckpointManifest,
    weights: Mapping[str, Any],
    sources: Mapping[str, NDArray[np.int64]],
) -> None:
    """Copies saved rows to the rows that mean the same now, one table after another."""
    reader = PartsReader(store, store.path(checkpoint_name(commit.step)))
    saved = _sizes(reader)
    for name, row_R in sources.items():
        size, into = saved.get(f"model.{name}"), weights[name]
        if size is None or size[1:] != tuple(into.size())[1:]:
            raise UserError(
                f"checkpoint {checkpoint_name(commit.step)} in {store.where}: {name} is {_size_text(size)} there and "
                f"{_size_text(tuple(into.size()))} here; the width must be the same"
            )
        whole = torch.empty(size)
        # Collective: every rank reads the whole table, since its rows may have come from anywhere.
        dcp.load({f"model.{name}": whole}, storage_reader=reader)
        for part, (first_row, first_column) in _parts_of(into):
            num_rows, num_columns = part.shape
            row_L = torch.from_numpy(row_R[first_row : first_row + num_rows])
            kept_L = row_L >= 0
            columns = whole[:, first_column : first_column + num_columns]
            part[kept_L.to(part.device)] = columns[row_L[kept_L]].to(part.device, part.dtype)


def _size_text(size: tuple[int, ...] | None) -> str:
    return "absent" if size is None else " x ".join(map(str, size))


def _load(
    store: CheckpointStore,
    commit: CheckpointManifest,
    state: dict[str, Any],
    sharding_types: Mapping[str, str],
    apart: Sequence[str] = (),
) -> dict[str, dict[str, Tensor]]:
    """Reads into the live tensors of `state`, but for those `apart`; what belongs to single ranks is returned."""
    reader = PartsReader(store, store.path(checkpoint_name(commit.step)))
    saved = _sizes(reader)
    flat: dict[str, Any] = {k: v for k, v in flatten_state_dict(state)[0].items() if hasattr(v, "size")}
    of_ranks: list[Any] = [None] * dist.get_world_size()
    # Collective: a table's optimizer state is known to the ranks that hold a part of it only.
    dist.all_gather_object(of_ranks, {name: tuple(value.size()) for name, value in flat.items()})
    wanted = {name: size for part in of_ranks for name, size in part.items()}
    _check_parts(wanted, commit, store)
    there = {name: size for name, size in saved.items() if name.split(".", 1)[0] in state and name not in apart}
    try:
        matched = match_tensors(wanted, there, was=commit.run["plan"], now=sharding_types)
    except UserError as fault:
        raise UserError(f"checkpoint {checkpoint_name(commit.step)} in {store.where}: {fault}") from None
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


def _check_parts(wanted: Sizes, commit: CheckpointManifest, store: CheckpointStore) -> None:
    """Refuses to split the parts of managed tables: their ids and rows would not be where TorchRec looks for them."""
    was, now = commit.run["world_size"], dist.get_world_size()
    if was % now and any(name.endswith("._output_segments_tensor") for name in wanted):
        raise UserError(
            f"checkpoint {checkpoint_name(commit.step)} in {store.where}: has managed tables in "
            f"{was} parts, which {now} ranks cannot share; go on with {was} ranks, or a number that divides it"
        )


def _copy_whole(whole: Tensor, into: Any) -> None:
    """Copies a whole tensor into a live one of as many values; of a sharded one into this rank's parts."""
    whole = whole.reshape(tuple(into.size()))
    for part, offsets in _parts_of(into):
        source = whole
        for dim, (offset, length) in enumerate(zip(offsets, part.shape, strict=True)):
            source = source.narrow(dim, offset, length)
        part.copy_(source)


def _parts_of(value: Any) -> list[tuple[Tensor, Sequence[int]]]:
    """This rank's parts of a live tensor, each with where it begins in the whole."""
    if isinstance(value, ShardedTensor):
        return [(shard.tensor, shard.metadata.shard_offsets) for shard in value.local_shards()]
    if isinstance(value, DTensor):
        local: Any = value.to_local()  # TorchRec's wrapper of several shards
        return list(zip(local.local_shards(), local.local_offsets(), strict=True))
    return [(value, (0,) * value.dim())]


def _from_first(value: Any) -> Any:
    answer = [value]
    # Collective: ranks that list a shared folder at different moments may see different things.
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def _sizes(reader: PartsReader) -> Sizes:
    saved = reader.read_metadata().state_dict_metadata
    return {name: tuple(md.size) for name, md in saved.items() if isinstance(md, TensorStorageMetadata)}


def _allocate_ranks(saved: Sizes, commit: CheckpointManifest) -> dict[str, dict[str, Tensor]]:
    """Room for this rank's own state; none when the number of ranks was another."""
    if commit.run["world_size"] != dist.get_world_size():
        return {}
    rank = str(dist.get_rank())
    names = _random_names(saved, rank)
    return {rank: {name: torch.empty(saved[f"ranks.{rank}.{name}"], dtype=torch.uint8) for name in names}}


def _random_names(saved: Sizes, rank: str) -> list[str]:
    return [name for name in ("rng_cpu", "rng_cuda") if f"ranks.{rank}.{name}" in saved]


def _restore_random_state(own: dict[str, Tensor], commit: CheckpointManifest) -> None:
    if "rng_cpu" not in own:
        seed = commit.run["config"]["train"]["seed"]
        torch.manual_seed((seed * 100_003 + dist.get_rank()) * 1_000_003 + commit.step)
        return
    torch.set_rng_state(own["rng_cpu"])
    if "rng_cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["rng_cuda"])
