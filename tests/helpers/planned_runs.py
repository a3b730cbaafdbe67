"""Plans for tests, and what ranks do with them; top-level functions that the ranks can run."""

import json
from pathlib import Path
from typing import Any

from infnet_rec.data.run_data import open_data
from infnet_rec.errors import Failure, Refusal, UserError
from infnet_rec.planner.hardware import load_hardware, parse_cluster
from infnet_rec.planner.plan_file import PlanFile
from infnet_rec.planner.run_plan import check_run, open_source, plan_model, planned_run
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer import plan_check
from infnet_rec.trainer.build import shard_model
from infnet_rec.trainer.plan_check import compare_plan, result_of
from sharded_runs import small_config, world_of

SHOP = ["data.profile='all'", "train.global_batch_size=8", "train.eval_batch_size=8", "sharding.row_wise_min_rows=9"]


def make_plan(store: str, *overrides: str, cluster: str = "1x2", hardware: str = "cpu-node") -> PlanFile:
    """What `infnet-rec plan --out` writes."""
    config = small_config(store, [*SHOP, *overrides])
    return planned_run(config, open_source(config).data(config), parse_cluster(cluster, load_hardware(hardware))).file()


def plan_of_run(rank: int, world_size: int, store: str, overrides: list[str]) -> tuple[str, str]:
    """The plan that a run trains under, as a file, and the plan that TorchRec got."""
    config = small_config(store, [*SHOP, *overrides])
    sharded = shard_model(config, open_data(config), world_of(rank, world_size))
    return sharded.plan.text(), repr(sharded.model.plan)


def plans_of_all_ways(rank: int, world_size: int, store: str, each: list[list[str]]) -> list[dict[str, str]]:
    """For each set of overrides the plan, as a file, that the doctor, `plan --check` and the training go by."""
    kept, found = plan_check.shard_model, []
    for overrides in each:
        config = small_config(store, [*SHOP, *overrides])
        data, world, seen = open_data(config), world_of(rank, world_size), []

        def watched(*arguments: Any) -> Any:
            sharded = kept(*arguments)
            seen.append(sharded.plan.text())  # noqa: B023
            return sharded

        plan_check.shard_model = watched
        try:
            compare_plan(config, data, world)
        finally:
            plan_check.shard_model = kept
        sharded = shard_model(config, data, world)
        doctors = plan_model(meta_model(config, data), config, data, world)
        found.append({"check": seen[0], "training": sharded.plan.text(), "doctor": doctors.text()})
    return found


def error_of_run(rank: int, world_size: int, store: str, overrides: list[str]) -> tuple[str, str]:
    """Kind and message of the error that ends a run while its plan is made."""
    config = small_config(store, [*SHOP, *overrides])
    data, world = open_data(config), world_of(rank, world_size)
    try:
        shard_model(config, data, world)
    except (Failure, UserError, Refusal, ArithmeticError) as error:
        return type(error).__name__, str(error)
    return "", "nothing went wrong"


def error_of_broken_planner(rank: int, world_size: int, store: str) -> tuple[str, str]:
    """The same where the planner of rank 0 has a bug."""
    from infnet_rec.planner import run_plan

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("the planner divided by nothing")

    kept, run_plan.search_plan = run_plan.search_plan, broken
    try:
        return error_of_run(rank, world_size, store, [])
    finally:
        run_plan.search_plan = kept


def check_of_run(rank: int, world_size: int, store: str, overrides: list[str]) -> dict[str, Any]:
    """What `plan --check` finds, on rank 0."""
    config = small_config(store, [*SHOP, *overrides])
    data, world = open_data(config), world_of(rank, world_size)
    check_run(config, data, world)
    return result_of(compare_plan(config, data, world))


def small_hardware(folder: Path, host_gib: float) -> Path:
    """A CPU node with so much memory."""
    node = load_hardware("cpu-node").model_dump(exclude_none=True) | {"name": "small", "host_memory_gib": host_gib}
    path = folder / "small.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in node.items()))
    return path
