"""Weights on disk, sharded as they are, through torch.distributed.checkpoint.

A checkpoint is written to a temporary folder and renamed when every rank has written; a folder that carries its final
name is whole.
"""

import shutil
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from infnet_rec.faults import Fault

BEST = "best"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes all weights of a sharded model to `folder`, in the place of what stood there; all ranks call it."""
    writing = folder.parent / f".{folder.name}.writing"
    if dist.get_rank() == 0:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    # Collective: no rank writes before the folder is there. The save itself ends with one.
    dist.barrier()
    dcp.save({"model": model.state_dict()}, checkpoint_id=str(writing))
    if dist.get_rank() == 0:
        old = folder.parent / f".{folder.name}.replaced"
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        writing.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    # Collective: no rank reads or writes the folder before it has its name.
    dist.barrier()


def load_weights(model: nn.Module, folder: Path) -> None:
    """Reads weights into a sharded model, whatever number of ranks wrote them; all ranks call it.

    Raises:
        Fault: there is no whole checkpoint in `folder`.
    """
    require_checkpoint(folder)
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=str(folder))
    model.load_state_dict(state["model"])


def require_checkpoint(folder: Path) -> None:
    """Refuses a folder that holds no whole checkpoint."""
    if not (folder / ".metadata").is_file():
        raise Fault(f"checkpoint {folder}: is not there or not whole; a run writes it at its first evaluation")
