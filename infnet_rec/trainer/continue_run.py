"""The saver of a run and the point it starts from: a checkpoint of its own, the weights of another, or nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infnet_rec.checkpoint.loader import load_weights, newest_whole, restore
from infnet_rec.checkpoint.locate import find_checkpoint, run_checkpoints
from infnet_rec.checkpoint.saver import CheckpointSaver
from infnet_rec.checkpoint.store import CheckpointManifest, CheckpointStore, checkpoint_name
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.plugins import plugin_of
from infnet_rec.config.run import RunConfig
from infnet_rec.data.remote import fetched
from infnet_rec.data.run_data import RunData
from infnet_rec.data.store import Store
from infnet_rec.data.vocabulary_match import NUM_SHOWN, RowSources, match_rows, table_meanings
from infnet_rec.distributed.process_group import World, connecting
from infnet_rec.errors import UserError
from infnet_rec.trainer.build import Sharded
from infnet_rec.trainer.metric_logger import MetricLogger
from infnet_rec.trainer.resume import RunDirState


def make_saver(
    config: RunConfig, data: RunData, world: World, run_dir: Path, sharded: Sharded, report: MetricLogger
) -> CheckpointSaver:
    """What saves the run, and says in every checkpoint what run it is of."""
    run: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "store": data.store.fingerprint,
        "world_size": world.world_size,
        "plan": sharding_types(sharded),
        "meanings": table_meanings(data.store, data.schema),
    }
    if (plugin := plugin_of(config.model)) is not None:
        run["plugin"] = plugin.record
    with connecting(config.train.collective_timeout_s, "process group of checkpoints"):
        shelf = run_checkpoints(config.checkpoint, run_dir)
        return CheckpointSaver(shelf, sharded.model, sharded.optimizers, config.checkpoint, run, report.say)


def sharding_types(sharded: Sharded) -> dict[str, str]:
    """How each table is spread."""
    parts: Any = sharded.model.plan.plan.values()
    return {table: sharding.sharding_type for part in parts for table, sharding in part.items()}


def resume_or_start(
    config: RunConfig, world: World, run_dir: Path, standing: RunDirState, sharded: Sharded, report: MetricLogger
) -> TrainState:
    """Goes on from the newest whole checkpoint of this run, or starts at step 0; all ranks call it."""
    shelf = run_checkpoints(config.checkpoint, run_dir)
    commit = newest_whole(shelf, report.say)
    for line in standing.changed:
        report.say(f"goes on with another setting: {line}")
    if commit is None:
        if not standing.is_new:
            again = report.go_on(0, TrainState().spent)
            report.say(
                f"{run_dir}: holds a run without a whole checkpoint; it starts again from step 0{_redone(again)}"
            )
        return TrainState()
    at = restore(shelf, commit, sharded.model, sharded.optimizers, sharding_types(sharded))
    again = report.go_on(at.step, at.spent)
    ranks = commit.run["world_size"]
    other = "" if ranks == world.world_size else f" (written by {ranks} ranks, now {world.world_size})"
    report.say(f"goes on from step {at.step}, the checkpoint of {commit.written_at}{other}{_redone(again)}")
    return at


def _redone(steps: int) -> str:
    return f"; {steps} step{'s' * (steps > 1)} after that {'are' if steps > 1 else 'is'} done again" if steps else ""


def load_initial_weights(source: str, data: RunData, sharded: Sharded, report: MetricLogger) -> None:
    """Takes another run's weights, and nothing else of it; all ranks call it.

    Rows of tables move by what their ids mean. A value that the other run's store never saw keeps its fresh row.

    Args:
        source: a run directory (its best checkpoint), a folder of checkpoints, or one checkpoint.
        data: of this run.
        sharded: this run's model.
        report: whom to tell.

    Raises:
        UserError: there is none, it is of another model, or what its ids meant is not known any more.
    """
    shelf, commit = find_checkpoint(source)
    moved = rows_that_moved(shelf, commit, data)
    load_weights(shelf, commit, sharded.model, {table: rows.row_R for table, rows in moved.items()})
    report.say(f"starts from the weights of {shelf.where}, step {commit.step}")
    for line in moved_lines(moved, "start afresh"):
        report.say(line)


def rows_that_moved(shelf: CheckpointStore, commit: CheckpointManifest, data: RunData) -> dict[str, RowSources]:
    """Tables whose ids mean something else in this run's store than in the one that a checkpoint was trained on.

    Raises:
        UserError: that store's vocabularies are needed and not there, or no row of a table can be matched.
    """
    if commit.run["store"] == data.store.fingerprint:
        return {}
    here, there = table_meanings(data.store, data.schema), commit.run.get("meanings", {})
    differ = [table for table, meaning in here.items() if there.get(table) != meaning]
    if not differ:
        return {}
    what = f"checkpoint {checkpoint_name(commit.step)} in {shelf.where}"
    if managed := [table.name for table in data.schema.managed_tables if table.name in differ]:
        raise UserError(
            f"{what}: the ids of managed table {managed[0]!r} meant something else in the store that it was trained "
            "on, and its rows cannot be matched; start a new run"
        )
    former = _store_of(commit, what, differ)
    return match_rows(former, data.store, data.schema, differ)


def _store_of(commit: CheckpointManifest, what: str, tables: Sequence[str]) -> Store:
    """The store that a checkpoint was trained on.

    Raises:
        UserError: it is not where it was, or was built anew since.
    """
    path = commit.run["config"]["data"]["store"]
    names = ", ".join(tables[:NUM_SHOWN]) + (f" and {len(tables) - NUM_SHOWN} more" if len(tables) > NUM_SHOWN else "")
    lost = (
        f"{what}: ids of {names} may mean something else in this run's store than in the one it was trained on "
        f"({path}, fingerprint {commit.run['store'] or 'unknown'}), and that one is needed to match their rows, but"
    )
    try:
        former = Store(fetched(path))
    except UserError as fault:
        raise UserError(f"{lost} {fault}") from fault
    if former.fingerprint != commit.run["store"]:
        raise UserError(
            f"{lost} what is there now has fingerprint {former.fingerprint}; train on the store that it had"
        )
    return former


def moved_lines(moved: Mapping[str, RowSources], fate: str) -> list[str]:
    """For people: how many rows of which table were found again; `fate` is what the others do."""
    return [
        f"table {table}: {len(rows.row_R) - rows.num_new:,} of {len(rows.row_R):,} rows were matched by what their ids "
        f"mean, {rows.num_new:,} {fate}"
        for table, rows in moved.items()
    ]
