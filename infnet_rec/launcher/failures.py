"""Which rank's end was the cause, among those that a launcher sees end, and how it is said.

When one rank is gone, its peers' collectives fail within milliseconds and may even be noticed before it; the launcher
then ends the rest with a signal. None of that is news.

A rank whose launcher is ours (`torchrun.py`) prints nothing. It leaves its error in the file that torchrun gives it for
that, and the launcher, which sees all ranks of its machine, says what came first; the others mostly only noticed that
somebody was gone. Nothing here imports torch: ranks fail before that, too.
"""

import faulthandler
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from infnet_rec.errors import TRY_AGAIN, Busy, Failure, Interrupted, Refusal, UserError

GIB = 2**30
# How gloo, NCCL and the store word it that somebody else is gone.
OTHERS_GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|socket timeout|remote process|ncclRemoteError|communicator was aborted"
    r"|DistNetworkError|DistStoreError|DistBackendError|ConnectionResetError|timed out waiting",
    re.IGNORECASE,
)
# From outside, or a bug of native code; SIGABRT is what NCCL's watchdog does when somebody else is gone.
DEADLY = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}

# Of the words that `failures.py` writes.
CODES = {"fault": 2, "failed": 1, "no": 3, "stopped": TRY_AGAIN, "busy": TRY_AGAIN}


class Cause(IntEnum):
    """How likely an end is the cause of the others, the likeliest first."""

    KILLED = 0
    SAID_WHY = 1
    SILENT = 2
    MISSED_ANOTHER = 3
    ASKED_TO = 4
    LIVES = 5


@dataclass(frozen=True, slots=True)
class End:
    """What a launcher knows of one of its ranks.

    Attributes:
        rank: over all machines.
        code: exit code, minus the signal that ended it; None while it lives.
        said: what it left in its error file, as `failures.py` and torch write it; empty if nothing.
        log: its own log; None where it had none yet.
        was_told_to: whether the launcher had ended it.
    """

    rank: int
    code: int | None
    said: dict[str, Any]
    log: Path | None = None
    was_told_to: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """Of the error."""
        return self.said.get("extraInfo", {})

    @property
    def exit_code(self) -> int | None:
        """What a rank that said why in one word ends with, though the launcher may have ended it before it could."""
        return CODES.get(self.facts.get("word", ""), self.code)

    @property
    def cause(self) -> Cause:
        """What kind of end it is."""
        if self.said:
            misses = self.facts.get("word") is None and OTHERS_GONE.search(str(self.said["message"]))
            return Cause.MISSED_ANOTHER if misses else Cause.SAID_WHY
        if self.code is None:
            return Cause.LIVES
        if self.was_told_to or self.code in (0, TRY_AGAIN, -signal.SIGTERM, -signal.SIGINT):
            return Cause.ASKED_TO
        return Cause.KILLED if -self.code in DEADLY else Cause.SILENT


def read_end(rank: int, code: int | None, error_file: Path, *, was_told_to: bool = False) -> End:
    """What is known of a rank; a file that is half written or not ours counts as nothing said."""
    said: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
        said = message if isinstance(message, dict) and "message" in message else {"message": message}
    log = None
    with suppress(OSError):
        log = Path(error_file.with_name("log").read_text(encoding="utf-8"))
    return End(rank, code, said, log, was_told_to)


def first_of(ends: Iterable[End]) -> End:
    """The one that the others followed; of several, who was first to say so."""
    return min(ends, key=lambda end: (end.cause, float(end.facts.get("at", end.facts.get("timestamp", 0))), end.rank))


