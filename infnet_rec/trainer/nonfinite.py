"""What looks at every step's loss without waiting for it, and ends a run that has gone wrong.

A rank keeps the losses of its steps where they were computed. About once a second, at a step that all ranks agree on
beforehand, one small collective brings them together: it tells everyone, at the same step, which losses were not finite
and whether somebody was asked to stop. Nothing is waited for in between, so a GPU's queue stays full.

Shapes: S steps since the last look, T tasks, R ranks.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from infnet_rec.batch import Batch
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.train import OnNonFinite
from infnet_rec.data.sampler import TrainOrder, local_slice
from infnet_rec.data.store import Examples, Store
from infnet_rec.errors import Failure
from infnet_rec.files import write_json
from infnet_rec.metrics import mean_over_ranks
from infnet_rec.models.ranking_model import Scores

LOOK_EVERY_S = 1.0
LOOK_EVERY_STEPS = 1_000  # at most, however fast they are


class CheckedForward:
    """The model as the pipeline calls it; where a bad batch is to be skipped, the decision falls here.

    The fused optimizers move the tables inside the backward pass, so a batch can be left out only before it: all ranks
    compare their losses, and where one is not finite every rank returns a loss that no parameter had a part in. Its
    backward pass reaches nothing, and the dense parameters are left without a gradient, which makes their optimizer
    pass them over: no weight, no moment and no step count moves, in any optimizer.
    """

    def __init__(self, model: nn.Module, on_nonfinite: OnNonFinite) -> None:
        """Stands in for a model.

        Args:
            model: sharded; in evaluation mode it is called as it is.
            on_nonfinite: "stop" compares nothing here; "skip" waits for the device and for all ranks in every step.
        """
        self._model, self._skips = model, on_nonfinite == "skip"
        self._has_learned = False
        self.num_calls = 0  # for those who watch whether this rank gets on

    def __call__(self, batch: Batch) -> tuple[Tensor, Scores]:
        """The loss to go backward from, and the scores; a task's loss is NaN where only the sum is not finite."""
        self.num_calls += 1
        loss, scores = self._model(batch)
        if not self._model.training:
            return loss, scores
        hidden = scores.loss_T.isfinite().all() & ~loss.detach().isfinite()
        scores = scores._replace(loss_T=torch.where(hidden, math.nan, scores.loss_T))
        if not self._skips:
            return loss, scores
        # Collective, and a wait for the device: the backward pass must not begin before all ranks know.
        if mean_over_ranks(scores.loss_T).isfinite().all().item():
            self._has_learned = True
            return loss, scores
        if not self._has_learned:
            # Nothing could be skipped to: the first backward pass fixes the order of DDP's buckets.
            raise Failure("the loss of this process's first step is not finite, so it is not the batch; not skipped")
        return torch.zeros_like(loss, requires_grad=True), scores


@dataclass(frozen=True, slots=True)
class NonFiniteStep:
    """A step that was not finite.

    Attributes:
        step: as people count, from 1.
        what: "loss", or "gradient" where the loss was finite and the norm of the dense gradient was not.
        tasks: whose loss.
        ranks: whose examples; all of them for a gradient.
    """

    step: int
    what: Literal["loss", "gradient"]
    tasks: list[str]
    ranks: list[int]

    def __str__(self) -> str:
        """The step for people."""
        if self.what == "gradient":
            return f"the gradient is not finite at step {self.step}"
        ranks = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        return f"the loss of {', '.join(self.tasks)} is not finite at step {self.step} (on {ranks})"


class RecordsNonFinite(Protocol):
    """What keeps a bad step's examples for people to look at."""

    def __call__(self, bad: NonFiniteStep) -> str:
        """Writes them, on one rank; returns where they are, for a sentence."""
        ...


class AsksToStop(Protocol):
    """What hears from outside that the run should stop."""

    @property
    def wanted(self) -> bool:
        """Whether this process was asked."""
        ...


