"""What a launcher tells a rank, read in one place and checked as a whole; and how both end before there is any torch.

torchrun gives every rank six variables. Half of them, or one that is no number, is a rank that waits for others that
never come, so nothing is started on them. A rank ends with its launcher, and a signal that comes before a run has begun
ends it with the code for "try again". No torch here: all of this is for the seconds before it is imported.
"""

import ctypes
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from infnet_rec.errors import TRY_AGAIN, UserError

ALONE, MEETING = ("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Any of these makes a process a rank; where ranks meet may stand in the environment of a whole machine.
TELLING = (*ALONE, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NUMBER = re.compile(r"[0-9]{1,7}", re.ASCII)
MAX_PORT = 65535
LOOPBACK = "127.0.0.1"
# Set by our launcher; torchrun's own names only itself a run.
LAUNCHER_PID, TORCHRUN = "INFNET_REC_LAUNCHER_PID", "TORCHELASTIC_RUN_ID"
STOPS = (signal.SIGTERM, signal.SIGINT)
STOPPED_EARLY = b"infnet-rec: stopped by a signal, and nothing is lost; run it again\n"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class RankEnvironment:
    """One rank among `world_size`, as its launcher numbered it.

    Attributes:
        rank: from 0, over all hosts.
        world_size: ranks on all hosts.
        local_rank: from 0, on this host.
        local_world_size: ranks on this host.
        master_addr: name or address of the host where rank 0 is; empty for a rank that is alone.
        master_port: where ranks meet there; 0 likewise.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int

    @property
    def on_one_host(self) -> bool:
        """Whether all ranks are on this host."""
        return self.local_world_size == self.world_size


def is_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether anything says that this process is one of several ranks; `read_rank_environment` says if it holds."""
    return any(name in environ for name in TELLING)


def read_rank_environment(environ: Mapping[str, str] = os.environ) -> RankEnvironment | None:
    """Reads torchrun's variables; None for a process that nobody made a rank.

    Raises:
        UserError: some are missing, empty, no numbers, or contradict each other; all of it in one line.
    """
    if not is_rank(environ):
        return None
    # A lone rank meets nobody.
    needed = ALONE if environ.get("WORLD_SIZE") == "1" else (*ALONE, *MEETING)
    missing = [name for name in needed if name not in environ]
    asked = [name for name in dict.fromkeys((*needed, *TELLING)) if name in environ]
    wrong = [f"{name}={environ[name]!r} {reason}" for name in asked if (reason := _wrong(name, environ[name]))]
    if not missing and not wrong:
        found = _numbered(environ)
        wrong = _contradictions(found)
        if not wrong:
            return found
    there = [f"{name}={environ[name]}" for name in (*ALONE, *MEETING) if name in environ]
    parts = [f"{', '.join(there)}, without {_listed(missing)}"] if missing else []
    raise UserError(
        f"{'; '.join([*parts, *wrong])}: is not what torchrun gives a rank; start under torchrun, or unset "
        f"{' '.join(name for name in TELLING if name in environ)}"
    )


def rank_number(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank for messages: 0 where it is alone or the environment is at fault."""
    value = environ.get("RANK", "")
    return int(value) if NUMBER.fullmatch(value) else 0


def master_address(env: RankEnvironment) -> str:
    """The address to meet at: what the launcher said where it resolves; the loopback for the ranks of one host.

    Raises:
        UserError: other hosts are to be met, and the name has no address here.
    """
    try:
        socket.getaddrinfo(env.master_addr, env.master_port, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        if env.on_one_host:
            return LOOPBACK
        raise UserError(
            f"MASTER_ADDR={env.master_addr}: does not resolve on {socket.gethostname()}; give torchrun --local-addr, "
            "an address by which the other hosts reach this one, or put the name into /etc/hosts"
        ) from error
    return env.master_addr


def end_with_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """Makes a rank end when the launcher that started it has ended in any way; nothing where torchrun did not start it.

    A launcher that is killed says nothing to its ranks, and they would hold the GPUs and the run's folder. The kernel
    ends them with it. As that fires for the thread that started them, and not for a launcher that has gone before they
    asked, they look whether it is there, and a thread waits for its end too.
    """
    ours = environ.get(LAUNCHER_PID, "")
    if TORCHRUN not in environ or not is_rank(environ) or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    launcher = int(ours) if NUMBER.fullmatch(ours) else parent
    if launcher == parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Something may stand between the two, such as a shell that torchrun was told to start.
    if launcher not in _ancestors():
        _end()
    threading.Thread(target=_wait_for_end, args=(launcher,), name="launcher", daemon=True).start()


def end_early_on_signals() -> None:
    """Until somebody else listens to SIGTERM and SIGINT, they end this process with `TRY_AGAIN`: nothing is lost yet.

    Python runs its handlers between two of its own instructions, and a launcher may wait for minutes in native code
    for the node where all meet; so a thread reads what the interpreter notes down at once. In a container's first
    process a signal that nobody handles would not even end it. A rank of torchrun does without: its launcher ends it
    with a signal when another has failed, and would take 75 for an answer.
    """
    if TORCHRUN in os.environ and is_rank():
        return
    said = threading.Lock()

    def leave(number: int, frame: FrameType | None = None) -> None:
        if said.acquire(blocking=False):
            os.write(2, STOPPED_EARLY)
            os._exit(TRY_AGAIN)

    def read() -> None:
        while number := os.read(noted, 1):
            if signal.getsignal(number[0]) is leave:
                leave(number[0])

    noted, note = os.pipe()
    os.set_blocking(note, False)
    signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    for number in STOPS:
        # A shell starts what is to run in the background with SIGINT ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)
    threading.Thread(target=read, name="signals", daemon=True).start()
    # What another program of ours has held back when it became this one.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def hold_signals() -> None:
    """Keeps signals that stop a run back, until the program that this process is about to become listens to them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def _wait_for_end(launcher: int) -> None:
    """Waits for the end of a process that is no child of ours, and then ends this one."""
    try:
        ended = os.pidfd_open(launcher)
    except ProcessLookupError:
        _end()
    except OSError:  # an old kernel, or a sandbox
        while launcher in _ancestors():
            time.sleep(POLL_S)
        _end()
    # It may have gone, and its number to another, before it was opened.
    if launcher in _ancestors():
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.poll()
    _end()


def _end() -> NoReturn:
    """At once: the main thread may wait in a collective, and nobody is left to tell."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)


def _ancestors() -> list[int]:
    """Process ids of the parent, its parent, and so on; the parent's alone where /proc is not there."""
    found = [os.getppid()]
    while found[-1] > 1:
        try:
            # The name in parentheses may hold anything.
            after_name = (
                Path(f"/proc/{found[-1]}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
            )
        except OSError:
            break
        found.append(int(after_name.split()[1]))
    return found


def _wrong(name: str, value: str) -> str:
    """What is wrong with one variable by itself; empty if nothing."""
    if name == "MASTER_ADDR":
        return "" if value.strip() else "is empty"
    if name == "MASTER_PORT":
        return "" if NUMBER.fullmatch(value) and 0 < int(value) <= MAX_PORT else f"is no port from 1 to {MAX_PORT}"
    if name not in TELLING or NUMBER.fullmatch(value):
        return ""
    return "is no number" if value else "is empty"


def _numbered(environ: Mapping[str, str]) -> RankEnvironment:
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    is_alone = world_size == 1
    return RankEnvironment(
        rank=rank,
        world_size=world_size,
        local_rank=int(environ.get("LOCAL_RANK", "0")),
        local_world_size=int(environ.get("LOCAL_WORLD_SIZE", "1")),
        master_addr="" if is_alone else environ["MASTER_ADDR"],
        master_port=0 if is_alone else int(environ["MASTER_PORT"]),
    )


def _contradictions(env: RankEnvironment) -> list[str]:
    """What the numbers say against each other."""
    rules = (
        (env.world_size >= 1, f"WORLD_SIZE={env.world_size} is less than 1"),
        (env.rank < env.world_size, f"RANK={env.rank} is not below WORLD_SIZE={env.world_size}"),
        (
            1 <= env.local_world_size <= env.world_size,
            f"LOCAL_WORLD_SIZE={env.local_world_size} is not from 1 to WORLD_SIZE={env.world_size}",
        ),
        (
            env.local_rank < env.local_world_size,
            f"LOCAL_RANK={env.local_rank} is not below LOCAL_WORLD_SIZE={env.local_world_size}",
        ),
        (env.local_rank <= env.rank, f"LOCAL_RANK={env.local_rank} is above RANK={env.rank}"),
    )
    return [text for holds, text in rules if not holds]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
