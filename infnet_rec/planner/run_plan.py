"""The plan of a run, made by one function: `planned_run`.

The verb `plan`, its sweeps and hints, `plan --check`, the doctor and the training itself all get their plan from it, so
a rank's memory is reserved by one rule. Before any process group `check_run` refuses what would fail later; with one,
`plan_model` gives every rank the plan of rank 0.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import validate_model
from infnet_rec.data.remote import is_url, read_manifest
from infnet_rec.data.run_data import RunData
from infnet_rec.data.run_schema import check_managed, run_schema
from infnet_rec.data.sampler import check_divides, check_fits
from infnet_rec.data.store import Store
from infnet_rec.distributed.optimizers import check_sparse, fuse_sparse
from infnet_rec.distributed.process_group import World, broadcast_from_rank0, check_gpus
from infnet_rec.distributed.sharders import make_sharders
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.fused_attention import why_eager
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.models.registry import make_tower, table_width
from infnet_rec.planner.dense_cost import DenseMemory, Known, TowerCost, dense_memory, host_bytes, tower_cost
from infnet_rec.planner.hardware import Cluster, cluster_of, group_cluster, hardware_here, load_hardware
from infnet_rec.planner.plan import Planned, Times
from infnet_rec.planner.plan_file import PlanFile, check_made_for, fingerprint_of, plan_file, read_plan
from infnet_rec.planner.request import Controls, TableControl, TableTraffic, Workload
from infnet_rec.planner.search.candidates import check_control
from infnet_rec.planner.search.search import search_plan
from infnet_rec.planner.step_time import StepTime, Traffic, step_time, traffic_bytes
from infnet_rec.planner.table_rules import controls_of
from infnet_rec.planner.tables import meta_model, read_tables
from infnet_rec.planner.workload import BatchShape, batch_shape, traffic_of
from infnet_rec.schema import Schema

# Trials of towers, by everything that they depend on but the batch: runs that differ in batch or cluster share them.
Trials = dict[str, Known]


@dataclass(frozen=True, slots=True, eq=False)
class PlanRequest:
    """One run on one cluster: all that its plan depends on, counted. No process group, GPU or data.

    Attributes:
        config: of the run.
        data: of which the manifest alone is read.
        cluster: all ranks.
        group: those among which tables are spread; with replica groups every group has all tables.
        width: columns of every table.
        controls: what each table may do.
        model: on the meta device, with the optimizers of its tables.
        shape: what a rank's batch holds.
        tower: what the model above the tables costs.
        dense: bytes of a rank that no table takes, on its device.
        host_bytes: of a rank in the host's memory, beside tables and what `dense` puts there on a CPU.
        workload: what the search has to know of a step.
    """

    config: RunConfig
    data: RunData
    cluster: Cluster
    group: Cluster
    width: int
    controls: Controls
    model: RankingModel
    shape: BatchShape
    tower: TowerCost
    dense: DenseMemory
    host_bytes: int
    workload: Workload

    @property
    def on_gpu(self) -> bool:
        """Whether ranks compute on GPUs."""
        return self.cluster.hardware.device == "cuda"

    @property
    def local_batch_size(self) -> int:
        """Examples a rank and step."""
        return self.workload.local_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Of the training split."""
        return self.data.store.num_examples("train") // self.config.train.global_batch_size

    @property
    def leaves_no_room(self) -> bool:
        """Whether what is no table fills a GPU already, so that no search is needed to say no."""
        return self.on_gpu and self.dense.total_bytes >= self.cluster.hbm_bytes

    def step_of(self, tables: Times) -> StepTime:
        """The step of a rank whose tables take so long."""
        return step_time(self.cluster, tables, self.tower, self.dense, self.config.train.precision)


@dataclass(frozen=True, slots=True, eq=False)
class PlannedRun:
    """A run whose tables have their places.

    Attributes:
        request: what was planned.
        planned: the plan.
        step: of the critical rank.
        sent: what ranks send one another in a step, all replica groups together.
    """

    request: PlanRequest
    planned: Planned
    step: StepTime
    sent: Traffic

    @property
    def rank_hours_per_epoch(self) -> float:
        """Hours that all ranks together work for one pass, at the estimated time a step."""
        request = self.request
        return request.steps_per_epoch * self.step.total_ms * request.cluster.world_size / 3_600_000

    @property
    def price_per_epoch(self) -> float | None:
        """Of all nodes for that time; None where nobody set a price."""
        price = self.request.cluster.price_per_hour
        return None if price is None else price * self.request.steps_per_epoch * self.step.total_ms / 3_600_000

    def file(self) -> PlanFile:
        """The plan as it is written."""
        request = self.request
        groups = request.config.sharding.replica_groups
        here = fingerprint_of(request.model, request.cluster, replica_groups=groups)
        return plan_file(self.planned, here, local_batch_size=request.local_batch_size)


