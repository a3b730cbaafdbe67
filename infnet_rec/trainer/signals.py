"""Signals that ask a run to stop: it saves at the next step that all ranks agree on, and says how to go on."""

import os
import signal
import time
from types import FrameType
from typing import Self

from infnet_rec.console import log_line

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A terminal sends Ctrl-C to every process and torchrun sends it on to its ranks: within this time it is one Ctrl-C.
SAME_SIGNAL_S = 1.5
SAYS = (
    "infnet-rec: saving a checkpoint at the next step that all ranks agree on; Ctrl-C again ends the run at once, "
    "without one"
)


class GracefulStop:
    """Hears SIGTERM (a node is taken away) and SIGINT (Ctrl-C) while the block runs; a second Ctrl-C ends at once."""

    def __init__(self, *, speaks: bool) -> None:
        """Hears nothing yet.

        Args:
            speaks: whether this process answers Ctrl-C with a line; one does.
        """
        self._speaks = speaks
        self._heard_at = -1e9
        self.wanted = False

    def __enter__(self) -> Self:
        """Begins to listen. Outside the main thread Python hears no signal, so nothing is done there."""
        try:
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.wanted and now - self._heard_at > SAME_SIGNAL_S:
            os._exit(128 + number)
        if not self.wanted:
            self._heard_at = now
            if self._speaks:
                log_line(SAYS)
        self.wanted = True
