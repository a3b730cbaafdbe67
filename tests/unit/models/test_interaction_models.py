"""FM, DIN, DIEN, DCNv2, GDCN, WuKong and HSTU against their equations, and what must hold whatever the weights.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens, T tasks, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interaction_loops as loops
from infnet_rec.config.baselines import DcnConfig, DienConfig, DinConfig, FmConfig, GdcnConfig, HstuConfig, WukongConfig
from infnet_rec.models.baselines.dcn import Dcn
from infnet_rec.models.baselines.dien import Dien
from infnet_rec.models.baselines.din import Din
from infnet_rec.models.baselines.fm import Fm
from infnet_rec.models.baselines.gdcn import Gdcn
from infnet_rec.models.baselines.hstu import Hstu
from infnet_rec.models.baselines.wukong import Wukong
from infnet_rec.models.tokens import TokenLayout, Tokens

WIDTH = 4
# The first behaviour lists three attributes, of which the candidate has two; the third one lists one that it lacks.
LAYOUT = TokenLayout(
    feature_names=("user", "item", "author", "hour", "tag"),
    sequence_names=("click_item", "click_author", "click_time", "like_author", "search_word"),
    behaviour_of_sequence=(0, 0, 0, 1, 2),
    group_of_sequence=(0, 0, 0, 1, 2),
    target_of_sequence=(1, 2, None, 2, None),
    num_tasks=1,
)
# Per example: nothing at all; one event; ragged; a longest history; one behaviour only; two of one length.
CLICKS, LIKES, WORDS = [0, 1, 3, 7, 0, 3], [0, 0, 2, 4, 5, 1], [0, 0, 1, 3, 0, 2]
LENGTHS_FB = torch.tensor([CLICKS, CLICKS, CLICKS, LIKES, WORDS])


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with options, and its equations."""

    model: Callable[..., nn.Module]
    options: Any
    loop: Callable[[loops.Weights, loops.Example], Tensor]

    def layout(self, num_tasks: int) -> TokenLayout:
        return dataclasses.replace(LAYOUT, num_tasks=num_tasks)

    def width(self, num_tasks: int) -> int:
        return Fm.table_width(self.layout(num_tasks), WIDTH) if self.model is Fm else WIDTH


