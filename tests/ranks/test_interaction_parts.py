"""What the seven models are made of, and what they do only while training.

Shapes: B examples, F sequences, N events of one behaviour, P pairs of neighbouring events, X values of an event.
"""

import dataclasses

import pytest
import torch
from torch import nn

import interaction_loops as loops
from infnet_rec.config.baselines import DcnConfig, DienConfig, DinConfig, FmConfig, GdcnConfig, HstuConfig, WukongConfig
from infnet_rec.config.toml import validate_model
from infnet_rec.errors import UserError
from infnet_rec.models.auxiliary import carry_loss
from infnet_rec.models.baselines import dien, hstu
from infnet_rec.models.baselines.dien import Dien
from infnet_rec.models.baselines.din import Dice, Din
from infnet_rec.models.baselines.fields import BatchNorm
from infnet_rec.models.baselines.fm import Fm
from infnet_rec.models.baselines.hstu import Hstu, what_sees_what
from infnet_rec.models.tokens import Tokens
from infnet_rec.trainer.evaluator import agree_on_statistics
from rank_pair import RankPair
from test_interaction_models import CASES, LAYOUT, LENGTHS_FB, WIDTH, examples_of, kuairand, make_model, make_tokens


def test_fm_has_a_column_for_each_task_and_role_and_no_other_column_matters():
    """Roles are a feature, or a sequence of one of the behaviours: 1 + 4 of them, and 1 + 3 in the tests' layout."""
    assert [Fm.table_width(kuairand(t), 16) for t in (1, 3)] == [16 + 8, 16 + 16]
    three_tasks = dataclasses.replace(LAYOUT, num_tasks=3, behaviour_of_sequence=(0, 0, 0, 1, 1))
    assert Fm.table_width(three_tasks, WIDTH) == WIDTH + 12
    torch.manual_seed(0)
    model, tokens = Fm(three_tasks, FmConfig(width=WIDTH)).double(), make_tokens(WIDTH + 12)
    assert sum(p.numel() for p in model.parameters()) == 3 + 3 * WIDTH

    logits_BT = model(tokens)
    with torch.no_grad():
        for values in (tokens.categorical_BMD, tokens.sequence_LD):
            values[..., WIDTH + 9 :] += 1
    assert torch.equal(model(tokens), logits_BT)
    with torch.no_grad():
        tokens.sequence_LD[-1, WIDTH + 8] += 1
    assert int((model(tokens) != logits_BT).sum()) == 1


def test_tasks_of_a_new_fm_agree_but_for_their_linear_weights():
    model = Fm(dataclasses.replace(LAYOUT, num_tasks=3), FmConfig(width=WIDTH)).double()
    tokens = make_tokens(WIDTH + 12)
    with torch.no_grad():
        for values in (tokens.categorical_BMD, tokens.sequence_LD):
            values[..., WIDTH:] = 0
    logits_BT = model(tokens)
    torch.testing.assert_close(logits_BT, logits_BT[:, :1].expand(-1, 3), rtol=1e-12, atol=1e-12)


def test_dice_learns_its_statistics_from_the_events_that_exist():
    torch.manual_seed(0)
    model, tokens = Din(LAYOUT, DinConfig(width=WIDTH)).double(), make_tokens(WIDTH)
    name = "attention.1"
    weights = dict(model.named_parameters())
    hidden = []
    for x in examples_of(tokens, LAYOUT):
        _, query, events = loops.candidate_and_events(x, 1)
        for event in events:
            inputs = torch.cat([query, event, query - event, query * event])
            hidden.append(loops.linear(weights, f"{name}.layers.0", inputs))
    model.train()(tokens)

    hidden_NH = torch.stack(hidden)
    assert len(hidden_NH) == int(LENGTHS_FB[3].sum())
    norm = model.get_submodule(f"{name}.dices.0.norm")
    torch.testing.assert_close(norm.running_mean, 0.01 * hidden_NH.mean(0))
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * hidden_NH.var(0))


