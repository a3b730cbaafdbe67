"""Which rank this process is, and the process group it belongs to."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.deterministic as torch_deterministic

from infnet_rec.distributed.host import has_loopback, num_cores
from infnet_rec.errors import Failure, Interrupted, Refusal, UserError
from infnet_rec.launcher.failures import end
from infnet_rec.launcher.rank_environment import master_address, rank_number, read_rank_environment

COLLECTIVE_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class World:
    """One process among `world_size`."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what only one should."""
        return self.rank == 0


def world_from_env() -> World:
    """Reads rank and world size from torchrun's environment; alone, this is rank 0 of 1. Starts nothing.

    Raises:
        UserError: the environment is half of torchrun's, or names a host that has no address here.
    """
    env = read_rank_environment()
    if env is not None and env.world_size > 1:
        master_address(env)
    local_rank = 0 if env is None else env.local_rank
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if env is None:
        return World(rank=0, world_size=1, local_rank=0, local_world_size=1, device=device)
    return World(env.rank, env.world_size, env.local_rank, env.local_world_size, device)


def check_gpus(world: World) -> None:
    """Refuses more ranks on this machine than it has GPUs."""
    if world.device.type == "cuda" and world.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{world.local_world_size} ranks on this machine: it has {torch.cuda.device_count()} GPUs and a rank needs "
            "one of its own; start fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def make_deterministic() -> None:
    """The same bits from the same numbers, in this process from here on; before anything is computed.

    FBGEMM's backward kernels ask the same switch, and then add a row's gradients in one order.
    """
    # cuBLAS reads it when it is first used; with this much it has one way to add.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 - torch's signature
    # It looks for bugs, and costs a pass over all memory.
    torch_deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = False


@contextmanager
def connecting(limit_s: float, what: str) -> Iterator[None]:
    """Ends this process if ranks have not found each other when the time is up.

    Gloo now and then waits without end for a peer that was started again, whatever timeout it is given. A launcher that
    restarts workers tries once more.

    Args:
        limit_s: more than ranks may need to start one after the other.
        what: is being set up, for the message.
    """

    def give_up() -> None:
        # Not an exception: the main thread waits in C++ and hears none.
        end(f"{what}: the ranks did not reach each other in {limit_s:.0f} s", f"rank {rank_number()}: ")

    timer = threading.Timer(limit_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def process_group(world: World, timeout: timedelta = COLLECTIVE_TIMEOUT) -> Iterator[World]:
    """The process group of all ranks (nccl on GPUs, gloo elsewhere), left when the block ends.

    When the block fails on one of several ranks, the group is not waited for: the launcher ends the other ranks.

    Args:
        world: where this process stands.
        timeout: how long a collective may wait; `watchdog.py` speaks earlier, where it can.
    """
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if world.world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        _name_addresses()
        with connecting(timeout.total_seconds(), "process group"):
            dist.init_process_group(backend, timeout=timeout)
    try:
        yield world
    except BaseException as error:
        # Nobody is waited for where a rank is alone, or where all ranks are here, having agreed on it. A group that is
        # still open would abort the process at its end, or be in the way of the next one.
        if world.world_size == 1 or isinstance(error, Failure | Interrupted | Refusal):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _name_addresses() -> None:
    """Sets what torch reads of the environment to addresses that this host has: its own name may be known to nobody."""
    env = read_rank_environment()
    if env is None:
        return
    os.environ["MASTER_ADDR"] = master_address(env)
    # Gloo would look for the address of the host's own name; what was given stays.
    if env.on_one_host and has_loopback():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


# Errors of rank 0 that the other ranks raise as well.
TOLD = (UserError, Refusal, Failure)


def broadcast_from_rank0(world: World, make: Callable[[], str]) -> str:
    """Runs `make` on rank 0 and gives all ranks what it returns, or what it raises: no rank is left waiting.

    Raises:
        UserError: on every rank, where rank 0 met one; likewise `Refusal` and `Failure`.
        Failure: on the other ranks, where rank 0 met anything else.
    """
    # What happened on rank 0, and the text that belongs to it.
    answer = ["", ""]
    error: Exception | None = None
    if world.is_first:
        try:
            answer = ["made", make()]
        except Exception as raised:
            error = raised
            kind = next((kind for kind in TOLD if isinstance(raised, kind)), None)
            answer = [kind.__name__, str(raised)] if kind else ["", f"rank 0: {type(raised).__name__}: {raised}"]
    # Collective: the other ranks wait here for as long as rank 0 takes, so it comes here whatever happens.
    dist.broadcast_object_list(answer, src=0)
    if error is not None:
        raise error
    outcome, text = answer
    if outcome != "made":
        raise next((kind for kind in TOLD if kind.__name__ == outcome), Failure)(text)
    return text


def gather_to_rank0(world: World, value: Any) -> list[Any]:
    """Every rank's value on rank 0, in their order; nothing on the others."""
    values: list[Any] = [None] * world.world_size
    # Collective: all ranks have measured what they had to.
    dist.gather_object(value, values if world.is_first else None, dst=0)
    return values if world.is_first else []


def use_threads(num_threads: int, world: World) -> None:
    """Shares the cores that this process may use among the ranks of this machine, unless OMP_NUM_THREADS says more.

    More threads than cores slow a rank down many times.
    """
    if num_threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_threads or max(1, num_cores() // world.local_world_size))


def silence_third_party_warnings() -> None:
    """Silences what TorchRec says to its own developers; our lines stay readable."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*|torchrec\..*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("torchrec", "torch.fx", "fbgemm_gpu"):
        logging.getLogger(name).setLevel(logging.ERROR)