@dataclass(frozen=True, slots=True)
class PlanSource:
    """The manifest that is planned with.

    Attributes:
        path: of the store or the manifest, as it was named.
        is_store: whether it is that of a store, and not one that stands in for it.
        store: of which nothing but the manifest is read.
    """

    path: str
    is_store: bool
    store: Store

    def data(self, config: RunConfig) -> RunData:
        """As a run sees it.

        Raises:
            UserError: no such profile or task, or a table that cannot be managed.
        """
        return RunData(self.store, run_schema(config, self.store))


def open_source(config: RunConfig) -> PlanSource:
    """The manifest of the run's store; where there is none yet, the one that the configuration names.

    Raises:
        UserError: neither is there.
    """
    name, stand_in = config.data.store, config.data.manifest
    if is_url(name):
        # A store behind a URL is not fetched for this; without `data.manifest` only its manifest is.
        if stand_in is None:
            return PlanSource(name, is_store=True, store=Store.of_manifest(Path(name), read_manifest(name)))
    elif (Path(name) / "manifest.json").is_file():
        return PlanSource(name, is_store=True, store=Store(Path(name)))
    if stand_in is None:
        raise UserError(
            f"data.store = {name!r}: holds no manifest.json; build the store with 'infnet-rec data build', or name a "
            "manifest that stands in for it with --set data.manifest=FILE"
        )
    return PlanSource(str(stand_in), is_store=False, store=Store(stand_in))


def planned_run(
    config: RunConfig,
    data: RunData,
    cluster: Cluster,
    *,
    model: RankingModel | None = None,
    trials: Trials | None = None,
) -> PlannedRun:
    """The plan of a run on a cluster, for whoever asks.

    Args:
        config: of the run.
        data: of which the manifest alone is read.
        cluster: all ranks.
        model: on the meta device with its fused optimizers, where there is one already.
        trials: see `plan_request`.

    Raises:
        UserError: see `plan_request`.
        DoesNotFit: there is no plan.
    """
    return place_tables(plan_request(config, data, cluster, model=model, trials=trials))


def plan_request(
    config: RunConfig,
    data: RunData,
    cluster: Cluster,
    *,
    model: RankingModel | None = None,
    trials: Trials | None = None,
) -> PlanRequest:
    """Counts what a run asks of a cluster; the first half of `planned_run`, for those who need no search.

    Args:
        config: of the run.
        data: of which the manifest alone is read.
        cluster: all ranks.
        model: on the meta device with its fused optimizers, where there is one already.
        trials: that were made of this store's runs before; more are put there.

    Raises:
        UserError: the batch does not divide by the ranks, or a profile, a feature or a rule for tables is at fault.
    """
    schema, on_gpu = data.schema, cluster.hardware.device == "cuda"
    check_divides("train.global_batch_size", config.train.global_batch_size, cluster.world_size)
    check_sparse(config.train.sparse, torch.device(cluster.hardware.device))
    check_managed(config, schema)
    width = table_width(config, schema)
    controls = controls_of(config, schema, cluster.hardware.device)
    group = group_cluster(cluster, config.sharding.replica_groups)
    if model is None:
        model = meta_model(config, data)
        fuse_sparse(model, config.train.sparse)
    local_batch_size = config.train.global_batch_size // cluster.world_size
    shape = batch_shape(
        data.store.manifest,
        schema,
        sequence_length=config.data.sequence_length,
        local_batch_size=local_batch_size,
    )
    known = {} if trials is None else trials.setdefault(_same_trials(config, on_gpu=on_gpu), {})
    tower = tower_cost(model, schema, shape, width=width, on_gpu=on_gpu, known=known)
    optimizer = config.train.dense.optimizer
    dense = dense_memory(model, schema, shape, tower, width=width, optimizer=optimizer, on_gpu=on_gpu)
    read_ahead, num_threads = config.data.read_ahead, config.data.loader_threads
    host = host_bytes(schema, shape, on_gpu=on_gpu, read_ahead=read_ahead, num_threads=num_threads)
    # The one rule by which a rank's memory is reserved for all that is no table.
    workload = Workload(
        local_batch_size=local_batch_size,
        traffic=_traffic(config, data, group, width),
        reserved_hbm_bytes=dense.total_bytes if on_gpu else 0,
        reserved_host_bytes=host + (0 if on_gpu else dense.total_bytes),
    )
    return PlanRequest(config, data, cluster, group, width, controls, model, shape, tower, dense, host, workload)


