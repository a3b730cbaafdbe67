"""Two hosts with a network between them, each started by the script that `infnet-rec launch` writes for it.

What a cluster does to a run: nothing, a host that is lost, a cable that is out for a while. The losses are those of two
ranks on one host.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infnet_rec.checkpoint.store import CheckpointStore
from infnet_rec.launcher.launch import write_launch
from lanes import cannot_start
from rank_pair import RankPair
from resumed_runs import train_run
from sharded_runs import CONFIG
from two_hosts import Host, NotHere, two_hosts

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
NUM_STEPS, SAVE_EVERY, HURT_AT = 48, 8, 19
SETTINGS = [
    "data.profile='safe'",
    f"train.num_epochs={(NUM_STEPS + 0.5) / 54}",
    f"checkpoint.every_steps={SAVE_EVERY}",
    "train.eval_every_steps=1000",
    "train.log_every_steps=1",
    "train.collective_timeout_s=60",
]
# torchrun waits so long for nodes that may still come, and for one that says nothing; the rest is as it is written.
SHORTER = "last_call_timeout=2,keep_alive_interval=1"
# Between nodes there are other sums in other orders, when one of two is gone.
TOLERANCE = 1e-4
# All that is waited for takes seconds on a machine that is free; launchers that wait for each other take minutes more.
LIMIT_S = 150.0


@dataclass
class Job:
    """One run on both hosts."""

    hosts: tuple[Host, Host]
    folder: Path
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def lines(self) -> list[dict[str, Any]]:
        """Progress lines that count."""
        path = self.run_dir / "metrics.jsonl"
        records = [json.loads(x) for x in path.read_text().split("\n")[:-1]] if path.exists() else []
        return [record for record in records if record["kind"] == "train"]

    def losses(self) -> list[tuple[int, list[float]]]:
        return [(line["step"], list(line["loss"].values())) for line in self.lines()]

    def log(self, host: Host) -> Path:
        return self.folder / f"{host.name}.log"

    def said(self, host: Host) -> str:
        return self.log(host).read_text()

    def steps_said(self, host: Host) -> list[int]:
        return [int(step) for step in re.findall(rf"^step (\d+)/{NUM_STEPS}  epoch", self.said(host), re.MULTILINE)]

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not reached():
            assert time.monotonic() < deadline, self.all_said()
            time.sleep(0.005)

    def until_step(self, step: int) -> None:
        self.until(lambda: len(self.lines()) >= step or self.has_ended())
        assert len(self.lines()) < NUM_STEPS, self.all_said()

    def has_ended(self) -> bool:
        return all(agent.poll() is not None for agent in self.agents.values())

    def codes(self) -> list[int]:
        self.until(self.has_ended)
        return [self.agents[host.name].returncode for host in self.hosts]

    def all_said(self) -> str:
        return "\n".join(f"{host.name}:\n{self.said(host)[-5000:]}" for host in self.hosts)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts(tmp_path_factory.mktemp("hosts")) as pair:
            yield pair
    except NotHere as reason:
        cannot_start(str(reason))


@pytest.fixture
def start(hosts: tuple[Host, Host], small_store: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a run of a size on both hosts, which meet at one of them; nothing is left running afterwards."""

    def started(size: str, first: Host, stores: Sequence[Path] = (small_store, small_store)) -> Job:
        environment = {**os.environ, "HOST": first.name, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        job = Job(hosts, tmp_path)
        for host, store in zip(hosts, stores, strict=True):
            overrides = [f"data.store='{store}'", *SETTINGS]
            text = write_launch(CONFIG, overrides, size, "torchrun", job.run_dir, ["gpus=0"])["text"]
            script = tmp_path / f"{host.name}.sh"
            script.write_text(text.replace("--rdzv-conf=", f"--rdzv-conf={SHORTER},"))
            assert SHORTER in script.read_text()
            job.agents[host.name] = host.start(["bash", str(script)], job.log(host), environment, ROOT)
        return job

    yield started
    for host in hosts:
        host.plug_in()
        host.lose_power()


@pytest.fixture(scope="module")
def on_one_host(
    ranks: RankPair, small_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[int, list[float]]]:
    """Losses of the same run on two ranks of this host."""
    folder = tmp_path_factory.mktemp("one_host") / "run"
    lines = ranks(train_run, str(small_store), str(folder), SETTINGS)[0]["lines"]
    return [(line["step"], list(line["loss"].values())) for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_two_hosts_train_as_one_does(start, hosts, on_one_host) -> None:
    job = start("2x1", hosts[0])
    assert job.codes() == [0, 0], job.all_said()
    result = json.loads((job.run_dir / "result.json").read_text())
    assert (result["num_ranks"], result["steps_done"]) == (2, NUM_STEPS)
    assert job.losses() == on_one_host
    assert all(not host.pids() for host in hosts)


@pytest.mark.slow
def test_a_lost_host_leaves_the_run_to_the_other(start, hosts, on_one_host) -> None:
    """Rank 0 is lost, with the ranks' store and the lock on the run; the hosts meet at the one that stays."""
    lost, stays = hosts
    job = start("1:2x1", stays)
    job.until_step(HURT_AT)
    lost.lose_power()
    saved = max(commit.step for commit in CheckpointStore(job.run_dir / "checkpoints").commits())
    assert job.codes()[1] == 0, job.all_said()
    (went_on,) = re.findall(r"goes on from step (\d+), .* \(written by 2 ranks, now 1\)", job.said(stays))
    assert saved == int(went_on) >= HURT_AT // SAVE_EVERY * SAVE_EVERY
    assert job.steps_said(lost)[0] == 1
    assert job.steps_said(stays) == list(range(saved + 1, NUM_STEPS + 1))
    assert [step for step, _ in job.losses()] == list(range(1, NUM_STEPS + 1))
    assert job.losses()[:saved] == on_one_host[:saved]
    for (_, mine), (_, other) in zip(job.losses()[saved:], on_one_host[saved:], strict=True):
        assert mine == pytest.approx(other, abs=TOLERANCE)
    assert json.loads((job.run_dir / "result.json").read_text())["num_ranks"] == 1


@pytest.mark.slow
def test_a_cable_that_is_out_for_a_while_costs_that_while(start, hosts, on_one_host) -> None:
    """What was sent is sent again: no rank starts anew, no loss differs."""
    job = start("2x1", hosts[0])
    job.until_step(HURT_AT)
    hosts[1].unplug()
    time.sleep(1.0)
    stood_at = len(job.lines())
    time.sleep(2.0)
    assert len(job.lines()) == stood_at < NUM_STEPS
    hosts[1].plug_in()
    assert job.codes() == [0, 0], job.all_said()
    assert job.steps_said(hosts[0]) == list(range(1, NUM_STEPS + 1))
    assert job.losses() == on_one_host


@pytest.mark.slow
def test_ctrl_c_on_one_host_ends_both_and_saves(start, hosts) -> None:
    job = start("2x1", hosts[0])
    job.until_step(HURT_AT)
    # As a terminal does it: to the launcher and to all that it started.
    os.killpg(job.agents[hosts[1].name].pid, signal.SIGINT)
    assert job.codes() == [75, 75], job.all_said()
    assert all(not host.pids() for host in hosts)
    (saved,) = re.findall(rf"stopped at step (\d+) of {NUM_STEPS}, and saved", job.said(hosts[0]))
    assert CheckpointStore(job.run_dir / "checkpoints").commits()[-1].step == int(saved) >= HURT_AT


def test_a_fault_on_one_host_ends_the_other_too(start, hosts, small_store: Path, tmp_path: Path) -> None:
    """Its ranks would wait minutes for those that never come."""
    job = start("2x1", hosts[0], (small_store, tmp_path / "nowhere"))
    assert job.codes() == [2, 2], job.all_said()
    assert re.search(r"infnet-rec: fault: store .*\n *\(rank 1 on host south", job.said(hosts[1])), job.said(hosts[1])
    assert "infnet-rec: ended: the ranks of south ended; its log says why" in job.said(hosts[0])
    assert "Traceback" not in job.all_said()
    assert all(not host.pids() for host in hosts)


@pytest.mark.slow
def test_a_launcher_whose_meeting_point_is_lost_says_so(start, hosts) -> None:
    """The host that keeps the launchers' store is the one that cannot be replaced."""
    job = start("1:2x1", hosts[0])
    job.until_step(HURT_AT)
    hosts[0].lose_power()
    assert job.codes()[1] == 1, job.all_said()
    assert "infnet-rec: ended: the node where all meet does not answer" in job.said(hosts[1])
    assert not hosts[1].pids()
