"""Configuration to objects: what `train` and `eval` build alike.

Nothing here opens a process group or allocates a table until `build_model` is called.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.config.run import RunConfig
from infnet_rec.data.loader import BatchReader, Loader
from infnet_rec.data.run_data import RunData
from infnet_rec.data.sampler import EvalOrder, ShuffledOrder, TimeOrder, TrainOrder
from infnet_rec.distributed.optimizers import Optimizers
from infnet_rec.distributed.parallelize import initialise_tables, parallelize
from infnet_rec.distributed.process_group import World
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.planner.plan_file import PlanFile
from infnet_rec.planner.run_plan import plan_model
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.evaluator import Evaluation
from infnet_rec.trainer.nonfinite import CheckedForward

RENEWAL_SEEDS = 1_000_003  # apart from the seeds that people give


def train_order(config: RunConfig, data: RunData) -> TrainOrder:
    """The order of the training examples."""
    num_examples, batch_size = data.store.num_examples("train"), config.train.global_batch_size
    if config.train.order == "time":
        return TimeOrder(data.store.examples("train").time_N, batch_size)
    blocks, buffer = config.data.block_examples, config.data.buffer_blocks
    return ShuffledOrder(num_examples, batch_size, config.train.seed, blocks, buffer)


def train_loader(config: RunConfig, data: RunData, world: World) -> Loader:
    """Training batches of this rank."""
    with_rarity = config.train.loss.embedding_l2 > 0
    reader = BatchReader(data.store, "train", data.schema, config.data.sequence_length, with_rarity=with_rarity)
    return _loader(reader, train_order(config, data), config, world)


def evaluation(config: RunConfig, data: RunData, world: World, split: str) -> Evaluation:
    """One split, ready to be scored."""
    reader = BatchReader(data.store, split, data.schema, config.data.sequence_length)
    batch_size = -(-config.train.eval_batch_size // world.world_size) * world.world_size
    order = EvalOrder(len(reader), batch_size)
    title = split if world.is_first else None
    return Evaluation(_loader(reader, order, config, world), order.num_steps, data.task_names, title)


def _loader(reader: BatchReader, order: TrainOrder | EvalOrder, config: RunConfig, world: World) -> Loader:
    return Loader(
        reader,
        order,
        rank=world.rank,
        world_size=world.world_size,
        read_ahead=config.data.read_ahead,
        num_threads=config.data.loader_threads,
        pin_memory=world.device.type == "cuda",
    )


@dataclass(frozen=True, slots=True)
class Sharded:
    """A sharded model with its optimizers and the pipeline that runs it."""

    model: DistributedModelParallel
    plan: PlanFile
    optimizers: Optimizers
    forward: CheckedForward
    pipeline: TrainPipelineSparseDist
    seed: int
    table_std: float

    def renew_tables(self, *, epoch: int) -> None:
        """Gives every table new weights and no optimizer state.

        Reference: Multi-Epoch Learning with Data Augmentation for Deep Click-Through Rate Prediction, arXiv 2407.01607.
        """
        initialise_tables(self.model, seed=self.seed + RENEWAL_SEEDS * epoch, std=self.table_std)
        self.optimizers.forget_sparse()


def shard_model(config: RunConfig, data: RunData, world: World) -> Sharded:
    """Plans, allocates and initialises the model; the process group must be open.

    Args:
        config: of the run.
        data: of the run.
        world: all ranks.
    """
    model = meta_model(config, data)
    return shard(model, plan_model(model, config, data, world), config, world)


def shard(model: RankingModel, plan: PlanFile, config: RunConfig, world: World) -> Sharded:
    """Allocates and initialises a model that is planned, with its optimizers and its pipeline.

    Args:
        model: on the meta device, as it was planned.
        plan: where its tables go.
        config: of the run.
        world: all ranks.
    """
    seed = config.train.seed
    if config.model.compile:
        # After the plan was made, whose count goes through the tower as it is written.
        model.tower.compile()
    sharded = parallelize(
        model,
        plan.sharding_plan(),
        world,
        seed=seed,
        table_std=config.model.table_std,
        communication=config.sharding.communication,
        replica_groups=config.sharding.replica_groups,
    )
    optimizers = Optimizers(sharded, config.train.dense, config.train.sparse)
    # Dropout draws differ between ranks, as the examples do.
    torch.manual_seed(seed * 100_003 + world.rank)
    forward = CheckedForward(sharded, config.train.on_nonfinite)
    called: Any = forward  # TorchRec's type allows for no batch at all
    pipeline = TrainPipelineSparseDist(
        sharded, optimizers.combined, world.device, execute_all_batches=True, custom_model_fwd=called
    )
    return Sharded(sharded, plan, optimizers, forward, pipeline, seed, config.model.table_std)
