"""The Triton kernels: on a GPU where there is one, elsewhere under Triton's interpreter (see conftest.py).

Shapes: B examples, F sequences, L sequence tokens, R queries, D width.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sharded_runs
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.models.infnet import fused_attention
from infnet_rec.models.infnet.attention import DenseTokens
from infnet_rec.models.infnet.fused_attention import (
    FusedTokens,
    fuse_sequences,
    lay_out_sequences,
    max_queries,
    why_eager,
)
from infnet_rec.models.infnet.jagged_attention import arrange_sequences
from infnet_rec.models.tokens import Tokens
from infnet_rec.trainer.build import shard_model
from paper_check import BY_BEHAVIOUR, SMALL, changed, check_against_paper

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Nothing at first, at last and in between; one token; runs that share a block of 16; one that needs several blocks.
LENGTHS_FB = torch.tensor(
    [
        [0, 0, 2, 0, 40, 1, 0],
        [0, 1, 0, 9, 0, 3, 0],
        [0, 0, 5, 0, 33, 2, 0],
        [0, 0, 1, 0, 3, 0, 0],
        [0, 0, 8, 7, 0, 0, 0],
    ]
)

Result = tuple[Tensor, ...]


def draw(num_queries: int, width: int, lengths_FB: Tensor = LENGTHS_FB) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, queries and gates, such that no query looks at one token only."""
    torch.manual_seed(0)
    num_examples = lengths_FB.shape[1]
    token_LD = torch.randn(int(lengths_FB.sum()), width)
    query_BRD = torch.randn(num_examples, num_queries, width) * 2 / width**0.5
    return token_LD, query_BRD, torch.rand(num_examples, width) + 0.5


def read(kind: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, lengths_FB: Tensor = LENGTHS_FB) -> Result:
    """What queries read, and the gradients of tokens, queries and gates, in float64 on the CPU."""
    device = DEVICE if kind == "fused" else "cpu"
    token_LD, query_BRD, gate_BD = (x.to(device, dtype).requires_grad_() for x in inputs)
    lay_out = fuse_sequences if kind == "fused" else arrange_sequences
    read_BRD, _ = lay_out(token_LD, lengths_FB.to(device)).gated(gate_BD).attend(query_BRD)
    direction_BRD = torch.randn(read_BRD.shape, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(read_BRD, (token_LD, query_BRD, gate_BD), direction_BRD.to(read_BRD))
    return tuple(x.detach().to("cpu", torch.float64) for x in (read_BRD, *grads))


def error(got: Tensor, expected: Tensor) -> float:
    """The largest one, as a fraction of the largest value."""
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))


def spread(got: Tensor, expected: Tensor) -> float:
    """The root mean square of the error, as a fraction of that of the values."""
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.mark.parametrize("width", [8, 16, 32, 64, 96, 128])
@pytest.mark.parametrize("num_queries", [1, 9, 20])
def test_the_kernel_in_single_precision_is_the_oracle(width: int, num_queries: int) -> None:
    inputs = draw(num_queries, width)
    for got, expected in zip(read("fused", inputs, torch.float32), read("eager", inputs, torch.float64), strict=True):
        assert error(got, expected) < 1e-5


@pytest.mark.parametrize("width", [16, 96])
def test_the_kernel_in_bfloat16_is_as_near_as_bfloat16_is(width: int) -> None:
    """The oracle reads the same rounded numbers; eager attention in bfloat16 says what bfloat16's own error is."""
    inputs = tuple(x.bfloat16() for x in draw(9, width))
    expected, eager = read("eager", inputs, torch.float64), read("eager", inputs, torch.bfloat16)
    for got, own, exact in zip(read("fused", inputs, torch.bfloat16), eager, expected, strict=True):
        assert spread(got, exact) < 2 * spread(own, exact) < 2**-5


def test_more_queries_than_a_program_holds_come_in_portions() -> None:
    inputs = draw(37, 128)
    assert max_queries(inputs[0]) == 16

    for got, expected in zip(read("fused", inputs, torch.float32), read("eager", inputs, torch.float64), strict=True):
        assert error(got, expected) < 1e-5


@pytest.mark.parametrize("lengths_FB", [torch.zeros(3, 4, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)])
def test_batches_of_nothing_and_of_one_token(lengths_FB: Tensor) -> None:
    """Who has no tokens reads exactly 0 and has gradients of exactly 0; one token is read as it is."""
    token_LD, query_BRD, gate_BD = draw(3, 8, lengths_FB)

    read_BRD, *grads = read("fused", (token_LD, query_BRD, gate_BD), torch.float32, lengths_FB)

    if len(token_LD) == 0:
        assert not any(x.any() for x in (read_BRD, *grads))
    else:
        torch.testing.assert_close(read_BRD.float(), (token_LD * gate_BD).expand(1, 3, 8))


