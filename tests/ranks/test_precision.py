"""Products in bfloat16, and blocks that are computed again in the backward pass.

Shapes: B examples, M categorical tokens, F sequences, L sequence tokens, T tasks, D width.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sharded_runs
from infnet_rec.config.model import InfnetConfig
from infnet_rec.data.run_data import open_data
from infnet_rec.models.infnet import jagged_attention
from infnet_rec.models.infnet.model import Infnet
from infnet_rec.models.precision import computing_in, narrowed, widened
from infnet_rec.models.tokens import Tokens
from infnet_rec.trainer.build import shard_model
from paper_check import BY_BEHAVIOUR, SMALL, build, changed, make_model, make_tokens
from rank_pair import RankPair


def twins(options: InfnetConfig, change: dict) -> tuple[Infnet, Infnet]:
    """Two towers with the same weights and other options."""
    torch.manual_seed(0)
    model = make_model(options, dtype=torch.float32)
    other = build(changed(options, **change))
    other.load_state_dict(model.state_dict())
    return model, other


def gradients(model: Infnet, tokens: Tokens) -> dict[str, Tensor]:
    """Of every parameter and of the tokens; the model's draws begin anew."""
    model.zero_grad()
    tokens.categorical_BMD.grad = tokens.sequence_LD.grad = None
    torch.manual_seed(1)
    model(tokens).square().sum().backward()
    named = {**dict(model.named_parameters()), "categorical": tokens.categorical_BMD, "sequence": tokens.sequence_LD}
    return {name: value.grad.clone() for name, value in named.items() if value.grad is not None}


INTERPRETED = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="the kernel would need a GPU")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dropout": 0.5},
        pytest.param({"attention": "fused"}, marks=INTERPRETED),
        {"ablation": "no_cross_attention"},
    ],
)
def test_blocks_computed_again_give_the_same_gradients(change: dict) -> None:
    """To the bit, draws of dropout included."""
    plain, again = twins(changed(SMALL, num_blocks=3, **change), {"checkpoint_blocks": True})
    tokens = make_tokens(dtype=torch.float32)

    torch.testing.assert_close(gradients(again, tokens), gradients(plain, tokens), rtol=0, atol=0)


def stored_bytes(model: Infnet, tokens: Tokens) -> int:
    """What autograd keeps between the passes beside parameters and tokens, every storage once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits_BT = model(tokens)
    del logits_BT
    for leaf in (tokens.categorical_BMD, tokens.sequence_LD, *model.parameters()):
        storages.pop(leaf.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_blocks_computed_again_store_less() -> None:
    plain, again = twins(changed(SMALL, num_blocks=3), {"checkpoint_blocks": True})
    tokens = make_tokens(torch.full((4, 64), 10), dtype=torch.float32)

    assert stored_bytes(again, tokens) < 0.5 * stored_bytes(plain, tokens)


def test_nothing_is_cast_where_nothing_asks_for_it() -> None:
    single, double = torch.ones(3), torch.ones(3, dtype=torch.float64)
    assert narrowed(single) is single and widened(single) is single and widened(double) is double
    with computing_in("fp32", torch.device("cpu")):
        assert narrowed(single) is single
    with computing_in("bf16", torch.device("cpu")):
        assert narrowed(single).dtype == torch.bfloat16 and narrowed(double) is double
        assert (single[:, None] @ single[None]).dtype == torch.bfloat16
    assert widened(narrowed(single)).dtype == torch.float32


def test_long_histories_do_not_stand_still_in_bfloat16() -> None:
    """257 + 1 is 257 in bfloat16: proxies and means of thousands of events would be far off."""
    options = changed(SMALL, ablation="no_cross_attention", pooling="mean")
    torch.manual_seed(0)
    model = Infnet(num_features=5, group_of_sequence=BY_BEHAVIOUR, num_tasks=3, config=options)
    tokens = make_tokens(torch.full((4, 2), 2000), dtype=torch.float32)
    with torch.no_grad():
        tokens.sequence_LD.abs_()
    exact_BT = model(tokens)
    model.precision = "bf16"
    mixed_BT = model(tokens)

    assert mixed_BT.dtype == torch.float32
    torch.testing.assert_close(mixed_BT, exact_BT, rtol=0.02, atol=0.02)


def short_run(rank: int, world_size: int, store: str, precision: str) -> tuple[np.ndarray, set[np.dtype]]:
    """Global losses of a few steps, and what the dense parameters are then made of."""
    config = sharded_runs.small_config(store, [f"train.precision='{precision}'"])
    data, world = open_data(config), sharded_runs.world_of(rank, world_size)
    sharded = shard_model(config, data, world)
    losses = sharded_runs.run_steps(config, data, world, sharded, 6)
    return losses, {value.dtype for value in sharded_runs.dense_of(sharded).values()}


def test_two_ranks_train_in_bfloat16_to_nearly_the_losses_of_float32(ranks: RankPair, small_store: Path) -> None:
    single = ranks(short_run, str(small_store), "fp32")
    mixed = ranks(short_run, str(small_store), "bf16")

    for (exact, _), (losses, dtypes) in zip(single, mixed, strict=True):
        assert not np.array_equal(losses, exact)
        np.testing.assert_allclose(losses, exact, atol=3e-3, rtol=0)
        assert dtypes == {np.dtype(np.float32)}


ONE_SIZE, SIZES = ((4, 6),), ((4, 6), (4, 3), (4, 9), (4, 3))


@pytest.mark.parametrize(
    ("backend", "sizes"),
    [
        pytest.param("eager", SIZES, marks=pytest.mark.slow),
        pytest.param("aot_eager", ONE_SIZE, marks=pytest.mark.slow),
        pytest.param(
            "inductor",
            SIZES,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    "INFNET_REC_SLOW" not in os.environ, reason="generates code for minutes; INFNET_REC_SLOW=1 runs it"
                ),
            ],
        ),
    ],
)
def test_a_compiled_tower_has_the_same_gradients(backend: str, sizes: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """aot_eager captures and differentiates as inductor does, and runs the graphs as they stand; eager only captures.

    Sequences are read between graphs. The second size is captured once more, for all sizes; no batch is after that.
    """
    monkeypatch.setattr(jagged_attention, "CHUNK_TOKENS", 50)
    torch._dynamo.reset()
    plain, compiled = twins(SMALL, {})
    compiled.compile(backend=backend)
    captured = []
    for size in sizes:
        tokens = make_tokens(torch.randint(0, 40, size), dtype=torch.float32)
        torch.testing.assert_close(gradients(compiled, tokens), gradients(plain, tokens), rtol=1e-5, atol=1e-5)
        captured.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert captured[0] > 0 and len(set(captured)) <= 2
