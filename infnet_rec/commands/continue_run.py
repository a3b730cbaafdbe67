"""The saver of a run and the point it starts from: a checkpoint of its own, the weights of another, or nothing."""

from pathlib import Path
from typing import Any

from infnet_rec.commands.assemble import Data, Sharded
from infnet_rec.commands.resume import Standing
from infnet_rec.commands.shelves import find, shelf_of
from infnet_rec.config.run import RunConfig
from infnet_rec.shard.world import World, connecting
from infnet_rec.train.checkpoint.progress import Progress
from infnet_rec.train.checkpoint.restore import load_weights, newest_whole, restore
from infnet_rec.train.checkpoint.save import Keep, Saver
from infnet_rec.train.report import Report


def make_saver(config: RunConfig, data: Data, world: World, run_dir: Path, sharded: Sharded, report: Report) -> Saver:
    """What saves the run, and says in every checkpoint what run it is of."""
    settings = config.checkpoint
    run = {
        "config": config.model_dump(mode="json"),
        "store": data.store.fingerprint,
        "world_size": world.world_size,
        "plan": sharding_types(sharded),
    }
    keep = Keep(settings.keep_last, settings.keep_best)
    with connecting(config.train.collective_timeout_s, "process group of checkpoints"):
        return Saver(shelf_of(config, run_dir), sharded.model, sharded.optimizers, keep, settings.mode, run, report.say)


def sharding_types(sharded: Sharded) -> dict[str, str]:
    """How each table is spread."""
    parts: Any = sharded.model.plan.plan.values()
    return {table: sharding.sharding_type for part in parts for table, sharding in part.items()}


def go_on(
    config: RunConfig, world: World, run_dir: Path, standing: Standing, sharded: Sharded, report: Report
) -> Progress:
    """Goes on from the newest whole checkpoint of this run, or starts at step 0; all ranks call it."""
    shelf = shelf_of(config, run_dir)
    commit = newest_whole(shelf, report.say)
    for line in standing.changed:
        report.say(f"goes on with another setting: {line}")
    if commit is None:
        if not standing.is_new:
            again = report.go_on(0, Progress().spent)
            report.say(
                f"{run_dir}: holds a run without a whole checkpoint; it starts again from step 0{_redone(again)}"
            )
        return Progress()
    at = restore(shelf, commit, sharded.model, sharded.optimizers, sharding_types(sharded))
    again = report.go_on(at.step, at.spent)
    ranks = commit.run["world_size"]
    other = "" if ranks == world.world_size else f" (written by {ranks} ranks, now {world.world_size})"
    report.say(f"goes on from step {at.step}, the checkpoint of {commit.written_at}{other}{_redone(again)}")
    return at


def _redone(steps: int) -> str:
    return f"; {steps} step{'s' * (steps > 1)} after that {'are' if steps > 1 else 'is'} done again" if steps else ""


def start_from(source: str, sharded: Sharded, report: Report) -> None:
    """Takes another run's weights, and nothing else of it; all ranks call it.

    Args:
        source: a run directory (its best checkpoint), a folder of checkpoints, or one checkpoint.

    Raises:
        Fault: there is none, or it is of another model.
    """
    shelf, commit = find(source)
    load_weights(shelf, commit, sharded.model)
    report.say(f"starts from the weights of {shelf.where}, step {commit.step}")
