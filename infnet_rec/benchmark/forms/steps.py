"""Whole training steps of several models on the same batches."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.batch import Batch
from infnet_rec.benchmark.samples import alternate_together, middle
from infnet_rec.errors import Failure

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
