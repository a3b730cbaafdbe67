"""One rank of a run that is about to suffer: the real command line, with spies that note what it trained on.

The spies change nothing that the run computes. They write the rows of the store that each finished training step had
read, as found in the batch that went through the model, not as the order says. Some faults happen in here: a NaN in a
batch, death in the middle of a write.
"""

import json
import math
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from infnet_rec import cli
from infnet_rec.batch import Batch
from infnet_rec.checkpoint.dcp_files import HashedStream
from infnet_rec.data.loader import BatchReader
from infnet_rec.trainer.nonfinite import CheckedForward, NonFiniteMonitor

SPEC = "INFNET_REC_FAULT"  # the environment's name for a JSON object, see `suffer`


def suffer(arguments: Sequence[str], spec: dict[str, Any]) -> None:
    """Runs `infnet-rec ARGUMENTS` as this rank; leaves with its exit code.

    Args:
        arguments: of the command.
        spec: `notes`, a folder for what this rank trained on; `attempt`, a number for it; perhaps `nan_step`, a step
            (from 1) whose batch gets a NaN label on rank `nan_rank`; perhaps `die`, with `rank`, `write` (number of
            the checkpoint, from 1) and `share` (of that rank's bytes of it, above 1: at the marker).
    """
    rank = int(os.environ["RANK"])
    attempt = spec.get("attempt", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    notes = Path(spec["notes"])
    (notes / f"pid-{rank}").write_text(str(os.getpid()))
    _note_steps(notes / f"steps-{attempt}-{rank}.jsonl")
    if "nan_step" in spec and rank == spec["nan_rank"]:
        _plant_nan(spec["nan_step"])
    if spec.get("die", {}).get("rank") == rank and str(attempt) == "0":
        _die_writing(spec["die"])
    sys.argv = ["infnet-rec", *arguments]
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _note_steps(path: Path) -> None:
    """One line a finished step: its number, and the rows whose batch went through the model."""
    read, forward, step_done = BatchReader.read, CheckedForward.__call__, NonFiniteMonitor.step_done
    rows_of: dict[int, tuple[np.ndarray, Batch]] = {}
    trained: list[list[int]] = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted_read(self: BatchReader, indices_B: np.ndarray) -> Batch:
        batch = read(self, indices_B)
        # The memory of a column names the batch on its way through the pipeline; it is kept, so no other gets it.
        rows_of[batch.user_B.data_ptr()] = (indices_B, batch)
        return batch

    def noted_forward(self: CheckedForward, batch: Batch) -> tuple[Tensor, Any]:
        rows, _ = rows_of.pop(batch.user_B.data_ptr())
        answer = forward(self, batch)
        if answer[0].requires_grad:
            trained.append(rows.tolist())
        return answer

    def noted_done(self: NonFiniteMonitor, loss_T: Tensor, gradient_norm: Tensor | None) -> None:
        step_done(self, loss_T, gradient_norm)
        rows = trained.pop()
        assert not trained
        os.write(file, (json.dumps({"step": self.at.step + 1, "rows": rows}) + "\n").encode())

    BatchReader.read, CheckedForward.__call__, NonFiniteMonitor.step_done = noted_read, noted_forward, noted_done


def _plant_nan(step: int) -> None:
    forward = CheckedForward.__call__
    count = 0

    def planted(self: CheckedForward, batch: Batch) -> tuple[Tensor, Any]:
        nonlocal count
        if self._model.training:
            count += 1
            if count == step:
                batch.labels_BT[0, 0] = math.nan
        return forward(self, batch)

    CheckedForward.__call__ = planted


def _die_writing(die: dict[str, Any]) -> None:
    """SIGKILL at a byte of the n-th checkpoint's part, or at one of the system calls that commit it."""
    start, write, sync, rename = HashedStream.__init__, HashedStream.write, os.fsync, os.rename
    seen = {"parts": 0, "bytes": 0, "calls": 0}
    at_byte = die["share"] * die["part_bytes"] if die["share"] <= 1 else math.inf
    at_call = random.Random(die["share"]).randrange(1, 6) if die["share"] > 1 else math.inf

    def counted_start(self: HashedStream, stream: Any) -> None:
        start(self, stream)
        if "distcp" in str(getattr(stream, "name", "distcp")):
            seen["parts"] += 1

    def dying_write(self: HashedStream, data: Any) -> int:
        if seen["parts"] == die["write"]:
            view = memoryview(data).cast("B")
            left = int(at_byte - seen["bytes"]) if at_byte < math.inf else len(view) + 1
            if left <= len(view):
                write(self, view[:left])
                self.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            seen["bytes"] += len(view)
        return write(self, data)

    def dying(call: Any) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if seen["parts"] >= die["write"]:
                seen["calls"] += 1
                if seen["calls"] >= at_call:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return wrapped

    HashedStream.__init__, HashedStream.write = counted_start, dying_write
    os.fsync, os.rename = dying(sync), dying(rename)


if __name__ == "__main__":
    suffer(sys.argv[1:], json.loads(os.environ[SPEC]))
