"""A plan's bytes are what is allocated, for every way of sharding that a CPU can do."""

from collections import Counter
from typing import Any

import pytest

import planned_runs
from infnet_rec.errors import Refusal
from infnet_rec.trainer.plan_check import EXACT, Compared, plan_check_lines, require_right, result_of
from rank_pair import RankPair
from test_sharding_types import AVERAGED, rules

NO_GRID = [f"{{match='{table}', sharding='row_wise'}}" for table in AVERAGED]
WAYS = {
    "search": [],
    "table_wise": [rules("table_wise", "table_wise")],
    "row_wise": [rules("row_wise", "row_wise")],
    "column_wise": [rules("column_wise", "column_wise", columns=4)],
    "column_wise_adagrad": [rules("column_wise", "column_wise", columns=4), "train.sparse.optimizer='adagrad'"],
    "data_parallel": [rules("data_parallel", "row_wise")],
    "data_parallel_adagrad": [rules("data_parallel", "row_wise"), "train.sparse.optimizer='adagrad'"],
    "data_parallel_sgd": [rules("data_parallel", "table_wise"), "train.sparse.optimizer='sgd'"],
    "table_row_wise": [rules("table_row_wise", "row_wise")],
    "grid_shard": [rules("grid_shard", "table_wise", *NO_GRID)],
    "fp16": [rules("row_wise", "row_wise", "{match='*', precision='fp16'}"), "sharding.communication='fp16'"],
}


@pytest.mark.slow(smoke=["search", "row_wise", "data_parallel"])
@pytest.mark.parametrize("way", WAYS)
def test_a_plans_bytes_are_what_is_allocated(way: str, rich_shop, ranks: RankPair) -> None:
    """Every table and its optimizer state, their sums as fbgemm allocates them, and the dense part, to the byte."""
    result, nothing = ranks(planned_runs.check_of_run, str(rich_shop.store.path), WAYS[way])
    assert nothing["rows"] == []
    wrong = [row for row in result["rows"] if row["wrong"]]
    assert not wrong, wrong
    require_right(result)
    counts = Counter((row["rank"], row["part"]) for row in result["rows"])
    assert {(rank, part) for rank in (0, 1) for part in EXACT} <= counts.keys()
    tables = {row["table"] for row in result["rows"] if row["part"] == "weights" and row["measured"]}
    assert len(tables) == 24
    for row in result["rows"]:
        if row["part"] == "weights":
            assert row["predicted"] == row["measured"]
        # What is estimated, from mean lengths, is of the right size.
        if row["part"] in ("batches", "ids that wait"):
            assert 0.3 < row["ratio"] < 2.0, row


def row(part: str, predicted: float, measured: float, **more: Any) -> Compared:
    return Compared(
        **{"rank": 0, "part": part, "table": "", "unit": "bytes"} | more, predicted=predicted, measured=measured
    )


def test_one_byte_off_is_the_answer_no() -> None:
    result = result_of([row("weights", 64, 64, table="sku"), row("weights", 64, 65, table="age"), row("batches", 1, 2)])
    assert [entry["wrong"] for entry in result["rows"]] == [False, True, False]
    text = "\n".join(plan_check_lines(result))
    assert "age" in text and "WRONG" in text and "sku" not in text
    assert "1 of 2 numbers of single tables agree" in text
    with pytest.raises(Refusal, match="1 numbers of the plan are wrong"):
        require_right(result)


def test_a_peak_may_be_a_tenth_off() -> None:
    assert not row("peak allocated", 95, 100).is_wrong
    assert row("peak allocated", 89, 100).is_wrong
    assert row("weights", 0, 0).ratio is None
