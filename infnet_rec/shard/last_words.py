"""What a rank says when it goes wrong, so that it is said once: by the rank, or by the launcher that started it.

A rank whose launcher is ours (`shard/torchrun.py`) prints nothing. It leaves its error in the file that torchrun gives
it for that, and the launcher, which sees all ranks of its machine, says what came first; the others mostly only
noticed that somebody was gone. Nothing here imports torch: ranks fail before that, too.
"""

import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from infnet_rec.faults import Busy, Failure, Fault, Interrupted, Refusal

# Set by our launcher for its ranks.
SPOKEN_FOR = "INFNET_REC_LAUNCHER_SPEAKS"
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# Errors that one line says, and the word for each.
WORDS: dict[type[Exception], str] = {
    Fault: "fault",
    Failure: "failed",
    Refusal: "no",
    Interrupted: "stopped",
    Busy: "busy",
}
# Frames before these are the command line's own.
VERBS = f"{os.sep}infnet_rec{os.sep}commands{os.sep}"


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
    first = next((i for i, frame in enumerate(found.stack) if VERBS in frame.filename), 0)
    found.stack = traceback.StackSummary.from_list(found.stack[first:])
    return "".join(found.format())