SIZES = {"deep_hidden": (9, 7), "head_hidden": (5,)}
CASES = {
    "fm": Case(Fm, FmConfig(width=WIDTH), lambda w, x: loops.fm(w, x, WIDTH)),
    "dcn": Case(Dcn, DcnConfig(width=WIDTH, num_experts=3, rank=5, batch_norm=True, **SIZES), loops.dcn_mixture),
    "dcn_full": Case(Dcn, DcnConfig(width=WIDTH, cross="full", deep_hidden=(9, 7)), loops.dcn_full),
    "gdcn": Case(Gdcn, GdcnConfig(width=WIDTH, **SIZES), lambda w, x: loops.gdcn(w, x, "stacked")),
    "gdcn_p": Case(
        Gdcn,
        GdcnConfig(width=WIDTH, structure="parallel", num_cross_layers=2, batch_norm=True, deep_hidden=(6,)),
        lambda w, x: loops.gdcn(w, x, "parallel"),
    ),
    "wukong": Case(
        Wukong, WukongConfig(width=WIDTH, num_products=3, num_linear=4, rank=2, product_hidden=(6, 5)), loops.wukong
    ),
    "wukong_same_size": Case(
        Wukong, WukongConfig(width=WIDTH, num_products=6, num_linear=4, batch_norm=False, **SIZES), loops.wukong
    ),
    "din": Case(Din, DinConfig(width=WIDTH, **SIZES), loops.din),
    "din_deep": Case(Din, DinConfig(width=WIDTH, attention_hidden=(6, 3), deep_hidden=(), batch_norm=True), loops.din),
    "dien": Case(Dien, DienConfig(width=WIDTH, auxiliary_hidden=(6, 3)), loops.dien),
    "dien_plain": Case(Dien, DienConfig(width=WIDTH, auxiliary_weight=0, batch_norm=False, **SIZES), loops.dien),
    "hstu": Case(Hstu, HstuConfig(width=WIDTH, dropout=0.1), lambda w, x: loops.hstu(w, x, 2, 256)),
    "hstu_deep": Case(
        Hstu,
        HstuConfig(width=WIDTH, num_layers=3, num_heads=4, max_tokens=20, head_hidden=()),
        lambda w, x: loops.hstu(w, x, 4, 20),
    ),
    "hstu_wide": Case(
        Hstu,
        HstuConfig(width=WIDTH, num_heads=3, head_hidden=(5,), transducer_width=6),
        lambda w, x: loops.hstu(w, x, 3, 256),
    ),
    "hstu_narrow": Case(
        Hstu, HstuConfig(width=WIDTH, num_heads=1, transducer_width=3), lambda w, x: loops.hstu(w, x, 1, 256)
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make_tokens(width: int, lengths_FB: Tensor = LENGTHS_FB) -> Tokens:
    num_examples, num_events = lengths_FB.shape[1], int(lengths_FB.sum())
    return Tokens(
        torch.randn(num_examples, len(LAYOUT.feature_names), width, dtype=torch.float64, requires_grad=True),
        torch.randn(num_events, width, dtype=torch.float64, requires_grad=True),
        lengths_FB,
    )


def make_model(case: Case, num_tasks: int) -> nn.Module:
    """In evaluation mode, with no weight and no statistic at a special value."""
    model = case.model(case.layout(num_tasks), case.options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model.eval()


def runs_of(tokens: Tokens) -> list[list[Tensor]]:
    """The events of each sequence and example: F lists of B tensors."""
    runs = tokens.sequence_LD.split(tokens.lengths_FB.flatten().tolist())
    num_sequences, num_examples = tokens.lengths_FB.shape
    return [list(runs[f * num_examples : (f + 1) * num_examples]) for f in range(num_sequences)]


def examples_of(tokens: Tokens, layout: TokenLayout) -> list[loops.Example]:
    runs = runs_of(tokens)
    return [
        loops.Example(list(tokens.categorical_BMD[b]), [list(mine[b]) for mine in runs], layout)
        for b in range(tokens.lengths_FB.shape[1])
    ]


def gradients(logits_BT: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    direction_BT = torch.linspace(-1, 2, logits_BT.numel(), dtype=logits_BT.dtype).view_as(logits_BT)
    found = torch.autograd.grad(logits_BT, list(wanted.values()), direction_BT, allow_unused=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in zip(wanted.items(), found, strict=True)}


@pytest.mark.slow(only=["1-hstu_deep", "3-hstu_deep", "3-hstu", "1-hstu_wide"])
@every_case
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_logits_and_gradients_are_those_of_the_equations(case, num_tasks):
    torch.manual_seed(0)
    model, tokens = make_model(case, num_tasks), make_tokens(case.width(num_tasks))
    wanted = {"categorical": tokens.categorical_BMD, "sequence": tokens.sequence_LD, **dict(model.named_parameters())}
    logits_BT = model(tokens)
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    expected_BT = torch.stack([case.loop(weights, x) for x in examples_of(tokens, case.layout(num_tasks))])

    assert logits_BT.shape == (LENGTHS_FB.shape[1], num_tasks)
    torch.testing.assert_close(logits_BT, expected_BT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(logits_BT, wanted), gradients(expected_BT, wanted), rtol=1e-8, atol=1e-8)


@every_case
def test_every_parameter_learns(case):
    """DistributedDataParallel waits for ever for a parameter that gets no gradient."""
    torch.manual_seed(0)
    model = make_model(case, 3).train()
    model(make_tokens(case.width(3))).square().sum().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"


@every_case
@pytest.mark.parametrize("num_clicks", [0, 1])
def test_a_batch_with_next_to_no_events_is_finite_and_reaches_every_parameter(case, num_clicks):
    torch.manual_seed(0)
    model, lengths_FB = make_model(case, 3).train(), torch.zeros(5, 4, dtype=torch.int64)
    lengths_FB[:3, 1] = num_clicks
    logits_BT = model(make_tokens(case.width(3), lengths_FB))
    logits_BT.sum().backward()

    assert torch.isfinite(logits_BT).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


@every_case
def test_other_examples_never_change_a_logit(case):
    """Nor does the padding that their longer histories bring."""
    torch.manual_seed(0)
    model, tokens = make_model(case, 3), make_tokens(case.width(3))
    logits_BT, runs = model(tokens), runs_of(tokens)
    for b in range(LENGTHS_FB.shape[1]):
        own = torch.cat([mine[b] for mine in runs])
        alone = Tokens(tokens.categorical_BMD[b : b + 1], own, LENGTHS_FB[:, b : b + 1])
        torch.testing.assert_close(model(alone)[0], logits_BT[b], rtol=1e-12, atol=1e-12)


def reset(model: nn.Module) -> nn.Module:
    """From the meta device to weights, as `parallelize` does it; memory that is not written stays NaN."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.fill_(torch.nan) if value.is_floating_point() else value.fill_(77)
    torch.manual_seed(7)
    for module in model.modules():
        getattr(module, "reset_parameters", lambda: None)()
    return model


@every_case
def test_a_model_from_the_meta_device_starts_like_any_other(case):
    with torch.device("meta"):
        models = [case.model(case.layout(3), case.options) for _ in range(2)]
    models = [reset(model) for model in models]
    at_once = dict(case.model(case.layout(3), case.options).state_dict())

    states = [model.state_dict() for model in models]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    assert states[0].keys() == at_once.keys()
    for name, value in states[0].items():
        assert torch.isfinite(value).all(), name
        drawn = value.is_floating_point() and value.std(correction=0) > 0
        assert drawn or torch.equal(value, at_once[name]), name
    tokens = make_tokens(case.width(3))
    assert torch.isfinite(models[0].double().eval()(tokens)).all()


def kuairand(num_tasks: int) -> TokenLayout:
    """89 features, and 4 behaviours of 7 attributes that the candidate has too."""
    behaviours = tuple(f // 7 for f in range(28))
    names = tuple(f"f{m}" for m in range(89)), tuple(f"s{f}" for f in range(28))
    return TokenLayout(*names, behaviours, behaviours, tuple(f % 7 for f in range(28)), num_tasks)


BODY = {"deep_hidden": (512, 256, 128)}


@pytest.mark.parametrize(
    ("model", "options", "one_task", "each_more"),
    [
        (Fm, FmConfig(), 1, None),  # more than one task brings p: see the next test
        (Din, DinConfig(**BODY), 1_238_789, 128 + 1),
        (Dien, DienConfig(auxiliary_weight=0, batch_norm=False, **BODY), 1_780_993, 128 + 1),
        (Dcn, DcnConfig(cross="full"), 11_643_969, 1872 + 128 + 1),
        (Dcn, DcnConfig(), 2_588_289, 1872 + 128 + 1),
        (Gdcn, GdcnConfig(), 22_155_249, 128 + 1),
        (Gdcn, GdcnConfig(structure="parallel"), 22_157_121, 1872 + 128 + 1),
        (Wukong, WukongConfig(), 207_009, 32 + 1),
    ],
)
def test_parameter_counts_are_those_of_the_reference_implementations(model, options, one_task, each_more):
    """d = 16, fields of 89 features and 28 pooled sequences; more tasks add a head each."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in model(kuairand(t), options).parameters()) for t in (1, 3)]
    assert counts[0] == one_task
    assert each_more is None or counts[1] == one_task + 2 * each_more
