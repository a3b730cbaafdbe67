"""`bench step`: whole training steps, with each saving and without."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.batch import Batch
from infnet_rec.benchmark.forms.embedding_verb import Dedup, make_model
from infnet_rec.benchmark.forms.every_token import every_token
from infnet_rec.benchmark.forms.reference_infnet import LiteralInfnet
from infnet_rec.benchmark.machine import describe_machine
from infnet_rec.benchmark.samples import alternate_together, middle
from infnet_rec.config.load import load_config
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import (
    process_group,
    silence_third_party_warnings,
    use_threads,
    world_from_env,
)
from infnet_rec.errors import Failure, UserError
from infnet_rec.models.infnet.model import Infnet, infnet_of, infnet_section
from infnet_rec.models.tokens import TokenLayout
from infnet_rec.planner.run_plan import check_run, plan_model
from infnet_rec.trainer.build import Sharded, shard, train_loader

NUM_BATCHES = 4
STEPS_PER_ROUND = 2
OURS, PLAIN = "ours", "literal tower, every token looked up"
# The first is what the others are compared with.
VARIANTS: dict[str, tuple[type[Infnet], Dedup]] = {
    PLAIN: (LiteralInfnet, "every_token"),
    "literal tower, each distinct id once": (LiteralInfnet, "distinct"),
    "our tower, every token looked up": (Infnet, "every_token"),
    OURS: (Infnet, "distinct"),
}

JSON = dict[str, Any]

WARM_UP_STEPS = 2
TOLERANCE = 1e-4


def measure_steps(
    pipelines: Mapping[str, TrainPipelineSparseDist],
    batches: Mapping[str, Sequence[Batch]],
    device: torch.device,
    *,
    num_rounds: int,
    steps_per_round: int,
) -> dict[str, dict[str, Any]]:
    """Times `progress`, which is what the training loop calls: lookups, tower, loss, backward and both optimizers.

    Args:
        pipelines: each with its model, all from the same weights.
        batches: for each, read already; the same examples in the same order.
        device: what to wait for.
        num_rounds: of all pipelines in turn.
        steps_per_round: of one pipeline.

    Returns:
        By name: seconds of a step by both clocks, those of each round, and the loss of each task in the first step.

    Raises:
        Failure: the first losses differ, so the models are not the same function.
    """
    steps: dict[str, Callable[[], object]] = {}
    first_loss: dict[str, list[float]] = {}
    for name, pipeline in pipelines.items():
        pending = cycle(batches[name])
        first_loss[name] = pipeline.progress(pending).loss_T.tolist()
        for _ in range(WARM_UP_STEPS):
            pipeline.progress(pending)
        steps[name] = lambda pipeline=pipeline, pending=pending: pipeline.progress(pending)
    expected = next(iter(first_loss.values()))
    for name, loss in first_loss.items():
        if max(abs(a - b) for a, b in zip(loss, expected, strict=True)) > TOLERANCE:
            raise Failure(f"the first loss of {name} is {loss}, not {expected}: not the same function")
    taken = alternate_together(steps, device, num_rounds=num_rounds, repeats=steps_per_round)
    return {
        name: {
            "step_s": middle(taken[name]).wall_s,
            "samples_s": [one.wall_s for one in taken[name]],
            "processor_s": middle(taken[name]).processor_s,
            "first_loss": first_loss[name],
        }
        for name in pipelines
    }


def bench_step(config_path: Path, overrides: Sequence[str], *, num_rounds: int) -> JSON:
    """Times the steps that `train` would do on one rank, on batches of the store.

    Raises:
        UserError: the configuration or its store is at fault, its model is not INFNet, or there are several ranks.
    """
    config = load_config(config_path, overrides)
    section = infnet_section(config)
    world, data = world_from_env(), open_data(config)
    if world.world_size > 1:
        raise UserError(f"bench step: measures one rank, and torchrun started {world.world_size}; start it alone")
    check_run(config, data, world)
    silence_third_party_warnings()
    use_threads(config.train.num_threads, world)
    started_at = time.perf_counter()
    read = list(train_loader(config, data, world).batches(0, NUM_BATCHES))
    read_s = (time.perf_counter() - started_at) / NUM_BATCHES
    batches = {"distinct": read, "every_token": [every_token(batch, data.schema) for batch in read]}
    with process_group(world):
        sharded: dict[str, Sharded] = {}
        for name, (tower, dedup) in VARIANTS.items():
            model = make_model(config, data, dedup)
            with torch.device("meta"):
                model.tower = infnet_of(TokenLayout.of(data.schema), section, tower)
                model.tower.precision = config.train.precision
            sharded[name] = shard(model, plan_model(model, config, data, world), config, world)
            sharded[name].model.train()
        facts = measure_steps(
            {name: part.pipeline for name, part in sharded.items()},
            {name: batches[dedup] for name, (_, dedup) in VARIANTS.items()},
            world.device,
            num_rounds=num_rounds,
            steps_per_round=STEPS_PER_ROUND,
        )
    batch_size = config.train.global_batch_size
    for fact in facts.values():
        fact["examples_per_s"] = batch_size / fact["step_s"]
        fact["times_plain_by_processor"] = facts[PLAIN]["processor_s"] / fact["processor_s"]
        fact["times_plain"] = facts[PLAIN]["step_s"] / fact["step_s"]
    events = sum(int(batch.lengths_FB.sum()) for batch in read) / NUM_BATCHES / batch_size
    return {
        "bench": "step",
        "machine": describe_machine(world.device),
        "batch_size": batch_size,
        "width": config.model.width,
        "num_features": len(data.schema.features),
        "events_per_example": events,
        "read_s": read_s,
        "steps": facts,
        "times_plain_with_reading": facts[PLAIN]["step_s"] / (facts[OURS]["step_s"] + read_s),
    }


def step_lines(result: JSON) -> list[str]:
    """The measurement for people."""
    machine = result["machine"]
    text = [
        f"batch {result['batch_size']:,}, width {result['width']}, {result['num_features']} features, "
        f"{result['events_per_example']:.0f} events an example; one rank on {machine['name']} ({machine['device']}, "
        f"{machine['threads']} thread{'s' * (machine['threads'] > 1)})",
        "",
        f"{'training step':<40}{'ms':>10}{'examples/s':>14}{'times':>9}{'by processor time':>19}",
    ]
    for name, fact in result["steps"].items():
        cells = f"{fact['step_s'] * 1e3:>10,.1f}{fact['examples_per_s']:>14,.0f}{fact['times_plain']:>9.2f}"
        cells += f"{fact['times_plain_by_processor']:>19.2f}"
        text.append(f"{name:<40}{cells}")
    return [
        *text,
        "",
        f"a thread reads batches ahead, {result['read_s'] * 1e3:,.1f} ms each with their distinct ids; charged in full "
        f"to ours and not at all to the literal: {result['times_plain_with_reading']:.2f} times",
    ]
