"""Absorbed, jagged and gated attention against loops over tokens.

Shapes: B examples, F sequences, L sequence tokens, P and R queries, X tokens of an example, D width.
"""

import math

import pytest
import torch
from torch import Tensor

from infnet_rec.model.attention import (
    TILE_SLOTS,
    DenseTokens,
    Flow,
    JaggedTokens,
    Reading,
    tile_sequences,
)
from infnet_rec.model.proxies import pool_sequences
from literal import cross_attention

DTYPE = torch.float64
# Totals around the edges of tiles, an empty example first, last and in between, and a long one.
RAGGED = (0, 1, TILE_SLOTS - 1, TILE_SLOTS, 0, TILE_SLOTS + 1, 2 * TILE_SLOTS, 6 * TILE_SLOTS + 5, 3, 0)


def draw_lengths(totals: tuple[int, ...], num_sequences: int = 3) -> Tensor:
    parts = [torch.bincount(torch.randint(0, num_sequences, (n,)), minlength=num_sequences) for n in totals]
    return torch.stack(parts, dim=1)


def tokens_of_example(token_LD: Tensor, lengths_FB: Tensor, example: int) -> Tensor:
    """The tokens of one example, out of the feature-major layout, in no particular order."""
    runs = token_LD.split(lengths_FB.flatten().tolist())
    return torch.cat([runs[f * lengths_FB.shape[1] + example] for f in range(lengths_FB.shape[0])])


def attend_one(query_RD: Tensor, token_XD: Tensor) -> Tensor:
    if token_XD.shape[0] == 0:
        return torch.zeros_like(query_RD)
    return torch.softmax(query_RD @ token_XD.T, dim=-1) @ token_XD


@pytest.mark.parametrize("totals", [RAGGED, (0, 0, 0), (1,), (200,)])
def test_jagged_attention_is_the_loop_over_examples(totals):
    torch.manual_seed(0)
    lengths_FB = draw_lengths(totals)
    token_LD = torch.randn(sum(totals), 4, dtype=DTYPE, requires_grad=True)
    query_BRD = torch.randn(len(totals), 5, 4, dtype=DTYPE, requires_grad=True)
    gate_BD = torch.rand(len(totals), 4, dtype=DTYPE, requires_grad=True)

    got_BRD = tile_sequences(token_LD, lengths_FB).gated(gate_BD).attend(query_BRD)
    expected_BRD = torch.stack(
        [attend_one(query_BRD[b], tokens_of_example(token_LD, lengths_FB, b) * gate_BD[b]) for b in range(len(totals))]
    )

    torch.testing.assert_close(got_BRD, expected_BRD, rtol=1e-10, atol=1e-10)
    direction_BRD = torch.randn_like(got_BRD)
    leaves = (token_LD, query_BRD, gate_BD)
    got = torch.autograd.grad(got_BRD, leaves, direction_BRD)
    # For a batch without events the loop's graph reaches no leaf.
    expected = (
        torch.autograd.grad(expected_BRD, leaves, direction_BRD, materialize_grads=True)
        if sum(totals)
        else [torch.zeros_like(leaf) for leaf in leaves]
    )
    torch.testing.assert_close(got, tuple(expected), rtol=1e-10, atol=1e-10)


def test_an_example_without_tokens_gets_exactly_zero_and_finite_gradients():
    query_BRD = torch.full((3, 2, 4), 1e4, requires_grad=True)
    token_LD = torch.full((2, 4), 1e4, requires_grad=True)

    out_BRD = tile_sequences(token_LD, torch.tensor([[0, 2, 0]])).attend(query_BRD)
    out_BRD.sum().backward()

    assert torch.equal(out_BRD[0], torch.zeros(2, 4)) and torch.equal(out_BRD[2], torch.zeros(2, 4))
    torch.testing.assert_close(out_BRD[1], torch.full((2, 4), 1e4))
    assert query_BRD.grad is not None and token_LD.grad is not None
    assert torch.isfinite(query_BRD.grad).all() and torch.isfinite(token_LD.grad).all()
    assert not query_BRD.grad[[0, 2]].any()


def test_scores_too_large_for_exp_do_not_overflow():
    """The largest score may lie in any tile of an example."""
    token_LD = torch.zeros(3 * TILE_SLOTS, 2)
    token_LD[TILE_SLOTS + 3] = 300.0

    out_BRD = tile_sequences(token_LD, torch.tensor([[3 * TILE_SLOTS]])).attend(torch.ones(1, 1, 2))

    torch.testing.assert_close(out_BRD, torch.full((1, 1, 2), 300.0))


