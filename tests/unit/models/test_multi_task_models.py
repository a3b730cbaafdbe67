"""Shared-Bottom, MMoE, OMoE, PLE and STEM against their equations, and what must hold whatever the weights.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens, T tasks, D width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import expert_loops as loops
from infnet_rec.config.baselines import MmoeConfig, PleConfig, SharedBottomConfig, StemConfig
from infnet_rec.config.model import ModelConfig
from infnet_rec.config.toml import validate_model
from infnet_rec.errors import UserError
from infnet_rec.models.baselines.mmoe import Mmoe
from infnet_rec.models.baselines.ple import Ple
from infnet_rec.models.baselines.shared_bottom import SharedBottom
from infnet_rec.models.baselines.stem import Stem
from infnet_rec.models.tokens import TokenLayout, Tokens
from interaction_loops import Example

WIDTH = 4
LAYOUT = TokenLayout(
    feature_names=("user", "item", "hour"),
    sequence_names=("click_item", "click_author", "like_item"),
    behaviour_of_sequence=(0, 0, 1),
    group_of_sequence=(0, 0, 1),
    target_of_sequence=(1, None, 1),
    num_tasks=3,
)
# Per example: nothing at all; one event; ragged; a long history; one behaviour only.
CLICKS, LIKES = [0, 1, 3, 9, 0], [0, 0, 2, 1, 4]
LENGTHS_FB = torch.tensor([CLICKS, CLICKS, LIKES])


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with options, and its equations."""

    model: Callable[..., nn.Module]
    options: Any
    loop: Callable[..., Tensor]
    more: tuple[Any, ...] = ()

    def layout(self, num_tasks: int) -> TokenLayout:
        return dataclasses.replace(LAYOUT, num_tasks=num_tasks)

    def width(self, num_tasks: int) -> int:
        return Stem.table_width(self.layout(num_tasks), WIDTH) if self.model is Stem else WIDTH