@dataclass(slots=True)
class NonFiniteMonitor:
    """Sees every step's losses; `look` is a collective that all ranks call at the same steps.

    Attributes:
        task_names: of the losses.
        rank: this one.
        world_size: R.
        on_nonfinite: as in `CheckedForward`.
        max_skipped: bad steps that a run may leave out.
        record: keeps the examples of a bad step.
        say: a line for people.
        stop: whether this process was asked to stop.
        stop_agreed: whether a rank was asked to stop; all know it at the same step.
        at: the run's progress, where losses and skipped steps are noted.
    """

    task_names: Sequence[str]
    rank: int
    world_size: int
    on_nonfinite: OnNonFinite
    max_skipped: int
    record: RecordsNonFinite
    say: Callable[[str], None]
    stop: AsksToStop
    stop_agreed: bool = False
    at: TrainState = field(default_factory=TrainState)
    _unseen: list[Tensor] = field(default_factory=list)
    _look_after: int = 1
    _looked_at: float = field(default_factory=time.perf_counter)

    def follow(self, at: TrainState) -> None:
        """Training goes on from `at`; losses and skipped steps are noted there. Time until now was not the steps'."""
        assert not self._unseen
        self.at, self._look_after, self._looked_at = at, 1, time.perf_counter()

    def step_done(self, loss_T: Tensor, gradient_norm: Tensor | None) -> None:
        """Keeps what a step left; waits for nothing."""
        norm = loss_T.new_zeros(()) if gradient_norm is None else gradient_norm.detach()
        self._unseen.append(torch.cat([loss_T, norm.reshape(1).to(loss_T)]))

    @property
    def is_due(self) -> bool:
        """Whether it is time to look; the same answer on all ranks."""
        return len(self._unseen) >= self._look_after

    def look(self) -> None:
        """Judges the steps since the last time, the last of which is counted in the progress already.

        Raises:
            Failure: one was not finite and is not to be skipped, on all ranks alike.
        """
        if not self._unseen:
            return
        # fp64: a sum of a few fp32 numbers is exact in it, so a loss does not depend on how many steps go together.
        local = torch.stack(self._unseen).double()
        first, self._unseen = self.at.step - len(local), []
        elapsed_s = (time.perf_counter() - self._looked_at) / len(local)
        extra = local.new_tensor([float(self.stop.wanted), elapsed_s])
        # Collective; `tolist` waits for the device.
        seen = mean_over_ranks(torch.cat([local.flatten(), extra])).tolist()
        asked, step_s = seen[-2:]
        rows = [seen[i : i + local.shape[1]] for i in range(0, local.numel(), local.shape[1])]
        for i, row in enumerate(rows):
            if all(math.isfinite(value) for value in row):
                self.at.losses.append(row[:-1])
            else:
                self._bad_step(first + i + 1, row, local[i])
        self.stop_agreed = asked > 0
        self._look_after = max(1, min(LOOK_EVERY_STEPS, int(LOOK_EVERY_S / max(step_s, 1e-6))))
        self._looked_at = time.perf_counter()

    def mean_losses(self) -> dict[str, float]:
        """The mean of each task over the steps since the last call; empty if none counted."""
        columns = list(zip(*self.at.losses, strict=True))
        self.at.losses.clear()
        return {name: math.fsum(column) / len(column) for name, column in zip(self.task_names, columns, strict=False)}

    def _bad_step(self, step: int, row: list[float], local: Tensor) -> None:
        tasks = [name for name, loss in zip(self.task_names, row, strict=False) if not math.isfinite(loss)]
        mine_R = torch.zeros(self.world_size, dtype=torch.float64)
        mine_R[self.rank] = float(not (local[:-1] if tasks else local).isfinite().all())
        # Collective: every rank is here, since all have seen the same rows.
        ranks = [rank for rank, share in enumerate(mean_over_ranks(mine_R).tolist()) if share > 0]
        bad = NonFiniteStep(step, "loss" if tasks else "gradient", tasks, ranks)
        where = self.record(bad)
        if self.on_nonfinite == "stop" or not tasks:
            raise Failure(f"{bad}; {where}; lower the learning rates, or look at those examples")
        self.at.skipped += 1
        skipped = self.at.skipped
        self.say(f"{bad}: skipped, {skipped} of at most {self.max_skipped}; {where}")
        if skipped > self.max_skipped:
            raise Failure(f"{bad}; {skipped} steps were skipped and train.max_skipped = {self.max_skipped}; {where}")


class NonFiniteBatches:
    """Writes `nonfinite-step-N.json` beside the checkpoints; the ids need no batch, the order knows them."""

    def __init__(self, store: Store, order: TrainOrder, world_size: int, folder: Path | None) -> None:
        """Writes nothing yet.

        Args:
            store: whose train split it is.
            order: of the run.
            world_size: ranks that shared a batch.
            folder: where to write; None on all ranks but the first.
        """
        self._store, self._order, self._world_size, self._folder = store, order, world_size, folder

    def __call__(self, bad: NonFiniteStep) -> str:
        """Writes the ids of the examples that the bad step's ranks had: row in the store, user, item."""
        global_G = self._order.global_batch(bad.step - 1)
        name = f"nonfinite-step-{bad.step}.json"
        if self._folder is not None:
            examples = self._store.examples("train")
            users, items = self._store.user_keys, self._store.item_keys
            found = {
                str(rank): [
                    {"row": row, "user": users[user].as_py(), "item": items[item].as_py()}
                    for row, user, item in _columns(local_slice(global_G, rank, self._world_size), examples)
                ]
                for rank in bad.ranks
            }
            self._folder.mkdir(parents=True, exist_ok=True)
            record = {"step": bad.step, "what": bad.what, "tasks": bad.tasks, "examples_by_rank": found}
            write_json(self._folder / name, record)
        return f"the ids of its examples are in checkpoints/{name}"


def _columns(rows_B: np.ndarray, examples: Examples) -> list[tuple[int, int, int]]:
    return list(zip(rows_B.tolist(), examples.user_N[rows_B].tolist(), examples.item_N[rows_B].tolist(), strict=True))
