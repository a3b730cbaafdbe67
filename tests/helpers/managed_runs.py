"""Runs with managed tables, for the tests of them; top-level functions that the ranks can run.

The store's video_id and user_id are hashes; the managed table `video_hash` has far fewer rows than there are videos.
"""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from data_fixtures import GENERATED_RECIPE, QUIET
from infnet_rec.checkpoint.loader import newest_whole, restore
from infnet_rec.checkpoint.saver import CheckpointSaver
from infnet_rec.checkpoint.store import CheckpointStore
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.distributed.process_group import World
from infnet_rec.errors import UserError
from infnet_rec.metrics import mean_over_ranks
from infnet_rec.planner.run_plan import check_run
from infnet_rec.trainer.build import Sharded, shard_model, train_loader
from sharded_runs import small_config, tables_of, valid_logits, world_of

NUM_IDS = 2**14
HASHED = f"""
[[features]]
side = "item"
encoding = "hash"
columns = ["video_id"]
name = "video_hash"
buckets = {NUM_IDS - 2}

[[features]]
side = "user"
encoding = "hash"
columns = ["user_id"]
name = "user_hash"
buckets = {NUM_IDS - 2}
"""


def managed(rows: int, *more: str, eviction: str = "lfu", interval: int = 4, table: str = "video_hash") -> list[str]:
    """Overrides of the small run."""
    here = f"model.tables.{table}"
    keys = [f"{here}.kind='managed'", f"{here}.rows={rows}"]
    return [*keys, f"{here}.eviction='{eviction}'", f"{here}.interval_steps={interval}", "data.profile='all'", *more]


def build_hashed(raw: Path, out: Path) -> None:
    """KuaiRand-Pure's store with two hashed features more."""
    recipe = GENERATED_RECIPE.read_text(encoding="utf-8")
    text = recipe.replace("# Request context", HASHED + "\n# Request context", 1)
    assert text != recipe
    build_store(validate_model(Recipe, tomllib.loads(text), "hashed.toml"), raw, out, QUIET, num_threads=1)


def open_run(rank: int, world_size: int, store: str, overrides: list[str]) -> tuple[RunConfig, RunData, World, Sharded]:
    """A run that has not begun."""
    config = small_config(store, overrides)
    data, world = open_data(config), world_of(rank, world_size)
    check_run(config, data, world)
    return config, data, world, shard_model(config, data, world)


def kept_of(sharded: Sharded) -> dict[str, dict[int, int]]:
    """The rows that this rank has given away: row by id, for each managed table."""
    kept = {}
    for name, table in modules_of(sharded).items():
        pairs = zip(table._mch_sorted_raw_ids.tolist(), table._mch_remapped_ids_mapping.tolist(), strict=True)
        kept[name] = {raw: row for raw, row in pairs if raw < NUM_IDS}
    return kept


def modules_of(sharded: Sharded) -> dict[str, Any]:
    """TorchRec's part of each managed table."""
    collection: Any = sharded.model.module.managed
    return dict(collection._managed_collision_collection._managed_collision_modules.items())


def train_managed(rank: int, world_size: int, store: str, overrides: list[str], num_steps: int) -> dict[str, Any]:
    """Trains; losses, tables, rows given away and logits of valid."""
    config, data, world, sharded = open_run(rank, world_size, store, overrides)
    losses = steps(config, data, world, sharded, 0, num_steps)
    return ending(config, data, world, sharded) | {"losses": losses}


def ending(config: RunConfig, data: RunData, world: World, sharded: Sharded) -> dict[str, Any]:
    """What is left of a run."""
    kept, tables = kept_of(sharded) if data.schema.managed_tables else {}, tables_of(sharded)
    return {"kept": kept, "tables": tables, "logits": valid_logits(config, data, world, sharded)}


def steps(config: RunConfig, data: RunData, world: World, sharded: Sharded, first: int, number: int) -> np.ndarray:
    """Losses of so many steps."""
    batches = train_loader(config, data, world).batches(first, number)
    sharded.model.train()
    losses = []
    for _ in range(number):
        sharded.optimizers.set_lr(sparse=config.train.sparse.lr, dense=config.train.dense.lr)
        losses.append(mean_over_ranks(sharded.pipeline.progress(batches).loss_T).numpy())
    return np.stack(losses)


def save_managed(
    rank: int, world_size: int, store: str, overrides: list[str], folder: str, at: int, then: int
) -> dict[str, Any]:
    """Trains `at` steps, saves, and trains `then` more without a break."""
    config, data, world, sharded = open_run(rank, world_size, store, overrides)
    steps(config, data, world, sharded, 0, at)
    run = {"config": config.model_dump(mode="json"), "store": "", "world_size": world_size, "plan": {}}
    saver = CheckpointSaver(
        CheckpointStore(folder), sharded.model, sharded.optimizers, CheckpointConfig(keep_last=1), run, print
    )
    sharded.pipeline.detach()
    saver.save(TrainState(step=at))
    saved = ending(config, data, world, sharded)
    sharded.model.train()
    losses = steps(config, data, world, sharded, at, then) if then else None
    return {"saved": saved, "losses": losses, "end": ending(config, data, world, sharded)}


def go_on_managed(
    rank: int, world_size: int, store: str, overrides: list[str], folder: str, at: int, then: int
) -> dict[str, Any]:
    """Loads what `save_managed` saved into a new model and trains on; a fault's message if it is refused."""
    config, data, world, sharded = open_run(rank, world_size, store, overrides)
    shelf = CheckpointStore(folder)
    commit = newest_whole(shelf, print)
    assert commit is not None
    try:
        restore(shelf, commit, sharded.model, sharded.optimizers, {})
    except UserError as fault:
        return {"fault": str(fault)}
    saved = ending(config, data, world, sharded)
    losses = steps(config, data, world, sharded, at, then) if then else None
    return {"saved": saved, "losses": losses, "end": ending(config, data, world, sharded)}
