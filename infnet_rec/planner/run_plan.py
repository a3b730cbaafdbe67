"""The plan that a run trains under: the file that its configuration names, or one that rank 0 makes."""

import json
from pathlib import Path

import torch
from torch import nn

from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import validate_model
from infnet_rec.data.run_data import RunData
from infnet_rec.data.run_schema import check_managed
from infnet_rec.data.sampler import check_divides, check_fits
from infnet_rec.data.store import Store
from infnet_rec.distributed.optimizers import check_sparse, fuse_sparse
from infnet_rec.distributed.process_group import World, broadcast_from_rank0, check_gpus
from infnet_rec.distributed.sharders import make_sharders
from infnet_rec.errors import UserError
from infnet_rec.models.dynamic_tables import make_managed
from infnet_rec.models.embeddings import TokenAssembly, make_bags, make_events
from infnet_rec.models.infnet.fused_attention import why_eager
from infnet_rec.models.ranking_model import MultiTaskLoss, RankingModel
from infnet_rec.models.registry import make_tower, table_width
from infnet_rec.planner.case import planned_run
from infnet_rec.planner.hardware import Cluster, cluster_of, group_cluster, hardware_here, load_hardware
from infnet_rec.planner.plan_file import PlanFile, check_made_for, fingerprint_of, read_plan
from infnet_rec.planner.request import TableControl, TableTraffic, Workload
from infnet_rec.planner.search.candidates import check_control
from infnet_rec.planner.table_rules import controls_of, precisions_of
from infnet_rec.planner.tables import read_tables
from infnet_rec.planner.workload import traffic_of
from infnet_rec.schema import Schema


def training_plan(model: RankingModel, config: RunConfig, store: Store, schema: Schema, world: World) -> PlanFile:
    """The same plan on every rank; the process group is open.

    Args:
        model: on the meta device, with its fused optimizers attached.
        config: of the run; `check_tables` has passed it.
        store: whose manifest says how often tables are read.
        schema: of the run.
        world: all ranks.

    Raises:
        UserError: on every rank, what rank 0 found.
        Refusal: likewise: the tables do not fit.
    """
    text = broadcast_from_rank0(world, lambda: _decide(model, config, store, schema, world).text())
    return validate_model(PlanFile, json.loads(text), "the plan of rank 0")


def check_tables(model: RankingModel, config: RunConfig, store: Store, schema: Schema, world: World) -> None:
    """Refuses, before any process group, rules and a plan's file that this run cannot follow.

    Args:
        model: on the meta device.
        config: of the run.
        store: see `training_plan`.
        schema: of the run.
        world: all ranks.

    Raises:
        UserError: a rule that cannot be kept here, or a plan that was made for something else or against the rules.
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
    return planned_run(config, RunData(store, schema), cluster, model).file()


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
        raise UserError(
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
                raise UserError(
                    f"{source}: gives {table.name} {key} {has!r}, and the configuration's sharding section asks for "
                    f"{' or '.join(map(repr, allowed))}; plan again with this configuration, or change it"
                )
        wanted = control.cache_load_factor
        has_factor = table.cache.load_factor if table.cache else None
        if wanted is not None and has_factor != wanted:
            raise UserError(
                f"{source}: gives {table.name} cache_load_factor {has_factor}, and the configuration {wanted}"
            )
    return plan


def check_run(config: RunConfig, data: RunData, world: World) -> None:
    """Refuses, before any process group, what would fail later.

    Raises:
        UserError: the batch does not divide or is larger than its split, the device lacks the optimizer or the fused
            attention, the model cannot be built, or tables cannot be kept as the configuration says.
    """
    check_gpus(world)
    check_divides("train.global_batch_size", config.train.global_batch_size, world.world_size)
    check_fits(config.train.global_batch_size, data.store.num_examples("train"))
    check_sparse(config.train.sparse, world.device)
    check_managed(config, data.schema)
    check_tower(config, data.schema, world)
    check_tables(meta_model(config, data), config, data.store, data.schema, world)


def plan_model(model: RankingModel, config: RunConfig, data: RunData, world: World) -> PlanFile:
    """Attaches the fused optimizers, which the plan counts, and plans. Nothing is allocated. Collective."""
    fuse_sparse(model, config.train.sparse)
    return training_plan(model, config, data.store, data.schema, world)


def check_tower(config: RunConfig, schema: Schema, world: World) -> None:
    """Refuses a model that cannot be built, or not as the run wants it; allocates nothing.

    Raises:
        UserError: see there.
    """
    if isinstance(config.model, InfnetConfig):
        why_eager(config.model.attention, world.device, config.model.width)
    with torch.device("meta"):
        make_tower(config, schema)


def describe_tower(config: RunConfig, world: World) -> str:
    """How the model computes, in a line."""
    if not isinstance(config.model, InfnetConfig):
        return f"model: {config.model.name}; products in {config.train.precision}"
    reason = why_eager(config.model.attention, world.device, config.model.width)
    attention = "fused" if reason is None else f"eager, because {reason}"
    return f"attention: {attention}; products in {config.train.precision}"


def meta_model(config: RunConfig, data: RunData) -> RankingModel:
    """The whole model on the meta device: nothing is allocated."""
    schema, width = data.schema, table_width(config, data.schema)
    with torch.device("meta"):
        tower = make_tower(config, schema)
        criterion = MultiTaskLoss(config.train.loss, data.task_names)
    half = [name for name, precision in precisions_of(config, schema).items() if precision == "fp16"]
    bags, events = make_bags(schema, width, half), make_events(schema, width, half)
    managed = make_managed(schema, width, config.model.table_std)
    return RankingModel(bags, events, TokenAssembly(schema, width), tower, criterion, managed)
