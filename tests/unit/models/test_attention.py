"""Absorbed, jagged and gated attention against loops over tokens.

Shapes: B examples, F sequences, L sequence tokens, P and R queries, X tokens of an example, D width.
"""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from infnet_rec.config.model import Ablation, InfnetConfig
from infnet_rec.models.infnet import jagged_attention
from infnet_rec.models.infnet.attention import DenseTokens, Flow, Readings
from infnet_rec.models.infnet.jagged_attention import JaggedTokens, arrange_sequences
from infnet_rec.models.infnet.proxies import pool_sequences
from literal import cross_attention
from paper_check import build

DTYPE = torch.float64
ABLATIONS = get_args(Ablation)
# An empty example first, last and in between, and one that is longer than all others together.
RAGGED = (0, 1, 7, 8, 0, 9, 16, 53, 3, 0)


@pytest.fixture(params=[1, 16, 24, 8192])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of a chunk: an example at a time; borders in between, the last chunk smaller; all examples at once."""
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", request.param)
    return request.param


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


@pytest.mark.parametrize("totals", [RAGGED, (0, 0, 0), (1,), (200,), (8,) * 5, (9, 8, 8, 8, 7)])
def test_jagged_attention_is_the_loop_over_examples(totals, chunk):
    torch.manual_seed(0)
    lengths_FB = draw_lengths(totals)
    token_LD = torch.randn(sum(totals), 4, dtype=DTYPE, requires_grad=True)
    query_BRD = torch.randn(len(totals), 5, 4, dtype=DTYPE, requires_grad=True)
    gate_BD = torch.rand(len(totals), 4, dtype=DTYPE, requires_grad=True)

    got_BRD, _ = arrange_sequences(token_LD, lengths_FB).gated(gate_BD).attend(query_BRD)
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

    out_BRD, _ = arrange_sequences(token_LD, torch.tensor([[0, 2, 0]])).attend(query_BRD)
    out_BRD.sum().backward()

    assert torch.equal(out_BRD[0], torch.zeros(2, 4)) and torch.equal(out_BRD[2], torch.zeros(2, 4))
    torch.testing.assert_close(out_BRD[1], torch.full((2, 4), 1e4))
    assert query_BRD.grad is not None and token_LD.grad is not None
    assert torch.isfinite(query_BRD.grad).all() and torch.isfinite(token_LD.grad).all()
    assert not query_BRD.grad[[0, 2]].any()


def test_scores_too_large_for_exp_do_not_overflow():
    token_LD = torch.zeros(96, 2)
    token_LD[35] = 300.0

    out_BRD, _ = arrange_sequences(token_LD, torch.tensor([[96]])).attend(torch.ones(1, 1, 2))

    torch.testing.assert_close(out_BRD, torch.full((1, 1, 2), 300.0))


def test_a_token_that_is_not_a_number_spoils_its_own_example_only(chunk):
    """Slots that are left over weigh 0, and 0 times what is no number is none either."""
    token_LD = torch.randn(14, 2)
    token_LD[11:] = torch.nan

    out_BRD, _ = arrange_sequences(token_LD, torch.tensor([[4, 5, 2, 3]])).attend(torch.randn(4, 2, 2))

    assert torch.isfinite(out_BRD[:3]).all() and torch.isnan(out_BRD[3]).all()


def test_chunks_hold_every_token_once_and_little_else(chunk):
    lengths_FB = draw_lengths(RAGGED)
    layout = arrange_sequences(torch.randn(sum(RAGGED), 2), lengths_FB).layout

    first = 0
    rows = []
    for part in layout.chunks:
        lengths = [RAGGED[b] for b in layout.example_B[part.first : part.last]]
        assert part.first == first and min(lengths) > 0
        assert len(part.row_C) == max(lengths) * len(lengths) <= max(chunk, lengths[0])
        present_C = torch.ones(len(part.row_C), dtype=torch.bool)
        if part.bias_N1S is not None:
            present_C = part.bias_N1S.flatten() == 0
        assert int(present_C.sum()) == sum(lengths)
        rows += part.row_C[present_C].tolist()
        first = part.last
    assert sorted(rows) == list(range(sum(RAGGED))) and first == sum(total > 0 for total in RAGGED)


def stored_elsewhere(run: Callable[[], object], token_LD: Tensor) -> int:
    """Numbers that autograd keeps between the passes, those of the tokens aside."""
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    assert stored.pop(token_LD.untyped_storage().data_ptr())
    return sum(stored.values())


def test_what_is_stored_for_the_backward_pass_does_not_grow_with_queries_times_tokens():
    token_LD = torch.randn(400, 8, requires_grad=True)
    query_BRD = torch.randn(2, 16, 8, requires_grad=True)
    tokens = arrange_sequences(token_LD, torch.tensor([[200, 200]]))

    assert stored_elsewhere(lambda: tokens.attend(query_BRD), token_LD) <= 2 * query_BRD.numel()


def make_set(kind: str, token_BXD: Tensor) -> DenseTokens | JaggedTokens:
    if kind == "dense":
        return DenseTokens(token_BXD)
    return arrange_sequences(token_BXD.flatten(0, 1), torch.tensor([[token_BXD.shape[1]] * token_BXD.shape[0]]))


@pytest.mark.parametrize("kind", ["dense", "jagged"])
def test_gates_multiply_up(kind):
    torch.manual_seed(0)
    token_BXD, first_BD, second_BD = (torch.rand(s, dtype=DTYPE) for s in ((3, 6, 4), (3, 4), (3, 4)))
    query_BRD = torch.randn(3, 2, 4, dtype=DTYPE)

    got_BRD, _ = make_set(kind, token_BXD).gated(first_BD).gated(second_BD).attend(query_BRD)

    expected_BRD, _ = make_set(kind, token_BXD * (first_BD * second_BD)[:, None]).attend(query_BRD)
    torch.testing.assert_close(got_BRD, expected_BRD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["dense", "jagged"])
def test_a_query_of_zeros_reads_the_mean(kind):
    token_BXD = torch.randn(3, 6, 4, dtype=DTYPE)

    mean_B1D, _ = make_set(kind, token_BXD).attend(torch.zeros(3, 1, 4, dtype=DTYPE))

    torch.testing.assert_close(mean_B1D[:, 0], token_BXD.mean(dim=1), rtol=1e-12, atol=1e-12)


# Who reads which tokens, and how many queries each has: both sets, one each, neighbours of unlike sets, one reader.
READERS = [
    ({"x": ("a", "b"), "y": ("a", "b")}, {"a": 4, "b": 1}),
    ({"x": ("a",), "y": ("b",)}, {"a": 2, "b": 3}),
    ({"x": ("a", "b", "c"), "y": ("a", "c", "d"), "z": ("b", "d")}, {"a": 2, "b": 1, "d": 5, "c": 3}),
    ({"x": ("a",)}, {"a": 3}),
]


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize(("readers", "num_tokens"), READERS)
def test_flows_that_read_together_are_the_flows_with_keys_and_values(readers, num_tokens, num_heads):
    torch.manual_seed(0)
    readings = Readings(readers, num_tokens, 8, num_heads).double()
    query_BPD = {name: torch.randn(3, number, 8, dtype=DTYPE) for name, number in num_tokens.items()}
    sets = {kind: DenseTokens(torch.randn(3, 6 + i, 8, dtype=DTYPE)) for i, kind in enumerate(readers)}

    got_BPD, rest = readings(torch.cat(list(query_BPD.values()), dim=1), sets)

    assert rest.keys() == sets.keys()
    for name, part_BPD in zip(num_tokens, got_BPD.split(list(num_tokens.values()), dim=1), strict=True):
        expected_BPD = torch.zeros_like(query_BPD[name])
        for kind, token_set in sets.items():
            if name in readers[kind]:
                flow = readings.flows(kind)[name]
                w = {"x Wq": flow.query_DD, "x Wk": flow.key_DD, "x Wv": flow.value_DD}
                present_BX = torch.ones(token_set.token_BXD.shape[:2], dtype=torch.bool)
                expected_BPD += cross_attention(w, "x", query_BPD[name], token_set.token_BXD, present_BX, num_heads)
        torch.testing.assert_close(part_BPD, expected_BPD, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(readings.part(got_BPD, name), part_BPD, rtol=0, atol=0)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize(("ablation", "readout"), [*((name, "task") for name in ABLATIONS), ("none", "proxies")])
def test_every_block_reads_each_set_once(ablation, readout, num_blocks):
    if num_blocks == 1 and (ablation, readout) == ("none", "task"):
        num_blocks = 2
    model = build(InfnetConfig(width=8, ablation=ablation, readout=readout, num_blocks=num_blocks))
    for readings in (module for module in model.modules() if isinstance(module, Readings)):
        assert sorted(run.kind for run in readings.runs) == sorted(readings.kinds)


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

    sum_BGD, count_BG, _ = pool_sequences(
        token_LD, lengths_FB, torch.tensor(group_of_sequence), max(group_of_sequence) + 1
    )

    for b in range(len(RAGGED)):
        for g in range(max(group_of_sequence) + 1):
            members = [f for f in range(3) if group_of_sequence[f] == g]
            events_XD = torch.cat([runs[f * len(RAGGED) + b] for f in members])
            assert int(count_BG[b, g]) == len(events_XD)
            torch.testing.assert_close(sum_BGD[b, g], events_XD.sum(dim=0), rtol=1e-12, atol=1e-12)
