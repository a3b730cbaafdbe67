"""Ends a run whose ranks wait for one that does not answer, and says which rank that is and where each one stands.

Every rank's main thread waits inside collectives, so two threads of their own do this. One exchanges a word with the
other ranks through a key-value store, a connection of its own to the one that the process group was made with. The
other never touches the store, which may be what hangs: it only looks at clocks.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch.distributed as dist

from infnet_rec.distributed.process_group import World
from infnet_rec.errors import Failure
from infnet_rec.launcher.failures import end

LONGEST_INTERVAL_S = 5.0
INTERVALS = 10  # in a timeout
OTHERS_WAIT_S = 2.0  # one rank speaks; the others end a little later, unless the launcher was quicker
STORE_TIMEOUT = timedelta(seconds=30)
LEFT = "left"
CUT = 2  # folders of a path that are worth printing


class Heartbeat(NamedTuple):
    """What a rank says of itself: a number that grows, how far it is, where its main thread stands."""

    number: int
    at: str
    where: str
    in_collective: bool


@dataclass(slots=True)
class _Peer:
    """The last word of another rank and when it came, by our own clock."""

    word: Heartbeat
    heard_at: float = field(default_factory=time.monotonic)
    left: bool = False


class Watchdog:
    """One rank's view of all; see `watching`."""

    def __init__(self, world: World, timeout_s: float, end: Callable[[str], None]) -> None:
        """Watches nothing yet.

        Args:
            world: all ranks.
            timeout_s: how long a rank may be silent, or this one without a step.
            end: called from a thread with what to say; ends the process.
        """
        self._world, self._timeout_s, self._end = world, timeout_s, end
        self._interval_s = min(LONGEST_INTERVAL_S, timeout_s / INTERVALS)
        unheard = Heartbeat(-1, "the start", "a place unknown", in_collective=False)
        self._peers = {rank: _Peer(unheard) for rank in range(world.world_size) if rank != world.rank}
        self._at: Callable[[], str | None] = lambda: None
        self._now_at: str | None = None
        self._moved_at = self._exchanged_at = time.monotonic()
        self._count = 0
        self._over = threading.Event()

    @contextmanager
    def following(self, at: Callable[[], str]) -> Iterator[None]:
        """In the block this rank must get on, and `at` says how far it is."""
        self._at = at
        try:
            yield
        finally:
            self._at = lambda: None

    def exchange(self, store: dist.Store) -> None:
        """Speaks and listens until the block is over or the store is gone; a thread's whole life."""
        try:
            while not self._over.is_set():
                self._count += 1
                word = Heartbeat(self._count, self._now_at or "outside the steps", *stands())
                store.set(str(self._world.rank), json.dumps(word))
                for rank, peer in self._peers.items():
                    if store.check([str(rank)]):
                        self._heard(peer, store.get(str(rank)).decode())
                self._exchanged_at = time.monotonic()
                self._over.wait(self._interval_s)
            store.set(str(self._world.rank), json.dumps(LEFT))
        except (RuntimeError, OSError):
            return  # the rank or launcher that kept the store has gone; collectives will say so

    def judge(self) -> None:
        """Looks at the clocks; a thread's whole life."""
        while not self._over.wait(self._interval_s / 2):
            now, at = time.monotonic(), self._at()
            if at != self._now_at or at is None:
                self._now_at, self._moved_at = at, now
            hears = now - self._exchanged_at < 3 * self._interval_s
            silent = [r for r, p in self._peers.items() if not p.left and now - p.heard_at >= self._timeout_s]
            if (silent and hears) or now - self._moved_at >= self._timeout_s:
                self._end(self._verdict(now, hears=hears))
                return

    def close(self) -> None:
        """Tells the others that this rank leaves."""
        self._over.set()

    def _heard(self, peer: _Peer, text: str) -> None:
        said = json.loads(text)
        if said == LEFT:
            peer.left = True
        elif said[0] != peer.word.number:
            peer.word, peer.heard_at = Heartbeat(*said), time.monotonic()

    def _verdict(self, now: float, *, hears: bool) -> str:
        """Who is to blame, and where everyone stands."""
        me = Heartbeat(0, self._now_at or "outside the steps", *stands())
        lines = [f"  rank {self._world.rank} (this one): at {me.at}, in {me.where}"]
        blamed = []
        for rank, peer in sorted(self._peers.items()):
            silent_s = now - peer.heard_at
            if peer.left:
                lines.append(f"  rank {rank}: has left")
            elif hears and silent_s >= 3 * self._interval_s:
                blamed.append(f"rank {rank} has not answered for {silent_s:.0f} s")
                lines.append(f"  rank {rank}: when last heard of at {peer.word.at}, in {peer.word.where}")
            else:
                lines.append(f"  rank {rank}: at {peer.word.at}, in {peer.word.where}")
                if not peer.word.in_collective and me.in_collective and hears:
                    blamed.append(f"rank {rank} is not in the collective that the others wait in")
        if not hears:
            launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            keeper = "the launcher of rank 0's machine" if launcher else "rank 0"
            blamed.append(
                f"{keeper} has not answered for {now - self._exchanged_at:.0f} s (it keeps the ranks' common store)"
            )
        elif not blamed:
            blamed.append(f"no rank has finished a step for {now - self._moved_at:.0f} s")
        return "\n".join([f"{'; '.join(blamed)} (train.collective_timeout_s = {self._timeout_s:g})", *lines])


@contextmanager
def watchdog(world: World, timeout_s: float, note: Callable[[Failure], None]) -> Iterator[Watchdog]:
    """Watches all ranks while the block runs; the process group must be open. A lone rank has nobody to wait for.

    Args:
        world: all ranks.
        timeout_s: as in `Watchdog`.
        note: is told why this process ends, just before it does.
    """
    watch = Watchdog(world, timeout_s, lambda text: _end(world, note, text))
    if world.world_size > 1 and "MASTER_ADDR" in os.environ:
        # A store may outlive its ranks, and machines count restarts differently: rank 0 names a place that is new.
        place = [f"infnet_rec/{os.getpid()}-{time.time_ns()}"]
        # Collective: once, before anybody speaks.
        dist.broadcast_object_list(place, src=0)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.PrefixStore(place[0], dist.TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT))
        threads = [
            threading.Thread(target=watch.exchange, args=(store,), name="exchange", daemon=True),
            threading.Thread(target=watch.judge, name="judge", daemon=True),
        ]
        for thread in threads:
            thread.start()
    try:
        yield watch
    finally:
        watch.close()


def stands() -> tuple[str, bool]:
    """Where the main thread is, and whether it is inside a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    ours, theirs = "", ""
    innermost = "" if frame is None else _place(frame)
    while frame is not None and not ours:
        path = frame.f_code.co_filename
        if "/infnet_rec/" in path:
            ours = _place(frame)
        elif not theirs and ("/torch/distributed/" in path or "/torchrec/distributed/" in path):
            theirs = _place(frame)
        frame = frame.f_back
    called = f", called from {ours}" if ours else ""
    return (f"{theirs or innermost}{called}" if theirs or innermost != ours else ours), bool(theirs)


def _place(frame: FrameType) -> str:
    path = Path(*Path(frame.f_code.co_filename).parts[-CUT:])
    return f"{frame.f_code.co_qualname} ({path}:{frame.f_lineno})"


def _end(world: World, note: Callable[[Failure], None], text: str) -> None:
    """The main thread hangs in a collective and can raise nothing: says it here and ends the process."""
    if world.rank:
        time.sleep(OTHERS_WAIT_S)
    note(Failure(text))
    end(text, f"rank {world.rank}: ")
