"""Every model, the ablations and the study of proxies, through the real trainer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharded_runs
from infnet_rec.distributed.process_group import process_group
from infnet_rec.trainer.eval import evaluate_run
from infnet_rec.trainer.train import train
from rank_pair import RankPair

NUM_STEPS = 3
FEW = ["data.sequence_length=4", "data.profile=safe"]
SMALL_BODY = "deep_hidden = [8]"
SMALL_EXPERTS = "expert_hidden = [8], gate_hidden = [4], head_hidden = [4]"
# Each model's defaults, made small.
MODELS = {
    "infnet": "proxy_hidden = [8], gate_hidden = [8], head_hidden = [8]",
    "fm": "",
    "din": f"attention_hidden = [8], {SMALL_BODY}",
    "dien": f"auxiliary_hidden = [8], {SMALL_BODY}",
    "dcnv2": f"num_cross_layers = 2, num_experts = 2, rank = 4, {SMALL_BODY}",
    "gdcn": f"num_cross_layers = 1, {SMALL_BODY}",
    "wukong": f"num_layers = 2, num_products = 4, num_linear = 4, rank = 2, product_hidden = [8], {SMALL_BODY}",
    "hstu": "head_hidden = [8]",
    "shared_bottom": "bottom_hidden = [8], head_hidden = [4]",
    "mmoe": f"num_experts = 2, {SMALL_EXPERTS}",
    "omoe": f"num_experts = 2, {SMALL_EXPERTS}",
    "ple": f"num_layers = 2, num_shared_experts = 2, {SMALL_EXPERTS}",
    "stem": f"num_shared_experts = 2, {SMALL_EXPERTS}",
}


def section(name: str) -> str:
    """An override that gives the whole section anew: the file's is INFNet's."""
    return f'model={{name = "{name}", width = 4, table_std = 0.3{", " if MODELS[name] else ""}{MODELS[name]}}}'


def steps_of_every_model(rank: int, world_size: int, store: str) -> dict[str, dict[str, Any]]:
    """Runs on a rank."""
    found = {}
    for name in MODELS:
        config = sharded_runs.small_config(store, [section(name), *FEW])
        data, world = sharded_runs.open_data(config), sharded_runs.world_of(rank, world_size)
        sharded = sharded_runs.shard_model(config, data, world)
        before = sharded_runs.dense_of(sharded)
        losses = sharded_runs.run_steps(config, data, world, sharded, NUM_STEPS)
        after = sharded_runs.dense_of(sharded)
        found[name] = {"losses": losses, "before": before, "after": after}
    return found


def test_every_model_trains_on_two_ranks(ranks: RankPair, small_store: Path) -> None:
    """A parameter without a gradient would stop the second step; both ranks keep the same weights."""
    first, second = ranks(steps_of_every_model, str(small_store))
    assert first.keys() == MODELS.keys()
    for name, run in first.items():
        assert run["losses"].shape == (NUM_STEPS, 3) and np.isfinite(run["losses"]).all(), name
        assert np.array_equal(run["losses"], second[name]["losses"]), name
        for parameter, value in run["after"].items():
            if "running_" in parameter or "num_batches" in parameter:
                continue
            assert np.array_equal(value, second[name]["after"][parameter]), (name, parameter)
            # A rare behaviour may have no history of two events in so few batches: DIEN then has nothing to evolve.
            if ".evolutions." not in parameter:
                assert not np.array_equal(value, run["before"][parameter]), (name, parameter)


OVERRIDES = ["train.num_epochs=0.3", 'train.tasks=["long_view", "click"]', "train.num_threads=1"]


def test_a_baseline_on_some_of_the_tasks_is_trained_saved_and_evaluated(small_store: Path, tmp_path: Path) -> None:
    """STEM, whose tables are as many embeddings wide as there are tasks, and one more."""
    run = tmp_path / "run"
    overrides = [f"data.store={small_store}", section("stem"), *FEW, *OVERRIDES]
    result = train(sharded_runs.CONFIG, overrides, run)
    assert result is not None
    assert set(result["metrics"]["test"]) == {"click", "long_view"}
    (table,) = (t for t in json.loads((run / "plan.json").read_text())["tables"] if t["name"] == "video_id")
    assert {shard["num_columns"] for shard in table["shards"]} == {3 * 4}
    again = evaluate_run(run, "test")
    assert again is not None
    for task, metrics in again["metrics"].items():
        for name in ("auc", "log_loss"):
            assert metrics[name] == pytest.approx(result["metrics"]["test"][task][name], abs=1e-6)


# The paper's studies, as overrides.
STUDIES = {
    **{f"{m} categorical proxies": [f"model.num_categorical_proxies={m}"] for m in (2, 4, 8)},
    **{f"sequence proxies by {g}": [f"data.sequence_groups={g}"] for g in ("all", "behaviour", "sequence")},
    **{f"{n} shared tokens": [f"model.num_shared_tokens={n}"] for n in (1, 2, 3)},
    **{f"width {d}": [f"model.width={d}"] for d in (8, 16)},
    **{f"{n} events": [f"data.sequence_length={n}"] for n in (1, 20)},
    "heads read proxies": ["model.readout=proxies"],
    "w/o1": ["model.ablation=no_task_tokens"],
    "w/o1, late": ["model.ablation=no_task_tokens", "model.ablation_head=late"],
    "w/o2": ["model.ablation=no_gates"],
    "w/o3": ["model.ablation=no_cross_attention"],
    "w/o3, late": ["model.ablation=no_cross_attention", "model.ablation_head=late"],
}
# What the first block's gates then read.
PROXIES = {
    **{f"{m} categorical proxies": {"categorical": m, "sequence": 7, "task": 2} for m in (2, 4, 8)},
    **{f"sequence proxies by {g}": {"sequence": n} for g, n in {"all": 1, "behaviour": 7, "sequence": 28}.items()},
    **{f"{n} shared tokens": {"categorical": 4, "task": n} for n in (1, 2, 3)},
}


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only."""
    with process_group(sharded_runs.world_of(0, 1)):
        yield


