"""The benchmarks: what they compare is the same function, what they count is right, and the verbs answer.

Shapes: B examples, F sequences, L sequence tokens of the whole batch, D width.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infnet_rec.benchmark.forms.every_token import every_token
from infnet_rec.benchmark.forms.forms import (
    TowerShape,
    check_logits,
    full_lengths,
    make_forms,
    make_tokens,
    ragged_lengths,
)
from infnet_rec.benchmark.forms.reference_infnet import LiteralInfnet
from infnet_rec.benchmark.forms.tower import clear, count, measure_tower, passes_of
from infnet_rec.benchmark.forms.tower_verb import fit, slopes
from infnet_rec.benchmark.samples import alternate
from infnet_rec.config.model import InfnetConfig
from infnet_rec.errors import Failure
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.planner.op_counter import OpCounter

CPU = torch.device("cpu")
GROUPS = (0, 1, 1, 2)
SMALL = InfnetConfig(proxy_hidden=(16,), gate_hidden=(8,), head_hidden=(8,))
LIMITS = {"copy_bytes_per_s": 1e10, "matmul_flops_per_s": {"float32": 1e11, "bfloat16": 1e11}}


@pytest.fixture(autouse=True)
def small_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's limits are not what is tested."""
    monkeypatch.setattr("infnet_rec.benchmark.machine.COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("infnet_rec.benchmark.machine.MATMUL_SIZES", (64,))
    monkeypatch.setattr("infnet_rec.benchmark.samples.MIN_ROUND_S", 0.01)


def shape_of(lengths_FB: torch.Tensor, width: int = 8) -> TowerShape:
    return TowerShape(5, GROUPS, 2, width, lengths_FB)


def gradients(model: Infnet, shape: TowerShape) -> list[torch.Tensor]:
    tokens = make_tokens(shape, CPU)
    logits_BT = model(tokens)
    (logits_BT * torch.arange(1.0, 1 + logits_BT.numel()).view_as(logits_BT)).sum().backward()
    found = [tokens.categorical_BMD.grad, tokens.sequence_LD.grad, *(p.grad for p in model.parameters())]
    return [logits_BT, *(torch.zeros(()) if grad is None else grad for grad in found)]


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        SMALL.model_copy(update={"num_heads": 2, "num_blocks": 3, "proxy_norm": "layer"}),
        SMALL.model_copy(update={"pooling": "mean", "residual": "none"}),
        SMALL.model_copy(update={"residual": "proxy", "ablation": "no_task_tokens"}),
        SMALL.model_copy(update={"residual": "gate", "ablation": "no_gates", "num_blocks": 1}),
        SMALL.model_copy(update={"ablation": "no_cross_attention"}),
        SMALL.model_copy(update={"ablation": "no_task_tokens", "ablation_head": "late"}),
        SMALL.model_copy(update={"ablation": "no_cross_attention", "ablation_head": "late"}),
        SMALL.model_copy(update={"readout": "proxies", "num_heads": 2}),
    ],
    ids=[
        "default",
        "heads, blocks, norms",
        "mean",
        "no_task_tokens",
        "no_gates",
        "no_cross_attention",
        "no_task_tokens, late",
        "no_cross_attention, late",
        "heads read proxies",
    ],
)
def test_the_literal_form_is_the_same_function(options: InfnetConfig) -> None:
    """Logits and every gradient, with full, ragged and missing histories."""
    lengths_FB = ragged_lengths(GROUPS, 6, 5)
    lengths_FB[:, 2] = 0
    for shape in (shape_of(lengths_FB), shape_of(full_lengths(4, 3, 4))):
        forms, _ = make_forms(shape, options, CPU)
        assert isinstance(forms["literal"], LiteralInfnet)
        assert type(forms["eager"]) is Infnet
        for literal, eager in zip(gradients(forms["literal"], shape), gradients(forms["eager"], shape), strict=True):
            torch.testing.assert_close(literal, eager, atol=1e-5, rtol=1e-4)


def test_forms_that_differ_are_not_compared() -> None:
    shape = shape_of(full_lengths(4, 3, 4))
    forms, _ = make_forms(shape, SMALL, CPU)
    assert check_logits(forms, make_tokens(shape, CPU)) < 1e-5
    with torch.no_grad():
        next(forms["literal"].parameters()).add_(10.0)
    with pytest.raises(Failure, match="literal differ"):
        check_logits(forms, make_tokens(shape, CPU))


def test_the_ledger_counts_new_memory_while_it_lives() -> None:
    before = torch.ones(1000)
    with OpCounter() as ledger:
        before.add_(1.0)
        view = before.view(10, 100)[2:]
        assert ledger.live_bytes == 0
        double = before * 2
        assert ledger.live_bytes == 4000
        other = double.view(100, 10).t()
        del double
        assert ledger.live_bytes == 4000
        del other
        assert ledger.live_bytes == 0
        total = (before[:500] + 1).sum()
        assert ledger.live_bytes == total.nbytes
    assert ledger.peak_bytes == 4000
    # add_ reads and writes, * reads and writes, + reads and writes a half, the sum reads that half and writes 4 bytes.
    assert ledger.moved_bytes == 2 * 4000 + 2 * 4000 + 2 * 2000 + 2000 + 4
    assert view.shape == (8, 100)


