"""Does what training rests on work here? Small trials, each in processes of its own.

A wrong build of fbgemm can end the process that loads it, and a collective that finds no network waits; neither may
take the asker down. Shapes: U ids, B bags, V rows, D width.
"""

import json
import multiprocessing as mp
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

if TYPE_CHECKING:  # what is tried here must not hang on the rest of the package
    from infnet_rec.planner.hardware import Device

Backend = Literal["gloo", "nccl"]
# Run by each process with its rank, their number and a place to meet; an exception is the answer no.
Trial = Callable[[int, int, str], None]


def lookup_fault(device: "Device", timeout_s: float = 120.0) -> str | None:
    """What is wrong with fbgemm's table-batched lookup; None when it gives the right number."""
    return fault_of(partial(_lookup, device), world_size=1, timeout_s=timeout_s)


def has_nccl() -> bool:
    """Whether torch was built with nccl."""
    return dist.is_available() and dist.is_nccl_available()


def optimizer_faults(
    optimizers: Sequence[str], device: "Device" = "cuda", timeout_s: float = 180.0
) -> dict[str, str | None]:
    """What is wrong with fbgemm's fused backward of each optimizer: none, or a line.

    One process tries all of them, since loading the libraries takes longer than the trials.

    Args:
        optimizers: names, as in `train.sparse.optimizer`.
        device: where.
        timeout_s: for all of them together.
    """
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        answers = Path(folder) / "answers.json"
        fault = fault_of(partial(_optimizers, device, tuple(optimizers), str(answers)), 1, timeout_s)
        found = json.loads(answers.read_text(encoding="utf-8")) if answers.exists() else {}
    # One that took the process down speaks for itself and for those that were not reached.
    return {name: found.get(name, fault) for name in optimizers}


def collective_fault(backend: Backend, world_size: int, timeout_s: float = 120.0) -> str | None:
    """What is wrong with an all-reduce of `world_size` processes on this machine; None when it gives the right number.

    The processes meet through a file, so that what is tried is the backend's own network.
    """
    return fault_of(partial(_all_reduce, backend), world_size, timeout_s)


def fault_of(trial: Trial, world_size: int, timeout_s: float) -> str | None:
    """Runs a top-level function in `world_size` spawned processes.

    Returns:
        None when all of them return; otherwise the first line of the first exception, how a process died, or that the
        time ran out.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        connections: list[Connection] = []
        processes = []
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe(duplex=False)
                rendezvous = (Path(folder) / "store").as_uri()
                process = context.Process(target=_run, args=(trial, rank, world_size, rendezvous, theirs), daemon=True)
                process.start()
                theirs.close()
                connections.append(ours)
                processes.append(process)
            return _first_fault(connections, timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for connection in connections:
                connection.close()


def _first_fault(connections: list[Connection], timeout_s: float) -> str | None:
    deadline_s = time.monotonic() + timeout_s
    pending = dict(zip(connections, range(len(connections)), strict=True))
    while pending:
        ready = wait(list(pending), max(0.0, deadline_s - time.monotonic()))
        if not ready:
            return f"no answer in {timeout_s:g} s"
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = pending.pop(connection)
            try:
                fault = connection.recv()
            except EOFError:
                return f"process {rank} died without a word"
            if fault:
                return fault
    return None


def _run(trial: Trial, rank: int, world_size: int, rendezvous: str, answer: Connection) -> None:
    try:
        trial(rank, world_size, rendezvous)
    except BaseException as error:
        # The rest of a message from nccl is a stack of C++.
        answer.send(f"{type(error).__name__}: {error}".splitlines()[0])
    else:
        answer.send(None)


def _lookup(device: "Device", rank: int, world_size: int, rendezvous: str) -> None:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    on_cpu = device == "cpu"
    place = EmbeddingLocation.HOST if on_cpu else EmbeddingLocation.DEVICE
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(10, 4, place, ComputeDevice.CPU if on_cpu else ComputeDevice.CUDA)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        device=torch.device(device),
    )
    weight_VD = torch.arange(40, dtype=torch.float32).view(10, 4)
    table.split_embedding_weights()[0].copy_(weight_VD)
    ids_U, offsets = torch.tensor([1, 2, 9, 0]), torch.tensor([0, 2, 2, 4])
    # Reading the result waits for the device, which is where a missing kernel shows.
    got_BD = table(ids_U.to(device), offsets.to(device)).cpu()
    expected_BD = torch.nn.functional.embedding_bag(ids_U, weight_VD, offsets, mode="sum", include_last_offset=True)
    if not torch.equal(got_BD, expected_BD):
        raise ArithmeticError(f"a lookup gave {got_BD.tolist()}, not {expected_BD.tolist()}")


def _optimizers(
    device: "Device", optimizers: tuple[str, ...], answers: str, rank: int, world_size: int, rendezvous: str
) -> None:
    found: dict[str, str | None] = {}
    for name in optimizers:
        try:
            _train_a_row(device, name)
        except Exception as error:
            # The rest of a message from CUDA is advice.
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            found[name] = None
        Path(answers).write_text(json.dumps(found), encoding="utf-8")


def _train_a_row(device: "Device", name: str) -> None:
    """One step of a fused optimizer, against what its formula makes of the same gradient."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    on_cpu, lr, width = device == "cpu", 0.5, 4
    kinds = {
        "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "adagrad": EmbOptimType.EXACT_ADAGRAD,
        "sgd": EmbOptimType.EXACT_SGD,
        "adam": EmbOptimType.ADAM,
    }
    place = EmbeddingLocation.HOST if on_cpu else EmbeddingLocation.DEVICE
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(3, width, place, ComputeDevice.CPU if on_cpu else ComputeDevice.CUDA)],
        optimizer=kinds[name],
        learning_rate=lr,
        eps=1e-8,
        device=torch.device(device),
    )
    (weight_VD,) = table.split_embedding_weights()
    weight_VD.fill_(1.0)
    ids_U, offsets = (torch.tensor(value, device=device) for value in ([1], [0, 1]))
    grad_BD = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    table(ids_U, offsets).backward(grad_BD.to(device))
    # The first step of Adagrad and Adam divides the gradient by its own size; row by row, by its root mean square.
    sizes = {"sgd": torch.ones(1), "rowwise_adagrad": grad_BD.square().mean().sqrt()}
    expected_D = 1.0 - lr * (grad_BD / sizes.get(name, grad_BD.abs()))[0]
    # Reading the result waits for the device, which is where a missing kernel shows.
    got_VD = weight_VD.cpu()
    if not torch.allclose(got_VD[1], expected_D, atol=1e-4) or not torch.equal(got_VD[0], torch.ones(width)):
        raise ArithmeticError(f"a step of {name} gave {got_VD[1].tolist()}, not {expected_D.tolist()}")


def _all_reduce(backend: Backend, rank: int, world_size: int, rendezvous: str) -> None:
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    value = torch.tensor([float(rank + 1)], device=device)
    # Collective: the trial itself. Reading the sum waits for the device.
    dist.all_reduce(value)
    expected = world_size * (world_size + 1) / 2
    if value.item() != expected:
        raise ArithmeticError(f"an all-reduce gave {value.item()}, not {expected}")
    dist.destroy_process_group()