@pytest.mark.slow(smoke=["w/o2", "heads read proxies", "20 events"])
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_is_a_matter_of_configuration(study: str, alone: None, small_store: Path) -> None:
    overrides = [section("infnet"), *FEW, "train.dense.lr=1e-2", *STUDIES[study]]
    config, world = sharded_runs.small_config(str(small_store), overrides), sharded_runs.world_of(0, 1)
    data = sharded_runs.open_data(config)
    sharded = sharded_runs.shard_model(config, data, world)
    dense = sharded_runs.dense_of(sharded)
    for kind, count in PROXIES.get(study, {}).items():
        assert dense[f"tower.blocks.0.gates.{kind}.layers.0.weight"].shape[1] == count * config.model.width
    losses = sharded_runs.run_steps(config, data, world, sharded, 2)
    assert np.isfinite(losses).all() and not np.array_equal(losses[0], losses[1])


@pytest.mark.slow(smoke=["infnet", "din"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_computes_in_bfloat16_nearly_what_it_computes_in_float32(
    name: str, alone: None, small_store: Path
) -> None:
    """Products have 8 bits; losses, parameters and optimizer state are in float32."""
    runs = {}
    for precision in ("fp32", "bf16"):
        config = sharded_runs.small_config(str(small_store), [section(name), *FEW, f"train.precision='{precision}'"])
        data, world = sharded_runs.open_data(config), sharded_runs.world_of(0, 1)
        sharded = sharded_runs.shard_model(config, data, world)
        losses = sharded_runs.run_steps(config, data, world, sharded, 2)
        runs[precision] = (losses, {v.dtype for v in sharded_runs.dense_of(sharded).values() if v.dtype.kind == "f"})
    assert not np.array_equal(runs["bf16"][0], runs["fp32"][0])
    np.testing.assert_allclose(runs["bf16"][0], runs["fp32"][0], atol=0.02, rtol=0)
    assert runs["bf16"][0].dtype == np.float32 and runs["bf16"][1] == {np.dtype(np.float32)}
