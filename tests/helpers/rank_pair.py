"""Two gloo ranks that stay up for a whole test session; see `RankPair`.

This module imports no torch at its top: the ranks import it before they have set their environment.
"""

import faulthandler
import gc
import multiprocessing as mp
import os
import pickle
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

WORLD_SIZE = 2
START_TIMEOUT_S = 180.0
# Below a call's limit, so that a collective that waits in vain raises in the rank and names its line.
COLLECTIVE_TIMEOUT_S = 90.0
GRACE_S = 2.0


class RankTraceback(Exception):
    """The cause of an exception that `RankPair` raises again: the tracebacks of the ranks, as text."""


class RankTimeout(TimeoutError):
    """The ranks did not answer in time; the message holds where each of them stood."""


@dataclass(slots=True)
class RankPair:
    """Two spawned gloo processes that run functions, started at the first call and kept until `close`.

    `ranks(function, *args)` runs `function(rank, world_size, *args)` on both and returns `[result of rank 0, of rank
    1]`. The function must be a top-level one of an importable module; arguments and results travel by pickle. The
    default process group exists, as do RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, and the random seeds are set
    anew before every call.

    An exception on a rank is raised here, with the tracebacks of the ranks as its cause. After any failure the pair is
    started anew, since one rank may have left a collective that the other still waits in. That takes seconds: a test
    of an expected fault is faster when the function itself catches it and returns the message.
    """

    _processes: list[BaseProcess] = field(default_factory=list)
    _connections: list[Connection] = field(default_factory=list)
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, function: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """Runs `function(rank, world_size, *args)` on both ranks.

        Args:
            function: a top-level function of an importable module.
            *args: given to both ranks.
            timeout_s: after this long both ranks are killed and `RankTimeout` is raised.
        """
        call = pickle.dumps((function, args))
        if not self._processes or not all(p.is_alive() for p in self._processes):
            self.close()
            self._start()
        try:
            for connection in self._connections:
                connection.send_bytes(call)
            return self._collect(timeout_s)
        except BaseException:
            self._kill()
            raise

    def close(self) -> None:
        """Ends the ranks; the next call starts new ones."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(GRACE_S)
        self._kill()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-", ignore_cleanup_errors=True)
        for rank in range(WORLD_SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._folder.name, theirs), name=f"rank {rank}")
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        try:
            self._collect(START_TIMEOUT_S)
        except BaseException:
            self._kill()
            raise

    def _collect(self, timeout_s: float) -> list[Any]:
        """One answer of each rank; waits a little longer than the first failure, then raises it."""
        results: dict[int, Any] = {}
        failures: dict[int, tuple[BaseException, str]] = {}
        deadline_s = time.monotonic() + timeout_s
        while pending := [r for r in range(WORLD_SIZE) if r not in results and r not in failures]:
            ready = wait([self._connections[r] for r in pending], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                if failures:
                    break
                raise RankTimeout(
                    f"ranks {pending} did not answer in {timeout_s:g} s; they stood here:\n{self._stacks()}"
                )
            for rank in pending:
                if self._connections[rank] not in ready:
                    continue
                answer = self._receive(rank)
                if isinstance(answer, _Failure):
                    failures[rank] = answer.exception(), answer.text
                    deadline_s = min(deadline_s, time.monotonic() + GRACE_S)
                else:
                    results[rank] = answer
        if failures:
            first, _ = next(iter(failures.values()))
            raise first from RankTraceback("".join(f"\non rank {r}:\n{text}" for r, (_, text) in failures.items()))
        return [results[rank] for rank in range(WORLD_SIZE)]

    def _receive(self, rank: int) -> Any:
        try:
            return pickle.loads(self._connections[rank].recv_bytes())
        except (EOFError, OSError):
            self._processes[rank].join(GRACE_S)
            text = f"rank {rank} died with exit code {self._processes[rank].exitcode}"
            return _Failure(None, text)

    def _stacks(self) -> str:
        assert self._folder is not None
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1.0)
        files = [Path(self._folder.name, f"stacks-{rank}") for rank in range(WORLD_SIZE)]
        return "\n".join(f"rank {rank}:\n{f.read_text() if f.exists() else ''}" for rank, f in enumerate(files))

    def _kill(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._connections.clear()
        self._processes.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception on its way to the test: pickled where that works, and always as text."""

    pickled: bytes | None
    text: str

    def exception(self) -> BaseException:
        if self.pickled is None:
            return RuntimeError(self.text)
        return pickle.loads(self.pickled)


def _failure(error: BaseException) -> _Failure:
    text = "".join(traceback.format_exception(error))
    pickled: bytes | None = None
    # Some exceptions pickle and then cannot be read back, so both directions are tried here.
    with suppress(Exception):
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
        return _Failure(pickled, text)
    return _Failure(None, text)


def _serve(rank: int, folder: str, connection: Connection) -> None:
    """The life of one rank: join the group, then one call after the other until the test session hangs up."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
    }
    stacks = Path(folder, f"stacks-{rank}").open("w")  # noqa: SIM115 - open for as long as the rank lives
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    # Ctrl-C reaches the whole process group; the test session is the one to answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=WORLD_SIZE,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
    except BaseException as error:
        connection.send_bytes(pickle.dumps(_failure(error)))
        return
    connection.send_bytes(pickle.dumps(None))
    with suppress(EOFError, OSError):
        while True:
            call = connection.recv_bytes()
            _seed()
            connection.send_bytes(_answer(rank, call))
            gc.collect()
    dist.destroy_process_group()


def _seed() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _answer(rank: int, call: bytes) -> bytes:
    try:
        function, args = pickle.loads(call)
        return pickle.dumps(function(rank, WORLD_SIZE, *args))
    except BaseException as error:
        return pickle.dumps(_failure(error))
