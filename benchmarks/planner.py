"""Planning time and quality beside TorchRec's own proposers, written down.

    OMP_NUM_THREADS=1 python benchmarks/planner.py [--limit-s 600] [--quick] [--only ours default ...]

Each row is a process of its own that plans the same tables on the same topology and ends at the limit; the clock starts
after imports. Rows go to `benchmarks/results/planner.json` as they are done, and a second call adds what is
missing; `planner.md` shows them. `--quick` plans one small size in this process, and writes to `runs/quick`.

A plan's quality is the milliseconds of its slowest rank, all plans being rated by TorchRec's estimators, whole and
without our corrections, so that nobody is judged by his own numbers. "exact" allows what trains like an unsharded table
whatever the optimizer (by table, by row, by row within a node; fused); "any" everything that keeps tables in HBM, by
column and data-parallel as well.
"""

import argparse
import json
import logging
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator, get_partition_by_type
from torchrec.distributed.planner.perf_models import NoopPerfModel, NoopStorageModel
from torchrec.distributed.planner.proposers import DynamicProgrammingProposer, GreedyProposer, UniformProposer
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, PipelineType, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from infnet_rec.benchmark.machine import describe_machine
from infnet_rec.config.train import SparseConfig
from infnet_rec.distributed.optimizers import fuse_sparse
from infnet_rec.distributed.versions import estimator_sharders
from infnet_rec.planner.hardware import GIB, Cluster, load_hardware, parse_cluster
from infnet_rec.planner.request import NO_CONTROLS, Controls, TableControl, TableTraffic, Workload
from infnet_rec.planner.search.candidates import BY_DEFAULT, POSSIBLE
from infnet_rec.planner.search.estimates import to_topology
from infnet_rec.planner.search.search import search_plan
from infnet_rec.planner.tables import plain_sharders

ROOT = Path(__file__).parents[1]
RESULTS, QUICK = ROOT / "benchmarks" / "results", ROOT / "runs" / "quick"
HARDWARE, WIDTH, LOCAL_BATCH_SIZE, RESERVED_HBM_BYTES = "h100", 64, 4096, 8 * GIB
# The largest tables of KuaiRand-27K; the sizes of the others are drawn, evenly in the logarithm.
LARGEST = (32_038_725, 14_000_000, 8_839_734)
Freedom = Literal["exact", "any"]
METHODS = ("ours", "default", "greedy", "uniform", "dynamic")
# Tables of bags, tables of sequences, cluster.
SIZES = [(89, 28, "1x8"), (89, 28, "8x8"), (89, 28, "64x8"), (89, 28, "512x8"), (1600, 400, "8x8")]
QUICK_SIZES, QUICK_LIMIT_S = [(6, 4, "1x8")], 60.0

JSON = dict[str, Any]


