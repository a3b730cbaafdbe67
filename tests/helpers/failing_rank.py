"""Run by torchrun: a training run in which rank 1 fails after some batches, the first time that it is started.

Arguments: config, store, run directory. The environment's FAILING_RANK says how: "raise", or "kill" as a machine does
that is out of memory.
"""

import os
import signal
import sys

import numpy as np

from infnet_rec import cli
from infnet_rec.batch import Batch
from infnet_rec.data.loader import BatchReader

FAILS_AT = 30
read, reads = BatchReader.read, 0


def failing_read(reader: BatchReader, indices_B: np.ndarray) -> Batch:
    """Reads, and fails on rank 1."""
    global reads
    reads += 1
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and reads == FAILS_AT:
        if os.environ.get("FAILING_RANK") == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("the disk of rank 1 is on fire")
    return read(reader, indices_B)


if __name__ == "__main__":
    BatchReader.read = failing_read
    config, store, run_dir = sys.argv[1:]
    sys.argv[1:] = ["train", config, f"--set=data.store='{store}'", f"--run-dir={run_dir}"]
    cli.main()
