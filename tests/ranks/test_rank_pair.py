"""The pair of ranks that other tests lean on."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from infnet_rec.errors import UserError
from rank_pair import RankPair, RankTimeout, RankTraceback


def _sum_of_ranks(rank: int, world_size: int, scale: float) -> tuple[torch.Tensor, int, str]:
    value = torch.tensor([scale * (rank + 1)])
    dist.all_reduce(value)
    return value, world_size, os.environ["OMP_NUM_THREADS"]


def _draw(rank: int, world_size: int) -> float:
    return torch.rand(()).item()


def _pid(rank: int, world_size: int) -> int:
    return os.getpid()


def _fault_on_rank_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise UserError("section.key = 3: it must be 4")
    dist.barrier()


def _hang(rank: int, world_size: int) -> None:
    time.sleep(3600)


def _die(rank: int, world_size: int) -> None:
    if rank == 0:
        os._exit(7)


def test_results_come_in_rank_order_and_collectives_work(ranks: RankPair) -> None:
    for value, world_size, threads in ranks(_sum_of_ranks, 10.0):
        assert value.tolist() == [30.0]
        assert (world_size, threads) == (2, "1")


def test_processes_are_reused_and_seeds_are_not_carried_over(ranks: RankPair) -> None:
    assert ranks(_pid) == ranks(_pid)
    assert ranks(_draw) == ranks(_draw)


@pytest.mark.slow
def test_an_exception_of_one_rank_is_raised_here_and_the_pair_starts_anew(ranks: RankPair) -> None:
    before = ranks(_pid)
    with pytest.raises(UserError, match=r"section\.key = 3") as caught:
        ranks(_fault_on_rank_one)
    assert isinstance(caught.value.__cause__, RankTraceback)
    assert "_fault_on_rank_one" in str(caught.value.__cause__)
    assert not set(before) & set(ranks(_pid))


@pytest.mark.slow
def test_a_hang_and_a_death_fail_one_call_only(ranks: RankPair) -> None:
    with pytest.raises(RankTimeout, match="in _hang"):
        ranks(_hang, timeout_s=1.0)
    with pytest.raises(RuntimeError, match="rank 0 died with exit code 7"):
        ranks(_die)
    assert ranks(_sum_of_ranks, 1.0)[0][0].item() == 3.0
