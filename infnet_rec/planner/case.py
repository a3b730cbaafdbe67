"""One run on one cluster: from a configuration to a plan, its memory and its time. No process group, GPU or data."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from infnet_rec.config.run import RunConfig
from infnet_rec.data.remote import is_url, read_manifest
from infnet_rec.data.run_data import RunData
from infnet_rec.data.run_schema import check_managed, run_schema
from infnet_rec.data.sampler import check_divides
from infnet_rec.data.store import Store
from infnet_rec.distributed.optimizers import check_sparse, fuse_sparse
from infnet_rec.distributed.sharders import make_sharders
from infnet_rec.errors import UserError
from infnet_rec.models.ranking_model import RankingModel
from infnet_rec.models.registry import table_width
from infnet_rec.planner.dense_cost import DenseMemory, Known, TowerCost, dense_memory, host_bytes, tower_cost
from infnet_rec.planner.hardware import Cluster, group_cluster
from infnet_rec.planner.plan import Planned
from infnet_rec.planner.plan_file import PlanFile, fingerprint_of, plan_file
from infnet_rec.planner.request import Workload
from infnet_rec.planner.search.search import search_plan
from infnet_rec.planner.step_time import StepTime, Traffic, step_time, traffic_bytes
from infnet_rec.planner.table_rules import controls_of
from infnet_rec.planner.workload import JSON, BatchShape, batch_shape, traffic_of
from infnet_rec.schema import Schema


@dataclass(frozen=True, slots=True)
class Source:
    """What stands for the data.

    Attributes:
        path: of the store or the manifest.
        manifest: what it says.
        is_store: whether it is that of a store, and not one that stands in for it.
        store: for those who want its schema; nothing but the manifest is ever read.
        trials: of towers, by what they depend on; runs that differ in their batch or cluster share them.
    """

    path: str
    manifest: JSON
    is_store: bool
    store: Store
    trials: dict[str, Known] = field(default_factory=dict)


def open_source(config: RunConfig) -> Source:
    """The manifest of the run's store; where there is none yet, the one that the configuration names.

    Raises:
        UserError: neither is there.
    """
    name, stand_in = config.data.store, config.data.manifest
    if is_url(name):
        # A store behind a URL is not fetched for this; without `data.manifest` only its manifest is.
        if stand_in is None:
            return _store_source(name, Store.of_manifest(Path(name), read_manifest(name)))
    elif (Path(name) / "manifest.json").is_file():
        return _store_source(name, Store(Path(name)))
    if stand_in is None:
        raise UserError(
            f"data.store = {name!r}: holds no manifest.json; build the store with 'infnet-rec data build', or name a "
            "manifest that stands in for it with --set data.manifest=FILE"
        )
    store = Store(stand_in)
    return Source(path=str(stand_in), manifest=store.manifest, is_store=False, store=store)


def _store_source(name: str, store: Store) -> Source:
    return Source(path=name, manifest=store.manifest, is_store=True, store=store)


def planned_run(config: RunConfig, data: RunData, cluster: Cluster, model: RankingModel | None = None) -> "PlanCase":
    """A run on a cluster as it is planned, for whoever asks: `plan`, the doctor and training get one answer.

    Args:
        config: of the run.
        data: of which the manifest alone is read.
        cluster: all ranks.
        model: on the meta device with its fused optimizers, where there is one already.

    Raises:
        UserError: see `Case`.
    """
    return PlanCase(config, _store_source(str(data.store.path), data.store), cluster, model)


class PlanCase:
    """A run on a cluster; what is asked for is worked out once. See `planned_run` for one that has its data.

    Raises:
        UserError: the batch does not divide by the ranks, or a profile, a feature or a rule for tables is at fault.
    """

    def __init__(self, config: RunConfig, source: Source, cluster: Cluster, model: RankingModel | None = None) -> None:
        check_divides("train.global_batch_size", config.train.global_batch_size, cluster.world_size)
        check_sparse(config.train.sparse, torch.device(cluster.hardware.device))
        self.config, self.source, self.cluster, self._given_model = config, source, cluster, model
        self.schema: Schema = run_schema(config, source.store)
        check_managed(config, self.schema)
        self.width = table_width(config, self.schema)
        self.controls = controls_of(config, self.schema, cluster.hardware.device)
        # With replica groups, tables are spread over the ranks of a group; every group has all of them.
        self.group = group_cluster(cluster, config.sharding.replica_groups)

    @property
    def on_gpu(self) -> bool:
        """Whether ranks compute on GPUs."""
        return self.cluster.hardware.device == "cuda"

    @property
    def local_batch_size(self) -> int:
        """Examples a rank and step."""
        return self.config.train.global_batch_size // self.cluster.world_size

    @cached_property
    def model(self) -> RankingModel:
        """On the meta device, with the optimizers of its tables."""
        if self._given_model is not None:
            return self._given_model
        from infnet_rec.planner.run_plan import meta_model

        model = meta_model(self.config, RunData(self.source.store, self.schema))
        fuse_sparse(model, self.config.train.sparse)
        return model

    @cached_property
    def shape(self) -> BatchShape:
        """What a rank's batch holds."""
        return batch_shape(
            self.source.manifest,
            self.schema,
            sequence_length=self.config.data.sequence_length,
            local_batch_size=self.local_batch_size,
        )

    @cached_property
    def tower(self) -> TowerCost:
        """What the model above the tables costs."""
        config, data = self.config, self.config.data
        alike = [config.model, config.train.loss, config.train.precision]
        alike += [config.train.tasks, data.profile, data.sequence_groups, data.sequence_length, self.on_gpu]
        return tower_cost(
            self.model,
            self.schema,
            self.shape,
            width=self.width,
            on_gpu=self.on_gpu,
            known=self.source.trials.setdefault(repr(alike), {}),
        )

    @cached_property
    def dense(self) -> DenseMemory:
        """Bytes of a rank that no table takes, on its device."""
        return dense_memory(
            self.model,
            self.schema,
            self.shape,
            self.tower,
            width=self.width,
            optimizer=self.config.train.dense.optimizer,
            on_gpu=self.on_gpu,
        )

    @cached_property
    def host_bytes(self) -> int:
        """Bytes of a rank in the host's memory, beside tables and what `dense` puts there on a CPU."""
        data = self.config.data
        return host_bytes(
            self.schema,
            self.shape,
            on_gpu=self.on_gpu,
            read_ahead=data.read_ahead,
            num_threads=data.loader_threads,
        )

    @cached_property
    def workload(self) -> Workload:
        """What the search has to know of a step."""
        traffic = traffic_of(
            self.source.manifest,
            self.schema,
            width=self.width,
            sequence_length=self.config.data.sequence_length,
            local_batch_size=self.local_batch_size,
            world_size=self.group.world_size,
        )
        dense = self.dense.total_bytes
        return Workload(
            local_batch_size=self.local_batch_size,
            traffic=traffic,
            reserved_hbm_bytes=dense if self.on_gpu else 0,
            reserved_host_bytes=self.host_bytes + (0 if self.on_gpu else dense),
        )

    @cached_property
    def planned(self) -> Planned:
        """The plan.

        Raises:
            DoesNotFit: there is none.
        """
        sharders = make_sharders(self.config.sharding.communication)
        return search_plan(self.model, self.group, self.workload, self.controls, sharders=sharders)

    @cached_property
    def step(self) -> StepTime:
        """The critical rank's step."""
        times = self.planned.critical.times
        return step_time(self.cluster, times, self.tower, self.dense, self.config.train.precision)

    @cached_property
    def sent(self) -> Traffic:
        """What ranks send one another in a step, all replica groups together."""
        groups = self.cluster.world_size // self.group.world_size
        one = traffic_bytes(
            self.planned.tables,
            self.workload.traffic,
            self.group,
            local_batch_size=self.local_batch_size,
            dense_gradient_bytes=self.dense.gradient_bytes,
            value_bytes=4 if self.config.sharding.communication == "fp32" else 2,
        )
        return one.times(groups)

    @property
    def steps_per_epoch(self) -> int:
        """Of the training split."""
        return self.source.store.num_examples("train") // self.config.train.global_batch_size

    @property
    def rank_hours_per_epoch(self) -> float:
        """Hours that all ranks together work for one pass, at the estimated time a step."""
        return self.steps_per_epoch * self.step.total_ms * self.cluster.world_size / 3_600_000

    @property
    def price_per_epoch(self) -> float | None:
        """Of all nodes for that time; None where nobody set a price."""
        price = self.cluster.price_per_hour
        return None if price is None else price * self.steps_per_epoch * self.step.total_ms / 3_600_000

    def file(self) -> PlanFile:
        """The plan as it is written."""
        groups = self.config.sharding.replica_groups
        here = fingerprint_of(self.model, self.cluster, replica_groups=groups)
        return plan_file(self.planned, here, local_batch_size=self.local_batch_size)
