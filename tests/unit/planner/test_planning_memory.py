"""The bytes of a plan, and the answer no."""

import pytest
import torch
import torchrec.optim

from infnet_rec.errors import Refusal
from infnet_rec.planner.hardware import GIB, Cluster
from infnet_rec.planner.plan import DoesNotFit, Planned
from infnet_rec.planner.request import Controls, TableControl
from infnet_rec.planner.search.search import search_plan
from planning_models import gpu_cluster, make_tables, make_workload

BAGS = {"user": 900_000, "city": 700, "age": 12, "device": 5}
EVENTS = {"video": 4_000_000, "author": 600_000, "tag": 90}


def plan(cluster: Cluster, controls: Controls | None = None, **settings: float) -> Planned:
    return search_plan(make_tables(BAGS, EVENTS), cluster, make_workload(BAGS, EVENTS, **settings), controls or {})


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    # 4,000,000 rows of 64 fp32 values and one of optimizer state are 0.969 GiB; the rest is far smaller.
    model = make_tables({}, {"video": 4_000_000, "author": 1_000_000})
    workload = make_workload({}, {"video": 4_000_000, "author": 1_000_000}, reserved_hbm_gib=0.25)
    with pytest.raises(DoesNotFit, match=r"does not fit on 1x1 .* rank 0 lacks .* to blame: video") as caught:
        search_plan(model, gpu_cluster("1x1", hbm_gib=1.0), workload)
    buffers_gib = 2 * 2 * 512 * 12 * 8 / GIB
    expected_gib = 5_000_000 * 65 * 4 / GIB + buffers_gib + 0.25 - 1.0
    assert caught.value.missing_hbm_gib == {0: pytest.approx(expected_gib, abs=1e-4)}
    assert caught.value.missing_host_gib == {}
    assert caught.value.blame == ("video",)
    assert isinstance(caught.value, Refusal)


def test_one_table_that_may_not_be_cut_is_to_blame() -> None:
    controls = {"video": TableControl(("table_wise",))}
    with pytest.raises(DoesNotFit) as caught:
        plan(gpu_cluster("1x8", hbm_gib=0.5), controls)
    (missing_gib,) = caught.value.missing_hbm_gib.values()
    assert missing_gib == pytest.approx(4_000_000 * 65 * 4 / GIB - 0.5, abs=0.01)
    assert caught.value.blame == ("video",)
    assert plan(gpu_cluster("1x8", hbm_gib=0.5)).critical_ms > 0


def test_more_reserved_than_there_is() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(gpu_cluster("1x2", hbm_gib=4.0), reserved_hbm_gib=5.0)
    assert min(caught.value.missing_hbm_gib.values()) > 1.0


def test_host_memory_runs_out_too() -> None:
    small = gpu_cluster("1x1")
    small = Cluster(small.hardware.model_copy(update={"host_memory_gib": 0.5}), 1, 1)
    with pytest.raises(DoesNotFit, match="host memory") as caught:
        plan(small, {"video": TableControl(kernels=("fused_uvm",))})
    assert caught.value.missing_host_gib == {0: pytest.approx(4_000_000 * 65 * 4 / GIB - 0.5, abs=1e-3)}


@pytest.mark.parametrize(
    ("optimizer", "values_per_row"),
    [
        (torchrec.optim.RowWiseAdagrad, 1),
        (torchrec.optim.Adagrad, 64),
        (torchrec.optim.Adam, 128),
        (torchrec.optim.SGD, 0),
        (None, 0),
    ],
)
def test_optimizer_bytes(optimizer: type[torch.optim.Optimizer] | None, values_per_row: int) -> None:
    model = make_tables({"a": 1000}, {}, optimizer=optimizer)
    planned = search_plan(model, gpu_cluster("1x1"), make_workload({"a": 1000}, {}))
    assert planned.ranks[0].hbm.weight_bytes == 1000 * 64 * 4
    assert planned.ranks[0].hbm.optimizer_bytes == 1000 * values_per_row * 4


def test_row_state_of_half_precision_and_of_columns_is_not_halved() -> None:
    model, workload = make_tables({"a": 1000}, {}), make_workload({"a": 1000}, {})
    half = search_plan(model, gpu_cluster("1x1"), workload, {"a": TableControl(precision="fp16")})
    assert half.ranks[0].hbm.weight_bytes == 1000 * 64 * 2
    assert half.ranks[0].hbm.optimizer_bytes == 1000 * 4
    columns = search_plan(model, gpu_cluster("1x2"), workload, {"a": TableControl(("column_wise",), min_columns=32)})
    assert [s.hbm.optimizer_bytes for s in columns.tables[0].shards] == [4000, 4000]


def test_a_cache_in_hbm_of_a_table_in_host_memory() -> None:
    rows = BAGS["user"]
    control = TableControl(kernels=("fused_uvm_caching",), cache_load_factor=0.1)
    load = plan(gpu_cluster("1x1"), {"user": control}).ranks[0]
    assert load.host.weight_bytes == rows * 64 * 4
    assert load.host.optimizer_bytes == rows * 4
    # A tenth of the rows, 4 bytes a row of index, 16 a slot.
    assert load.hbm.cache_bytes == pytest.approx(rows * 64 * 4 * 0.1 + rows * (4 + 1.6), abs=2)
    halved = plan(
        gpu_cluster("1x1"),
        {"user": TableControl(kernels=("fused_uvm_caching",), cache_load_factor=0.1, cache_precision="fp16")},
    ).ranks[0]
    assert load.hbm.cache_bytes - halved.hbm.cache_bytes == pytest.approx(rows * 64 * 2 * 0.1, abs=2)
    slower = plan(gpu_cluster("1x1"), {"user": TableControl(kernels=("fused_uvm",))})
    assert slower.critical_ms > plan(gpu_cluster("1x1")).critical_ms
    assert slower.ranks[0].hbm.cache_bytes == 0