def test_a_new_dice_is_a_smooth_relu():
    dice = Dice(2).eval()
    torch.testing.assert_close(dice(torch.tensor([[9.0, -9.0]])), torch.tensor([[9.0, 0.0]]), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_one_row_is_normalised_by_what_others_left(num_rows):
    norm = BatchNorm(3).train()
    norm(torch.randn(50, 3) + 5)
    before = norm.running_mean.clone()
    rows = torch.randn(num_rows, 3)

    torch.testing.assert_close(norm(rows), norm.eval()(rows))
    assert torch.equal(norm.running_mean, before)


def statistics_of_a_rank(rank: int, world_size: int) -> list[list[float]]:
    """Runs on a rank: what is left after ranks that have seen other rows agree."""
    model = nn.Sequential(BatchNorm(2, momentum=1.0), nn.Linear(2, 1), Dice(1))
    model(torch.tensor([[0.0, 1.0], [2.0, 1.0]]) + 10 * rank)
    agree_on_statistics(model)
    norms = (model[0], model[2].norm)
    return [value.tolist() for norm in norms for value in (norm.running_mean, norm.running_var)]


def test_ranks_agree_on_what_they_normalise_by(ranks: RankPair):
    first, second = ranks(statistics_of_a_rank)
    assert first == second
    assert first[:2] == [[6.0, 6.0], [2.0, 0.0]]


def test_another_examples_event_is_drawn_and_each_of_them_now_and_then():
    lengths_B = torch.tensor([2, 0, 3, 1])
    event_NX = torch.arange(6.0)[:, None]
    owner_N = torch.repeat_interleave(torch.arange(4), lengths_B)
    example_P = torch.tensor([0, 2, 3]).repeat(300)
    torch.manual_seed(0)
    drawn_PX, weight_P = dien._others(event_NX, lengths_B, example_P)

    for b in (0, 2, 3):
        seen = set(drawn_PX[example_P == b, 0].long().tolist())
        assert seen == set(torch.where(owner_N != b)[0].tolist())
    assert bool((weight_P == 1).all())


def test_an_example_that_is_alone_has_no_other_event():
    _, weight_P = dien._others(torch.ones(3, 1), torch.tensor([0, 3]), torch.tensor([1, 1]))
    assert weight_P.tolist() == [0, 0]


def test_a_carried_loss_adds_its_gradient_and_nothing_else():
    x = torch.tensor([[1.0], [2.0]], requires_grad=True)
    carried = carry_loss(3 * x, x.square().sum())
    assert torch.equal(carried, 3 * x)

    (5 * carried).sum().backward()

    assert torch.equal(x.grad, 15 + 2 * x)


def test_diens_auxiliary_loss_is_the_papers(monkeypatch):
    """The random event is a fixed one here: which event goes with which pair is then no matter."""
    torch.manual_seed(0)
    options = DienConfig(width=WIDTH, auxiliary_weight=0.7, auxiliary_hidden=(6, 3), batch_norm=False)
    model = make_model(dataclasses.replace(CASES["dien"], options=options), 1)
    tokens = make_tokens(WIDTH)
    fixed = {values: torch.randn(values, dtype=torch.float64) for values in (WIDTH, 2 * WIDTH)}

    def others(event_NX, lengths_B, example_P):
        assert all(int(lengths_B[b]) > 1 for b in example_P)
        return fixed[event_NX.shape[1]].expand(len(example_P), -1), torch.ones(len(example_P), dtype=torch.float64)

    monkeypatch.setattr(dien, "_others", others)
    weights = dict(model.named_parameters())
    losses = []
    for behaviour in (0, 1):
        terms = []
        for x in examples_of(tokens, LAYOUT):
            _, query, events = loops.candidate_and_events(x, behaviour)
            states = loops.interests(weights, f"evolutions.{behaviour}.gru", events)
            for state, following in zip(states, events[1:], strict=False):
                name = f"evolutions.{behaviour}.tells_next"
                p_next = torch.sigmoid(loops.mlp(weights, name, torch.cat([state, following])))
                p_other = torch.sigmoid(loops.mlp(weights, name, torch.cat([state, fixed[len(query)]])))
                terms.append(-torch.log(p_next) - torch.log(1 - p_other))
        losses.append(sum(terms) / len(terms))
    auxiliary = 0.7 * sum(losses).squeeze() / 2

    plain_BT = model.eval()(tokens)
    logits_BT = model.train()(tokens)
    assert torch.equal(logits_BT, plain_BT)
    wanted = [tokens.categorical_BMD, tokens.sequence_LD, *weights.values()]
    got = torch.autograd.grad(logits_BT.sum(), wanted)
    expected = torch.autograd.grad(plain_BT.sum() + auxiliary, wanted, materialize_grads=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_an_auxiliary_network_exists_only_where_it_weighs():
    names = [name for name, _ in Dien(LAYOUT, DienConfig(width=WIDTH, auxiliary_weight=0)).named_parameters()]
    assert not [name for name in names if "tells_next" in name]


def test_hstus_scores_come_in_portions_that_do_not_show(monkeypatch):
    torch.manual_seed(0)
    model, tokens = make_model(CASES["hstu"], 3), make_tokens(WIDTH)
    logits_BT = model(tokens)
    monkeypatch.setitem(hstu.SCORES_AT_ONCE, "cpu", 1)
    torch.testing.assert_close(model(tokens), logits_BT, rtol=1e-12, atol=1e-12)


def test_hstus_layers_have_their_own_width_where_one_is_given():
    shapes = {
        own: {n: tuple(p.shape) for n, p in Hstu(LAYOUT, HstuConfig(width=4, transducer_width=own)).named_parameters()}
        for own in (0, 4, 6)
    }
    assert shapes[0] == shapes[4]
    assert not [name for name in shapes[0] if name.startswith("context_layer")]
    of_context = {"context_layer.weight": (6, 4), "context_layer.bias": (6,)}
    assert shapes[6].keys() == shapes[0].keys() | of_context.keys()
    assert shapes[6].items() >= of_context.items()
    assert shapes[6]["event.0.weight"] == (6, 12) and shapes[6]["target.weight"] == (6, 8)
    assert shapes[6]["layers.1.key_and_value.weight"] == (12, 6) and shapes[6]["norm.weight"] == (6,)
    assert shapes[6]["heads.towers.0.layers.0.weight"] == (64, 6)


def test_hstu_with_its_own_width_and_no_context_has_no_layer_for_it():
    """Its parameters would never get a gradient."""
    layout = dataclasses.replace(LAYOUT, feature_names=("item", "author"), target_of_sequence=(0, 1, None, 1, None))
    model, tokens = Hstu(layout, HstuConfig(width=WIDTH, transducer_width=6)).double(), make_tokens(WIDTH)
    model(Tokens(tokens.categorical_BMD[:, 1:3], tokens.sequence_LD, LENGTHS_FB)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_hstus_mask():
    """Two context tokens, three events, the target."""
    assert what_sees_what(2, 3, torch.ones(1)).tolist() == [
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],
    ]


def test_the_order_of_events_matters_to_dien_and_hstu_and_not_to_din():
    tokens = make_tokens(WIDTH)
    runs = tokens.sequence_LD.split(LENGTHS_FB.flatten().tolist())
    turned = Tokens(tokens.categorical_BMD, torch.cat([run.flip(0) for run in runs]), LENGTHS_FB)
    for name in ("din", "dien", "hstu"):
        torch.manual_seed(0)
        model = make_model(CASES[name], 1)
        assert torch.allclose(model(turned), model(tokens)) == (name == "din")


@pytest.mark.parametrize("name", [name for name in CASES if name != "fm"])
def test_dropout_acts_while_training_only(name):
    torch.manual_seed(0)
    case, tokens = CASES[name], make_tokens(WIDTH)
    # Without batch normalisation, which also behaves differently then.
    change = {"dropout": 0.5} | ({"batch_norm": False} if hasattr(case.options, "batch_norm") else {})
    if not getattr(case.options, "deep_hidden", (1,)):
        change["deep_hidden"] = (8,)
    model = make_model(dataclasses.replace(case, options=case.options.model_copy(update=change)), 1)
    for module in model.modules():
        if isinstance(module, Dice):
            module.norm.eval()

    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("section", "keys", "words"),
    [
        (DcnConfig, {"rank": 0, "num_experts": 0}, ["rank = 0: ", "num_experts = 0: ", "greater than or equal to 1"]),
        (DcnConfig, {"cross": "ful"}, ["cross = 'ful'", "did you mean 'full'?"]),
        (GdcnConfig, {"structure": "paralel"}, ["did you mean 'parallel'?"]),
        (GdcnConfig, {"deep_hidden": [4, 0]}, ["deep_hidden.1 = 0"]),
        (WukongConfig, {"rank": -1}, ["rank = -1"]),
        (DinConfig, {"attention_hidden": []}, ["attention_hidden = []", "at least 1 item"]),
        (DienConfig, {"auxiliary_weight": -1.0}, ["auxiliary_weight = -1.0", "greater than or equal to 0"]),
        (HstuConfig, {"dropout": 1.0, "max_tokens": 0}, ["dropout = 1.0", "max_tokens = 0"]),
        (HstuConfig, {"transducer_width": -2}, ["transducer_width = -2", "greater than or equal to 0"]),
    ],
)
def test_faults_name_the_key_its_value_and_the_rule(section, keys, words):
    with pytest.raises(UserError) as caught:
        validate_model(section, keys, "the section")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Hstu(LAYOUT, HstuConfig(width=4, num_heads=3)), ["num_heads is 3", "divide width 4", "[1, 2, 4]"]),
        (
            lambda: Hstu(LAYOUT, HstuConfig(width=4, num_heads=4, transducer_width=6)),
            ["hstu: num_heads is 4", "divide transducer_width 6", "[1, 2, 3, 6]"],
        ),
        (
            lambda: Hstu(dataclasses.replace(LAYOUT, target_of_sequence=(None,) * 5), HstuConfig(width=4)),
            ["hstu: no sequence has an attribute"],
        ),
    ],
)
def test_what_does_not_fit_the_data_is_named(make, words):
    with pytest.raises(UserError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
