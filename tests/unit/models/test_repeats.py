"""Tokens by reference and counted: the same network as token by token, and as the paper's equations.

Shapes: B examples, F sequences, L sequence tokens, U distinct ones of an example, X distinct embeddings, D width.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from infnet_rec.batch import Batch, Repeats
from infnet_rec.config.model import Ablation, InfnetConfig
from infnet_rec.data.dedup import count_repeats, order_of
from infnet_rec.data.loader import BatchReader
from infnet_rec.data.store import Store
from infnet_rec.models.infnet import jagged_attention
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.infnet.recorder import Recorded, recording
from infnet_rec.models.tokens import Tokens
from infnet_rec.planner.op_counter import OpCounter
from paper_check import (
    BY_BEHAVIOUR,
    BY_SEQUENCE,
    LENGTHS_FB,
    SMALL,
    changed,
    check_against_paper,
    make_model,
    make_repeated,
    on,
    repeats_of,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOTHING_FB, ONE_FB = torch.zeros(4, 3, dtype=torch.int64), torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
CASES = {
    "random repeats": make_repeated,
    "many rows": partial(make_repeated, num_rows=80),
    "all equal": partial(make_repeated, num_rows=1),
    "one token": partial(make_repeated, ONE_FB),
    "no token": partial(make_repeated, NOTHING_FB),
    "not counted": partial(make_repeated, counted=False),
}


@pytest.fixture(params=[16, 8192])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of a chunk: several chunks, and one."""
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ablation", get_args(Ablation))
def test_counted_tokens_are_the_papers_equations(case: str, ablation: Ablation) -> None:
    """Logits and the gradients of every weight and of every distinct row."""
    check_against_paper(changed(SMALL, ablation=ablation), BY_BEHAVIOUR, 1e-10, torch.float64, draw=CASES[case])


@pytest.mark.parametrize(
    "change",
    [
        {"readout": "proxies", "num_heads": 2},
        {"num_blocks": 3, "residual": "none", "proxy_norm": "layer", "pooling": "mean"},
        {"checkpoint_blocks": True, "readout": "proxies"},
        {"num_blocks": 1, "ablation": "no_task_tokens", "ablation_head": "late"},
    ],
)
def test_other_forms_of_the_network_agree_too(change: dict) -> None:
    check_against_paper(changed(SMALL, **change), BY_SEQUENCE, 1e-10, torch.float64, draw=make_repeated)