def test_tiles_take_memory_for_the_tokens_and_not_for_the_longest_example():
    lengths_FB = torch.tensor([[1400] + [0] * 63 + [5] * 64])

    tiles = tile_sequences(torch.randn(int(lengths_FB.sum()), 2), lengths_FB)

    assert tiles.tile_NSD.shape[0] * TILE_SLOTS <= int(lengths_FB.sum()) + 128 * TILE_SLOTS
    assert int((~tiles.absent_NS).sum()) == int(lengths_FB.sum())


def make_set(kind: str, token_BXD: Tensor) -> DenseTokens | JaggedTokens:
    if kind == "dense":
        return DenseTokens(token_BXD)
    return tile_sequences(token_BXD.flatten(0, 1), torch.tensor([[token_BXD.shape[1]] * token_BXD.shape[0]]))


@pytest.mark.parametrize("kind", ["dense", "jagged"])
def test_gates_multiply_up(kind):
    torch.manual_seed(0)
    token_BXD, first_BD, second_BD = (torch.rand(s, dtype=DTYPE) for s in ((3, 6, 4), (3, 4), (3, 4)))
    query_BRD = torch.randn(3, 2, 4, dtype=DTYPE)

    got_BRD = make_set(kind, token_BXD).gated(first_BD).gated(second_BD).attend(query_BRD)

    expected_BRD = make_set(kind, token_BXD * (first_BD * second_BD)[:, None]).attend(query_BRD)
    torch.testing.assert_close(got_BRD, expected_BRD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "jagged"])
def test_a_query_of_zeros_reads_the_mean(kind):
    token_BXD = torch.randn(3, 6, 4, dtype=DTYPE)
    tokens = (
        DenseTokens(token_BXD) if kind == "dense" else tile_sequences(token_BXD.flatten(0, 1), torch.tensor([[6] * 3]))
    )

    mean_B1D = tokens.attend(torch.zeros(3, 1, 4, dtype=DTYPE))

    torch.testing.assert_close(mean_B1D[:, 0], token_BXD.mean(dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_flows_that_read_together_are_the_flows_with_keys_and_values(num_heads):
    torch.manual_seed(0)
    reading = Reading(("a", "b"), width=8, num_heads=num_heads).double()
    query_BPD = {"a": torch.randn(3, 4, 8, dtype=DTYPE), "b": torch.randn(3, 1, 8, dtype=DTYPE)}
    token_BXD = torch.randn(3, 7, 8, dtype=DTYPE)

    got_BPD = reading(query_BPD, DenseTokens(token_BXD))

    for name, flow in reading.items():
        assert isinstance(flow, Flow)
        w = {"x Wq": flow.query_DD, "x Wk": flow.key_DD, "x Wv": flow.value_DD}
        present_BX = torch.ones(3, 7, dtype=torch.bool)
        expected_BPD = cross_attention(w, "x", query_BPD[name], token_BXD, present_BX, num_heads)
        torch.testing.assert_close(got_BPD[name], expected_BPD, rtol=1e-10, atol=1e-10)


def test_flow_weights_start_with_xavier_spread():
    torch.manual_seed(0)
    flow = Flow(width=128, num_heads=2)

    for weight_DD in flow.parameters():
        assert float(weight_DD.detach().std()) == pytest.approx(math.sqrt(2 / (128 + 128)), rel=0.05)


@pytest.mark.parametrize("group_of_sequence", [(0, 0, 1), (0, 1, 2), (1, 0, 1), (0, 0, 0)])
def test_pooling_adds_up_each_groups_events(group_of_sequence):
    torch.manual_seed(0)
    lengths_FB = draw_lengths(RAGGED)
    token_LD = torch.randn(sum(RAGGED), 4, dtype=DTYPE)
    runs = token_LD.split(lengths_FB.flatten().tolist())

    sum_BGD, count_BG = pool_sequences(token_LD, lengths_FB, group_of_sequence)

    for b in range(len(RAGGED)):
        for g in range(max(group_of_sequence) + 1):
            members = [f for f in range(3) if group_of_sequence[f] == g]
            events_XD = torch.cat([runs[f * len(RAGGED) + b] for f in members])
            assert int(count_BG[b, g]) == len(events_XD)
            torch.testing.assert_close(sum_BGD[b, g], events_XD.sum(dim=0), rtol=1e-12, atol=1e-12)
