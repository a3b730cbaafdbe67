"""Who is named when ranks wait, how a run is asked to stop, and what a launcher makes of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import sharded_runs
from infnet_rec.distributed.process_group import make_deterministic
from infnet_rec.distributed.watchdog import Watchdog, stands
from infnet_rec.errors import TRY_AGAIN
from infnet_rec.launcher import torchrun
from infnet_rec.launcher.failures import SPOKEN_FOR
from infnet_rec.trainer.signals import GracefulStop

TIMEOUT_S = 1.0


@contextmanager
def watches(num_ranks: int) -> Iterator[tuple[list[Watchdog], list[list[str]]]]:
    """Watches of several ranks in this process, around one store; what they end with is collected."""
    said: list[list[str]] = [[] for _ in range(num_ranks)]
    found = [Watchdog(sharded_runs.world_of(r, num_ranks), TIMEOUT_S, said[r].append) for r in range(num_ranks)]
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for watch in found:
        client = dist.TCPStore("localhost", server.port, is_master=False, timeout=timedelta(seconds=5))
        threading.Thread(target=watch.exchange, args=(client,), daemon=True).start()
        threading.Thread(target=watch.judge, daemon=True).start()
    yield found, said
    for watch in found:
        watch.close()
    time.sleep(TIMEOUT_S / 2)


def wait_for(said: list[str]) -> str:
    """The first thing that is said."""
    deadline = time.monotonic() + 20 * TIMEOUT_S
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    return said[0]


def test_a_silent_rank_is_named() -> None:
    """It stops speaking without having left; the others say when it was heard of and where it stood."""
    with watches(3) as (found, said):
        time.sleep(TIMEOUT_S / 2)
        found[1].exchange = None  # type: ignore[method-assign]
        found[1]._over.set = lambda: None  # type: ignore[method-assign]
        found[1]._interval_s = 1e6
        text = wait_for(said[0])
        assert text.startswith("rank 1 has not answered for") and "rank 2 has not" not in text
        assert "rank 1: when last heard of at outside the steps" in text


def test_a_rank_that_left_is_not_missed() -> None:
    """And nobody is, as long as all get on."""
    with watches(2) as (found, said):
        found[1].close()
        with found[0].following(lambda: str(time.monotonic())):
            time.sleep(2.5 * TIMEOUT_S)
        assert said == [[], []]


def test_a_run_that_does_not_get_on_ends_though_all_ranks_speak() -> None:
    """Such as a loader that waits for a disk for ever."""
    with watches(2) as (found, said):
        with found[0].following(lambda: "step 7"):
            text = wait_for(said[0])
        assert "no rank has finished a step for 1 s" in text and "rank 0 (this one): at step 7, in" in text


def test_where_a_rank_stands_is_said() -> None:
    """The main thread's place, seen from another thread."""
    found: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: found.append(stands()))
    thread.start()
    thread.join()
    assert not found[0][1] and "threading.py" in found[0][0]


def test_the_first_signal_asks_and_a_second_ctrl_c_ends() -> None:
    """Two at once are one: a terminal and torchrun both pass Ctrl-C on."""
    code = """
import os, signal, sys, time
from infnet_rec.trainer import signals
with signals.GracefulStop(speaks=True) as asked:
    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)
    assert asked.wanted
    print("still here", flush=True)
    time.sleep(signals.SAME_SIGNAL_S + 0.2)
    os.kill(os.getpid(), signal.SIGINT)
    print("never", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stdout == "still here\n"
    assert done.stderr.count("saving a checkpoint") == 1


def test_signals_are_given_back() -> None:
    """Before and after training they mean what they meant."""
    before = signal.getsignal(signal.SIGTERM)
    with GracefulStop(speaks=False) as asked:
        assert signal.getsignal(signal.SIGTERM) != before
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wanted
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (None, 0),
        (SignalException("asked", signal.SIGTERM), TRY_AGAIN),
        (ChildFailedError("x", {0: ProcessFailure(0, 1, TRY_AGAIN, "")}), TRY_AGAIN),
        (ChildFailedError("x", {0: ProcessFailure(0, 1, 1, "")}), 1),
        (ChildFailedError("x", {0: ProcessFailure(0, 1, -9, "")}), 1),
    ],
)
def test_the_launcher_ends_with_the_code_of_its_ranks(
    monkeypatch: pytest.MonkeyPatch, end: Exception | None, code: int
) -> None:
    """75 where the run can be continued; what is broken stays broken."""

    def run(args: object) -> None:
        if end is not None:
            raise end

    monkeypatch.setattr("torch.distributed.run.run", run)
    monkeypatch.delenv(SPOKEN_FOR, raising=False)
    assert torchrun.torchrun(["script.py"]) == code


def test_ranks_that_never_meet_do_not_wait_for_ever() -> None:
    lines = ["import time", "from infnet_rec.distributed.process_group import connecting"]
    lines += ["with connecting(60, 'a'): pass", "with connecting(0.2, 'process group'): time.sleep(60)"]
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=50)
    assert found.returncode == 1
    assert "failed: rank 0: process group: the ranks did not reach each other in 0 s" in found.stderr


def test_deterministic_asks_torch_and_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both switches, and what a person set stays."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)
