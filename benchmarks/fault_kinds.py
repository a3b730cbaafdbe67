"""The faults: each is a function that hurts one run, lets it go on, and says how it came out."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.fault_runs import NUM_STEPS, SAVE_EVERY, Attempt, Run
from infnet_rec.errors import TRY_AGAIN

LOSS_TOLERANCE = 1e-3  # other sums in other orders, over forty steps
STEP_S = 0.05
WITHOUT_CHANCE = ("model.dropout=0.0",)


class NotHere(Exception):
    """A fault that this machine does not allow."""


@dataclass(frozen=True)
class Outcome:
    """How one try came out.

    Attributes:
        survived: the run went on to its last step, and everything that should be said on the way was said.
        lost: examples that no committed step was trained on.
        doubled: examples that more than one was trained on.
        equal: "bits" where all weights, optimizer and random states and every progress line are those of the
            undisturbed run; "close" where losses and examples are; "no"; "-" where it was not asked.
        redone: steps that had been done and were done again.
        note: what else is worth knowing.
    """

    survived: bool
    lost: int
    doubled: int
    equal: str
    redone: int
    note: str = ""

    def noted(self, note: str, *, unless: bool) -> "Outcome":
        """The same, failed with a note, unless all was well."""
        return self if unless else replace(self, survived=False, note=f"{self.note} {note}".strip())


@dataclass(frozen=True)
class Bench:
    """What all tries share: the undisturbed run, the dice, and a folder of their own."""

    reference: Run
    dice: random.Random
    folder: Path

    def without_chance(self) -> Run:
        """An undisturbed run without dropout, whose draws another number of ranks would make in another way."""
        folder = self.folder.parent / "without_chance"
        run = Run(self.reference.store, folder, WITHOUT_CHANCE)
        if not folder.exists():
            run.make().complete()
        return run

    def run(self, *overrides: str, **named: Path) -> Run:
        """A new run on the same store, unless another is named."""
        return Run(named.get("store", self.reference.store), self.folder, overrides, named.get("checkpoints")).make()

    def any_step(self, first: int = 1) -> int:
        """A step to be hurt after."""
        return self.dice.randrange(first, NUM_STEPS)

    def reach(self, attempt: Attempt, step: int) -> None:
        """Waits for a step and some random part of the next."""
        attempt.until(lambda: attempt.step() >= step)
        time.sleep(self.dice.random() * STEP_S)

    def hurt(self, run: Run, ranks: list[int], first: int = 1) -> Attempt:
        """Starts a run and kills ranks of it at a random moment."""
        attempt = run.start()
        self.reach(attempt, self.any_step(first))
        attempt.kill(ranks)
        attempt.finish()
        return attempt

    def judge(self, run: Run, *, equal: str = "bits") -> Outcome:
        """Looks at a run whose last attempt should have finished it."""
        examples, last = run.examples(), run.attempts[-1]
        survived = not any(last.exits.values()) and (run.run_dir / "result.json").is_file()
        if equal == "bits":
            same = run.final_parts() == self.reference.final_parts() and run.log_lines() == self.reference.log_lines()
        else:
            mine, other = run.losses(), self.without_chance().losses()
            same = mine.shape == other.shape and bool(np.abs(mine - other).max() < LOSS_TOLERANCE)
        found = equal if same and examples.in_order else "no"
        return Outcome(survived, examples.lost, examples.doubled, found, self._redone(run))

    @staticmethod
    def _redone(run: Run) -> int:
        done = [{json.loads(x)["step"] for x in p.read_text().splitlines()} for p in run.notes.glob("steps-*-0.jsonl")]
        return sum(map(len, done)) - len(set().union(*done))


def kill(ranks: list[int]) -> Callable[[Bench], Outcome]:
    """SIGKILL at a random moment of a random step."""

    def fault(bench: Bench) -> Outcome:
        run = bench.run()
        bench.hurt(run, ranks)
        run.complete()
        return bench.judge(run)

    return fault


def kill_writing(mode: str) -> Callable[[Bench], Outcome]:
    """SIGKILL at a random byte of a random checkpoint, or at one of the calls that commit it."""

    def fault(bench: Bench) -> Outcome:
        run, rank = bench.run(f"checkpoint.mode='{mode}'"), bench.dice.randrange(2)
        sizes = {name: part["bytes"] for name, part in bench.reference.commits()[-1].parts.items()}
        share = bench.dice.uniform(0, 1.0 if rank else 1.25)  # the first rank also commits
        write = bench.dice.randrange(1, NUM_STEPS // SAVE_EVERY)
        die = {"rank": rank, "write": write, "share": share, "part_bytes": sizes[f"__{rank}_0.distcp"]}
        first = run.start(die=die)
        first.finish()
        run.complete()
        hit = first.exits[rank] == -signal.SIGKILL
        return bench.judge(run).noted("the kill came too late", unless=hit)

    return fault


def ask_to_stop(number: int, ranks: list[int]) -> Callable[[Bench], Outcome]:
    """A signal that asks: all ranks save at one step and end with the code for "try again"."""

    def fault(bench: Bench) -> Outcome:
        run = bench.run()
        first = run.start()
        bench.reach(first, bench.any_step())
        asked_at = time.monotonic()
        first.kill(ranks, number)
        while first.alive():
            time.sleep(0.01)
        took_s = time.monotonic() - asked_at
        saved = run.commits()[-1].step
        run.complete()
        outcome = bench.judge(run)
        outcome = replace(outcome, note=f"stopped after {took_s:.1f} s")
        codes_right = set(first.exits.values()) == {TRY_AGAIN}
        outcome = outcome.noted(f"exit codes {first.exits}", unless=codes_right or saved == NUM_STEPS)
        return outcome.noted("steps were done again", unless=outcome.redone == 0)

    return fault


def nan_in_a_batch(bench: Bench) -> Outcome:
    """A label is NaN: both ranks stop at one step and keep its rows; mended, the run goes on as if nothing had been."""
    step, rank = bench.any_step(), bench.dice.randrange(2)
    run = bench.run()
    first = run.start(nan_step=step, nan_rank=rank)
    first.finish()
    record = run.run_dir / "checkpoints" / f"nonfinite-step-{step}.json"
    kept = json.loads(record.read_text()) if record.is_file() else {"examples_by_rank": {}}
    rows = [example["row"] for example in kept["examples_by_rank"].get(str(rank), [])]
    trained = {line["step"]: line["rows"] for line in map(json.loads, (run.notes / f"steps-0-{rank}.jsonl").open())}
    run.complete()
    outcome = bench.judge(run).noted(f"exit codes {first.exits}", unless=first.code == 1)
    outcome = outcome.noted("stopped at two steps", unless=first.step(0) == first.step(1))
    return outcome.noted("other rows were kept", unless=rows == trained.get(step) and len(rows) > 0)


def hung(bench: Bench) -> Outcome:
    """SIGSTOP: the other rank says who does not answer, and ends."""
    run, rank = bench.run("train.collective_timeout_s=5"), bench.dice.randrange(2)
    first = run.start()
    bench.reach(first, bench.any_step())
    stopped_at = time.monotonic()
    first.kill([rank], signal.SIGSTOP)
    first.until(lambda: len(first.alive()) < 2)
    took_s = time.monotonic() - stopped_at
    first.kill([rank])
    first.finish()
    run.complete()
    named = f"rank {rank} has not answered for" in first.said
    return replace(bench.judge(run).noted("not named", unless=named), note=f"noticed after {took_s:.0f} s of 5")


def resume_on(num_ranks: int) -> Callable[[Bench], Outcome]:
    """Both ranks are killed, and another number goes on."""

    def fault(bench: Bench) -> Outcome:
        run = bench.run(*WITHOUT_CHANCE)
        bench.hurt(run, [0, 1])
        run.complete(num_ranks)
        return bench.judge(run, equal="close")

    return fault


def other_plan(bench: Bench) -> Outcome:
    """Goes on with tables spread in other ways: row-wise tables whole, or the other way round."""
    run = bench.run(*WITHOUT_CHANCE)
    bench.hurt(run, [0, 1], first=SAVE_EVERY + 1)
    run.complete(2, f"sharding.row_wise_min_rows={bench.dice.choice([20, 1_000_000])}")
    return bench.judge(run, equal="close")


def config_changed(bench: Bench) -> Outcome:
    """What would change the run is refused and named; what would not is taken; nothing is lost on the way."""
    run = bench.run()
    bench.hurt(run, [0, 1])
    refused = run.complete(2, "train.dense.lr=0.5")
    taken = run.complete(2, "train.patience=7")
    named = refused.code == 2 and "train.dense.lr = 0.5" in refused.said
    return bench.judge(run).noted("not refused or not named", unless=named and "train.patience = 7" in taken.said)


def elastic(bench: Bench) -> Outcome:
    """A worker is killed under torchrun, which starts all again; they go on by themselves."""
    run, rank = bench.run(), bench.dice.randrange(2)
    agent = run.elastic(max_restarts=3)
    try:
        watched = Attempt([], run.folder / "log-torchrun.txt", run.notes, 0)
        step, deadline = bench.any_step(SAVE_EVERY + 1), time.monotonic() + 300
        while watched.step() < step and agent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(int((run.notes / f"pid-{rank}").read_text()), signal.SIGKILL)
        # Gloo may fail to connect again; each such failure takes its time and one restart.
        code = agent.wait(timeout=600)
    finally:
        agent.kill()
    run.attempts.append(replace(watched, exits={0: code}))
    restarts = len(list(run.notes.glob("steps-*-0.jsonl"))) - 1
    outcome = bench.judge(run).noted("was not restarted", unless=restarts > 0)
    return replace(outcome, note=f"{outcome.note} {restarts} restarts".strip())
