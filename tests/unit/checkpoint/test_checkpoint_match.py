"""Which saved state is which state of the model that is there now."""

from typing import Any

import pytest

from infnet_rec.checkpoint.match import match_tensors
from infnet_rec.errors import UserError

MODEL = {"model.bags.embedding_bags.city.weight": (100, 8)}
FUSED = "optim.sparse.bags.embedding_bags.city.weight.city.momentum1"
COPIED = "optim.copied.bags.embedding_bags.city.weight"
WAS, NOW = {"city": "row_wise"}, {"city": "data_parallel"}


def test_state_of_fused_and_copied_tables_is_translated() -> None:
    """Row-wise state is [R] in a fused optimizer, [R, 1] in torchrec's plain one, which counts its steps too."""
    fused = MODEL | {FUSED: (100,)}
    copied = MODEL | {f"{COPIED}.sum": (100, 1), f"{COPIED}.step": ()}
    there = match_tensors(copied, fused, was=WAS, now=NOW)
    assert there.translated == {f"{COPIED}.sum": FUSED} and there.counted == [f"{COPIED}.step"]
    back = match_tensors(fused, copied, was=NOW, now=WAS)
    assert back.translated == {FUSED: f"{COPIED}.sum"} and back.counted == []


@pytest.mark.parametrize(
    ("wanted", "saved"),
    [
        ({FUSED: (200,)}, {FUSED: (100,)}),
        ({FUSED: (100,)}, {}),
        ({}, {FUSED: (100,)}),
        ({f"{COPIED}.sum": (100, 8)}, {FUSED: (100,)}),
        ({f"{COPIED}.exp_avg": (100, 8)}, {FUSED: (100, 8)}),
    ],
    ids=["by columns", "not saved", "left over", "another optimizer", "adam"],
)
def test_state_that_does_not_fit_names_the_table_and_both_shardings(
    wanted: dict[str, Any], saved: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"table 'city'.*saved row_wise.*is data_parallel here"):
        match_tensors(MODEL | wanted, MODEL | saved, was=WAS, now=NOW)