def main() -> None:
    """Measures the rows that are missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="one small size, in seconds")
    parser.add_argument("--out", type=Path, default=None, help="folder of planner.json and planner.md")
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    if arguments.row:
        print(json.dumps(measure(json.loads(arguments.row), arguments.limit_s)))
        return
    path = (arguments.out or (QUICK if arguments.quick else RESULTS)) / "planner.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A quick call looks whether all still runs, so nothing is taken from an earlier one.
    results: JSON = json.loads(path.read_text()) if path.exists() and not arguments.quick else {"rows": []}
    results["machine"] = describe_machine(torch.device("cpu"))
    for bags, events, cluster in QUICK_SIZES if arguments.quick else SIZES:
        for freedom in ("exact", "any"):
            for method in arguments.only:
                asked = (bags, events, cluster, freedom, method)
                question: JSON = dict(zip(("bags", "events", "cluster", "freedom", "method"), asked, strict=True))
                if any(question.items() <= row.items() for row in results["rows"]):
                    continue
                found = measure(question, QUICK_LIMIT_S) if arguments.quick else answer(question, arguments.limit_s)
                row = question | found
                print(json.dumps(row), file=sys.stderr)
                results["rows"].append(row)
                path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                path.with_suffix(".md").write_text(page(results), encoding="utf-8")
    print(page(results))


def answer(question: JSON, limit_s: float) -> JSON:
    """Asks a process of its own."""
    command = [sys.executable, __file__, "--row", json.dumps(question), f"--limit-s={limit_s}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -signal.SIGALRM:
        return {"fault": f"not done in {limit_s:g} s"}
    if done.returncode:
        return {"fault": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(question: JSON, limit_s: float) -> JSON:
    """Plans once and rates the plan; the process ends at the limit, which counts for planning alone."""
    model, workload = make_tables(question["bags"], question["events"])
    cluster = parse_cluster(question["cluster"], load_hardware(HARDWARE))
    topology = to_topology(cluster, reserved_hbm_bytes=RESERVED_HBM_BYTES)
    method, freedom = question["method"], question["freedom"]
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    started_at, started_cpu_at = time.perf_counter(), time.process_time()
    if method == "ours":
        plan = search_plan(model, cluster, workload, controls_of(workload, freedom)).plan
    else:
        plan = torchrecs_plan(method, model, topology, constraints_of(workload, freedom))
    planning_s, planning_cpu_s = time.perf_counter() - started_at, time.process_time() - started_cpu_at
    signal.setitimer(signal.ITIMER_REAL, 0)
    options = rated(plan, model, topology, workload)
    kinds = Counter(option.sharding_type for option in options)
    return {
        "planning_s": planning_s,
        "planning_cpu_s": planning_cpu_s,
        "critical_ms": NoopPerfModel(topology).rate(options),
        "max_hbm_gib": NoopStorageModel(topology).rate(options) / GIB,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "shardings": dict(kinds.most_common()),
    }


def make_tables(num_bags: int, num_events: int) -> tuple[nn.Module, Workload]:
    """As many as asked for, from a fixed seed; a sequence reads no more distinct ids than its table has rows."""
    dice = random.Random(0)
    bags = {f"bag{i}": int(10 ** dice.uniform(0.5, 6)) + 2 for i in range(num_bags)}
    rows = [*LARGEST[:num_events], *(int(10 ** dice.uniform(1, 6)) + 2 for _ in range(num_events - len(LARGEST)))]
    events = {f"event{i}": n for i, n in enumerate(rows)}
    model, meta = nn.Module(), torch.device("meta")
    model.bags = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name, embedding_dim=WIDTH, num_embeddings=n, feature_names=[name], pooling=PoolingType.SUM
            )
            for name, n in bags.items()
        ],
        device=meta,
    )
    model.events = EmbeddingCollection(
        tables=[
            EmbeddingConfig(name=name, embedding_dim=WIDTH, num_embeddings=n, feature_names=[name])
            for name, n in events.items()
        ],
        device=meta,
    )
    # As in a run without tables of that kind.
    model.register_module("managed", None)
    fuse_sparse(cast(Any, model), SparseConfig(lr=0.1))
    traffic = {name: TableTraffic(name, "bags", n, WIDTH) for name, n in bags.items()}
    for name, n in events.items():
        lookups = (min(dice.uniform(2, 20), n / LOCAL_BATCH_SIZE),)
        traffic[name] = TableTraffic(name, "events", n, WIDTH, lookups, lookups)
    return model, Workload(LOCAL_BATCH_SIZE, traffic, reserved_hbm_bytes=RESERVED_HBM_BYTES)


def controls_of(workload: Workload, freedom: Freedom) -> Controls:
    """What our planner may do."""
    if freedom == "exact":
        return NO_CONTROLS
    by_collection = {
        # Grid sharding is not among what TorchRec takes by itself.
        collection: TableControl(
            tuple(s for s in POSSIBLE["cuda", collection] if s != "grid_shard"), min_columns=WIDTH // 4
        )
        for collection in ("bags", "events")
    }
    return {name: by_collection[traffic.collection] for name, traffic in workload.traffic.items()}


def constraints_of(workload: Workload, freedom: Freedom) -> dict[str, ParameterConstraints]:
    """The same for TorchRec's."""
    return {
        name: ParameterConstraints(
            sharding_types=list(BY_DEFAULT["cuda", traffic.collection]) if freedom == "exact" else None,
            compute_kernels=["fused", "dense"],
            pooling_factors=list(traffic.mean_lookups),
            min_partition=None if freedom == "exact" else WIDTH // 4,
        )
        for name, traffic in workload.traffic.items()
    }


