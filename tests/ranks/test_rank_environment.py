"""What a launcher tells its ranks: read as a whole, and a rank ends with the launcher, whenever that dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infnet_rec.errors import TRY_AGAIN, UserError
from infnet_rec.launcher.rank_environment import (
    LOOPBACK,
    RankEnvironment,
    is_rank,
    master_address,
    read_rank_environment,
)
from infnet_rec.trainer.resume import lock_run_dir

ROOT = Path(__file__).parents[2]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VALUES = st.sampled_from(["0", "1", "2", "4", "5", "-1", "", " ", "two", "1.0", "٣", "127.0.0.1", "29500", "70000"])
# Nobody has it: RFC 2606.
NOWHERE = "no-such-host.invalid"


def rank_environ(rank: int, world_size: int, local_world_size: int | None = None) -> dict[str, str]:
    """As torchrun gives it to a rank of hosts with as many ranks each; of one host by default."""
    local = local_world_size or world_size
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}
    where = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": "29777"}
    return {**{name: str(number) for name, number in numbers.items()}, **where}


def test_what_torchrun_gives_is_read() -> None:
    assert read_rank_environment({}) is None
    # Where ranks meet says nothing of this process: images set it for all of them.
    assert read_rank_environment({"MASTER_ADDR": "head", "MASTER_PORT": "29500"}) is None
    assert read_rank_environment(rank_environ(5, 8, 4)) == RankEnvironment(5, 8, 1, 4, LOOPBACK, 29777)
    assert read_rank_environment({"RANK": "0", "WORLD_SIZE": "1"}) == RankEnvironment(0, 1, 0, 1, "", 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict.fromkeys(NAMES[2:]) | {"RANK": None}, "WORLD_SIZE=2, without RANK, LOCAL_RANK, .* and MASTER_"),
        (dict.fromkeys(NAMES[2:]), "RANK=0, WORLD_SIZE=2, without LOCAL_RANK"),
        ({"MASTER_PORT": None}, "without MASTER_PORT: is not"),
        ({"WORLD_SIZE": "", "RANK": ""}, "RANK='' is empty; WORLD_SIZE='' is empty"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no number"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT='abc' is no port from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "no port"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR='' is empty"),
        ({"RANK": "5"}, "RANK=5 is not below WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK='-1' is no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is less than 1; RANK=0 is not below"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 is not from 1 to WORLD_SIZE=2"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below LOCAL_WORLD_SIZE=2; LOCAL_RANK=2 is above RANK=0"),
    ],
)
def test_half_of_it_is_a_fault_in_one_line(changes: Mapping[str, str | None], words: str) -> None:
    environ = {name: value for name, value in (rank_environ(0, 2) | dict(changes)).items() if value is not None}
    with pytest.raises(UserError, match=words) as fault:
        read_rank_environment(environ)
    assert "\n" not in str(fault.value)
    assert "start under torchrun, or unset" in str(fault.value)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_environment_is_a_rank_nobody_or_a_fault(environ: dict[str, str]) -> None:
    try:
        env = read_rank_environment(environ)
    except UserError as fault:
        assert "\n" not in str(fault)
        return
    assert (env is not None) == is_rank(environ)
    if env is not None:
        assert 0 <= env.local_rank <= env.rank < env.world_size
        assert env.local_rank < env.local_world_size <= env.world_size
        assert env.world_size == 1 or (env.master_addr.strip() and 0 < env.master_port < 65536)


def test_ranks_of_one_host_need_no_name_and_those_of_two_do() -> None:
    alone = RankEnvironment(0, 2, 0, 2, NOWHERE, 29500)
    assert master_address(alone) == LOOPBACK
    assert master_address(RankEnvironment(0, 2, 0, 2, "localhost", 29500)) == "localhost"
    with pytest.raises(
        UserError, match=f"MASTER_ADDR={NOWHERE}: does not resolve on {socket.gethostname()}; "
    ) as fault:
        master_address(RankEnvironment(0, 2, 0, 1, NOWHERE, 29500))
    assert "\n" not in str(fault.value)


@pytest.mark.slow(smoke=["train-environ0"])
@pytest.mark.parametrize(
    ("verb", "environ"),
    [
        ("train", {"WORLD_SIZE": "2"}),
        ("train", rank_environ(0, 2, 1) | {"MASTER_ADDR": NOWHERE}),
        ("doctor", rank_environ(5, 2)),
    ],
)
def test_verbs_say_it_at_once(verb: str, environ: dict[str, str], small_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infnet_rec.cli", verb, "tests/small.toml", f'--set=data.store="{small_store}"']
    around = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(command, env={**around, **environ}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "infnet-rec: " in done.stderr and "fault: " in done.stderr
    assert not any(tmp_path.iterdir())


# A rank without torch: it says that it lives, and hangs where no signal handler of Python runs.
RANK = """
import os, sys, threading, time
from infnet_rec.launcher.rank_environment import end_with_launcher
time.sleep(float(os.environ.get("LATE_S", "0")))
end_with_launcher()
os.write(1, b"%d\\n" % os.getpid())
lock = threading.Lock(); lock.acquire(); lock.acquire()
"""
# A launcher: starts a rank as it is told, gives its process id away, and waits.
LAUNCHER = """
import os, subprocess, sys, time
os.environ |= {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "1"}
if os.environ.pop("OURS"):
    os.environ["INFNET_REC_LAUNCHER_PID"] = str(os.getpid())