def test_an_example_without_tokens_reads_exactly_zero() -> None:
    read_BRD, _, grad_query_BRD, grad_gate_BD = read("fused", draw(3, 8), torch.float32)

    empty_B = LENGTHS_FB.sum(dim=0) == 0
    for value in (read_BRD, grad_query_BRD, grad_gate_BD):
        assert not value[empty_B].any() and value[~empty_B].any()


# NumPy, which interprets the kernel, reports what the kernel discards.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize(("usual", "first"), [(250.0, -300.0), (-300.0, -290.0)])
def test_scores_too_large_for_exp_do_not_overflow(usual: float, first: float) -> None:
    """The largest score may stand in any block; all may be far below 0, the score of a token that is not there."""
    token_LD = torch.full((50, 8), usual)
    token_LD[20], token_LD[3] = usual + 50.0, first
    inputs = (token_LD, torch.ones(1, 1, 8), torch.ones(1, 8))

    read_BRD, *grads = read("fused", inputs, torch.float32, torch.tensor([[50]]))

    torch.testing.assert_close(read_BRD, token_LD[20].double().expand(1, 1, 8))
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_what_is_stored_for_the_backward_pass_does_not_grow_with_queries_times_tokens() -> None:
    stored = []

    def pack(tensor: Tensor) -> Tensor:
        stored.append(tensor)
        return tensor

    token_LD, query_BRD, _ = (x.to(DEVICE).requires_grad_() for x in draw(16, 8, torch.tensor([[200]])))
    tokens = fuse_sequences(token_LD, torch.tensor([[200]], device=DEVICE))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens.attend(query_BRD)

    given = [token_LD, tokens.row_U, tokens.count_U, tokens.start_Y]
    assert all(any(tensor is one for tensor in stored) for one in given)
    own = [tensor for tensor in stored if all(tensor is not one for one in given)]
    assert sum(tensor.numel() for tensor in own) < 3 * query_BRD.numel()


@pytest.mark.slow(smoke=["change0", "change3"])
@pytest.mark.parametrize(
    "change",
    [
        {"residual": "none", "num_heads": 2},
        {"num_blocks": 3, "num_heads": 4, "proxy_norm": "layer"},
        {"num_blocks": 4, "residual": "gate"},
        {"num_blocks": 1, "ablation": "no_gates"},
        {"num_blocks": 1, "ablation": "no_task_tokens"},
        {"ablation": "no_cross_attention"},
    ],
)
def test_the_network_on_the_kernel_is_the_papers_equations(change: dict) -> None:
    options = changed(SMALL, attention="fused", **change)
    check_against_paper(options, BY_BEHAVIOUR, 1e-5, torch.float32, device=DEVICE)


@pytest.mark.parametrize("attention", ["eager", "fused"])
def test_the_network_in_bfloat16_is_near_the_papers_equations(attention: str) -> None:
    """Products have 8 bits; parameters, logits and gradients come in float32."""
    options = changed(SMALL, attention=attention, num_heads=2)
    check_against_paper(options, BY_BEHAVIOUR, 0.03, torch.float32, device=DEVICE, precision="bf16")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs on the CPU, under Triton's interpreter")
def test_a_pipeline_trains_on_the_kernel(small_store: Path) -> None:
    """TorchRec traces the model, and the kernel is inside."""
    losses = {}
    with process_group(sharded_runs.world_of(0, 1)):
        for attention in ("eager", "fused"):
            overrides = [f"model.attention='{attention}'", "train.global_batch_size=8"]
            config = sharded_runs.small_config(str(small_store), overrides)
            data, world = open_data(config), sharded_runs.world_of(0, 1)
            sharded = shard_model(config, data, world)
            losses[attention] = sharded_runs.run_steps(config, data, world, sharded, 2)

    np.testing.assert_allclose(losses["fused"], losses["eager"], atol=1e-5, rtol=0)


def tokens_of(token_LD: Tensor) -> Tokens:
    """Three of two examples."""
    return Tokens(torch.zeros(2, 1, token_LD.shape[1]), token_LD, torch.tensor([[1, 2]]))


