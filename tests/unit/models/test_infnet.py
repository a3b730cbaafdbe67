"""INFNet against the paper's equations, and what must hold of it whatever the weights.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens, T tasks, D width.
"""

from itertools import product
from typing import get_args

import pytest
import torch

import literal
from infnet_rec.config.model import Ablation, InfnetConfig
from infnet_rec.config.toml import validate_model
from infnet_rec.errors import UserError
from infnet_rec.models.infnet import jagged_attention
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.tokens import Tokens
from paper_check import (
    BY_BEHAVIOUR,
    BY_SEQUENCE,
    LENGTHS_FB,
    SMALL,
    build,
    changed,
    check_against_paper,
    make_model,
    make_tokens,
)

ABLATIONS = get_args(Ablation)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest example is read alone, the next two together, the rest at once."""
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", 20)


@pytest.mark.slow(
    smoke=["none-both-none", "layer-none-no_gates", "none-gate-no_cross_attention", "layer-proxy-no_task_tokens"]
)
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("residual", ["both", "proxy", "gate", "none"])
@pytest.mark.parametrize("proxy_norm", ["none", "layer"])
def test_every_variant_is_the_papers_equations(ablation, residual, proxy_norm):
    groupings = ((BY_BEHAVIOUR, "sum"), (BY_SEQUENCE, "mean"), (BY_SEQUENCE, "sum"), ((1, 0, 1, 0), "mean"))
    for (num_heads, num_blocks), (groups, pooling) in zip(product((1, 2), (2, 3)), groupings, strict=True):
        options = changed(
            SMALL,
            ablation=ablation,
            residual=residual,
            proxy_norm=proxy_norm,
            num_heads=num_heads,
            num_blocks=num_blocks,
            pooling=pooling,
        )
        check_against_paper(options, groups, 1e-10, torch.float64)


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 4},
        {"num_blocks": 4, "residual": "none", "num_heads": 4},
        {"num_blocks": 1, "ablation": "no_task_tokens"},
        {"num_blocks": 1, "ablation": "no_gates"},
        {"num_blocks": 1, "ablation": "no_cross_attention"},
        {"ablation": "no_task_tokens", "ablation_head": "late"},
        {"ablation": "no_task_tokens", "ablation_head": "late", "num_blocks": 3, "num_heads": 2, "residual": "none"},
        {"ablation": "no_cross_attention", "ablation_head": "late"},
        {"ablation": "no_cross_attention", "ablation_head": "late", "num_blocks": 3, "residual": "none"},
        {"readout": "proxies"},
        {"readout": "proxies", "num_blocks": 1, "num_heads": 2},
        {"readout": "proxies", "num_blocks": 3, "residual": "none", "proxy_norm": "layer"},
        {"num_categorical_proxies": 1, "num_shared_tokens": 1},
        {"num_categorical_proxies": 7, "num_shared_tokens": 3},
        {"proxy_hidden": (), "gate_hidden": (), "head_hidden": ()},
        {"proxy_hidden": (9, 4), "gate_hidden": (5, 3), "head_hidden": (4,)},
    ],
)
def test_other_sizes_are_the_papers_equations(change):
    check_against_paper(changed(SMALL, **change), BY_BEHAVIOUR, 1e-10, torch.float64)


@pytest.mark.parametrize(("ablation", "readout"), [*((name, "task") for name in ABLATIONS), ("none", "proxies")])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_single_precision_agrees_to_1e_5(ablation, readout, num_heads):
    options = changed(SMALL, ablation=ablation, readout=readout, num_heads=num_heads)
    check_against_paper(options, BY_BEHAVIOUR, 1e-5, torch.float32)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("proxy_norm", ["none", "layer"])
def test_every_parameter_learns(ablation, proxy_norm):
    """DistributedDataParallel waits for ever for a parameter that gets no gradient."""
    for num_blocks in (2, 3):
        torch.manual_seed(0)
        model = make_model(changed(SMALL, ablation=ablation, proxy_norm=proxy_norm, num_blocks=num_blocks))
        model(make_tokens()).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_every_parameter_learns_where_heads_read_proxies(num_blocks):
    torch.manual_seed(0)
    model = make_model(changed(SMALL, readout="proxies", num_blocks=num_blocks))
    model(make_tokens()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_batch_without_events_is_finite_and_still_reaches_every_parameter(ablation):
    torch.manual_seed(0)
    model = make_model(changed(SMALL, ablation=ablation))
    logits_BT = model(make_tokens(torch.zeros(4, 3, dtype=torch.int64)))
    logits_BT.sum().backward()

    assert torch.isfinite(logits_BT).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def example(tokens: Tokens, b: int) -> Tokens:
    """A batch of one example of another batch."""
    runs = tokens.sequence_LD.split(tokens.lengths_FB.flatten().tolist())
    num_sequences, num_examples = tokens.lengths_FB.shape
    own = torch.cat([runs[f * num_examples + b] for f in range(num_sequences)])
    return Tokens(tokens.categorical_BMD[b : b + 1], own, tokens.lengths_FB[:, b : b + 1])


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_other_examples_never_change_a_logit(ablation):
    torch.manual_seed(0)
    model, tokens = make_model(changed(SMALL, ablation=ablation, num_blocks=3)), make_tokens()
    logits_BT = model(tokens)
    for b in range(LENGTHS_FB.shape[1]):
        torch.testing.assert_close(model(example(tokens, b))[0], logits_BT[b], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_order_of_events_inside_a_behaviour_does_not_matter(ablation):
    torch.manual_seed(0)
    model, tokens = make_model(changed(SMALL, ablation=ablation)), make_tokens()
    runs = tokens.sequence_LD.split(LENGTHS_FB.flatten().tolist())
    shuffled_LD = torch.cat([run[torch.randperm(len(run))] for run in runs])
    assert not torch.equal(shuffled_LD, tokens.sequence_LD)

    got_BT = model(Tokens(tokens.categorical_BMD, shuffled_LD, LENGTHS_FB))

    torch.testing.assert_close(got_BT, model(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_groups", "literal_count"), [(28, 289_155), (4, None)])
def test_parameter_count_is_the_papers_minus_what_is_dead(num_groups, literal_count):
    """KuaiRand's 89 categorical features and 28 sequences, d = 16, 3 tasks, m = 4, Ns = 2, hidden 128 / 64 / [64, 32].

    After the last block only T is read. T comes from T^ and T~', so the last block needs neither the four flows that
    make C~' and S~' (three d x d weights each) nor the gates that make C' and S'. Everything else is alive.
    """
    d, m, n_s, h_g, num_tasks = 16, 4, 2, 64, 3
    gate = {k: k * d * h_g + h_g + h_g * d + d for k in (m, num_groups, n_s)}
    stem = (89 * d * 128 + 128 + 128 * m * d + m * d) + (d * d + d) + (num_tasks + n_s) * d
    block = 8 * 3 * d * d + gate[m] + gate[num_groups] + gate[n_s]
    heads = num_tasks * ((d * 64 + 64) + (64 * 32 + 32) + (32 + 1))
    whole = stem + 2 * block + heads
    dead = 4 * 3 * d * d + gate[m] + gate[num_groups]

    groups = tuple(f % num_groups for f in range(28))
    sizes = literal.Sizes(num_features=89, num_tasks=num_tasks, width=d, group_of_sequence=groups)
    assert sum(torch.Size(shape).numel() for shape in literal.shapes(sizes).values()) == whole
    assert literal_count in (None, whole)
    with torch.device("meta"):
        model = Infnet(num_features=89, group_of_sequence=groups, num_tasks=num_tasks, config=InfnetConfig(width=d))
    assert sum(p.numel() for p in model.parameters()) == whole - dead


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_weights_made_on_the_meta_device_are_those_made_at_once(ablation):
    options = changed(SMALL, ablation=ablation, proxy_norm="layer")
    torch.manual_seed(7)
    at_once = build(options, (1, 0, 0, 1))
    with torch.device("meta"):
        later = build(options, (1, 0, 0, 1))
    later.to_empty(device="cpu")
    torch.manual_seed(7)
    for module in later.modules():
        getattr(module, "reset_parameters", lambda: None)()

    # Numbers that belong to the structure come back by themselves, and are no part of the state.
    buffers = dict(later.named_buffers())
    torch.testing.assert_close(buffers, dict(at_once.named_buffers()), rtol=0, atol=0)
    assert not buffers.keys() & later.state_dict().keys()
    torch.testing.assert_close(later.state_dict(), at_once.state_dict(), rtol=0, atol=0)
    tokens = make_tokens(dtype=torch.float32)
    torch.testing.assert_close(later(tokens), at_once(tokens), rtol=0, atol=0)


def test_task_tokens_start_small():
    torch.manual_seed(0)
    model = Infnet(num_features=1, group_of_sequence=(0,), num_tasks=50, config=InfnetConfig(width=64))

    for kind in ("task", "task_proxy"):
        token_PD = model.get_parameter(f"start.{kind}.token_PD").detach()
        assert float(token_PD.std()) == pytest.approx(0.1, rel=0.2)


def test_dropout_acts_on_hidden_layers_while_training_only():
    torch.manual_seed(0)
    plain = make_model()
    dropping = make_model(changed(SMALL, dropout=0.5))
    dropping.load_state_dict(plain.state_dict())
    tokens = make_tokens()

    assert not torch.allclose(dropping(tokens), plain(tokens))
    torch.testing.assert_close(dropping.eval()(tokens), plain(tokens), rtol=0, atol=0)


def test_mixed_precision_on_cpu_stays_near():
    torch.manual_seed(0)
    model, tokens = make_model(dtype=torch.float32), make_tokens(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed_BT = model(tokens)
    mixed_BT.float().sum().backward()

    torch.testing.assert_close(mixed_BT.float(), model(tokens), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_blocks": 1}, ["num_blocks is 1", "at least 2", "untrained"]),
        ({"num_blocks": 0, "ablation": "no_gates"}, ["num_blocks = 0", "greater than or equal to 1"]),
        (
            {"readout": "proxies", "ablation": "no_gates"},
            ["readout is 'proxies'", "'task' with ablation 'no_gates'", "ablation_head"],
        ),
        ({"num_heads": 0, "num_shared_tokens": -1}, ["2 faults", "num_heads = 0", "num_shared_tokens = -1"]),
        ({"num_heads": 3, "num_blocks": 1}, ["width = 16 does not divide by num_heads = 3; and num_blocks is 1"]),
        ({"gate_hidden": [64, 0]}, ["gate_hidden.1 = 0"]),
        ({"dropout": 1.0}, ["dropout = 1.0", "less than 1"]),
        ({"residual": "boht"}, ["residual = 'boht'", "did you mean 'both'?"]),
        ({"pooling": "max"}, ["pooling = 'max'", "sum", "mean"]),
    ],
)
def test_faults_name_the_key_its_value_and_the_rule(keys, words):
    with pytest.raises(UserError) as caught:
        validate_model(InfnetConfig, keys, "the section")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build(SMALL.model_copy(update={"num_heads": 3})), ["num_heads is 3", "width 8", "[1, 2, 4, 8]"]),
        (lambda: build(groups=(0, 2)), ["group_of_sequence is (0, 2)", "0 .. G - 1"]),
        (lambda: build(groups=()), ["group_of_sequence is ()"]),
    ],
)
def test_what_cannot_be_built_is_named(make, words):
    with pytest.raises(UserError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
