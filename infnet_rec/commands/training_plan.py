"""The plan that a run trains under: the file that its configuration names, or one that rank 0 makes."""

import json
from pathlib import Path

from torch import nn

from infnet_rec.commands.plan_case import planned_run
from infnet_rec.commands.run_schema import Data
from infnet_rec.commands.table_rules import controls_of
from infnet_rec.commands.towers import table_width
from infnet_rec.config.run import RunConfig
from infnet_rec.data.store import Store
from infnet_rec.faults import Fault
from infnet_rec.model.ranking import RankingModel
from infnet_rec.schema import Schema
from infnet_rec.shard.hardware import Cluster, load_hardware
from infnet_rec.shard.plan import cluster_of, group_cluster, make_sharders
from infnet_rec.shard.planning.demand import TableControl, TableTraffic, Workload
from infnet_rec.shard.planning.fingerprint import fingerprint_of
from infnet_rec.shard.planning.options import check_control
from infnet_rec.shard.planning.plan_file import PlanFile, check_made_for, read_plan
from infnet_rec.shard.planning.tables import read_tables
from infnet_rec.shard.planning.workload import traffic_of
from infnet_rec.shard.this_machine import hardware_here
from infnet_rec.shard.world import World, from_first_rank
from infnet_rec.strict import check


def training_plan(model: RankingModel, config: RunConfig, store: Store, schema: Schema, world: World) -> PlanFile:
    """The same plan on every rank; the process group is open.

    Args:
        model: on the meta device, with its fused optimizers attached.
        config: of the run; `check_tables` has passed it.
        store: whose manifest says how often tables are read.
        schema: of the run.
        world: all ranks.

    Raises:
        Fault: on every rank, what rank 0 found.
        Refusal: likewise: the tables do not fit.
    """
    text = from_first_rank(world, lambda: _decide(model, config, store, schema, world).text())
    return check(PlanFile, json.loads(text), "the plan of rank 0")


def check_tables(model: RankingModel, config: RunConfig, store: Store, schema: Schema, world: World) -> None:
    """Refuses, before any process group, rules and a plan's file that this run cannot follow.

    Args:
        model: on the meta device.
        config: of the run.
        store: see `training_plan`.
        schema: of the run.
        world: all ranks.

    Raises:
        Fault: a rule that cannot be kept here, or a plan that was made for something else or against the rules.
    """
    cluster = run_cluster(config, world)
    group = group_cluster(cluster, config.sharding.replica_groups)
    controls = controls_of(config, schema, cluster.hardware.device)
    workload = Workload(local_batch_size=1, traffic=_traffic(config, store, schema, group))
    for table in read_tables(model, workload, controls, make_sharders()):
        check_control(table, group)
    if config.sharding.plan is not None:
        _checked(config.sharding.plan, model, config, cluster, controls)


def _decide(model: RankingModel, config: RunConfig, store: Store, schema: Schema, world: World) -> PlanFile:
    cluster = run_cluster(config, world)
    if config.sharding.plan is not None:
        controls = controls_of(config, schema, cluster.hardware.device)
        return _checked(config.sharding.plan, model, config, cluster, controls)
    return planned_run(config, Data(store, schema), cluster, model).file()


def _local_batch_size(config: RunConfig, group: Cluster) -> int:
    return config.train.global_batch_size // (group.world_size * config.sharding.replica_groups)


def _traffic(config: RunConfig, store: Store, schema: Schema, group: Cluster) -> dict[str, TableTraffic]:
    return traffic_of(
        store.manifest,
        schema,
        width=table_width(config, schema),
        sequence_length=config.data.sequence_length,
        local_batch_size=_local_batch_size(config, group),
        world_size=group.world_size,
    )


def run_cluster(config: RunConfig, world: World) -> Cluster:
    """The ranks of this run on the hardware that was named, or that is here."""
    name = config.sharding.hardware
    hardware = hardware_here(world.device) if name is None else load_hardware(name)
    if hardware.device != world.device.type:
        raise Fault(
            f"sharding.hardware = {name!r}: computes on {hardware.device}, and this rank on {world.device.type}; name "
            "what the run stands on, or leave it out"
        )
    return cluster_of(hardware, world)


def _checked(
    path: Path, model: nn.Module, config: RunConfig, cluster: Cluster, controls: dict[str, TableControl]
) -> PlanFile:
    """Reads a plan and refuses what is not for this run."""
    plan, source = read_plan(path), f"sharding.plan = {str(path)!r}"
    check_made_for(plan, fingerprint_of(model, cluster, replica_groups=config.sharding.replica_groups), source)
    for table in plan.tables:
        control = controls.get(table.name, TableControl())
        for key, has, allowed in (
            ("sharding", table.sharding, control.sharding_types),
            ("kernel", table.kernel, control.kernels),
        ):
            if allowed is not None and has not in allowed:
                raise Fault(
                    f"{source}: gives {table.name} {key} {has!r}, and the configuration's sharding section asks for "
                    f"{' or '.join(map(repr, allowed))}; plan again with this configuration, or change it"
                )
        wanted = control.cache_load_factor
        has_factor = table.cache.load_factor if table.cache else None
        if wanted is not None and has_factor != wanted:
            raise Fault(f"{source}: gives {table.name} cache_load_factor {has_factor}, and the configuration {wanted}")
    return plan
