"""Writes checkpoints from all ranks, while training waits or goes on.

Order is what makes a checkpoint safe: every rank writes and syncs its part; then the first rank, which has heard from
all of them, writes the marker; then old checkpoints go.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import CheckpointException

from infnet_rec.checkpoint.dcp_files import PartsWriter, Snapshot
from infnet_rec.checkpoint.loader import OptimizerState, load_weights
from infnet_rec.checkpoint.store import (
    CheckpointManifest,
    CheckpointStore,
    add_owed_evaluation,
    checkpoint_name,
    rank_checkpoints,
)
from infnet_rec.checkpoint.train_state import TrainState, metrics_from_json
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.errors import UserError

LOST = (CheckpointException, OSError)


class CheckpointSaver:
    """Saves one run's checkpoints; all ranks make one, and call it at the same steps."""

    def __init__(
        self,
        store: CheckpointStore,
        model: nn.Module,
        optimizers: OptimizerState,
        config: CheckpointConfig,
        run: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        """Opens a process group of its own, so that a write never mixes with the collectives of training.

        Args:
            store: where to.
            model: sharded.
            optimizers: of the model.
            config: how many checkpoints stay, and whether a copy is written in a thread while training goes on.
            run: what the marker says about the run.
            say: tells people on the first rank.
        """
        self._store, self._model, self._optimizers = store, model, optimizers
        self._config, self._run, self._say = config, run, say
        # Collective: gloo, also beside nccl, whose collectives must not be called from two threads.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._is_first = dist.get_rank() == 0
        self._thread = ThreadPoolExecutor(1, "checkpoint") if config.mode == "async" else None
        self._in_flight: Future[None] | None = None
        self._snapshot = Snapshot()
        self._saved_step = -1

    def save(self, at: TrainState) -> None:
        """Saves the run as it stands; the pipeline must be drained. A write that fails loses this checkpoint only."""
        if at.step == self._saved_step:
            return
        self._saved_step = at.step
        self.wait()
        state: dict[str, Any] = {"model": self._model.state_dict(), "optim": self._optimizers.state_dict()}
        if self._thread is not None:
            # The copy is the whole stall: updates write to these tensors from the next step on.
            state = self._snapshot.take(state)
        state |= _random_state()
        progress = {**at.to_json(), "kernel_steps": self._optimizers.kernel_steps()}
        if self._thread is None:
            self._write_or_lose(state, progress)
        else:
            self._in_flight = self._thread.submit(self._write_or_lose, state, progress)

    def wait(self) -> None:
        """Returns when no write is in flight."""
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    @property
    def is_idle(self) -> bool:
        """Whether no write is in flight on this rank."""
        return self._in_flight is None or self._in_flight.done()

    def load_best(self, at: TrainState) -> None:
        """Puts the weights of `at.best_step` into the model; if that checkpoint was lost, the best that is there."""
        self.wait()
        # Collective: the first rank alone knows which commits were removed or lost.
        commits = rank_checkpoints(self._on_first(self._store.commits))
        wanted = at.best_step
        for commit in sorted(commits, key=lambda c: c.step != wanted):
            try:
                load_weights(self._store, commit, self._model)
            except UserError as fault:
                self._say(str(fault))
                continue
            if commit.step != wanted:
                self._say(f"the checkpoint of step {wanted} is lost; the best that is there is of step {commit.step}")
                at.best_step, at.best_valid = commit.step, metrics_from_json(commit.progress["valid"])
            return
        self._say(f"the checkpoint of step {wanted} is lost; the model keeps the weights of step {at.step}")
        at.best_step, at.best_valid = at.step, at.judged[1] if at.judged else {}

    def close(self) -> None:
        """Waits, and ends the thread."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()

    def _write_or_lose(self, state: dict[str, Any], progress: dict[str, Any]) -> None:
        try:
            self._write(state, progress)
        except LOST as error:
            self._say(
                f"checkpoint of step {progress['step']} is lost, training goes on: {_reason(error)} (the last good one "
                "and older ones are as they were)"
            )
            if self._is_first:
                # Nobody writes there any more: a failure is known to all ranks when they have all stopped.
                with suppress(OSError):
                    self._store.discard(progress["step"])

    def _write(self, state: dict[str, Any], progress: dict[str, Any]) -> None:
        step = progress["step"]
        # A run that was stopped where it was to be evaluated goes on with that, and its weights are here already.
        if self._on_first(lambda: add_owed_evaluation(self._store, step, progress)):
            if self._is_first:
                self._remove_old()
            return
        folder = self._on_first(lambda: self._store.begin(step))
        writer = PartsWriter(self._store, folder)
        # Collective: plans who writes what, and ends when all ranks have written, or raises on all if one could not.
        dcp.save(state, storage_writer=writer, process_group=self._group)
        mine = (writer.parts, progress["kernel_steps"])
        of_ranks: list[Any] = [None] * dist.get_world_size() if self._is_first else []
        # Collective: the marker names every rank's files.
        dist.gather_object(mine, of_ranks if self._is_first else None, group=self._group)
        parts = {name: part for parts, _ in of_ranks for name, part in sorted(parts.items())}
        # A rank without tables has counted nothing.
        progress["kernel_steps"] = max([count for _, count in of_ranks], default=0)
        written_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._on_first(lambda: self._store.commit(CheckpointManifest(step, progress, self._run, parts, written_at)))
        if self._is_first:
            self._remove_old()

    def _on_first(self, act: Callable[[], Any]) -> Any:
        """Acts on the first rank; all ranks get the result, or raise if it failed."""
        answer: list[Any] = [None, None]
        if self._is_first:
            try:
                answer[0] = act()
            except OSError as error:
                answer[1] = f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
        # Collective: the others must neither write too early nor wait for a rank that gave up.
        dist.broadcast_object_list(answer, src=0, group=self._group)
        if answer[1] is not None:
            raise OSError(answer[1])
        return answer[0]

    def _remove_old(self) -> None:
        commits = self._store.commits()
        kept = {c.step for c in commits[-self._config.keep_last :]} | {
            c.step for c in rank_checkpoints(commits)[: self._config.keep_best]
        }
        for commit in commits:
            if commit.step not in kept:
                try:
                    self._store.remove(commit.step)
                except OSError as error:
                    self._say(
                        f"checkpoint {checkpoint_name(commit.step)} is no longer needed and cannot be removed: {error}"
                    )


def _random_state() -> dict[str, torch.Tensor]:
    state = {"rng_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["rng_cuda"] = torch.cuda.get_rng_state()
    return {f"ranks.{dist.get_rank()}.{name}": value for name, value in state.items()}


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in sorted(error.failures.items()))
    return str(error)
