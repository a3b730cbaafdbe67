"""What `infnet-rec launch --as sbatch` writes, run by a real Slurm: trained, stopped, preempted, cut off."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import MEMORY_MIB, NODES, SlurmCluster

from conftest import Record
from infnet_rec.launcher.launch import write_launch

# Long enough to be stopped in the middle on any machine.
LONG = ("train.num_epochs=400", "train.patience=0", "checkpoint.every_steps=20", "train.eval_every_steps=1000")
SLEEPER = "#!/bin/bash\nsleep 600\n"


@dataclass(slots=True)
class Lane:
    """Scripts of one configuration, and what their jobs left."""

    cluster: SlurmCluster
    config: Path
    record: Record
    _count: int = 0

    def script(self, size: str, *overrides: str, settings: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """A script, and the folder that its run will be in."""
        self._count += 1
        run_dir = self.cluster.shared / f"run-{self._count}"
        words = ["gpus=0", "env.OMP_NUM_THREADS=1", *settings]
        text = write_launch(self.config, list(overrides), size, "sbatch", run_dir, words)["text"]
        path = self.cluster.shared / f"job-{self._count}.sh"
        path.write_text(text)
        return path, run_dir

    def sleeper(self, *options: str) -> int:
        """A job that only takes its nodes."""
        path = self.cluster.shared / "sleeper.sh"
        path.write_text(SLEEPER)
        return self.cluster.submit(path, "--exclusive", "--output=/dev/null", *options)

    def log(self, job: int, name: str = "infnet-rec-train") -> str:
        path = self.cluster.shared / f"{name}-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until_in_log(self, job: int, text: str, within_s: float = 240.0) -> None:
        self.cluster.until(lambda: text in self.log(job), within_s, f"{text!r} is not in the log of job {job}")

    def until_it_trains(self, job: int, run_dir: Path) -> None:
        saved = lambda: list(run_dir.glob("checkpoints/step-*"))  # noqa: E731
        self.cluster.until(saved, 240, f"job {job} has saved nothing:\n{self.log(job)}")


@pytest.fixture
def lane(cluster: SlurmCluster, config: Path, record: Record) -> Iterator[Lane]:
    yield Lane(cluster, config, record, len(list(cluster.shared.glob("job-*.sh"))))
    cluster.cancel_all()


def result_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def completed(lane: Lane, job: int) -> dict[str, str]:
    facts = lane.cluster.until_over(job)
    assert facts["JobState"] == "COMPLETED", f"{facts}\n{lane.log(job)}"
    return facts


def test_one_and_two_nodes_train_alike(lane: Lane) -> None:
    """And a whole node comes with its memory, where a site gives so much a core."""
    metrics = []
    for size in ("1x2", "2x1"):
        began = time.monotonic()
        script, run_dir = lane.script(size)
        job = lane.cluster.submit(script)
        facts = completed(lane, job)
        assert f"mem={MEMORY_MIB * int(facts['NumNodes'])}M" in facts["TRES"].replace("G", "000M"), facts["TRES"]
        found = result_of(run_dir)
        assert found["num_ranks"] == 2
        metrics.append(found["metrics"])
        lane.record.add(f"{size}", "trained, with all of its nodes' memory", time.monotonic() - began)
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("num_free", [1, 2])
def test_as_many_nodes_as_are_free(lane: Lane, num_free: int) -> None:
    began = time.monotonic()
    busy = [lane.sleeper("--nodes=1") for _ in range(2 - num_free)]
    for job in busy:
        lane.cluster.until(lambda job=job: lane.cluster.state(job) == "RUNNING", 60, "the sleeper does not run")
    script, run_dir = lane.script("1:2x1")
    facts = completed(lane, lane.cluster.submit(script))
    assert int(facts["NumNodes"]) == num_free == result_of(run_dir)["num_ranks"]
    outcome = f"trained on {num_free} node{'s' * (num_free > 1)}"
    lane.record.add(f"1:2x1, {num_free} of 2 nodes free", outcome, time.monotonic() - began)


def test_as_many_nodes_as_are_free_with_a_share_of_each(lane: Lane) -> None:
    script, run_dir = lane.script("1:2x1", settings=("cpus=1",))
    facts = completed(lane, lane.cluster.submit(script))
    assert int(facts["NumNodes"]) == 2 == result_of(run_dir)["num_ranks"]


@pytest.mark.parametrize(("size", "options"), [("2x1", "--nodes=1"), ("1x2", "--nodes=2"), ("2x1", "--nodes=1-2")])
def test_another_number_of_nodes_is_refused_at_once(lane: Lane, size: str, options: str) -> None:
    began = time.monotonic()
    busy = lane.sleeper("--nodes=1") if "-" in options.removeprefix("--") else None
    if busy is not None:
        lane.cluster.until(lambda: lane.cluster.state(busy) == "RUNNING", 60, "the sleeper does not run")
    script, run_dir = lane.script(size)
    job = lane.cluster.submit(script, options)
    facts = lane.cluster.until_over(job, within_s=60)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    said = lane.log(job).splitlines()
    assert len(said) == 1 and "this script is for" in said[0], said
    assert not run_dir.exists()
    lane.record.add(f"{size}, `sbatch {options}`", "refused in one line, exit code 2", time.monotonic() - began)


def at_once(lane: Lane, job: int, run_dir: Path) -> None:
    lane.cluster.until(
        lambda: "StepId" in lane.cluster.ask("scontrol", "show", "step", f"{job}", check=False), 60, "no step"
    )


def soon(lane: Lane, job: int, run_dir: Path) -> None:
    at_once(lane, job, run_dir)
    time.sleep(2)


def in_the_meeting(lane: Lane, job: int, run_dir: Path) -> None:
    at_once(lane, job, run_dir)
    time.sleep(6)


def in_training(lane: Lane, job: int, run_dir: Path) -> None:
    lane.until_it_trains(job, run_dir)


@pytest.mark.parametrize("size", ["1x2", "2x1"])
@pytest.mark.parametrize("moment", [at_once, soon, in_the_meeting, in_training])
def test_a_signal_puts_it_back_into_the_queue(lane: Lane, size: str, moment: Callable[[Lane, int, Path], None]) -> None:
    began = time.monotonic()
    script, run_dir = lane.script(size, *LONG)
    job = lane.cluster.submit(script)
    moment(lane, job, run_dir)
    num_signals, sent_at = 0, time.monotonic()
    while lane.cluster.restarts(job) == 0:
        # Between two steps of a job there is nobody to hear.
        assert num_signals < 2, "it is not requeued\n" + lane.log(job)
        lane.cluster.ask("scancel", "--signal=TERM", str(job))
        num_signals += 1
        with suppress(AssertionError):
            lane.cluster.until(lambda: lane.cluster.restarts(job) == 1, 60, "it is not requeued")
    back = time.monotonic() - sent_at
    assert num_signals == 1 or moment is at_once, lane.log(job)
    if moment is in_training:
        lane.until_in_log(job, "goes on from step")
    else:
        lane.until_it_trains(job, run_dir)
    lines = [line for line in lane.log(job).splitlines() if "frame #" in line or "Traceback" in line]
    words = {at_once: "at its first step", soon: "2 s later", in_the_meeting: "6 s later", in_training: "in training"}
    traces = f", {len(lines)} lines of stack traces" if lines else ""
    traces += ", at the second signal: between the steps nobody hears the first" if num_signals > 1 else ""
    outcome = f"75, back in the queue after {back:.0f} s, and trains on{traces}"
    lane.record.add(f"{size}, `scancel --signal=TERM` {words[moment]}", outcome, time.monotonic() - began)
    assert not lines


def test_its_time_is_up(lane: Lane) -> None:
    began = time.monotonic()
    script, _ = lane.script("1x2", *LONG)
    # Slurm looks at limits about twice a minute.
    job = lane.cluster.submit(script, "--time=2", "--signal=TERM@60")
    lane.cluster.until(lambda: lane.cluster.restarts(job) == 1, 240, "it is not requeued\n" + lane.log(job))
    lane.until_in_log(job, "goes on from step")
    lane.record.add("1x2, a minute before its time is up", "saved, 75, requeued, goes on", time.monotonic() - began)


@pytest.mark.parametrize("partition", ["low", "grace"])
def test_it_is_preempted(lane: Lane, partition: str) -> None:
    began = time.monotonic()
    script, run_dir = lane.script("2x1", *LONG)
    job = lane.cluster.submit(script, f"--partition={partition}")
    lane.until_it_trains(job, run_dir)
    other = lane.sleeper("--nodes=2", "--partition=high", "--time=10")
    lane.cluster.until(lambda: lane.cluster.state(other) == "RUNNING", 240, "it is not preempted\n" + lane.log(job))
    lane.cluster.ask("scancel", str(other))
    lane.until_in_log(job, "goes on from step")
    assert lane.cluster.restarts(job) == 1
    grace = " with 120 s of grace" if partition == "grace" else ""
    lane.record.add(f"2x1, preempted{grace}", "saved, requeued, goes on", time.monotonic() - began)


@pytest.mark.parametrize("size", ["2x1", "1:2x1"])
@pytest.mark.parametrize("node", NODES)
def test_a_node_loses_power(lane: Lane, size: str, node: str) -> None:
    script, run_dir = lane.script(size, *LONG)
    # With fewer the one that is lost may be all there is.
    job = lane.cluster.submit(script, "--nodes=2")
    lane.until_it_trains(job, run_dir)
    began = time.monotonic()
    lane.cluster.lose_power(node)
    goes_on_alone = size == "1:2x1" and node == NODES[1]
    if not goes_on_alone:
        lane.cluster.until(lambda: lane.cluster.restarts(job) == 1, 400, "it is not requeued\n" + lane.log(job))
    requeued_s = time.monotonic() - began
    if not goes_on_alone:
        # The job was handed in for two nodes.
        lane.cluster.power_on(node)
    lane.until_in_log(job, "goes on from step", within_s=400)
    went_on_s = time.monotonic() - began
    assert lane.cluster.restarts(job) == (0 if goes_on_alone else 1), lane.log(job)
    if goes_on_alone:
        lane.cluster.until(lambda: lane.cluster.is_down(node), 120, f"{node} does not count as lost")
        lane.cluster.power_on(node)
    which = "first" if node == NODES[0] else "second"
    how = "the other goes on alone" if goes_on_alone else f"requeued by Slurm after {requeued_s:.0f} s, goes on"
    lane.record.add(f"{size}, the {which} node loses power", f"{how}, {went_on_s:.0f} s later", went_on_s)
    lane.cluster.cancel_all()


def test_parts_of_an_experiment_in_an_array(lane: Lane, cluster: SlurmCluster) -> None:
    began = time.monotonic()
    experiment = cluster.shared / "experiment.toml"
    experiment.write_text(
        f'base = "{lane.config}"\nseeds = [1]\n[[variants]]\nname = "a"\n[[variants]]\nname = "b"\n'
        'set = ["model.width=4"]\n'
    )
    out = cluster.shared / "experiment"
    script = cluster.shared / "array.sh"
    verb = f"{sys.executable} -m infnet_rec.cli experiment {experiment} --out {out}"
    script.write_text(f"#!/bin/bash\nexport OMP_NUM_THREADS=1\n{verb} --part $SLURM_ARRAY_TASK_ID/2\n")
    job = cluster.submit(script, "--array=1-2", "--mem=1G", "--output=array-%A_%a.log")
    cluster.until(lambda: not cluster.ask("squeue", "-h", "-j", str(job), check=False), 300, "the array does not end")
    logs = "".join(path.read_text() for path in sorted(cluster.shared.glob(f"array-{job}_*.log")))
    cells = [json.loads(line) for path in out.glob("cells-*.jsonl") for line in path.read_text().splitlines()]
    assert sorted((cell["variant"], cell["status"]) for cell in cells) == [("a", "done"), ("b", "done")], logs
    lane.record.add("an array of two parts of an experiment", "each made its own", time.monotonic() - began)


def test_a_fault_of_the_configuration_is_said_once(lane: Lane) -> None:
    began = time.monotonic()
    script, _ = lane.script("2x1", "data.profile='none_such'")
    job = lane.cluster.submit(script)
    facts = lane.cluster.until_over(job)
    said = lane.log(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), said
    assert said.count("none_such") == 1, said
    lane.record.add(
        "2x1, a fault of the configuration", "said once, exit code 2, not requeued", time.monotonic() - began
    )


def test_torchx_without_accounting_is_refused_before_it_hands_in(lane: Lane) -> None:
    began = time.monotonic()
    torchx = [sys.executable, "-c", "from torchx.cli.main import main; main()", "run", "-s", "slurm"]
    root = Path(__file__).parent.parent.parent
    component = [f"{root}/launch/components.py:train", "-j", "1x2", "--config", str(lane.config)]
    around = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(lane.cluster.shared)}
    around |= {"SLURM_CONF": str(lane.cluster.folder / "slurm.conf"), "PYTHONPATH": str(root)}
    done = subprocess.run([*torchx, *component], env=around, cwd=lane.cluster.shared, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "sacct" in done.stderr, done.stderr
    assert not lane.cluster.ask("squeue", "-h")
    lane.record.add("torchx without accounting", "refused in one line", time.monotonic() - began)
