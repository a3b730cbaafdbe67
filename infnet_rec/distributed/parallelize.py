"""One function shards the model; the model does not know.

Initial weights depend on (seed, table, row) alone, those of the dense part on the seed and the order of its modules, so
every number of ranks and every sharding starts from the same model.
"""

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor
from torchrec.distributed.mc_embedding_modules import BaseShardedManagedCollisionEmbeddingCollection
from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
from torchrec.distributed.shards_wrapper import LocalShardsWrapper
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from infnet_rec.config.sharding import Communication
from infnet_rec.distributed.optimizers import TABLES
from infnet_rec.distributed.process_group import World
from infnet_rec.distributed.sharders import make_sharders
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.schema import UNSEEN_ID


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


INIT_CHUNK_ROWS = 16_384


def parallelize(
    model: RankingModel,
    plan: ShardingPlan,
    world: World,
    *,
    seed: int,
    table_std: float,
    communication: Communication = "fp32",
    replica_groups: int = 1,
) -> DistributedModelParallel:
    """Shards a model that stands on the meta device and gives it its initial weights.

    Args:
        model: on the meta device, sparse optimizers attached.
        plan: where each table goes.
        world: all ranks; their process group is open.
        seed: of all initial weights.
        table_std: standard deviation of the embeddings.
        communication: precision of what ranks exchange.
        replica_groups: groups of ranks that each hold all tables; the plan is that of one group.
    """
    for part in (model.assembly, model.tower, model.criterion):
        part.to_empty(device="cpu")
    reset_dense(model, seed)
    for part in (model.assembly, model.tower, model.criterion):
        part.to(world.device)
    assert dist.group.WORLD is not None
    sharders = make_sharders(communication, world.device)
    if replica_groups == 1:
        sharded = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            plan=plan,
            sharders=sharders,
            device=world.device,
            init_data_parallel=False,
        )
    else:
        # It renames the plan's ranks in place. The training pipeline averages the groups' tables after every step.
        sharded = DMPCollection(
            model,
            device=world.device,
            plan=plan,
            world_size=world.world_size,
            sharding_group_size=world.world_size // replica_groups,
            global_pg=dist.group.WORLD,
            node_group_size=world.local_world_size // replica_groups,
            sharders=sharders,
            init_data_parallel=False,
        )
    if world.device.type == "cpu":
        forget_evicted(sharded)
    initialise_tables(sharded, seed=seed, std=table_std)
    sharded.init_data_parallel()
    return sharded


def reset_dense(model: RankingModel, seed: int) -> None:
    """Runs every dense module's own initialisation under one seed, on the CPU so that all devices agree."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in (model.tower, model.criterion):
            for module in part.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()


def initialise_tables(sharded: nn.Module, *, seed: int, std: float) -> None:
    """Fills the local shards of every table with N(0, std^2); the row of never-seen values is zero."""
    with torch.no_grad():
        for shard in local_shards(sharded):
            _fill(shard, key=zlib.crc32(f"{seed}/{shard.name}".encode()), std=std)


class TableShard(NamedTuple):
    """The part of one table that lives on this rank.

    Attributes:
        name: the table's parameter name.
        values: the local rows and columns; writing to them writes the table.
        row: first row of the part.
        column: first column of the part.
        num_rows: rows of the whole table.
        num_columns: columns of the whole table.
    """

    name: str
    values: Tensor
    row: int
    column: int
    num_rows: int
    num_columns: int


def local_shards(sharded: nn.Module) -> Iterator[TableShard]:
    """Every table shard on this rank; of a data-parallel table that is the whole."""
    for name, value in sharded.state_dict().items():
        if not name.endswith(".weight"):
            continue  # such as the ids of a managed table's rows
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                row, column = shard.metadata.shard_offsets
                yield TableShard(name, shard.tensor, row, column, *value.size())
        elif isinstance(value, DTensor):
            parts = value.to_local()
            assert isinstance(parts, LocalShardsWrapper), (name, type(parts))
            for part, (row, column) in zip(parts.local_shards(), parts.local_offsets(), strict=True):
                yield TableShard(name, part, row, column, *value.size())
        elif name.startswith(TABLES):
            yield TableShard(name, value, 0, 0, *value.size())


def _fill(shard: TableShard, *, key: int, std: float) -> None:
    """Draws whole chunks of rows of the full table and keeps what belongs to this shard.

    Chunks have generators of their own, so as many are drawn at a time as the process has threads: a table of tens of
    millions of rows takes seconds, not minutes.
    """
    stop = shard.row + shard.values.shape[0]
    starts = range(shard.row // INIT_CHUNK_ROWS * INIT_CHUNK_ROWS, stop, INIT_CHUNK_ROWS)
    num_threads = min(torch.get_num_threads(), len(starts))
    if num_threads <= 1:
        for chunk_start in starts:
            _fill_chunk(shard, chunk_start, key, std)
        return
    with ThreadPoolExecutor(num_threads, "draw") as pool:
        # Reading the results raises what went wrong in a thread.
        for _ in pool.map(lambda chunk_start: _fill_chunk(shard, chunk_start, key, std), starts):
            pass


def _fill_chunk(shard: TableShard, chunk_start: int, key: int, std: float) -> None:
    stop, width = shard.row + shard.values.shape[0], shard.values.shape[1]
    chunk_stop = min(chunk_start + INIT_CHUNK_ROWS, shard.num_rows)
    generator = torch.Generator().manual_seed((key << 24) + chunk_start // INIT_CHUNK_ROWS)
    # Gradients are left out for each thread on its own.
    with torch.no_grad():
        chunk = torch.randn(chunk_stop - chunk_start, shard.num_columns, generator=generator) * std
        if chunk_start <= UNSEEN_ID < chunk_stop:
            chunk[UNSEEN_ID - chunk_start] = 0.0
        first, last = max(shard.row, chunk_start), min(stop, chunk_stop)
        inside = chunk[first - chunk_start : last - chunk_start, shard.column : shard.column + width]
        shard.values[first - shard.row : last - shard.row] = inside.to(shard.values)
