"""`bench input`: the loader alone, and whether it keeps up with the steps."""

import cProfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from pstats import Stats
from typing import Any

import numpy as np

from infnet_rec.batch import Batch
from infnet_rec.benchmark.machine import describe_machine
from infnet_rec.benchmark.meter import Feed, Length, Meter
from infnet_rec.benchmark.samples import summary
from infnet_rec.config.load import load_config
from infnet_rec.data.dedup import UnpooledTokens
from infnet_rec.data.gather import ExampleRows, FeatureIds, Histories
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import (
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import UserError
from infnet_rec.planner.run_plan import check_run
from infnet_rec.trainer.build import shard_model, train_loader, train_order

STAGES: dict[str, tuple[Callable[..., Any], ...]] = {
    "rows of users and items": (ExampleRows.read,),
    "ids of features": (FeatureIds.jagged, FeatureIds.single, FeatureIds.rarity),
    "events of histories": (Histories.read,),
    "distinct ids of the batch": (UnpooledTokens.read,),
}
ORDER, REST = "order of the examples", "labels, tensors and the rest"


def time_batches(batches: Iterator[Batch], *, warm_up: int, num_batches: int) -> list[float]:
    """Seconds until each next batch was there, the first ones apart: they were read ahead, and files were cold."""
    for _ in range(warm_up):
        next(batches)
    samples_s = []
    for _ in range(num_batches):
        started_at = time.perf_counter()
        next(batches)
        samples_s.append(time.perf_counter() - started_at)
    return samples_s


def loader_stages(
    reader: BatchReader, examples_of: Callable[[int], np.ndarray], *, first_step: int, num_batches: int
) -> dict[str, float]:
    """Reads batches in this thread; seconds a batch by stage, which add up to the whole.

    Args:
        reader: the split.
        examples_of: this rank's examples of a step.
        first_step: where to begin.
        num_batches: how many.
    """
    profiler = cProfile.Profile()
    order_s = read_s = 0.0
    for step in range(first_step, first_step + num_batches):
        started_at = time.perf_counter()
        examples = examples_of(step)
        order_s += time.perf_counter() - started_at
        started_at = time.perf_counter()
        profiler.runcall(reader.read, examples)
        read_s += time.perf_counter() - started_at
    # By file, line and name: its callers with, fourth, the seconds from call to return.
    found: dict[Any, Any] = Stats(profiler).stats  # pyright: ignore[reportAttributeAccessIssue]
    taken = {ORDER: order_s}
    for stage, functions in STAGES.items():
        codes = [function.__code__ for function in functions]
        keys = [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes]
        # One of them may call another, whose seconds are in its own.
        callers = [found[key][4].items() for key in keys if key in found]
        taken[stage] = sum(times[3] for of in callers for caller, times in of if caller not in keys)
    taken[REST] = max(0.0, order_s + read_s - sum(taken.values()))
    return {stage: s / num_batches for stage, s in taken.items()}


WARM_UP, STAGED = 8, 10
# Read already, so that steps on them wait for nothing.
IN_MEMORY = 4
STEPS = Length(warm_up=3, least=10, most_s=15.0)

JSON = dict[str, Any]


def bench_input(config_path: Path, overrides: Sequence[str], *, num_batches: int) -> JSON:
    """Reads batches as fast as they come, then trains on some that are in memory, to know how fast they are needed.

    Raises:
        UserError: the configuration or its store is at fault, or there are several ranks.
    """
    config = load_config(config_path, overrides)
    world, data = world_from_env(), open_data(config)
    if world.world_size > 1:
        raise UserError(f"bench input: measures one rank, and torchrun started {world.world_size}; start it alone")
    check_run(config, data, world)
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    loader, batch_size = train_loader(config, data, world), config.train.global_batch_size
    batches = loader.batches(0, WARM_UP + num_batches + IN_MEMORY + config.data.read_ahead)
    samples_s = time_batches(batches, warm_up=WARM_UP, num_batches=num_batches)
    in_memory = list(islice(batches, IN_MEMORY))
    batches.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator's: ends its threads
    with_rarity = config.train.loss.embedding_l2 > 0
    reader = BatchReader(data.store, "train", data.schema, config.data.sequence_length, with_rarity=with_rarity)
    order = train_order(config, data)
    by_stage = loader_stages(reader, order.global_batch, first_step=0, num_batches=STAGED)
    with process_group(world):
        sharded = shard_model(config, data, world)
        sharded.model.train()
        meter = Meter(sharded.pipeline, Feed(cycle(in_memory)), world.device, list)
        steps_s, _ = meter.time_steps(STEPS)
        meter.drain()
    batch_s, step_s = float(np.mean(samples_s)), float(np.mean(steps_s))
    return {
        "bench": "input",
        "machine": describe_machine(world.device),
        "store": data.store.fingerprint,
        "config": config.model_dump(mode="json"),
        "batch_size": batch_size,
        "events_per_example": sum(int(batch.lengths_FB.sum()) for batch in in_memory) / IN_MEMORY / batch_size,
        "batch": {**summary(samples_s), "samples_s": samples_s},
        "examples_per_s": batch_size / batch_s,
        "stages_ms": {stage: 1e3 * s for stage, s in by_stage.items()},
        "step": summary(steps_s),
        "needed_examples_per_s": batch_size / step_s,
        "times_needed": step_s / batch_s,
    }


def loader_lines(result: JSON) -> list[str]:
    """The measurement for people."""
    batch, machine, settings = result["batch"], result["machine"], result["config"]["data"]
    threads, whole = settings["loader_threads"], sum(result["stages_ms"].values())
    text = [
        f"batches of {result['batch_size']:,} examples with {result['events_per_example']:.0f} events each, read by "
        f"{threads} thread{'s' * (threads > 1)} on {machine['cores']} cores of {machine['name']}",
        f"{result['examples_per_s']:,.0f} examples/s: p50 {batch['p50_ms']:,.2f} ms, p95 {batch['p95_ms']:,.2f} ms, "
        f"mean {batch['mean_ms']:,.2f} +- {batch['mean_ms_half_width']:,.2f} ms over {batch['num_samples']} batches",
        "",
        f"{'where one thread spends a batch':<34}{'ms':>9}{'share':>8}",
    ]
    text += [f"{stage:<34}{ms:>9,.2f}{ms / whole:>8.1%}" for stage, ms in result["stages_ms"].items()]
    enough = "enough" if result["times_needed"] > 1 else "not enough"
    return [
        *text,
        "",
        f"a step on batches in memory takes {result['step']['mean_ms']:,.1f} ms, so it needs "
        f"{result['needed_examples_per_s']:,.0f} examples/s: the loader alone gives {result['times_needed']:.2f} times "
        f"that, {enough} as long as it has its core{'s' * (threads > 1)}",
    ]