@pytest.mark.parametrize("case", ["random repeats", "all equal", "no token", "not counted"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_kernel_on_counted_tokens_is_the_papers_equations(case: str, deterministic: bool) -> None:
    """Whether it adds to the gradients of rows, or writes those of entries."""
    options = changed(SMALL, attention="fused", readout="proxies")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        check_against_paper(options, BY_BEHAVIOUR, 1e-5, torch.float32, device=DEVICE, draw=CASES[case])
    finally:
        torch.use_deterministic_algorithms(before)


def gradients(model: Infnet, tokens: Tokens) -> tuple[Tensor, ...]:
    """Logits, and what they leave with rows and weights."""
    leaves = (tokens.categorical_BMD, tokens.distinct_XD, *model.parameters())
    logits_BT = model(tokens)
    return logits_BT, *torch.autograd.grad(logits_BT.square().sum(), leaves)


@pytest.mark.parametrize("seed", range(5))
def test_counted_is_not_counted_is_written_out(seed: int) -> None:
    torch.manual_seed(seed)
    lengths_FB = torch.randint(0, 12, (4, 30)) * (torch.rand(4, 30) < 0.6)
    model = make_model(changed(SMALL, readout="proxies"))
    tokens = make_repeated(lengths_FB, num_rows=int(torch.randint(1, 40, ())))
    assert tokens.row_L is not None and tokens.repeats is not None
    written = Tokens(tokens.categorical_BMD, tokens.distinct_XD[tokens.row_L], lengths_FB)

    counted = gradients(model, tokens)
    torch.testing.assert_close(counted, gradients(model, replace(tokens, repeats=None)), rtol=1e-10, atol=1e-10)
    logits_BT = model(written)
    leaves = (tokens.categorical_BMD, tokens.distinct_XD, *model.parameters())
    expected = logits_BT, *torch.autograd.grad(logits_BT.square().sum(), leaves)
    torch.testing.assert_close(counted, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", ["eager", "fused"])
def test_bfloat16_errs_on_counted_tokens_as_on_written_ones(attention: str) -> None:
    torch.manual_seed(1)
    model, tokens = make_model(changed(SMALL, num_heads=2)), make_repeated()
    exact = gradients(model, tokens)
    model, leaves = model.float().to(DEVICE), (tokens.categorical_BMD, tokens.distinct_XD)
    narrow = on(DEVICE, tokens)
    narrow.categorical_BMD, narrow.distinct_XD = (x.detach().float().to(DEVICE).requires_grad_() for x in leaves)
    model.precision, model.attention = "bf16", attention
    counted, written = gradients(model, narrow), gradients(model, replace(narrow, repeats=None))
    error, usual = (
        sum(float((x.cpu() - value).detach().norm() / value.detach().norm()) for x, value in pairs)
        for pairs in (zip(counted, exact, strict=True), zip(written, exact, strict=True))
    )
    assert error < 1.5 * usual < 0.05 * len(exact)


def test_a_recording_names_every_position_and_shares_evenly_among_equal_ones() -> None:
    torch.manual_seed(0)
    model, tokens = make_model().eval(), make_repeated()
    assert tokens.row_L is not None
    found: list[Recorded] = []
    written = Tokens(tokens.categorical_BMD, tokens.sequence_LD.detach(), LENGTHS_FB)
    with recording(model, found.append), torch.no_grad():
        for each in (tokens, replace(tokens, repeats=None), written):
            model(each)
    counted, *others = found
    for other in others:
        torch.testing.assert_close(counted.event_BQFS, other.event_BQFS, rtol=1e-10, atol=1e-12)
    # Equal tokens of the last example, wherever they stand, have equal shares.
    num_slots, example = counted.event_BQFS.shape[3], LENGTHS_FB.shape[1] - 1
    shares: dict[int, list[float]] = {}
    runs = tokens.row_L.split(LENGTHS_FB.flatten().tolist())
    for f in range(len(LENGTHS_FB)):
        rows = runs[f * LENGTHS_FB.shape[1] + example].tolist()
        for place, row in enumerate(rows):
            share = counted.event_BQFS[example, 0, f, num_slots - len(rows) + place]
            shares.setdefault(row, []).append(float(share))
    assert max(map(len, shares.values())) > 1, "nothing is there twice"
    for mine in shares.values():
        assert mine == pytest.approx([mine[0]] * len(mine), rel=1e-12)


def loop(row_L: np.ndarray, length_FB: np.ndarray) -> list[dict[int, int]]:
    """How often each example has each row."""
    counts: list[dict[int, int]] = [{} for _ in range(length_FB.shape[1])]
    runs = iter(np.split(row_L, np.cumsum(length_FB.reshape(-1))[:-1]))
    for _ in range(length_FB.shape[0]):
        for mine in counts:
            for row in next(runs).tolist():
                mine[row] = mine.get(row, 0) + 1
    return counts


def check_counts(row_L: np.ndarray, length_FB: np.ndarray, num_rows: int) -> None:
    found, counts = count_repeats(row_L, length_FB, num_rows), loop(row_L, length_FB)
    for b, mine in enumerate(counts):
        own = slice(found.start_Y[b], found.start_Y[b + 1])
        assert dict(zip(found.row_U[own].tolist(), found.count_U[own].tolist(), strict=True)) == mine
        assert len(found.row_U[own]) == len(mine)
    assert len(found.start_Y) == len(counts) + 1 and found.start_Y[-1] == len(found.row_U)
    assert np.array_equal(np.sort(found.by_row_L), np.arange(len(row_L)))
    sorted_L, start_X = row_L[found.by_row_L], found.row_start_X
    for row in {0, num_rows // 2, num_rows - 1}:
        stop = start_X[row + 1] if row + 1 < num_rows else len(row_L)
        assert (sorted_L[start_X[row] : stop] == row).all() and stop - start_X[row] == (row_L == row).sum()


@pytest.mark.parametrize("num_rows", [1, 7, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 31])
def test_counting_is_the_loop_over_examples(num_rows: int) -> None:
    generator = np.random.default_rng(0)
    for num_sequences, num_examples, most in ((1, 1, 5), (3, 40, 9), (4, 5, 1), (2, 3, 300)):
        length_FB = generator.integers(0, most + 1, (num_sequences, num_examples))
        few = generator.integers(0, num_rows, 5)
        row_L = generator.choice(few, int(length_FB.sum()))
        if num_rows > 1 << 20:
            assert np.array_equal(order_of(row_L, num_rows), np.argsort(row_L, kind="stable"))
        else:
            check_counts(row_L, length_FB, num_rows)
    check_counts(np.empty(0, np.int64), np.zeros((2, 3), np.int64), num_rows=min(num_rows, 3))


def test_more_examples_than_sixteen_bits_count_too() -> None:
    num_examples = (1 << 16) + 3
    length_FB = np.ones((2, num_examples), np.int64)
    row_L = np.tile(np.arange(num_examples) % 5, 2)
    found = count_repeats(row_L, length_FB, 5)
    assert (found.count_U == 2).all() and np.array_equal(found.row_U, row_L[:num_examples])


def test_batches_of_a_store_are_counted(small_store: Path) -> None:
    store = Store(small_store)
    batch = BatchReader(store, "train", store.schema, 10).read(np.array([3, 1, 4, 1, 5, 9, 2, 6, -1]))
    assert batch.repeats is not None
    row_L = batch.spread_K[len(batch.spread_K) - int(batch.lengths_FB.sum()) :]
    num_rows = batch.sequences.values().numel() + (0 if batch.mean_start_P is None else batch.mean_start_P.numel())
    expected = repeats_of(row_L, batch.lengths_FB, num_rows)
    for name in Repeats.__dataclass_fields__:
        assert torch.equal(getattr(batch.repeats, name), getattr(expected, name)), name
    moved: Batch = batch.to(torch.device("meta"))
    assert moved.repeats is not None and moved.repeats.row_U.is_meta


def test_a_step_writes_nothing_of_the_size_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the tokens with the same distinct rows take the numbers that refer to them, and no rows more."""
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", 500)
    options = InfnetConfig(width=64, readout="proxies")
    peaks = []
    for length in (300, 600):
        torch.manual_seed(0)
        model = Infnet(num_features=2, group_of_sequence=(0, 1), num_tasks=2, config=options)
        lengths_FB = torch.full((2, 50), length)
        row_L = torch.randint(0, 400, (int(lengths_FB.sum()),))
        leaves = (torch.randn(50, 2, 64).requires_grad_(), torch.randn(400, 64).requires_grad_())
        tokens = Tokens(*leaves, lengths_FB, row_L, repeats_of(row_L, lengths_FB, 400))
        with OpCounter() as counter:
            model(tokens).sum().backward()
        peaks.append(counter.peak_bytes)
    more_tokens = 2 * 50 * 300
    assert peaks[1] - peaks[0] < more_tokens * 64 * 4 / 8
