"""What a step would take on 8 to 1,024 GPUs: the planner's estimates, and what they leave out as stated assumptions.

Nothing here is measured but the rate of the loader. The planner knows bytes and bandwidths and no latency; what many
ranks' messages cost besides is `Latency`, in this simulation only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from infnet_rec.config.load import load_config
from infnet_rec.planner.hardware import load_hardware, parse_cluster
from infnet_rec.planner.plan import DoesNotFit
from infnet_rec.planner.run_plan import PlannedRun, PlanRequest, Trials, open_source, planned_run
from infnet_rec.planner.step_time import StepTime

Kind = Literal["weak", "strong"]
KINDS: tuple[Kind, ...] = ("weak", "strong")
# The configuration's own cluster: its global batch on this many GPUs says how many examples weak scaling gives a GPU.
HOME_GPUS = 32
# One GPU says what the first exchange costs; efficiencies are relative to a node, which both kinds of scaling fit on.
SIZES, BASE_GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024), 8
# DDP's own: a first bucket of 1 MiB, then 25 MiB each.
FIRST_BUCKET_BYTES, BUCKET_BYTES = 1 << 20, 25 << 20
US_PER_MS = 1e3

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds that a collective takes whatever its bytes; an assumption.

    The constants and both formulas of reductions are those by which NCCL chooses among its algorithms (src/graph/
    tuning.cc; the protocols are Simple for messages to single ranks and LL128 for reductions). For an all-to-all NCCL
    has no model: here a rank posts one message after the other to each rank of another node, and reaches those of its
    own node at once.
    """

    message_us: float = 8.4
    message_nvlink_us: float = 3.4
    message_network_us: float = 14.0
    post_us: float = 1.0
    reduction_us: float = 14.0
    ring_nvlink_us: float = 1.9
    ring_network_us: float = 4.0
    tree_nvlink_us: float = 1.25
    tree_network_us: float = 8.5

    def all_to_all(self, num_nodes: int, ranks_per_node: int) -> float:
        """Among all ranks."""
        if num_nodes * ranks_per_node == 1:
            return 0.0
        if num_nodes == 1:
            return self.message_us + self.message_nvlink_us
        return self.message_us + self.message_network_us + self.post_us * (num_nodes - 1) * ranks_per_node

    def reduce_scatter(self, num_nodes: int, ranks_per_node: int) -> float:
        """A ring; an all-gather likewise."""
        world = num_nodes * ranks_per_node
        if world == 1:
            return 0.0
        return (
            self.reduction_us + self.ring_nvlink_us * (world - num_nodes) + self.ring_network_us * max(0, num_nodes - 1)
        )

    def all_reduce(self, num_nodes: int, ranks_per_node: int) -> float:
        """A chain within a node and a tree of nodes, there and back."""
        if num_nodes * ranks_per_node == 1:
            return 0.0
        hops_us = (ranks_per_node - 1) * self.tree_nvlink_us + math.floor(math.log2(num_nodes)) * self.tree_network_us
        return self.reduction_us + 2 * hops_us

    def exchange(self, ways: Sequence[tuple[str, str]], num_nodes: int, ranks_per_node: int) -> float:
        """Embeddings forward: TorchRec sends those of one collection and one sharding together.

        Args:
            ways: collections and shardings of the plan, each once.
            num_nodes: of a replica group.
            ranks_per_node: likewise.
        """
        total_us = 0.0
        for collection, sharding in ways:
            match collection, sharding:
                case _, "data_parallel":
                    continue
                case "events", _:
                    total_us += self.all_to_all(num_nodes, ranks_per_node)
                case _, "row_wise":
                    total_us += self.reduce_scatter(num_nodes, ranks_per_node)
                case _, "table_row_wise" | "grid_shard":
                    # Sums are completed within a node, then each rank exchanges with its like on other nodes.
                    total_us += self.reduce_scatter(1, ranks_per_node) + self.all_to_all(num_nodes, 1)
                case _:
                    total_us += self.all_to_all(num_nodes, ranks_per_node)
        return total_us


