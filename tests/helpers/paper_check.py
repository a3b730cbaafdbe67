"""A small INFNet, its tokens, and the check of its logits and gradients against `literal`, the paper's equations.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens, T tasks, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import literal
from infnet_rec.batch import Repeats
from infnet_rec.config.model import InfnetConfig
from infnet_rec.config.train import Precision
from infnet_rec.data.dedup import count_repeats
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.tokens import Tokens

NUM_FEATURES, NUM_TASKS, WIDTH = 5, 3, 8
BY_BEHAVIOUR, BY_SEQUENCE = (0, 0, 1, 1), (0, 1, 2, 3)
SMALL = InfnetConfig(width=WIDTH, proxy_hidden=(11,), gate_hidden=(7,), head_hidden=(6, 5))

# Per example: nothing at all; one event; ragged; one sequence only; long; ragged.
LENGTHS_FB = torch.tensor([[0, 0, 2, 0, 40, 1], [0, 1, 0, 9, 0, 3], [0, 0, 5, 0, 33, 2], [0, 0, 1, 0, 3, 0]])


def make_tokens(lengths_FB: Tensor = LENGTHS_FB, dtype: torch.dtype = torch.float64) -> Tokens:
    return Tokens(
        torch.randn(lengths_FB.shape[1], NUM_FEATURES, WIDTH).mul(0.5).to(dtype).requires_grad_(),
        torch.randn(int(lengths_FB.sum()), WIDTH).mul(0.5).to(dtype).requires_grad_(),
        lengths_FB,
    )


def make_repeated(
    lengths_FB: Tensor = LENGTHS_FB, num_rows: int = 9, dtype: torch.dtype = torch.float64, *, counted: bool = True
) -> Tokens:
    """Tokens that are rows of few distinct embeddings, one of which nobody refers to, counted or not."""
    row_L = torch.randint(0, num_rows, (int(lengths_FB.sum()),))
    return Tokens(
        torch.randn(lengths_FB.shape[1], NUM_FEATURES, WIDTH).mul(0.5).to(dtype).requires_grad_(),
        torch.randn(num_rows + 1, WIDTH).mul(0.5).to(dtype).requires_grad_(),
        lengths_FB,
        row_L,
        repeats_of(row_L, lengths_FB, num_rows + 1) if counted else None,
    )


def repeats_of(row_L: Tensor, lengths_FB: Tensor, num_rows: int) -> Repeats:
    """As the loader counts them."""
    found = count_repeats(row_L.numpy(), lengths_FB.numpy(), num_rows)
    return Repeats(*(torch.from_numpy(getattr(found, name)) for name in Repeats.__dataclass_fields__))


def on(device: str, tokens: Tokens) -> Tokens:
    """The same tokens, of the same leaves."""
    there = torch.device(device)
    return Tokens(
        tokens.categorical_BMD.to(there),
        tokens.distinct_XD.to(there),
        tokens.lengths_FB.to(there),
        None if tokens.row_L is None else tokens.row_L.to(there),
        None if tokens.repeats is None else tokens.repeats.to(there),
    )


def changed(options: InfnetConfig, **keys: Any) -> InfnetConfig:
    """The same section with other values, checked."""
    return InfnetConfig(**(options.model_dump() | keys))


def build(options: InfnetConfig = SMALL, groups: tuple[int, ...] = BY_BEHAVIOUR) -> Infnet:
    return Infnet(num_features=NUM_FEATURES, group_of_sequence=groups, num_tasks=NUM_TASKS, config=options)


def make_model(
    options: InfnetConfig = SMALL, groups: tuple[int, ...] = BY_BEHAVIOUR, dtype: torch.dtype = torch.float64
) -> Infnet:
    """A tower in which no weight is at a special value: biases and norms start at 0 and 1."""
    model = build(options, groups)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(dtype)


def sizes_of(options: InfnetConfig, groups: tuple[int, ...]) -> literal.Sizes:
    num_proxies = options.num_categorical_proxies + len(set(groups))
    late = {"no_task_tokens": num_proxies, "no_cross_attention": 3}.get(options.ablation, 1)
    num_read = late if options.ablation_head == "late" else 1
    return literal.Sizes(
        num_features=NUM_FEATURES,
        num_tasks=NUM_TASKS,
        width=WIDTH,
        group_of_sequence=groups,
        m=options.num_categorical_proxies,
        Ns=options.num_shared_tokens,
        N=options.num_blocks,
        proxy_hidden=options.proxy_hidden,
        gate_hidden=options.gate_hidden,
        head_hidden=options.head_hidden,
        norms=options.proxy_norm == "layer",
        tokens_a_head_reads=num_read + (num_proxies if options.readout == "proxies" else 0),
    )


def variant_of(options: InfnetConfig) -> literal.Variant:
    return literal.Variant(
        options.num_heads,
        options.pooling,
        options.residual,
        options.ablation,
        options.ablation_head,
        options.readout,
    )


def check_against_paper(
    options: InfnetConfig,
    groups: tuple[int, ...],
    tolerance: float,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    draw: Callable[..., Tokens] = make_tokens,
) -> None:
    """Logits and all gradients agree with the equations; the weights that the package leaves out get none there."""
    torch.manual_seed(0)
    model, tokens = make_model(options, groups, dtype), draw(dtype=dtype)
    direction_BT = torch.randn(tokens.lengths_FB.shape[1], NUM_TASKS, dtype=dtype)
    model.precision = precision
    logits_BT = model.to(device)(on(device, tokens))
    assert logits_BT.dtype == dtype
    logits_BT.backward(direction_BT.to(device))

    parameters = dict(model.named_parameters())
    sizes = sizes_of(options, groups)
    names, weights, missing = literal.package_names(sizes), {}, []
    for paper, shape in literal.shapes(sizes).items():
        if names[paper] in parameters:
            weights[paper] = parameters.pop(names[paper]).detach().to("cpu", torch.float64).requires_grad_()
            assert weights[paper].shape == shape
        else:
            weights[paper] = torch.randn(shape, dtype=torch.float64, requires_grad=True)
            missing.append(paper)
    assert not parameters, f"unknown to the paper: {sorted(parameters)}"
    categorical_BMD = tokens.categorical_BMD.detach().to(torch.float64).requires_grad_()
    distinct_XD = tokens.distinct_XD.detach().to(torch.float64).requires_grad_()
    sequence_LD = distinct_XD if tokens.row_L is None else distinct_XD[tokens.row_L]
    variant = variant_of(options)
    event_BFED, present_BFE = literal.pad(sequence_LD, tokens.lengths_FB)
    expected_BT = literal.logits(weights, sizes, variant, categorical_BMD, event_BFED, present_BFE)
    expected_BT.backward(direction_BT.to(torch.float64))

    def close(got: Tensor | None, expected: Tensor | None, name: str) -> None:
        assert got is not None and expected is not None, name
        scale = max(1.0, float(expected.abs().max()))
        error = float((got.to("cpu", torch.float64) - expected).abs().max())
        assert error <= tolerance * scale, f"{name}: off by {error} at scale {scale}"

    close(logits_BT.detach(), expected_BT.detach(), "logits")
    close(tokens.categorical_BMD.grad, categorical_BMD.grad, "categorical tokens")
    close(tokens.distinct_XD.grad, distinct_XD.grad, "sequence tokens")
    for paper, weight in weights.items():
        if paper in missing:
            assert weight.grad is None or not weight.grad.any(), f"{paper} is left out but matters"
        else:
            close(model.get_parameter(names[paper]).grad, weight.grad, paper)
