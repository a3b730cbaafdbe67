"""Run by torchrun: a training run in which rank 1 fails at its third batch."""

import sys
from pathlib import Path

import numpy as np
from torch.distributed.elastic.multiprocessing.errors import record

from infnet_rec.batch import Batch
from infnet_rec.commands.train import train
from infnet_rec.data.loader import BatchReader
from infnet_rec.shard.world import place

read, reads = BatchReader.read, 0


def failing_read(reader: BatchReader, indices_B: np.ndarray) -> Batch:
    """Reads, and fails on rank 1."""
    global reads
    reads += 1
    if place().rank == 1 and reads == 3:
        raise RuntimeError("the disk of rank 1 is on fire")
    return read(reader, indices_B)


@record
def main() -> None:
    """Trains until the failure."""
    BatchReader.read = failing_read
    train(Path(sys.argv[1]), [f"data.store='{sys.argv[2]}'"], Path(sys.argv[3]))


if __name__ == "__main__":
    main()