@dataclass(frozen=True, slots=True)
class Loader:
    """The loader's rate on one core, as `benchmarks/data.py` measured it at the run's length; scaled by ids."""

    examples_per_s: float
    ids_per_example: float
    machine: str

    def batch_ms(self, num_examples: int, ids_per_example: float, num_threads: int) -> float:
        """A rank's batch, read by so many threads that do not slow each other down."""
        return 1e3 * num_examples * ids_per_example / (self.examples_per_s * self.ids_per_example * num_threads)


@dataclass(frozen=True, slots=True)
class Step:
    """Milliseconds of the slowest rank's step, simulated.

    Attributes:
        planned: the planner's parts, one after the other.
        latency_ms: of the exchanges and all-reduces in them.
        input_ms: ids on their way to the rows of the next step, beside this one.
        loader_ms: the next batch being read, likewise.
    """

    planned: StepTime
    latency_ms: float
    input_ms: float
    loader_ms: float

    @property
    def waits_ms(self) -> float:
        """By which what runs beside the step is longer than the step."""
        return max(0.0, self.input_ms - self.busy_ms, self.loader_ms - self.busy_ms)

    @property
    def busy_ms(self) -> float:
        """One part after the other."""
        return self.planned.total_ms + self.latency_ms

    @property
    def total_ms(self) -> float:
        return self.busy_ms + self.waits_ms

    def row(self) -> JSON:
        """As it is written down; "parts" adds up to "step_ms"."""
        parts = asdict(self.planned)
        bound = parts.pop("tower_bound")
        return {
            "step_ms": self.total_ms,
            "parts": {**parts, "latency_ms": self.latency_ms, "waits_ms": self.waits_ms},
            "tower_bound": bound,
            "planned_ms": self.planned.total_ms,
            "beside": {"input_ms": self.input_ms, "loader_ms": self.loader_ms},
        }


def efficiency(rate: float, ranks: int, base_rate: float, base_ranks: int = 1) -> float:
    """Examples/s a rank against those of the base."""
    return rate / ranks / (base_rate / base_ranks)