def _same_trials(config: RunConfig, *, on_gpu: bool) -> str:
    """Equal for runs whose towers cost the same on equal batches."""
    train, data = config.train, config.data
    alike = [config.model, train.loss, train.precision, train.tasks]
    return repr([*alike, data.profile, data.sequence_groups, data.sequence_length, on_gpu])


def place_tables(request: PlanRequest) -> PlannedRun:
    """Searches; the second half of `planned_run`.

    Raises:
        DoesNotFit: there is no plan.
    """
    communication, group = request.config.sharding.communication, request.group
    sharders = make_sharders(communication)
    planned = search_plan(request.model, group, request.workload, request.controls, sharders=sharders)
    sent = traffic_bytes(
        planned.tables,
        request.workload.traffic,
        group,
        local_batch_size=request.local_batch_size,
        dense_gradient_bytes=request.dense.gradient_bytes,
        value_bytes=4 if communication == "fp32" else 2,
    ).times(request.cluster.world_size // group.world_size)
    return PlannedRun(request, planned, request.step_of(planned.critical.times), sent)


def plan_model(model: RankingModel, config: RunConfig, data: RunData, world: World) -> PlanFile:
    """Attaches the fused optimizers and plans: the same plan on every rank. Nothing is allocated. Collective.

    Args:
        model: on the meta device; the plan counts its optimizers.
        config: of the run; `check_run` has passed it.
        data: of the run.
        world: all ranks; their process group is open.

    Raises:
        UserError: on every rank, what rank 0 found.
        Refusal: likewise: the tables do not fit.
    """
    fuse_sparse(model, config.train.sparse)
    text = broadcast_from_rank0(world, lambda: _decide(model, config, data, world).text())
    return validate_model(PlanFile, json.loads(text), "the plan of rank 0")


def _decide(model: RankingModel, config: RunConfig, data: RunData, world: World) -> PlanFile:
    cluster = run_cluster(config, world)
    if config.sharding.plan is not None:
        controls = controls_of(config, data.schema, cluster.hardware.device)
        return _checked(config.sharding.plan, model, config, cluster, controls)
    return planned_run(config, data, cluster, model=model).file()


def _traffic(config: RunConfig, data: RunData, group: Cluster, width: int) -> dict[str, TableTraffic]:
    """How often a replica group's ranks read each table."""
    return traffic_of(
        data.store.manifest,
        data.schema,
        width=width,
        sequence_length=config.data.sequence_length,
        local_batch_size=config.train.global_batch_size // (group.world_size * config.sharding.replica_groups),
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


def _checked(path: Path, model: nn.Module, config: RunConfig, cluster: Cluster, controls: Controls) -> PlanFile:
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
    check_tables(meta_model(config, data), config, data, world)


def check_tables(model: RankingModel, config: RunConfig, data: RunData, world: World) -> None:
    """Refuses, before any process group, rules and a plan's file that this run cannot follow.

    Args:
        model: on the meta device.
        config: of the run.
        data: of the run.
        world: all ranks.

    Raises:
        UserError: a rule that cannot be kept here, or a plan that was made for something else or against the rules.
    """
    cluster = run_cluster(config, world)
    group = group_cluster(cluster, config.sharding.replica_groups)
    controls = controls_of(config, data.schema, cluster.hardware.device)
    traffic = _traffic(config, data, group, table_width(config, data.schema))
    for table in read_tables(model, traffic, controls, make_sharders()):
        check_control(table, group)
    if config.sharding.plan is not None:
        _checked(config.sharding.plan, model, config, cluster, controls)


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
