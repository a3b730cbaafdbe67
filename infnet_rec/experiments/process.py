"""One training run as a process of its own: started, watched, asked to stop. No torch here."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from infnet_rec.config.plugins import plugin_words
from infnet_rec.config.toml import read_json
from infnet_rec.errors import TRY_AGAIN
from infnet_rec.launcher.failures import ERROR_FILE

POLL_S = 0.5
# The last: how the launcher begins what it says of a rank.
OUR_WORDS = ("infnet-rec: fault:", "infnet-rec: failed:", "infnet-rec: rank ")
Judge = Callable[[int, Mapping[str, Mapping[str, Any]]], bool]

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus_here(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that a process with this environment sees, as CUDA_VISIBLE_DEVICES has them."""
    told = environment.get(VISIBLE)
    if told is None:
        return [str(number) for number in range(_num_gpus())]
    names = [name.strip() for name in told.split(",")]
    # What CUDA does not know, such as -1, ends the list.
    ends = [at for at, name in enumerate(names) if not name or name.startswith("-")]
    return names[: min(ends, default=len(names))]


def _num_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
    )
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def gpus_of_jobs(gpus: Sequence[str], num_jobs: int, num_ranks: int) -> list[tuple[str, ...]]:
    """Deals the GPUs out: `num_ranks` of them to a job, in order, from the first again when all are dealt.

    Args:
        gpus: names.
        num_jobs: at the same time.
        num_ranks: of a job, each of which wants one.

    Returns:
        One tuple a job; () leaves the job what this process sees: there is no GPU, or no other job.
    """
    if not gpus or num_jobs == 1:
        return [()] * num_jobs
    places = [range(job * num_ranks, (job + 1) * num_ranks) for job in range(num_jobs)]
    # A job of more ranks than there are GPUs gets each once, and says itself what is wrong.
    return [tuple(dict.fromkeys(gpus[place % len(gpus)] for place in mine)) for mine in places]


def shortage(gpus: Sequence[str], num_jobs: int, num_ranks: int) -> str | None:
    """What to say when jobs share GPUs; None when they do not."""
    if not gpus or num_jobs == 1 or num_jobs * num_ranks <= len(gpus):
        return None
    return (
        f"--jobs {num_jobs}: {num_jobs * num_ranks} GPUs are wanted and {len(gpus)} found, so some cells share one; "
        f"--jobs {max(1, len(gpus) // num_ranks)} gives each its own"
    )


@dataclass(frozen=True, slots=True)
class Job:
    """A run to make.

    Attributes:
        config: a run's TOML file.
        overrides: laid on it.
        run_dir: where it writes, and goes on if it was stopped there.
        log: what it says is appended to this file.
        num_ranks: processes.
        num_threads: of each; 0 leaves it to the run.
        gpus: all that it may see; () leaves it what this process sees.
    """

    config: Path
    overrides: Sequence[str]
    run_dir: Path
    log: Path
    num_ranks: int = 1
    num_threads: int = 0
    gpus: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """This process's own, with the job's share of the machine."""
        threads = {"OMP_NUM_THREADS": str(self.num_threads)} if self.num_threads else {}
        gpus = {VISIBLE: ",".join(self.gpus)} if self.gpus else {}
        # Under torchx, that file is for what this process says in the end.
        ours = {name: value for name, value in os.environ.items() if name != ERROR_FILE}
        return {**threads, **ours, **gpus}

    @property
    def command(self) -> list[str]:
        """The command line that is started."""
        ranks = [f"--ranks={self.num_ranks}"] if self.num_ranks > 1 else []
        sets = [f"--set={override}" for override in self.overrides]
        infnet_rec = [sys.executable, "-m", "infnet_rec.cli"]
        return [*infnet_rec, "train", str(self.config), f"--run-dir={self.run_dir}", *ranks, *sets, *plugin_words()]


@dataclass(frozen=True, slots=True)
class RunEnded:
    """How a run ended; `result` is there when it is done, `reason` when it failed."""

    how: Literal["done", "failed", "stopped", "pruned"]
    result: dict[str, Any] | None = None
    reason: str = ""


def train_in_a_process(job: Job, wants_stop: Callable[[], bool], is_hopeless: Judge | None = None) -> RunEnded:
    """Trains, or goes on, until the run ends; asks it to save and stop when we are asked to.

    Args:
        job: the run.
        wants_stop: whether somebody asked this process to stop.
        is_hopeless: told step and metrics of each evaluation on valid; True ends the run.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    # The run has this lock from its first moment, long before its ranks have come so far as to lock their folder.
    with job.log.with_suffix(".lock").open("a", encoding="utf-8") as lock:
        wait_until_free(lock, job.run_dir, wants_stop)
        if (ranks := job.run_dir / ".lock").exists():
            with ranks.open("a", encoding="utf-8") as file:
                wait_until_free(file, job.run_dir, wants_stop)
        if wants_stop():
            return RunEnded("stopped")
        with job.log.open("ab") as log:
            # A session of its own: a Ctrl-C of the terminal reaches this process, which passes it on once.
            process = subprocess.Popen(
                job.command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=job.environment,
                pass_fds=[lock.fileno()],
            )
        pruned = _watched(process, job, wants_stop, is_hopeless)
    if process.returncode == 0:
        return RunEnded("done", read_json(job.run_dir / "result.json"))
    if pruned:
        return RunEnded("pruned")
    if process.returncode == TRY_AGAIN or wants_stop():
        return RunEnded("stopped")
    return RunEnded("failed", reason=f"exit code {process.returncode}: {last_words(job.log)}")


def _watched(
    process: "subprocess.Popen[bytes]", job: Job, wants_stop: Callable[[], bool], is_hopeless: Judge | None
) -> bool:
    """Waits for the end of a run, and asks it to stop where that is wanted; whether it was pruned."""
    pruned, asked, seen = False, False, 0
    while process.poll() is None:
        time.sleep(POLL_S)
        if is_hopeless is not None and not pruned:
            evaluations = evaluations_of(job.run_dir)
            pruned = any(is_hopeless(line["step"], line["metrics"]) for line in evaluations[seen:])
            seen = len(evaluations)
        if (wants_stop() or pruned) and not asked:
            process.send_signal(signal.SIGTERM)
            asked = True
    return pruned


def evaluations_of(run_dir: Path) -> list[dict[str, Any]]:
    """What the run has said of valid so far; a line that is being written is left for the next time."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["kind"] == "eval" and record["split"] == "valid"]


def wait_until_free(lock: IO[str], run_dir: Path, wants_stop: Callable[[], bool]) -> None:
    """Takes the lock; a run that outlived whoever started it keeps it as long as it lives, and is let finish."""
    said = False
    while not wants_stop():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not said:
                print(f"waiting for the process that still trains in {run_dir}", file=sys.stderr, flush=True)
            said = True
            time.sleep(POLL_S)


def last_words(log: Path) -> str:
    """The line of a log that says why: our own message where there is one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith(OUR_WORDS)]
    return (ours or lines or ["it said nothing"])[-1].removeprefix("infnet-rec: ")[:300]
