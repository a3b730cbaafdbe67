"""Readings and pooling that hand one gradient of the tokens down a chain, against loops over examples.

Shapes: B examples, F sequences, G groups, L sequence tokens, R queries, D width.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infnet_rec.models.infnet import jagged_attention
from infnet_rec.models.infnet.jagged_attention import arrange_sequences
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.infnet.proxies import pool_sequences
from infnet_rec.models.tokens import Tokens
from infnet_rec.planner.op_counter import OpCounter
from paper_check import SMALL, changed

# Nothing at first, at last and in between; several in a chunk of 8, and one that is longer.
LENGTHS_FB = torch.tensor([[0, 3, 0, 5, 1, 4, 0], [0, 1, 0, 9, 0, 3, 0], [0, 2, 0, 4, 1, 0, 0]])
GROUPS = (1, 0, 1)
GROUP_F = torch.tensor(GROUPS)

Outputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", 8)


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, queries and a gate."""
    torch.manual_seed(0)
    num_examples = LENGTHS_FB.shape[1]
    sizes = (int(LENGTHS_FB.sum()), 4), (num_examples, 3, 4), (num_examples, 4)
    token_LD, query_BRD, gate_BD = (torch.randn(size, dtype=dtype).requires_grad_() for size in sizes)
    return token_LD, query_BRD, gate_BD


def chained(token_LD: Tensor, query_BRD: Tensor, gate_BD: Tensor) -> Outputs:
    """Pooled, read, gated, and read by what was read, as two blocks do."""
    sum_BGD, _, link_LD = pool_sequences(token_LD, LENGTHS_FB, GROUP_F, 2)
    first_BRD, tokens = arrange_sequences(link_LD, LENGTHS_FB).attend(query_BRD + sum_BGD[:, :1])
    second_BRD, _ = tokens.gated(gate_BD).attend(first_BRD + query_BRD)
    return sum_BGD, first_BRD, second_BRD


def forked(token_LD: Tensor, query_BRD: Tensor, gate_BD: Tensor) -> Outputs:
    """The same, but everything starts from the same tokens: autograd adds up what comes back."""
    sum_BGD, _, link_LD = pool_sequences(token_LD, LENGTHS_FB, GROUP_F, 2)
    tokens = arrange_sequences(link_LD, LENGTHS_FB)
    first_BRD, _ = tokens.attend(query_BRD + sum_BGD[:, :1])
    second_BRD, _ = tokens.gated(gate_BD).attend(first_BRD + query_BRD)
    return sum_BGD, first_BRD, second_BRD


def looped(token_LD: Tensor, query_BRD: Tensor, gate_BD: Tensor) -> Outputs:
    """The same, an example at a time, by softmax and sums."""
    num_examples = LENGTHS_FB.shape[1]
    runs = token_LD.split(LENGTHS_FB.flatten().tolist())
    sums, firsts, seconds = [], [], []
    for b in range(num_examples):
        of_sequence = [runs[f * num_examples + b] for f in range(len(GROUPS))]
        token_XD = torch.cat(of_sequence)
        sums.append(torch.stack([of_sequence[1].sum(0), of_sequence[0].sum(0) + of_sequence[2].sum(0)]))
        firsts.append(attend_one(query_BRD[b] + sums[-1][:1], token_XD))
        seconds.append(attend_one(firsts[-1] + query_BRD[b], token_XD * gate_BD[b]))
    return torch.stack(sums), torch.stack(firsts), torch.stack(seconds)


def attend_one(query_RD: Tensor, token_XD: Tensor) -> Tensor:
    return torch.softmax(query_RD @ token_XD.T, dim=-1) @ token_XD if len(token_XD) else query_RD * 0


