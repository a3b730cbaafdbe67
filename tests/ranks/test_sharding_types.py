"""Every way of sharding trains the same model as no sharding at all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sharded_runs
import unsharded
from data_fixtures import build_shop
from infnet_rec.distributed.process_group import process_group
from rank_pair import RankPair
from rich_shop import RICH

NUM_STEPS = 20
# The oldest examples first, few at a time: ranks meet batches without any event.
SHOP = ["data.profile='all'", "train.global_batch_size=4", "train.eval_batch_size=8", "train.order='time'"]
AVERAGED = ("hobbies", "tags", "device_parts")

TOLERANCE = {"atol": 1e-5, "rtol": 0}


def rules(bags: str, events: str, *more: str, columns: int = 0) -> str:
    """The configuration's rules: one sharding for the tables of features, one for those of sequences."""
    width = f", min_columns={columns}" if columns else ""
    cut = {"column_wise", "grid_shard"}
    either = [
        f"{{match='*', sharding='{bags}'{width if bags in cut else ''}}}",
        f"{{match='seq_*', sharding='{events}'{width if events in cut else ''}}}",
    ]
    return f"sharding.tables=[{', '.join([*either, *more])}]"


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with process_group(sharded_runs.world_of(0, 1)):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shop with every kind of feature, trained from the first day of its log, when few have a history."""
    early = ("train = 2023-11-16\n", "train = 2023-11-14\n")
    return str(build_shop(tmp_path_factory.mktemp("early_shop"), *RICH, early).store.path)


@pytest.fixture(scope="module")
def references(alone: None, store: str) -> dict[str, dict[str, Any]]:
    """Unsharded training, by optimizer."""
    weights = unsharded.initial_weights(store, SHOP)
    return {
        name: unsharded.train_unsharded(store, [*SHOP, f"train.sparse.optimizer='{name}'"], weights, NUM_STEPS)
        for name in ("sgd", "adagrad", "rowwise_adagrad")
    }


def sharded(ranks: RankPair, store: str, optimizer: str, *overrides: str) -> list[dict[str, Any]]:
    settings = [*SHOP, f"train.sparse.optimizer='{optimizer}'", *overrides]
    return ranks(unsharded.train_sharded, store, settings, NUM_STEPS)


def assert_equal(runs: list[dict[str, Any]], reference: dict[str, Any]) -> None:
    for run in runs:
        np.testing.assert_allclose(run["losses"], reference["losses"], **TOLERANCE)
        for kind in ("dense", "moments"):
            assert run[kind].keys() == reference[kind].keys()
            for name, value in reference[kind].items():
                np.testing.assert_allclose(run[kind][name], value, **TOLERANCE, err_msg=name)
    for kind in ("tables", "state"):
        joined_up = unsharded.together([part for run in runs for part in run[kind]], reference[kind])
        for name, value in reference[kind].items():
            np.testing.assert_allclose(joined_up[name], value, **TOLERANCE, err_msg=f"{kind} {name}")


CASES = {
    "table_wise": ("rowwise_adagrad", rules("table_wise", "table_wise")),
    "row_wise": ("rowwise_adagrad", rules("row_wise", "row_wise")),
    "row_wise_sgd": ("sgd", rules("row_wise", "row_wise")),
    "column_wise": ("adagrad", rules("column_wise", "column_wise", columns=4)),
    "column_wise_sgd": ("sgd", rules("column_wise", "column_wise", columns=4)),
    "data_parallel": ("rowwise_adagrad", rules("data_parallel", "row_wise")),
    "data_parallel_adagrad": ("adagrad", rules("data_parallel", "table_wise")),
    "data_parallel_sgd": ("sgd", rules("data_parallel", "table_wise")),
    "table_row_wise": ("rowwise_adagrad", rules("table_row_wise", "table_wise")),
    "grid_shard": (
        "adagrad",
        rules("grid_shard", "column_wise", *(f"{{match='{t}', sharding='row_wise'}}" for t in AVERAGED)),
    ),
}


@pytest.mark.slow(smoke=["row_wise", "column_wise", "data_parallel"])
@pytest.mark.parametrize("case", CASES)
def test_sharded_training_equals_unsharded(
    case: str, ranks: RankPair, store: str, references: dict[str, dict[str, Any]]
) -> None:
    """Losses, every table, the state of its optimizer, the dense part and Adam's moments, after 20 steps."""
    optimizer, settings = CASES[case]
    assert_equal(sharded(ranks, store, optimizer, settings), references[optimizer])


