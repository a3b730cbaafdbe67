"""What each rank leaves of itself: `logs/rank_N.jsonl` in the run directory, one JSON object a line.

Every line has `time` (seconds since 1970), `restart` (how often torchrun has started the ranks again) and a `kind`:

    start     host, pid, rank, local_rank, device
    report    step; examples_per_s of this rank; data_wait_s since the last report, in which it waited for its loader
              (the others wait for a rank that does); rss_bytes, mapped_bytes, gpu_peak_bytes
    warning   source, message: what Python's warnings and loggers had to say, each once
    error     type, message, traceback: this rank's own, also where torchrun shows another rank's as the first
    end       how: "done" or "stopped"

A run that goes on appends. A rank that was killed has no `error` and no `end`.
"""

import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infnet_rec.errors import Interrupted

FOLDER = "logs"
MOST_WARNINGS = 200
# torchrun gives every start of a rank a folder of its own; a path here tells it where this rank's log is.
POINTER = "log"


class RankLog(logging.Handler):
    """Writes nothing before `started`; as a context it notes how the block ends, and hears warnings until then."""

    def __init__(self, run_dir: Path, rank: int, say: Callable[[str], None]) -> None:
        """Opens nothing yet.

        Args:
            run_dir: of the run.
            rank: this one.
            say: for warnings that people should see too.
        """
        super().__init__(logging.WARNING)
        self.path, self._rank, self._say = run_dir / FOLDER / f"rank_{rank}.jsonl", rank, say
        self._restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self._is_open = False
        self._heard: set[str] = set()

    def started(self, *, local_rank: int, device: str) -> None:
        """From here on lines are written: all ranks have seen the run directory as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._is_open = True
        place = {"rank": self._rank, "local_rank": local_rank, "device": device}
        self._write("start", host=socket.gethostname(), pid=os.getpid(), **place)
        if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            Path(error_file).with_name(POINTER).write_text(str(self.path), encoding="utf-8")
        logging.captureWarnings(capture=True)
        logging.getLogger().addHandler(self)

    def report(self, step: int, numbers: dict[str, Any]) -> None:
        """One line after step number `step` (from 1)."""
        self._write("report", step=step, **numbers)

    def emit(self, record: logging.LogRecord) -> None:
        """A warning."""
        message = record.getMessage().strip()
        if message not in self._heard and len(self._heard) < MOST_WARNINGS:
            self._heard.add(message)
            self._write("warning", source=record.name, message=message)
            self._say(message)

    def failed(self, error: BaseException) -> None:
        """The error that ends this rank."""
        text = "".join(traceback.format_exception(error))
        self._write("error", type=type(error).__name__, message=str(error), traceback=text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if not self._is_open:
            return
        if error is None or isinstance(error, Interrupted):
            self._write("end", how="done" if error is None else "stopped")
        else:
            self.failed(error)
        logging.getLogger().removeHandler(self)
        logging.captureWarnings(capture=False)
        self._is_open = False

    def _write(self, kind: str, **facts: Any) -> None:
        if not self._is_open:
            return
        line = {"time": round(time.time(), 3), "restart": self._restart, "kind": kind, **facts}
        # A full disk must not end a rank.
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
