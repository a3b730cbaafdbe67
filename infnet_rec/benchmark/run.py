"""`bench run`: examples a second of real training, where a step goes, and what an epoch costs."""

import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from infnet_rec.benchmark.machine import ceilings, describe_machine
from infnet_rec.benchmark.meter import Feed, Length, Meter
from infnet_rec.benchmark.report import BenchRankFacts, Measured, bench_report
from infnet_rec.benchmark.trace_parts import StepParts
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.distributed.process_group import (
    World,
    gather_to_rank0,
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import UserError
from infnet_rec.files import try_file, whole_file, write_json
from infnet_rec.launcher.job import parse_size
from infnet_rec.launcher.rank_environment import read_rank_environment
from infnet_rec.metrics import mean_over_ranks
from infnet_rec.models.registry import table_width
from infnet_rec.planner.dense_cost import TowerCost, tower_cost
from infnet_rec.planner.run_plan import check_run
from infnet_rec.planner.tables import meta_model
from infnet_rec.planner.workload import batch_shape
from infnet_rec.trainer.build import shard_model, train_loader


@dataclass(frozen=True, slots=True)
class BenchArgs:
    """What a command line asks for.

    Attributes:
        steps: to time; None takes as many as it takes.
        trace: where Chrome traces go, one a rank; None keeps none.
        out: where the result goes besides; None nowhere.
        price_per_hour: of a rank, in any currency; None asks the hardware's file.
    """

    steps: int | None = None
    trace: Path | None = None
    out: Path | None = None
    price_per_hour: float | None = None

    @property
    def length(self) -> Length:
        """How long to measure."""
        return Length() if self.steps is None else Length(least=self.steps, most_s=0.0)

    def check(self, num_ranks: int) -> None:
        """Refuses what could not be written in the end.

        Raises:
            UserError: a file that is there already, or a folder that is not or cannot be written.
            Failure: the disk is full.
        """
        traces = [trace_of(self.trace, rank, num_ranks) for rank in range(num_ranks)] if self.trace else []
        for option, path in [("--out", self.out), *(("--trace", trace) for trace in traces)]:
            if path is not None:
                try_file(option, path)

    def ranks_to_start(self, size: str | None, environment: Mapping[str, str]) -> int:
        """How many processes are to be started here: 1 without -j, and where torchrun has started them.

        Args:
            size: what -j says.
            environment: of this process.

        Raises:
            UserError: of no such form, of several nodes, or another number than torchrun started.
        """
        if size is None:
            return 1
        asked, env = parse_size(size), read_rank_environment(environment)
        started = None if env is None else env.world_size
        if asked.is_elastic:
            raise UserError(f"-j {size}: is measured on one number of nodes; name it, such as {asked.max_nodes}x1")
        num_ranks = asked.max_nodes * asked.ranks_per_node
        if started is not None and started != num_ranks:
            raise UserError(f"-j {size}: torchrun started {started} ranks; leave -j out under torchrun")
        if started is None and asked.max_nodes > 1:
            raise UserError(
                f"-j {size}: starts ranks on this node only; say -j 1x{asked.ranks_per_node}, or start it on every "
                "node with torchrun, or by torchx run launch/components.py:bench"
            )
        return 1 if started is not None else num_ranks

    def words(self) -> list[str]:
        """The options that ask for the same again."""
        given = {
            "--steps": self.steps,
            "--trace": self.trace,
            "--out": self.out,
            "--price-per-hour": self.price_per_hour,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None]


def trace_of(path: Path, rank: int, num_ranks: int) -> Path:
    """A rank's file: trace.json alone, trace.rank0.json of several."""
    return path if num_ranks == 1 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


# More batches than anybody measures; the loader reads only a few ahead.
ENDLESS = 1 << 40

JSON = dict[str, Any]


def bench_run(config_path: Path, overrides: Sequence[str], asked: BenchArgs) -> JSON | None:
    """Measures the steps that `train` would do; under torchrun, as one of its ranks. Nothing of the run is kept.

    Returns:
        The result, on rank 0.

    Raises:
        UserError: the configuration or its store is at fault, or a file cannot be written.
    """
    config = load_config(config_path, overrides)
    world, data = world_from_env(), open_data(config)
    check_run(config, data, world)
    asked.check(world.world_size)
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    with process_group(world):
        facts = _measure(config, data, world, asked)
        # Collective: rank 0 hears what all others measured.
        ranks: list[BenchRankFacts] = gather_to_rank0(world, facts)
    if not world.is_first:
        return None
    measured = Measured(ranks, _tower(config, data, world), describe_machine(world.device), asked.price_per_hour)
    result = bench_report(config, data, world, measured)
    if asked.out is not None:
        write_json(asked.out, result)
    return result


def _measure(config: RunConfig, data: RunData, world: World, asked: BenchArgs) -> BenchRankFacts:
    sharded = shard_model(config, data, world)
    sharded.model.train()
    # What is measured runs at one rate: a schedule costs nothing.
    sharded.optimizers.set_lr(sparse=config.train.sparse.lr, dense=config.train.dense.lr)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    feed = Feed(train_loader(config, data, world).batches(0, ENDLESS))

    def agree(values: Sequence[float]) -> list[float]:
        return mean_over_ranks(torch.tensor(values, dtype=torch.float64, device=world.device)).tolist()

    meter = Meter(sharded.pipeline, feed, world.device, agree, _progress if world.is_first else lambda _: None)
    steps_s, waited_s = meter.time_steps(asked.length)
    peak_bytes = _peak_bytes(world.device)
    sent = meter.count_sent(world.rank, world.world_size)
    with _trace_file(asked.trace, world) as path:
        parts: StepParts = meter.profile_steps(path)
    meter.drain()
    # All ranks at once, as in a step: they share the memory's bandwidth.
    agree([0.0])
    limits = ceilings(world.device)
    return BenchRankFacts(
        rank=world.rank,
        steps_s=steps_s,
        waited_s=waited_s,
        parts=parts,
        sent=sent,
        peak_bytes=peak_bytes,
        ids_per_step=feed.num_ids / feed.num_read,
        events_per_step=feed.num_events / feed.num_read,
        ceilings=limits,
    )


def _progress(text: str) -> None:
    """On a terminal; a script has no use for it."""
    if sys.stderr.isatty():
        # Over the last line, so that the report stands alone.
        print(f"\r\x1b[K{text}\r", end="", file=sys.stderr, flush=True)


def _peak_bytes(device: torch.device) -> int:
    """The most that was allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _trace_file(wanted: Path | None, world: World) -> Iterator[Path]:
    """Where the profiler writes; what is to stay gets its name when it is whole."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="infnet-rec-trace-") as folder:
            yield Path(folder) / "trace.json"
        return
    path = trace_of(wanted, world.rank, world.world_size)
    with whole_file(path, f"--trace {path}") as temporary:
        yield temporary


def _tower(config: RunConfig, data: RunData, world: World) -> TowerCost:
    """What the model above the tables does in a mean step of a rank, counted without doing it."""
    shape = batch_shape(
        data.store.manifest,
        data.schema,
        sequence_length=config.data.sequence_length,
        local_batch_size=config.train.global_batch_size // world.world_size,
    )
    shape = replace(shape, p95_events_F=shape.events_F, p95_distinct=shape.distinct)
    model, width = meta_model(config, data), table_width(config, data.schema)
    return tower_cost(model, data.schema, shape, width=width, on_gpu=world.device.type == "cuda")