def loss_of(outputs: Outputs, used: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    return sum((outputs[i].square().sum() for i in used), start=torch.zeros((), dtype=outputs[0].dtype))


@pytest.mark.parametrize("network", [chained, forked])
@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (1,), (2,), (0, 1), (0, 2)])
def test_the_chain_gives_the_gradients_of_loops(network: Callable[..., Outputs], used: tuple[int, ...]) -> None:
    """Whatever part of it the loss needs."""
    inputs = draw()
    got, expected = network(*inputs), looped(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)

    got_grads, expected_grads = (
        torch.autograd.grad(loss_of(outputs, used), inputs, materialize_grads=True) for outputs in (got, expected)
    )

    torch.testing.assert_close(got_grads, expected_grads, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_small_differences() -> None:
    assert torch.autograd.gradcheck(chained, draw())


@pytest.mark.parametrize("network", [chained, forked])
def test_a_graph_can_be_walked_in_parts_and_again(network: Callable[..., Outputs]) -> None:
    """Nothing is left behind between walks, and none writes into what an earlier one returned."""
    token_LD, query_BRD, _ = inputs = draw()
    expected = torch.autograd.grad(loss_of(looped(*inputs)), inputs)
    outputs = network(*inputs)
    loss = loss_of(outputs)

    (of_query,) = torch.autograd.grad(loss, query_BRD, retain_graph=True)
    torch.autograd.grad(outputs[2].sum(), token_LD, retain_graph=True)
    whole = torch.autograd.grad(loss, inputs, retain_graph=True)
    kept = [grad.clone() for grad in whole]
    again = torch.autograd.grad(loss, inputs)

    torch.testing.assert_close(whole, expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(whole, kept, again, strict=True))
    assert torch.equal(of_query, whole[1])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_add_up_over_steps_and_batches() -> None:
    """As always: a leaf's gradient is added to, and may be what the chain handed out the first time."""
    inputs = draw()
    expected = torch.autograd.grad(loss_of(looped(*inputs)), inputs)
    for _ in range(3):
        loss_of(chained(*inputs)).backward()

    torch.testing.assert_close([x.grad for x in inputs], [3 * grad for grad in expected], rtol=1e-10, atol=1e-10)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    inputs = draw()
    (grad_LD,) = torch.autograd.grad(loss_of(chained(*inputs)), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        grad_LD.sum().backward()


def test_tokens_that_are_not_learned_cost_no_gradient() -> None:
    token_LD, query_BRD, gate_BD = draw()
    expected = torch.autograd.grad(loss_of(looped(token_LD, query_BRD, gate_BD)), (query_BRD, gate_BD))
    fixed_LD = token_LD.detach()

    _, tokens = arrange_sequences(fixed_LD, LENGTHS_FB).attend(query_BRD)
    got = torch.autograd.grad(loss_of(chained(fixed_LD, query_BRD, gate_BD)), (query_BRD, gate_BD))

    assert not tokens.distinct_XD.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_look_without_gradients_does_not_cut_the_chain() -> None:
    token_LD, query_BRD, gate_BD = inputs = draw()
    expected = torch.autograd.grad(loss_of(looped(*inputs), (2,)), token_LD)
    with torch.no_grad():
        sum_BGD, _, link_LD = pool_sequences(token_LD, LENGTHS_FB, GROUP_F, 2)
        looked_BRD, tokens = arrange_sequences(link_LD, LENGTHS_FB).attend(query_BRD)
    assert not sum_BGD.requires_grad and not looked_BRD.requires_grad

    sum_BGD, _, _ = pool_sequences(token_LD, LENGTHS_FB, GROUP_F, 2)
    first_BRD, tokens = tokens.attend(query_BRD + sum_BGD[:, :1])
    second_BRD, _ = tokens.gated(gate_BD).attend(first_BRD + query_BRD)

    got = torch.autograd.grad(second_BRD.square().sum(), token_LD)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_under_autocast_only_products_are_narrow() -> None:
    inputs = draw(torch.float32)
    expected = torch.autograd.grad(loss_of(looped(*inputs)), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = chained(*inputs)
    loss = loss_of(outputs)
    got = torch.autograd.grad(loss, inputs, retain_graph=True)
    with torch.autocast("cpu", torch.float16):
        again = torch.autograd.grad(loss, inputs)

    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    assert {x.dtype for x in (*outputs, *got)} == {torch.float32}
    for narrow, exact in zip(got, expected, strict=True):
        assert not torch.equal(narrow, exact)
        assert float((narrow - exact).norm()) < 0.03 * float(exact.norm())


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_a_step_makes_one_gradient_of_the_tokens(checkpoint_blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", 500)
    torch.manual_seed(0)
    options = changed(SMALL, width=32, num_blocks=3, checkpoint_blocks=checkpoint_blocks)
    model = Infnet(num_features=2, group_of_sequence=(0, 0), num_tasks=2, config=options)
    lengths_FB = torch.full((2, 20), 2000)
    tokens = Tokens(torch.randn(20, 2, 32), torch.randn(int(lengths_FB.sum()), 32).requires_grad_(), lengths_FB)

    with OpCounter() as ledger:
        model(tokens).sum().backward()

    gradient_bytes = tokens.sequence_LD.numel() * 4
    # Row numbers take 8 bytes for 128 of a token, in pooling and in the layout.
    assert gradient_bytes < ledger.peak_bytes < 1.5 * gradient_bytes
