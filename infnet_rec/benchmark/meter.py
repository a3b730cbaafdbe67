"""The meter of whole steps: first untouched, by the clock; then a few under the profiler, by parts.

What is measured is what `train` does: its pipeline, its loader with its threads, its optimizers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.batch import Batch
from infnet_rec.benchmark.exchange import Exchange
from infnet_rec.benchmark.samples import half_width, wait
from infnet_rec.benchmark.trace import NEXT_BATCH, STEP, read_trace
from infnet_rec.benchmark.trace_parts import StepParts, device_parts, host_parts


@dataclass(frozen=True, slots=True)
class Length:
    """How long to measure.

    Attributes:
        warm_up: steps before; the first ones allocate and connect.
        least: steps to time.
        most_s: seconds after which no further steps are timed, once there are `least`.
    """

    warm_up: int = 10
    least: int = 50
    most_s: float = 60.0


CHUNK_STEPS = 10
PROFILED_STEPS = 5
# Of the mean, with 95 % confidence: as near as the steps are to be known.
CLOSE = 0.02


class ReadsBatches(Protocol):
    """What a loader does for a measurement."""

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """This rank's batches of steps in order."""
        ...


class Feed:
    """The loader's batches for the pipeline.

    Attributes:
        waited_s: for batches, so far.
        num_read: batches, so far.
        num_ids: that they look up.
        num_events: of their sequences.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches: Iterator[Batch] | None = batches
        self.waited_s = 0.0
        self.num_read = self.num_ids = self.num_events = 0

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            raise StopIteration
        started_at = time.perf_counter()
        with record_function(NEXT_BATCH):
            batch = next(self._batches)
        self.waited_s += time.perf_counter() - started_at
        self.num_read += 1
        self.num_ids += sum(ids.values().numel() for ids in (batch.categorical, batch.sequences))
        self.num_events += int(batch.lengths_FB.sum())
        return batch

    def end(self) -> None:
        """Gives no more; what the pipeline has taken can still be trained on."""
        self._batches = None


@dataclass(slots=True)
class Meter:
    """Drives a pipeline; all ranks call the same methods at the same time.

    Attributes:
        pipeline: of a model in training mode.
        feed: what it trains on.
        device: where it runs.
        agree: the mean over ranks of some numbers; so all ranks stop at the same step.
        say: a line for people.
    """

    pipeline: TrainPipelineSparseDist
    feed: Feed
    device: torch.device
    agree: Callable[[Sequence[float]], list[float]]
    say: Callable[[str], None] = field(default=lambda _: None)

    def step(self) -> None:
        """One step of training."""
        self.pipeline.progress(self.feed)

    def time_steps(self, length: Length) -> tuple[list[float], list[float]]:
        """Times untouched steps until their mean is known well or the time is up.

        Returns:
            Seconds of each step, and of each the seconds that were waited for data.
        """
        for _ in range(length.warm_up):
            self.step()
        steps_s: list[float] = []
        waited_s: list[float] = []
        started_at = time.perf_counter()
        while True:
            missing = length.least - len(steps_s)
            for step_s, data_s in self._chunk(min(CHUNK_STEPS, missing) if missing > 0 else CHUNK_STEPS):
                steps_s.append(step_s)
                waited_s.append(data_s)
            mean_s = sum(steps_s) / len(steps_s)
            # Collective, between chunks, whose time is in no step: all ranks decide the same.
            mean_s, half_s, elapsed_s = self.agree([mean_s, half_width(steps_s), time.perf_counter() - started_at])
            self.say(f"{len(steps_s)} steps, {mean_s * 1e3:,.1f} ms each, +-{half_s / mean_s:.1%}")
            if len(steps_s) >= length.least and (half_s <= CLOSE * mean_s or elapsed_s >= length.most_s):
                return steps_s, waited_s

    def _chunk(self, num_steps: int) -> Iterator[tuple[float, float]]:
        """Some steps, one after the other. A GPU tells by events when it was done with each, and is not waited for."""
        on_gpu = self.device.type == "cuda"
        wait(self.device)
        marks: list[Any] = [_mark(on_gpu=on_gpu)]
        waited_s = [self.feed.waited_s]
        for _ in range(num_steps):
            self.step()
            marks.append(_mark(on_gpu=on_gpu))
            waited_s.append(self.feed.waited_s)
        wait(self.device)
        for i in range(num_steps):
            before, after = marks[i : i + 2]
            taken_s = before.elapsed_time(after) / 1e3 if on_gpu else after - before
            yield taken_s, waited_s[i + 1] - waited_s[i]

    def profile_steps(self, trace: Path) -> StepParts:
        """Does a few steps under the profiler and shares them out; the Chrome trace stays in `trace`."""
        on_gpu = self.device.type == "cuda"
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        # The profiler's first events are late.
        with profile(activities=kinds):
            self.step()
        wait(self.device)
        with profile(activities=kinds) as profiler:
            for i in range(PROFILED_STEPS):
                with record_function(STEP):
                    self.step()
                    if i == PROFILED_STEPS - 1:
                        wait(self.device)
        profiler.export_chrome_trace(str(trace))
        spans = read_trace(trace)
        return device_parts(spans) if on_gpu else host_parts(spans)

    def count_sent(self, rank: int, world_size: int) -> list[tuple[str, float]]:
        """Does a step; the collectives of this rank in their order, with the bytes that went to other ranks."""
        with Exchange(rank, world_size) as exchange:
            self.step()
        return exchange.log

    def drain(self) -> None:
        """Trains on what is left in the pipeline, so that no collective is under way."""
        self.feed.end()
        while self.pipeline.batches:
            self.step()


def _mark(*, on_gpu: bool) -> Any:
    """Now, by the clock of what does the work."""
    if not on_gpu:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