def simulate(
    config_path: Path, hardware: str, loader: Loader | None, sizes: Sequence[int], latency: Latency
) -> Iterator[JSON]:
    """A row a kind of scaling and number of GPUs, as soon as it is known.

    Args:
        config_path: a run for `HOME_GPUS`.
        hardware: of its nodes, from the catalogue.
        loader: what was measured; None leaves reading out.
        sizes: numbers of GPUs.
        latency: of collectives.
    """
    home = load_config(config_path, [])
    source, kind_of_node = open_source(home), load_hardware(hardware)
    trials: Trials = {}
    for kind in KINDS:
        for gpus in sizes:
            nodes, ranks = max(1, gpus // kind_of_node.ranks_per_node), min(gpus, kind_of_node.ranks_per_node)
            cluster = parse_cluster(f"{nodes}x{ranks}", kind_of_node)
            batch = home.train.global_batch_size
            batch = batch // HOME_GPUS * gpus if kind == "weak" else batch
            row = {"simulated": True, "kind": kind, "gpus": gpus, "cluster": cluster.name, "global_batch_size": batch}
            try:
                config = load_config(config_path, [f"train.global_batch_size={batch}"])
                yield row | _row(planned_run(config, source.data(config), cluster, trials=trials), loader, latency)
            except DoesNotFit as reason:
                yield row | {"fault": str(reason)}


def _row(run: PlannedRun, loader: Loader | None, latency: Latency) -> JSON:
    step, batch = step_of(run, loader, latency), run.request.config.train.global_batch_size
    ways = sorted({(table.collection, table.sharding) for table in run.planned.tables})
    return {
        "local_batch_size": run.request.local_batch_size,
        "ids_per_example": ids_per_example(run.request),
        "shardings": [f"{collection} {sharding}" for collection, sharding in ways],
        **step.row(),
        "examples_per_s": batch / step.total_ms * 1e3,
        "planned_examples_per_s": batch / step.planned.total_ms * 1e3,
        "sent_bytes_per_rank": run.sent.total_bytes / run.request.cluster.world_size,
    }


def step_of(run: PlannedRun, loader: Loader | None, latency: Latency) -> Step:
    """The planner's step and what is assumed besides."""
    request = run.request
    cluster, group = request.cluster, request.group
    ways = sorted({(table.collection, table.sharding) for table in run.planned.tables})
    exchanges_us = 2 * latency.exchange(ways, group.num_nodes, group.ranks_per_node)
    buckets = 1 + math.ceil(max(0, request.dense.gradient_bytes - FIRST_BUCKET_BYTES) / BUCKET_BYTES)
    reduce_us = buckets * latency.all_reduce(cluster.num_nodes, cluster.ranks_per_node)
    # All lengths of batches once, then lengths and ids of each way of sharding.
    inputs_us = (1 + 2 * len(ways)) * latency.all_to_all(group.num_nodes, group.ranks_per_node)
    return Step(
        planned=run.step,
        latency_ms=(exchanges_us + reduce_us) / US_PER_MS,
        input_ms=_ids_ms(run) + inputs_us / US_PER_MS,
        loader_ms=0.0
        if loader is None
        else loader.batch_ms(request.local_batch_size, ids_per_example(request), request.config.data.loader_threads),
    )


def ids_per_example(request: PlanRequest) -> float:
    """Before repeats are named once, which is what the loader reads."""
    return sum(request.shape.ids_M) + sum(request.shape.tokens.values()) / request.local_batch_size


def _ids_ms(run: PlannedRun) -> float:
    """Ids of a rank's examples on the slowest link.

    By our own count of bytes: TorchRec's estimate lets every row shard be sent all ids of all ranks, though a rank gets
    only those of its rows; on 1,024 GPUs that is a thousand times too much.
    """
    hardware = run.request.cluster.hardware
    slowest = hardware.inter_node_gb_per_s if run.request.group.num_nodes > 1 else hardware.intra_node_gb_per_s
    return run.sent.id_bytes / run.request.cluster.world_size / (slowest * 1e6)


def assumptions(found: JSON) -> list[str]:
    """What the curves rest on, beside the picture and above the table."""
    it, constants = found["hardware"], found["latency_us"]
    lines = [
        f"Nodes of {it['ranks_per_node']} {it['name']}: {it['intra_node_gb_per_s']:g} GB/s a GPU and direction between "
        f"GPUs of a node, {it['inter_node_gb_per_s']:g} GB/s between nodes, as published. From two nodes on all "
        "embeddings go at the network's speed; it is never congested, whatever the number of nodes.",
        "Lookups and exchanges: TorchRec's estimates of the plan that our search finds for each size, slowest rank. "
        "Repeats of ids are not known for this dataset: every token counts as another id. Embeddings travel in "
        f"{found['communication']}.",
        f"Tower: the largest of arithmetic at {found['matmul_efficiency']:.0%} and memory at "
        f"{found['bandwidth_efficiency']:.0%} of the peaks, and {1e3 * found['launch_ms']:g} us a kernel launch.",
        "Overlap: ids (by our own count of bytes) and the next batch beside the step; nothing else. All-reduce and "
        "embeddings are waited for.",
        "Latency, which the planner does not know (dashed: without it): NCCL's own constants (its tuning.cc). A "
        f"message {constants['message_us']:g} us + {constants['message_nvlink_us']:g} (NVLink) or "
        f"{constants['message_network_us']:g} (network); all-to-all: {constants['post_us']:g} us more for each GPU of "
        "other nodes, one after the other (ours: NCCL has no model of it); all-reduce: a tree of nodes, one a bucket.",
        "No stragglers, no jitter, no failures, no evaluation, no checkpoints.",
    ]
    if loader := found["loader"]:
        lines.append(
            f"Loader (the one measured number): {loader['examples_per_s']:,.0f} examples/s with "
            f"{loader['ids_per_example']:.0f} ids each on one core of {loader['machine']} (data.md), scaled by ids, "
            f"times {found['loader_threads']} threads a GPU."
        )
    return lines