rank = subprocess.Popen(sys.argv[1:], start_new_session=True)
os.write(1, b"launcher\\n")
if os.environ.get("FORGETS"):
    os._exit(0)
time.sleep(600)
"""


@contextmanager
def launched(command: list[str], **environ: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A launcher and its rank's process id, once the rank has asked to end with it; 0 where it never came so far."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *command],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"launcher\n"
    pid = int(launcher.stdout.readline() or b"0")
    try:
        yield launcher, pid
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def has_ended(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return True
    return False


@pytest.mark.parametrize(
    ("ours", "between"),
    [
        ("1", []),
        # torchrun itself does not say who it is.
        ("", []),
        # torchrun can start a script that starts the rank.
        ("1", ["bash", "-c", '"$@"; true', "bash"]),
    ],
)
def test_a_rank_ends_with_its_launcher(ours: str, between: list[str]) -> None:
    with launched([*between, sys.executable, "-c", RANK], OURS=ours) as (launcher, pid):
        assert not has_ended(pid, within_s=0.2)
        launcher.kill()
        launcher.wait()
        assert has_ended(pid)


def test_a_rank_that_comes_too_late_for_its_launcher_ends() -> None:
    """The launcher dies before the rank has asked: its absence is all that tells the rank."""
    with launched([sys.executable, "-c", RANK], OURS="1", FORGETS="1", LATE_S="0.5") as (_, pid):
        assert pid == 0


def test_a_process_that_is_no_rank_outlives_its_starter() -> None:
    starter = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {RANK!r}]).pid, flush=True)"
    around = {name: value for name, value in os.environ.items() if name not in NAMES} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, env=around) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.wait()
        try:
            assert not has_ended(pid, within_s=1.0)
        finally:
            os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(what: Callable[[], object], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_ranks_and_a_folder_in_use_is_said(small_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    sets = [f'data.store="{small_store}"', "train.num_epochs=200", "train.patience=0", "checkpoint.every_steps=5"]
    options = ["--ranks=2", f"--run-dir={run_dir}", *(f"--set={override}" for override in sets)]
    command = [sys.executable, "-m", "infnet_rec.cli", "train", "tests/small.toml", *options]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environ, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    with start() as launcher:
        until(lambda: len(children_of(launcher.pid)) == 2)
        importing = children_of(launcher.pid)
        launcher.kill()
        assert all(has_ended(pid) for pid in importing)
    with start() as launcher:
        # It trains, and saves all the time.
        until(lambda: list(run_dir.glob("checkpoints/*")))
        training = children_of(launcher.pid)
        holder = json.loads((run_dir / ".lock").read_text())["pid"]
        assert holder in training
        busy = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert busy.returncode == TRY_AGAIN, busy.stderr
        said = f"busy: --run-dir {run_dir}: process {holder} on host {socket.gethostname()} trains in it; "
        assert busy.stderr.startswith(f"infnet-rec: {said}") and busy.stderr.count("\n") == 1
        launcher.kill()
        assert all(has_ended(pid) for pid in training)
    with lock_run_dir(run_dir):
        pass


# The launcher in native code that hears nothing for long, as while it waits for the node where all meet.
DEAF = """
import os, sys, threading, time
from infnet_rec.launcher.rank_environment import end_early_on_signals
end_early_on_signals()
os.write(1, b"listens\\n")
lock = threading.Lock(); lock.acquire(); lock.acquire()
"""
# It holds signals back, becomes another program that takes its time, and that one listens.
BECOMES = """
import os, sys
from infnet_rec.launcher.rank_environment import hold_signals
hold_signals()
os.write(1, b"listens\\n")
code = "import time; time.sleep(1); " + sys.argv[1]
os.execv(sys.executable, [sys.executable, "-c", code])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [["-c", DEAF], ["-c", BECOMES, DEAF]])
def test_a_signal_before_anything_has_begun_is_try_again(number: signal.Signals, arguments: list[str]) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"listens\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == TRY_AGAIN
    assert said == b"infnet-rec: stopped by a signal, and nothing is lost; run it again\n"


@pytest.mark.parametrize("after_s", [0.4, 2.0])
def test_a_launcher_that_waits_for_others_can_be_stopped(after_s: float, tmp_path: Path) -> None:
    """While it imports torch, and while it waits for a first node that is not there."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={LOOPBACK}:{port}"]
    options += ["--rdzv-id=a", "--rdzv-conf=is_host=0,read_timeout=600", "-m", "infnet_rec.cli", "train", "a.toml"]
    command = [sys.executable, "-m", "infnet_rec.launcher.torchrun", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        # Until torch is there; then it calls the first node.
        until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text() or after_s < 1)
        time.sleep(after_s)
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == TRY_AGAIN, said
    assert said.endswith("infnet-rec: stopped by a signal, and nothing is lost; run it again\n")