def torchrecs_plan(
    method: str, model: nn.Module, topology: Topology, constraints: dict[str, ParameterConstraints]
) -> ShardingPlan:
    """By TorchRec's planner with one of its proposers, or with those it takes by itself."""
    proposers = {"greedy": GreedyProposer, "uniform": UniformProposer, "dynamic": DynamicProgrammingProposer}
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=LOCAL_BATCH_SIZE,
        constraints=constraints,
        enumerator=EmbeddingEnumerator(
            topology, LOCAL_BATCH_SIZE, constraints, list(estimators(topology, constraints))
        ),
        proposer=None if method == "default" else proposers[method](),
        # The topology's memory is already what is left.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        debug=False,
    )
    return planner.plan(model, plain_sharders())


def estimators(
    topology: Topology, constraints: dict[str, ParameterConstraints] | None
) -> tuple[EmbeddingPerfEstimator, EmbeddingStorageEstimator]:
    """TorchRec's own."""
    return (
        EmbeddingPerfEstimator(topology, constraints),
        EmbeddingStorageEstimator(topology, constraints, PipelineType.TRAIN_SPARSE_DIST),
    )


def rated(plan: ShardingPlan, model: nn.Module, topology: Topology, workload: Workload) -> list[ShardingOption]:
    """Every shard of a finished plan with its rank and TorchRec's estimates."""
    sharders = {sharder.module_type: sharder for sharder in plain_sharders()}
    options = []
    for path, tables in plan.plan.items():
        module = model.get_submodule(path)
        weights = sharders[type(module)].shardable_parameters(module)
        assert isinstance(tables, EmbeddingModuleShardingPlan)
        for name, sharding in tables.items():
            assert isinstance(sharding, ParameterSharding)
            options.append(
                ShardingOption(
                    name=name,
                    tensor=weights[name],
                    module=(path, module),
                    input_lengths=list(workload.traffic[name].mean_lookups),
                    batch_size=LOCAL_BATCH_SIZE,
                    sharding_type=sharding.sharding_type,
                    partition_by=get_partition_by_type(sharding.sharding_type),
                    compute_kernel=sharding.compute_kernel,
                    shards=shards_of(sharding, weights[name]),
                    is_pooled=workload.traffic[name].collection == "bags",
                )
            )
    for estimator in estimators(topology, None):
        estimator.estimate(options, estimator_sharders(sharders.values()))
    return options


def shards_of(sharding: ParameterSharding, weight: torch.Tensor) -> list[Shard]:
    """The parts that a plan names; a data-parallel table is whole on every rank."""
    ranks = sharding.ranks or []
    if sharding.sharding_spec is None:
        return [Shard(size=list(weight.shape), offset=[0, 0], rank=rank) for rank in ranks]
    parts: list[Any] = getattr(sharding.sharding_spec, "shards")  # noqa: B009
    return [
        Shard(size=list(part.shard_sizes), offset=list(part.shard_offsets), rank=rank)
        for part, rank in zip(parts, ranks, strict=True)
    ]


def page(results: JSON) -> str:
    """The rows as a table, with ours as the measure."""
    machine = results["machine"]
    lines = [
        "# Planning time and quality",
        "",
        "`python benchmarks/planner.py`; what is compared and how stands at its top. "
        f"{machine['date']}, {machine['cores']} cores of {machine['name']}, torchrec "
        f"{machine['versions']['torchrec']}.",
        "",
        "| tables | ranks | may do | planner | planning, s | slowest rank, ms | to ours | fullest rank, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = results["rows"]
    ours = {key(row): row["critical_ms"] for row in rows if row["method"] == "ours" and "fault" not in row}
    for row in rows:
        cluster: Cluster = parse_cluster(row["cluster"], load_hardware(HARDWARE))
        name = "**ours**" if row["method"] == "ours" else f"TorchRec, {row['method']}"
        head = f"| {row['bags'] + row['events']} | {cluster.world_size} | {row['freedom']} | {name} |"
        if "fault" in row:
            lines.append(f"{head} {row['fault']} | | | |")
            continue
        ratio = f"{row['critical_ms'] / ours[key(row)]:.2f}" if key(row) in ours else ""
        times = f" {row['planning_s']:.2f} | {row['critical_ms']:.2f} | {ratio} |"
        lines.append(f"{head}{times} {row['max_hbm_gib']:.2f} |")
    return "\n".join(lines) + "\n"


def key(row: JSON) -> tuple[Any, ...]:
    """What rows of one question share."""
    return row["bags"], row["events"], row["cluster"], row["freedom"]


if __name__ == "__main__":
    main()