SIZES: dict[str, Any] = {"expert_hidden": (7, 6), "gate_hidden": (5, 3), "head_hidden": (4,)}
TWO_OWN: dict[str, Any] = {"num_shared_experts": 3, "num_specific_experts": 2, **SIZES}
CASES = {
    "shared_bottom": Case(
        SharedBottom, SharedBottomConfig(width=WIDTH, bottom_hidden=(7, 6), head_hidden=(4,)), loops.shared_bottom
    ),
    "shared_bottom_flat": Case(
        SharedBottom, SharedBottomConfig(width=WIDTH, bottom_hidden=(), head_hidden=()), loops.shared_bottom
    ),
    "mmoe": Case(Mmoe, MmoeConfig(width=WIDTH, num_experts=3, **SIZES), loops.mmoe),
    "mmoe_linear_gate": Case(
        Mmoe, MmoeConfig(width=WIDTH, num_experts=2, expert_hidden=(5,), gate_hidden=(), head_hidden=()), loops.mmoe
    ),
    "omoe": Case(Mmoe, MmoeConfig(name="omoe", width=WIDTH, num_experts=3, **SIZES), loops.omoe),
    "ple": Case(Ple, PleConfig(width=WIDTH, **TWO_OWN), loops.ple, (1,)),
    "ple_two_layers": Case(Ple, PleConfig(width=WIDTH, num_layers=2, **TWO_OWN), loops.ple, (2,)),
    "ple_three_layers": Case(Ple, PleConfig(width=WIDTH, num_layers=3, num_shared_experts=1, **SIZES), loops.ple, (3,)),
    "stem": Case(Stem, StemConfig(width=WIDTH, **TWO_OWN), loops.stem),
    "stem_one_own": Case(Stem, StemConfig(width=WIDTH, num_shared_experts=2, **SIZES), loops.stem),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make_tokens(width: int, lengths_FB: Tensor = LENGTHS_FB) -> Tokens:
    num_examples, num_events = lengths_FB.shape[1], int(lengths_FB.sum())
    return Tokens(
        torch.randn(num_examples, len(LAYOUT.feature_names), width, dtype=torch.float64, requires_grad=True),
        torch.randn(num_events, width, dtype=torch.float64, requires_grad=True),
        lengths_FB,
    )


def make_model(case: Case, num_tasks: int = 3) -> nn.Module:
    """No weight is at a special value, and nearly no ReLU is dead."""
    model = case.model(case.layout(num_tasks), case.options).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
            if name.endswith("bias"):
                parameter.add_(0.3)
    return model


def runs_of(tokens: Tokens) -> list[list[Tensor]]:
    """The events of each sequence and example: F lists of B tensors."""
    runs = tokens.sequence_LD.split(tokens.lengths_FB.flatten().tolist())
    num_sequences, num_examples = tokens.lengths_FB.shape
    return [list(runs[f * num_examples : (f + 1) * num_examples]) for f in range(num_sequences)]


def gradients(logits_BT: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    direction_BT = torch.linspace(-1, 2, logits_BT.numel(), dtype=logits_BT.dtype).view_as(logits_BT)
    found = torch.autograd.grad(logits_BT, list(wanted.values()), direction_BT)
    return dict(zip(wanted, found, strict=True))


@every_case
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_logits_and_gradients_are_those_of_the_equations(case: Case, num_tasks: int) -> None:
    torch.manual_seed(0)
    model, tokens = make_model(case, num_tasks), make_tokens(case.width(num_tasks))
    wanted = {"categorical": tokens.categorical_BMD, "sequence": tokens.sequence_LD, **dict(model.named_parameters())}
    logits_BT, runs = model(tokens), runs_of(tokens)
    examples = [
        Example(list(tokens.categorical_BMD[b]), [list(mine[b]) for mine in runs], case.layout(num_tasks))
        for b in range(LENGTHS_FB.shape[1])
    ]
    weights = dict(model.named_parameters())
    expected_BT = torch.stack([case.loop(weights, x, WIDTH, *case.more) for x in examples])

    assert logits_BT.shape == (LENGTHS_FB.shape[1], num_tasks)
    torch.testing.assert_close(logits_BT, expected_BT, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(logits_BT, wanted), gradients(expected_BT, wanted), rtol=1e-8, atol=1e-8)


@every_case
@pytest.mark.parametrize("lengths_FB", [LENGTHS_FB, torch.zeros_like(LENGTHS_FB)], ids=["ragged", "no events"])
def test_every_parameter_learns(case: Case, lengths_FB: Tensor) -> None:
    """DistributedDataParallel waits for ever for a parameter that gets no gradient."""
    torch.manual_seed(0)
    model = make_model(case)
    logits_BT = model(make_tokens(case.width(3), lengths_FB))
    logits_BT.square().sum().backward()

    assert torch.isfinite(logits_BT).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} gets no gradient"


@every_case
def test_other_examples_never_change_a_logit(case: Case) -> None:
    """Nor does the padding that their longer histories might bring."""
    torch.manual_seed(0)
    model, tokens = make_model(case), make_tokens(case.width(3))
    logits_BT, runs = model(tokens), runs_of(tokens)
    for b in range(LENGTHS_FB.shape[1]):
        own = torch.cat([mine[b] for mine in runs])
        alone = Tokens(tokens.categorical_BMD[b : b + 1], own, LENGTHS_FB[:, b : b + 1])
        torch.testing.assert_close(model(alone)[0], logits_BT[b], rtol=1e-12, atol=1e-12)


@every_case
def test_a_model_from_the_meta_device_starts_like_any_other(case: Case) -> None:
    torch.manual_seed(7)
    at_once = case.model(LAYOUT, case.options)
    with torch.device("meta"):
        later = case.model(LAYOUT, case.options)
    later.to_empty(device="cpu")
    torch.manual_seed(7)
    for module in later.modules():
        getattr(module, "reset_parameters", lambda: None)()

    assert not list(later.buffers())
    torch.testing.assert_close(later.state_dict(), at_once.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["stem", "stem_one_own"])
def test_no_task_teaches_anothers_experts_or_embeddings(name: str) -> None:
    """They count in its logit all the same; the shared ones learn from every task."""
    torch.manual_seed(0)
    case = CASES[name]
    model, tokens = make_model(case), make_tokens(case.width(3))
    logits_BT = model(tokens)
    for t in range(3):
        model.zero_grad()
        tokens.categorical_BMD.grad = None
        logits_BT[:, t].sum().backward(retain_graph=True)
        grads = {s: [p.grad for p in model.task_experts[s].parameters()] for s in range(3)}
        taught = {s for s in range(3) if any(grad is not None and grad.any() for grad in grads[s])}
        assert taught == {t}
        assert all(p.grad is not None and p.grad.any() for p in model.shared_experts.parameters())
        assert tokens.categorical_BMD.grad is not None
        moved = tokens.categorical_BMD.grad.unflatten(2, (4, WIDTH)).abs().sum(dim=(0, 1, 3)) > 0
        assert moved.tolist() == [t == 0, t == 1, t == 2, True]
    with torch.no_grad():
        for parameter in model.task_experts[2].parameters():
            parameter.add_(0.5)
    assert (model(tokens)[:, 0] != logits_BT[:, 0]).all()


def test_one_gate_mixes_for_all_tasks_and_one_of_each_for_itself() -> None:
    torch.manual_seed(0)
    for model, num_alike in ((make_model(CASES["omoe"]), 3), (make_model(CASES["mmoe"]), 1)):
        with torch.no_grad():
            for tower in model.heads.towers:
                tower.load_state_dict(model.heads.towers[0].state_dict())
        logits_BT = model(make_tokens(WIDTH))
        assert [len(row.unique()) for row in logits_BT] == [4 - num_alike] * len(logits_BT)


@pytest.mark.slow(smoke=["mmoe", "shared_bottom"])
@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple_two_layers", "stem"])
def test_a_tower_is_compiled_whole(name: str) -> None:
    torch.manual_seed(0)
    model, tokens = make_model(CASES[name]), make_tokens(CASES[name].width(3))
    logits_BT = model(tokens)
    model.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(tokens), logits_BT, rtol=1e-12, atol=1e-12)