def describe_cause(end: End, host: str, *, others_elsewhere: bool) -> str:
    """What a person reads: what happened, where, and the traceback if it is a bug's.

    Args:
        end: the cause.
        host: this machine.
        others_elsewhere: whether ranks run on other machines too, where the first error may have been.
    """
    word, whose = end.facts.get("word"), f"rank {end.rank} on host {host}"
    if word is not None:
        # Most of these come to all ranks alike, and then it is the first that speaks.
        return f"infnet-rec: {word}: {end.facts['text']}" + (f"\n  ({whose})" if end.rank else "")
    its_log = "" if end.log is None else f" (its log: {end.log})"
    if not end.said:
        return f"infnet-rec: {whose} {_how(end)}{_last_heard(end.log)}{its_log}"
    summary = str(end.said["message"]).splitlines()[0]
    head = f"infnet-rec: {whose} failed: {summary}{its_log}"
    if end.cause is Cause.MISSED_ANOTHER and others_elsewhere:
        return f"{head}\n  a rank on another host was gone before: what happened is said there"
    return f"{head}\n{end.facts.get('py_callstack', '').rstrip()}".rstrip()


def _how(end: End) -> str:
    assert end.code is not None
    if end.code >= 0:
        return f"ended with exit code {end.code} and said nothing."
    number = -end.code
    with suppress(ValueError):
        name = f" ({signal.Signals(number).name})"
        memory = "; was the machine out of memory?" if number == signal.SIGKILL else "."
        return f"was killed by signal {number}{name}{memory}"
    return f"was killed by signal {number}."


def _last_heard(log: Path | None) -> str:
    """Where it was and what it held at its last report."""
    reports: Sequence[dict[str, Any]] = []
    with suppress(OSError, ValueError, KeyError):
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log else []
        restart = lines[-1]["restart"] if lines else 0
        reports = [line for line in lines if line["kind"] == "report" and line["restart"] == restart]
    if not reports:
        return ""
    return f" At step {reports[-1]['step']} it held {reports[-1]['rss_bytes'] / GIB:.1f} GiB"


# Set by our launcher for its ranks.
SPOKEN_FOR = "INFNET_REC_LAUNCHER_SPEAKS"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# Errors that one line says, and the word for each.
WORDS: dict[type[Exception], str] = {
    UserError: "fault",
    Failure: "failed",
    Refusal: "no",
    Interrupted: "stopped",
    Busy: "busy",
}
# Frames before these are the command line's own.
ROOMS = re.compile(r"[/\\]infnet_rec[/\\](?!cli[/\\]|launcher[/\\]failures)")


def left_to_launcher(error: Exception) -> bool:
    """Writes this rank's error where torchrun reads it; True where a launcher of ours says it, so that we need not.

    The first error of a process stays: what fails while it ends is not the cause.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return False
    now = time.time()
    # torch's own format (errors/error_handler.py), and what ours adds.
    facts = {
        "py_callstack": short_traceback(error),
        "timestamp": str(int(now)),
        "at": now,
        "word": next((word for kind, word in WORDS.items() if isinstance(error, kind)), None),
        "text": str(error),
    }
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            json.dump({"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": facts}}, file)
    except FileExistsError:
        pass
    except OSError:
        return False
    return SPOKEN_FOR in os.environ


def as_a_rank(main: Callable[[], None]) -> None:
    """Runs a rank's main function; its error is left to the launcher, or raised."""
    faulthandler.enable(all_threads=True)
    try:
        main()
    except Exception as error:
        if left_to_launcher(error):
            sys.exit(1)
        raise


def end(text: str, whose: str) -> None:
    """Ends this process from a thread, as its main thread hangs and can raise nothing.

    Args:
        text: why.
        whose: "rank N: ", for where nobody else names it.
    """
    if not left_to_launcher(Failure(text)):
        print(f"infnet-rec: failed: {whose}{text}", file=sys.stderr, flush=True)
    os._exit(1)


def short_traceback(error: BaseException) -> str:
    """As Python prints it, from the verb on: what the command line did to get there helps nobody."""
    found = traceback.TracebackException.from_exception(error)
    first = next((i for i, frame in enumerate(found.stack) if ROOMS.search(frame.filename)), 0)
    found.stack = traceback.StackSummary.from_list(found.stack[first:])
    return "".join(found.format())
