"""Controls that TorchRec would ignore, stumble over or get silently wrong."""

import pytest

from infnet_rec.errors import UserError
from infnet_rec.planner.hardware import Cluster
from infnet_rec.planner.request import TableControl, Workload
from infnet_rec.planner.search.search import search_plan
from planning_models import cpu_cluster, gpu_cluster, make_tables, make_workload

BAGS, EVENTS = {"user": 1000, "city": 100}, {"video": 5000}
GPU, CPU = gpu_cluster("2x2"), cpu_cluster("1x2")


def plan(cluster: Cluster, controls: dict[str, TableControl]) -> None:
    model = make_tables(BAGS, EVENTS, averaged=("city",))
    search_plan(model, cluster, make_workload(BAGS, EVENTS), controls)


@pytest.mark.parametrize(
    ("cluster", "name", "control", "expected"),
    [
        (GPU, "vidoe", TableControl(), r"'vidoe': is not in the model \(did you mean 'video'\?\)"),
        (GPU, "city", TableControl(("grid_shard",)), "returns sums where rows are averaged"),
        (GPU, "video", TableControl(("table_row_wise",)), "table_row_wise cannot shard a table of events on cuda"),
        (GPU, "video", TableControl(("grid_shard",)), "grid_shard cannot shard a table of events"),
        (CPU, "video", TableControl(("data_parallel",)), "data_parallel cannot shard a table of events on cpu"),
        (CPU, "user", TableControl(kernels=("fused_uvm",)), "fused_uvm needs a GPU"),
        (GPU, "user", TableControl(kernels=("dense",)), "is what a data_parallel table runs"),
        (GPU, "user", TableControl(("data_parallel",), ("fused",)), "is what a data_parallel table runs"),
        (GPU, "user", TableControl(cache_load_factor=0.0), "cache_load_factor = 0"),
        (GPU, "user", TableControl(cache_load_factor=1.5), "cache_load_factor = 1.5"),
        (GPU, "user", TableControl(("column_wise",), min_columns=6), "min_columns = 6: must be a positive multiple"),
        (GPU, "user", TableControl(("column_wise",), min_columns=64), "64 columns cannot be cut into equal parts"),
    ],
)
def test_a_control_that_cannot_be(cluster: Cluster, name: str, control: TableControl, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        plan(cluster, {name: control})


def test_sums_may_be_grid_sharded() -> None:
    plan(GPU, {"user": TableControl(("grid_shard",))})


def test_row_wise_bags_on_a_cpu_only_when_asked_for() -> None:
    plan(CPU, {"user": TableControl(("row_wise",))})


def test_a_table_without_traffic() -> None:
    with pytest.raises(UserError, match="'video': nothing says how often it is read"):
        search_plan(make_tables(BAGS, EVENTS), GPU, make_workload(BAGS, {}))


def test_one_name_in_both_collections() -> None:
    workload: Workload = make_workload({"same": 10}, {})
    with pytest.raises(UserError, match="'same' stands in two collections"):
        search_plan(make_tables({"same": 10}, {"same": 10}), GPU, workload)