def kuairand() -> TokenLayout:
    """89 features, 4 behaviours of 7 attributes, 3 tasks."""
    behaviours = tuple(f // 7 for f in range(28))
    names = tuple(f"f{m}" for m in range(89)), tuple(f"s{f}" for f in range(28))
    return TokenLayout(*names, behaviours, behaviours, tuple(f % 7 for f in range(28)), 3)


@pytest.mark.parametrize(
    ("model", "options", "reference", "difference"),
    [
        (SharedBottom, SharedBottomConfig(), 1_197_699, 0),
        (Mmoe, MmoeConfig(), 9_805_659, 0),
        (Mmoe, MmoeConfig(name="omoe"), 9_308_619, 0),
        # The gate of the last layer's shared stream, which nothing reads: 1872 -> 128 -> 64 -> 8 experts.
        (Ple, PleConfig(), 13_423_974, -248_520),
        # The same of the second layer, 128 -> 128 -> 64 -> 8; the first layer's mixes 8 + 3 experts.
        (Ple, PleConfig(num_layers=2), 16_058_313, -25_288 + 3 * (64 + 1)),
        # The same, of 11 experts.
        (Stem, StemConfig(), 13_424_559, -248_715),
    ],
)
def test_parameter_counts_are_those_of_the_reference_implementations(
    model: Callable[..., nn.Module], options: Any, reference: int, difference: int
) -> None:
    """d = 16, fields of 89 features and 28 pooled sequences; what is left out is dead there."""
    with torch.device("meta"):
        tower = model(kuairand(), options)
    assert sum(p.numel() for p in tower.parameters()) == reference + difference


def test_stems_tables_are_wide() -> None:
    assert Stem.table_width(kuairand(), 16) == 64


@pytest.mark.parametrize(
    ("section", "keys", "words"),
    [
        (
            SharedBottomConfig,
            {"bottom_hidden": [8, 0]},
            ["bottom_hidden.1 = 0: ", "than or equal to 1"],
        ),
        (
            MmoeConfig,
            {"num_experts": 0, "dropout": 1.0},
            ["num_experts = 0", "dropout = 1.0: ", "less than 1"],
        ),
        (PleConfig, {"num_layers": 0}, ["num_layers = 0", "greater than or equal to 1"]),
        (StemConfig, {"num_specific_experts": 0}, ["num_specific_experts = 0"]),
    ],
)
def test_faults_name_the_key_its_value_and_the_rule(
    section: type[ModelConfig], keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        validate_model(section, keys, "the section")
    for word in words:
        assert word in str(caught.value)
