"""Recorded attention and gates against the paper's equations, and that recording leaves no trace.

Shapes: B examples, Q queries, M categorical tokens, F sequences, S slots, D width.
"""

import pytest
import torch
from torch import Tensor

import literal
from infnet_rec.config.model import InfnetConfig
from infnet_rec.errors import UserError
from infnet_rec.models.infnet.model import Infnet, Kind
from infnet_rec.models.infnet.recorder import Recorded, recording
from infnet_rec.models.tokens import Tokens
from paper_check import (
    BY_BEHAVIOUR,
    BY_SEQUENCE,
    LENGTHS_FB,
    SMALL,
    changed,
    make_model,
    make_tokens,
    sizes_of,
    variant_of,
)

KINDS: dict[str, Kind] = {"C": "categorical", "S": "sequence", "T": "task"}


def record(model: Infnet, tokens: Tokens) -> Recorded:
    found: list[Recorded] = []
    with recording(model.eval(), found.append), torch.no_grad():
        model(tokens)
    (one,) = found
    return one


def oracle(
    model: Infnet, tokens: Tokens, options: InfnetConfig, groups: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The equations' probabilities of each flow, means over heads, and gates; by the paper's names."""
    sizes = sizes_of(options, groups)
    names, parameters = literal.package_names(sizes), dict(model.named_parameters())
    weights = {
        paper: parameters[names[paper]].detach().double() if names[paper] in parameters else torch.randn(shape).double()
        for paper, shape in literal.shapes(sizes).items()
    }
    attention, gates, attend, mlp = {}, {}, literal.cross_attention, literal.mlp

    def noted_attend(w, name, *arguments):
        attention[name] = torch.stack(literal.probabilities(w, name, *arguments)).mean(dim=0)
        return attend(w, name, *arguments)

    def noted_mlp(w, name, x):
        gates[name] = torch.sigmoid(mlp(w, name, x))
        return mlp(w, name, x)

    monkeypatch.setattr(literal, "cross_attention", noted_attend)
    monkeypatch.setattr(literal, "mlp", noted_mlp)
    variant = variant_of(options)
    events = literal.pad(tokens.sequence_LD.detach().double(), tokens.lengths_FB)
    with torch.no_grad():
        literal.logits(weights, sizes, variant, tokens.categorical_BMD.detach().double(), *events)
    return attention, gates


def newest_last(events_BPX: Tensor, lengths_FB: Tensor) -> Tensor:
    """The oracle's events begin at the left; one by one to the right end."""
    num_sequences, num_examples = lengths_FB.shape
    left_BPFS = events_BPX.unflatten(2, (num_sequences, -1))
    right_BPFS = torch.zeros_like(left_BPFS)
    for b in range(num_examples):
        for f in range(num_sequences):
            length = int(lengths_FB[f, b])
            for k in range(length):
                right_BPFS[b, :, f, left_BPFS.shape[3] - length + k] = left_BPFS[b, :, f, k]
    return right_BPFS


@pytest.mark.parametrize(
    ("change", "groups"),
    [
        ({}, BY_BEHAVIOUR),
        ({"num_heads": 2, "num_blocks": 3, "residual": "none"}, BY_SEQUENCE),
        ({"num_heads": 4, "proxy_norm": "layer", "num_shared_tokens": 3}, (1, 0, 1, 0)),
        ({"ablation": "no_gates", "num_heads": 2}, BY_BEHAVIOUR),
        ({"readout": "proxies", "num_heads": 2}, BY_BEHAVIOUR),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_probabilities_and_gates_are_the_equations(change, groups, dtype, tolerance, monkeypatch) -> None:
    torch.manual_seed(0)
    options = changed(SMALL, **change)
    model, tokens = make_model(options, groups, dtype), make_tokens(dtype=dtype)
    with torch.no_grad():
        tokens.sequence_LD.mul_(3)  # attention far from even
        tokens.categorical_BMD.mul_(3)
    recorded = record(model, tokens)
    attention, gates = oracle(model, tokens, options, groups, monkeypatch)

    readers = ("T", "T~") if options.ablation == "none" else ("T",)
    flows = {kind: [attention[f"{options.num_blocks} CA({reader},{kind})"] for reader in readers] for kind in "CS"}
    expected_BQM, expected_BQX = torch.cat(flows["C"], dim=1), torch.cat(flows["S"], dim=1)
    assert expected_BQX.amax() > 0.9, "nothing to tell apart"
    assert recorded.field_BQM.dtype == dtype and recorded.field_BQM.shape == expected_BQM.shape
    assert (recorded.field_BQM - expected_BQM).abs().amax() <= tolerance
    assert (recorded.event_BQFS - newest_last(expected_BQX, LENGTHS_FB)).abs().amax() <= tolerance
    kept: set[tuple[int, Kind]] = {(block, kind) for block in range(options.num_blocks) for kind in KINDS.values()}
    last = options.num_blocks - 1
    kept -= {(last, "categorical"), (last, "sequence")} if options.ablation == "none" else kept
    assert recorded.gates_BD.keys() == kept
    for block, kind in kept:
        name = next(short for short, long in KINDS.items() if long == kind)
        assert (recorded.gates_BD[block, kind] - gates[f"{block + 1} PGU({name})"]).abs().amax() <= tolerance


def test_rows_sum_to_one_and_what_is_not_there_gets_nothing() -> None:
    torch.manual_seed(0)
    tokens = make_tokens(dtype=torch.float32)
    recorded = record(make_model(dtype=torch.float32), tokens)
    num_events_B = LENGTHS_FB.sum(dim=0)
    assert not num_events_B[0] and (num_events_B[1:] > 0).all()
    torch.testing.assert_close(recorded.field_BQM.sum(-1), torch.ones(6, 5))
    sums_BQ = recorded.event_BQFS.sum(dim=(2, 3))
    torch.testing.assert_close(sums_BQ, (num_events_B > 0).float()[:, None].expand(-1, 5))
    age_S = torch.arange(40).flip(0)
    absent_BFS = age_S >= LENGTHS_FB.t()[..., None]
    assert not recorded.event_BQFS[absent_BFS[:, None].expand_as(recorded.event_BQFS)].any()
    assert recorded.event_BQFS[~absent_BFS[:, None].expand_as(recorded.event_BQFS)].all()


def test_a_batch_without_any_event_is_recorded_too() -> None:
    tokens = make_tokens(torch.zeros(4, 3, dtype=torch.int64), torch.float32)
    recorded = record(make_model(dtype=torch.float32), tokens)
    assert recorded.event_BQFS.shape == (3, 5, 4, 1) and not recorded.event_BQFS.any()
    torch.testing.assert_close(recorded.field_BQM.sum(-1), torch.ones(3, 5))


def test_the_kernel_and_bfloat16_are_recorded_as_plain_torch_is() -> None:
    torch.manual_seed(0)
    model, tokens = make_model(dtype=torch.float32), make_tokens(dtype=torch.float32)
    plain = record(model, tokens)
    model.attention = "fused"
    fused = record(model, tokens)
    model.attention, model.precision = "eager", "bf16"
    half = record(model, tokens)
    assert half.event_BQFS.dtype == half.gates_BD[0, "task"].dtype == torch.float32
    torch.testing.assert_close(half.event_BQFS.sum(dim=(2, 3))[1:], torch.ones(5, 5))
    for other, tolerance in ((fused, 1e-6), (half, 2e-2)):
        assert (other.field_BQM - plain.field_BQM).abs().amax() <= tolerance
        assert (other.event_BQFS - plain.event_BQFS).abs().amax() <= tolerance


def num_hooks(model: Infnet) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_recording_changes_no_logit_and_leaves_no_hook() -> None:
    torch.manual_seed(0)
    model, tokens = make_model().eval(), make_tokens()
    with torch.no_grad():
        before_BT, found = model(tokens), []
        with recording(model, found.append):
            assert num_hooks(model) == 2 + 1 + 2, "the tower, the last block's readings, each block's gates"
            during_BT = [model(tokens), model(tokens)]
        after_BT = model(tokens)
    assert len(found) == 2 and not num_hooks(model)
    assert all(torch.equal(before_BT, again_BT) for again_BT in (*during_BT, after_BT))

    with pytest.raises(RuntimeError, match="from outside"), recording(model, found.append):
        raise RuntimeError("from outside")
    assert not num_hooks(model)


@pytest.mark.parametrize("ablation", ["no_task_tokens", "no_cross_attention"])
def test_a_tower_whose_tasks_attend_to_nothing_is_refused(ablation) -> None:
    model = make_model(changed(SMALL, ablation=ablation))
    with pytest.raises(UserError, match=f'"{ablation}": no task token attends'), recording(model, lambda _: None):
        pass
    assert not num_hooks(model)