def test_auto_is_eager_without_a_gpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    fused_attention._log_once.cache_clear()
    tokens = tokens_of(torch.randn(3, 8))

    with caplog.at_level(logging.INFO, logger="infnet_rec"):
        for _ in range(2):
            assert not isinstance(lay_out_sequences(tokens, "auto"), FusedTokens)

    assert [record.getMessage() for record in caplog.records] == [
        "attention is eager: the device is cpu, and the kernel needs a GPU"
    ]


def test_auto_is_fused_on_a_gpu_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_eager("auto", gpu, 96) is None
    assert why_eager("eager", gpu, 96) == "model.attention says so"
    assert "at most 128" in str(why_eager("auto", gpu, 136))

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "(7, 5)" in str(why_eager("auto", gpu, 96))
    monkeypatch.setattr(fused_attention, "find_spec", lambda name: None)
    assert "not installed" in str(why_eager("auto", gpu, 96))


def test_fused_without_a_gpu_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match=r'model.attention is "fused": the device is cpu.*"auto" or "eager"'):
        lay_out_sequences(tokens_of(torch.randn(3, 8)), "fused")


TOKEN_LD, TWO = torch.randn(3, 8), torch.tensor([[1, 2]])


@pytest.mark.parametrize(
    "lay_out", [fuse_sequences, arrange_sequences, lambda token_LD, _: DenseTokens(token_LD[:2, None])]
)
@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda tokens: tokens.gated(torch.ones(2, 7)), ["gate", "(2, 7)", "(2, 8)"]),
        (lambda tokens: tokens.gated(torch.ones(3, 8)), ["gate", "(3, 8)", "(2, 8)"]),
        (lambda tokens: tokens.attend(torch.ones(2, 1, 4)), ["queries", "(2, 1, 4)", "width 8"]),
        (lambda tokens: tokens.attend(torch.ones(5, 1, 8)), ["queries", "(5, 1, 8)", "2 examples"]),
        (lambda tokens: tokens.attend(torch.ones(2, 1, 8, device="meta")), ["queries", "meta", "cpu"]),
    ],
)
def test_queries_and_gates_that_do_not_fit_are_faults(lay_out, break_it, words) -> None:
    with pytest.raises(UserError) as caught:
        break_it(lay_out(TOKEN_LD, TWO))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("lay_out", [fuse_sequences, arrange_sequences])
@pytest.mark.parametrize(
    ("token_LD", "lengths_FB", "words"),
    [
        (TOKEN_LD, torch.tensor([[1, 3]]), ["sum to 4", "3 rows"]),
        (TOKEN_LD, torch.tensor([1, 2]), ["(2,)", "(3, 8)"]),
        (TOKEN_LD, TWO.to("meta"), ["meta", "cpu"]),
    ],
)
def test_lengths_that_do_not_fit_are_faults(lay_out, token_LD, lengths_FB, words) -> None:
    with pytest.raises(UserError) as caught:
        lay_out(token_LD, lengths_FB)
    assert all(word in str(caught.value) for word in words), caught.value


def test_tokens_that_the_kernel_cannot_read_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match=r"float64.*float32 and bfloat16"):
        lay_out_sequences(tokens_of(TOKEN_LD.double()), "fused")
    with pytest.raises(UserError, match=r"width is 136.*at most 128"):
        lay_out_sequences(tokens_of(torch.randn(3, 136)), "fused")


def compiled(*arguments: str) -> list[list[str]]:
    """What compile_kernels.py prints, in words. Triton brings the compiler, so no GPU is needed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here = Path(__file__).parents[2]
    environment["PYTHONPATH"] = str(here.parent)
    command = [sys.executable, here / "helpers" / "compile_kernels.py", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert finished.returncode == 0, finished.stderr
    return [line.split() for line in finished.stdout.splitlines()]


def test_the_kernels_compile_for_gpus_and_keep_to_their_registers() -> None:
    """The interpreter takes what the compiler refuses."""
    lines = compiled("80", "fp32:16:9:32:4", "bf16:96:20:32:4")
    assert [line[2] for line in lines] == ["attend_forward", "attend_backward", "attend_backward"] * 2
    assert all(int(stack_bytes) == 0 for *_, stack_bytes, _shared in lines), lines


@pytest.mark.slow
def test_all_that_a_first_launch_would_try_compiles() -> None:
    lines = compiled("90", "fp32:24:9")
    kernels = [line[2] for line in lines]
    assert kernels == ["attend_forward"] * (len(lines) // 3) + ["attend_backward"] * (len(lines) // 3 * 2)
    assert len(lines) >= 12 and all(int(shared_bytes) > 0 for *_, shared_bytes in lines), lines