def test_the_ledger_agrees_with_torch_about_a_step() -> None:
    """Peak memory as the allocator tells the profiler, FLOPs as torch's own counter finds them."""
    shape = shape_of(ragged_lengths(GROUPS, 64, 20), width=16)
    forms, _ = make_forms(shape, SMALL, CPU)
    for form in forms.values():
        tokens = make_tokens(shape, CPU)
        run = passes_of(form, tokens)["forward_backward"]
        counted = count(run, form, tokens)
        with torch.profiler.profile(profile_memory=True) as profile:
            run()
        clear(form, tokens)
        with FlopCounterMode(display=False) as flops:
            run()
        clear(form, tokens)
        assert counted["flops"] == flops.get_total_flops() > 0
        assert profile.profiler is not None
        events: Any = profile.profiler.kineto_results.events()
        memory = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        live = peak = 0
        for _, size in memory:
            live += size
            peak = max(peak, live)
        assert counted["peak_bytes"] == pytest.approx(peak, rel=0.05)


def test_a_measurement_says_all_it_promises() -> None:
    shape = shape_of(full_lengths(4, 32, 10), width=32)
    result = measure_tower(shape, SMALL, CPU, LIMITS, num_rounds=2)
    assert torch.cuda.is_available() or result["missing"].keys() == {"fused"}
    assert result["shape"]["events_per_example"] == 40
    tokens_bytes = 4 * 32 * 32 * (5 + 40)
    assert result["passes"]["forward"]["least_bytes"] == tokens_bytes
    assert result["passes"]["forward_backward"]["least_bytes"] == 3 * tokens_bytes
    for kind in ("forward", "forward_backward"):
        literal, eager = (result["passes"][kind]["forms"][name] for name in ("literal", "eager"))
        assert literal["flops"] > 2 * eager["flops"] > 0
        assert literal["peak_bytes"] > eager["peak_bytes"] > 0
        assert literal["moved_bytes"] > eager["moved_bytes"] > result["passes"][kind]["least_bytes"]
        for facts in (literal, eager):
            s = facts["ms"] / 1e3
            roof_s = max(result["passes"][kind]["least_bytes"] / 1e10, eager["flops"] / 1e11)
            assert facts["fraction_of_roofline"] == pytest.approx(roof_s / s)
            assert facts["examples_per_s"] == pytest.approx(32 / s)
            assert len(facts["ms_of_rounds"]) == 2
    json.dumps(result)


def test_a_form_that_would_not_fit_is_left_out_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of(full_lengths(4, 32, 10))
    monkeypatch.setattr("infnet_rec.benchmark.forms.tower.MAX_BYTES", 50_000)
    result = measure_tower(shape, SMALL, CPU, LIMITS, num_rounds=1, passes=("forward",))
    assert result["passes"]["forward"]["forms"].keys() == {"eager"}
    assert "GiB" in result["missing"]["literal"]


def test_runs_take_turns() -> None:
    seen: list[str] = []
    taken = alternate({name: lambda name=name: seen.append(name) for name in "ab"}, CPU, num_rounds=2)
    turns = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    assert turns == list("abababab"[:6])
    assert [len(values) for values in taken.values()] == [2, 2]


def test_slopes_are_those_of_the_points() -> None:
    assert fit([(10, 25.0), (20, 45.0), (40, 85.0)]) == pytest.approx(
        {"us_per_event": 2.0, "us_per_example": 5.0, "r_squared": 1.0}
    )
    points = [
        {
            "shape": {"width": 8, "events_per_example": events},
            "passes": {"forward_backward": {"forms": {"eager": {"examples_per_s": 1e6 / (3 * events + 7)}}}},
        }
        for events in (5, 10, 20)
    ]
    (line,) = slopes(points)
    assert (line["width"], line["form"]) == (8, "eager")
    assert line["us_per_event"] == pytest.approx(3) and line["us_per_example"] == pytest.approx(7)


def test_a_batch_without_dedup_names_every_token(small_store: Path) -> None:
    from infnet_rec.data.loader import BatchReader
    from infnet_rec.data.store import Store

    store = Store(small_store)
    schema = store.profile_schema("ctx89")
    batch = BatchReader(store, "train", schema, 10).read(np.arange(100, 108))
    plain = every_token(batch, schema)
    assert plain.sequences.values().numel() == batch.spread_K.numel()
    first = len(schema.shared_features) * 8
    ids = batch.sequences.values()[batch.spread_K[first:]]
    start = 0
    for sequence, lengths_B in zip(schema.sequences, batch.lengths_FB, strict=True):
        part = plain.sequences[sequence.name]
        assert torch.equal(part.lengths(), lengths_B)
        assert torch.equal(part.values(), ids[start : start + int(lengths_B.sum())])
        start += int(lengths_B.sum())
