"""Every way of sharding trains the same model as no sharding at all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sharded_runs
import unsharded
from data_fixtures import Dataset
from infnet_rec.shard.world import joined
from rank_pair import RankPair

NUM_STEPS = 20
# The oldest examples first: many have no history yet.
SHOP = ["data.profile='all'", "train.global_batch_size=8", "train.eval_batch_size=8", "train.order='time'"]
BAGS = ("customer", "country", "age", "sku", "shelf", "price", "brand", "country_bucket", "hobbies", "tags", "device")
AVERAGED = ("hobbies", "tags")

TOLERANCE = {"atol": 1e-5, "rtol": 0}


def rules(bags: str, events: str, *more: str, columns: int = 0) -> str:
    """The configuration's rules: one sharding for the tables of features, one for those of sequences."""
    width = f", column_width={columns}" if columns else ""
    cut = {"column_wise", "table_column_wise", "grid_shard"}
    either = [
        f"{{match='*', sharding='{bags}'{width if bags in cut else ''}}}",
        f"{{match='seq_*', sharding='{events}'{width if events in cut else ''}}}",
    ]
    return f"sharding.tables=[{', '.join([*either, *more])}]"


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with joined(sharded_runs.world_of(0, 1)):
        yield


@pytest.fixture(scope="module")
def store(rich_shop: Dataset) -> str:
    return str(rich_shop.store.path)


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
    "table_column_wise": ("adagrad", rules("table_column_wise", "row_wise", columns=4)),
    "grid_shard": (
        "adagrad",
        rules("grid_shard", "column_wise", *(f"{{match='{t}', sharding='row_wise'}}" for t in AVERAGED)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sharded_training_equals_unsharded(
    case: str, ranks: RankPair, store: str, references: dict[str, dict[str, Any]]
) -> None:
    """Losses, every table, the state of its optimizer, the dense part and Adam's moments, after 20 steps."""
    optimizer, settings = CASES[case]
    assert_equal(sharded(ranks, store, optimizer, settings), references[optimizer])