def test_the_search_itself_mixes_ways_and_equals_unsharded(
    ranks: RankPair, store: str, references: dict[str, dict[str, Any]]
) -> None:
    """What a run does when nothing is said of its tables but where rows begin to be spread."""
    runs = sharded(ranks, store, "rowwise_adagrad", "sharding.row_wise_min_rows=9")
    assert set(runs[0]["shardings"].values()) == {"row_wise", "table_wise"}
    assert_equal(runs, references["rowwise_adagrad"])
    noise = np.abs(runs[0]["losses"] - references["rowwise_adagrad"]["losses"])
    assert noise.max() < FP32_NOISE, noise.max()


def test_column_shards_with_a_row_wise_optimizer_differ(
    ranks: RankPair, store: str, references: dict[str, dict[str, Any]]
) -> None:
    """Each shard of a row has a learning rate of its own; this is why the search never takes it by itself."""
    runs = sharded(ranks, store, "rowwise_adagrad", rules("column_wise", "column_wise", columns=4))
    reference = references["rowwise_adagrad"]
    tables = unsharded.together([part for run in runs for part in run["tables"]], reference["tables"])
    assert max(np.abs(tables[name] - value).max() for name, value in reference["tables"].items()) > 1e-3


def test_the_runs_above_saw_what_is_hard(store: str) -> None:
    """Batches without any event on both ranks, on one, and tables that a rank's batch has no id for."""
    none = [unsharded.empty_inputs(store, SHOP, rank, NUM_STEPS) for rank in (0, 1)]
    both = [first.no_events and second.no_events for first, second in zip(*none, strict=True)]
    either = [first.no_events != second.no_events for first, second in zip(*none, strict=True)]
    assert any(both) and any(either)
    unread = [first.unread ^ second.unread for first, second in zip(*none, strict=True)]
    assert any(unread), "on no step did one rank alone have no id of some table"


# Measured on these runs: fp16 between ranks moves the losses of 20 steps by up to 1.2e-5, tables in fp16 by 4.1e-5;
# what rounding alone does is less than 1e-6.
FP16_LOSS_TOLERANCE = 1e-4
FP32_NOISE = 1e-6


def test_communication_in_fp16_hardly_moves_the_loss(
    ranks: RankPair, store: str, references: dict[str, dict[str, Any]]
) -> None:
    runs = sharded(ranks, store, "rowwise_adagrad", rules("table_wise", "row_wise"), "sharding.communication='fp16'")
    reference = references["rowwise_adagrad"]["losses"]
    difference = np.abs(runs[0]["losses"] - reference)
    assert np.array_equal(runs[0]["losses"], runs[1]["losses"])
    assert FP32_NOISE < difference.max() < FP16_LOSS_TOLERANCE, difference.max()


def test_tables_in_fp16_hardly_move_the_loss(
    ranks: RankPair, store: str, references: dict[str, dict[str, Any]]
) -> None:
    """Stored in half precision; what is looked up, and the optimizer's state, are fp32."""
    half = rules("table_wise", "row_wise", "{match='*', precision='fp16'}")
    runs = sharded(ranks, store, "rowwise_adagrad", half)
    assert {values.dtype for run in runs for _, _, _, values in run["tables"]} == {np.dtype("float16")}
    assert {values.dtype for run in runs for _, _, _, values in run["state"]} == {np.dtype("float32")}
    difference = np.abs(runs[0]["losses"] - references["rowwise_adagrad"]["losses"])
    assert FP32_NOISE < difference.max() < FP16_LOSS_TOLERANCE, difference.max()


def test_copied_tables_begin_an_epoch_anew_like_the_others(ranks: RankPair, store: str) -> None:
    """`each_epoch = "fresh"`: new weights and no state, the same on both ranks."""
    overrides = [*SHOP, rules("data_parallel", "row_wise")]
    first, second = ranks(unsharded.renewed, store, overrides)
    assert first["state"] == second["state"] == 0.0
    assert first["tables"].keys() == second["tables"].keys()
    for name, values in first["tables"].items():
        assert np.array_equal(values, second["tables"][name]), name
        assert not np.array_equal(values, first["before"][name]) and not values[0].any()
