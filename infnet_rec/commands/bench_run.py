"""`bench run`: examples a second of real training, where a step goes, and what an epoch costs."""

import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infnet_rec.bench.host_parts import StepParts
from infnet_rec.bench.machine import ceilings, describe
from infnet_rec.bench.meter import Feed, Meter
from infnet_rec.commands.assemble import Data, check_run, meta_model, open_data, shard_model, train_loader
from infnet_rec.commands.bench_asked import Asked, trace_of
from infnet_rec.commands.bench_report import Measured, RankFacts, report
from infnet_rec.commands.towers import table_width
from infnet_rec.commands.train import quieten, use_threads
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.files import whole_file
from infnet_rec.shard.planning.tower_cost import TowerCost, tower_cost
from infnet_rec.shard.planning.workload import batch_shape
from infnet_rec.shard.world import World, gathered, joined, place
from infnet_rec.train.metrics import mean_over_ranks
from infnet_rec.train.report import write_json

# More batches than anybody measures; the loader reads only a few ahead.
ENDLESS = 1 << 40

JSON = dict[str, Any]


def bench_run(config_path: Path, overrides: Sequence[str], asked: Asked) -> JSON | None:
    """Measures the steps that `train` would do; under torchrun, as one of its ranks. Nothing of the run is kept.

    Returns:
        The result, on rank 0.

    Raises:
        Fault: the configuration or its store is at fault, or a file cannot be written.
    """
    config = load_config(config_path, overrides)
    world, data = place(), open_data(config)
    check_run(config, data, world)
    asked.check(world.world_size)
    quieten()
    use_threads(config.train.num_threads, world)
    with joined(world):
        facts = _measure(config, data, world, asked)
        # Collective: rank 0 hears what all others measured.
        ranks: list[RankFacts] = gathered(world, facts)
    if not world.is_first:
        return None
    measured = Measured(ranks, _tower(config, data, world), describe(world.device), asked.price_per_hour)
    result = report(config, data, world, measured)
    if asked.out is not None:
        write_json(asked.out, result)
    return result


def _measure(config: RunConfig, data: Data, world: World, asked: Asked) -> RankFacts:
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
    return RankFacts(
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


def _tower(config: RunConfig, data: Data, world: World) -> TowerCost:
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
