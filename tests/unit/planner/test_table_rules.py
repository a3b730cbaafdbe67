"""Rules for tables: how they are laid on one another, and what is refused before any process group."""

from dataclasses import replace

import pytest

import sharded_runs
from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import open_data
from infnet_rec.errors import UserError
from infnet_rec.planner.request import TableControl
from infnet_rec.planner.run_plan import check_run
from infnet_rec.planner.table_rules import controls_of, precisions_of
from infnet_rec.schema import Feature, Schema, Sequence, Table, Task

SCHEMA = Schema(
    tables=(Table("user", 900), Table("tags", 40), Table("hour", 26), Table("video", 5000), Table("unread", 7)),
    features=(
        Feature("user", "user", "user"),
        Feature("tags", "tags", "item", max_values=3),
        Feature("hour", "hour", "context"),
        Feature("video", "video", "item"),
    ),
    sequences=(Sequence("seq_video", "click", "video", "video", "click"),),
    tasks=(Task("click", "is_click"),),
)


def config(*overrides: str) -> RunConfig:
    return load_config(sharded_runs.CONFIG, ["sharding.row_wise_min_rows='auto'", *overrides])


def rules(*text: str) -> str:
    return f"sharding.tables=[{', '.join(text)}]"


def test_nothing_said_controls_nothing() -> None:
    assert controls_of(config(), SCHEMA, "cpu") == {}


def test_later_rules_replace_keys_of_earlier_ones_and_what_belongs_to_them() -> None:
    given = config(
        rules(
            "{match='*', sharding='column_wise', min_columns=4, precision='fp16'}",
            "{match='v*', kernel='fused_uvm_caching', cache_load_factor=0.2}",
            "{match='video', sharding='row_wise'}",
            "{match='[ht]*', sharding='auto', precision='fp32'}",
        )
    )
    controls = controls_of(given, SCHEMA, "cuda")
    assert controls["user"] == TableControl(sharding_types=("column_wise",), precision="fp16", min_columns=4)
    assert controls["video"] == TableControl(
        sharding_types=("row_wise",), kernels=("fused_uvm_caching",), cache_load_factor=0.2, precision="fp16"
    )
    assert controls["hour"] == controls["tags"] == TableControl(precision="fp32")
    assert precisions_of(given, SCHEMA) == {"user": "fp16", "tags": "fp32", "hour": "fp32", "video": "fp16"}


def ways(given: RunConfig, device: str) -> dict[str, str | None]:
    controls = controls_of(given, SCHEMA, device)  # type: ignore[arg-type]
    return {name: c.sharding_types[0] if c.sharding_types else None for name, c in controls.items()}


def test_sizes_decide_where_no_rule_does() -> None:
    sizes = ["sharding.row_wise_min_rows=900", "sharding.data_parallel_max_rows=5000"]
    assert ways(config(*sizes), "cuda") == dict.fromkeys(("user", "tags", "hour", "video"), "data_parallel")
    # On CPU the table of a sequence cannot be copied.
    assert ways(config(*sizes), "cpu")["video"] == "row_wise"
    given = config("sharding.row_wise_min_rows=900", rules("{match='user', sharding='table_wise'}"))
    assert ways(given, "cpu") == {
        "user": "table_wise",
        "tags": "table_wise",
        "hour": "table_wise",
        "video": "row_wise",
    }
    # A copied table has no kernel to choose and no half precision: a rule that asks for one comes first.
    given = config("sharding.data_parallel_max_rows=50", rules("{match='tags', precision='fp16'}"))
    assert ways(given, "cpu") == {"tags": None, "hour": "data_parallel"}


WRONG = {
    "no table": (rules("{match='vidoe', sharding='row_wise'}"), r"tables\.0\.match = 'vidoe': fits none .*'video'"),
    "no pattern": (rules("{match='x*', precision='fp16'}"), r"tables\.0\.match = 'x\*': fits none of the run's 4"),
    "not this profile's": (rules("{match='unread', precision='fp16'}"), r"'unread': fits none"),
    "nothing": (rules("{match='*'}"), r"sharding\.tables\.0: match = '\*' and nothing else"),
    "unknown way": (rules("{match='*', sharding='rowwise'}"), r"(?s)sharding = 'rowwise'.*did you mean 'row_wise'"),
    "factor without cache": (
        rules("{match='user', cache_load_factor=0.1}"),
        r"user: cache_load_factor = 0\.1 needs kernel = 'fused_uvm_caching', and it is 'auto'",
    ),
    "factor too large": (rules("{match='*', kernel='fused_uvm_caching', cache_load_factor=1.5}"), r"cache_load_factor"),
    "columns of rows": (rules("{match='*', sharding='row_wise', min_columns=4}"), r"min_columns = 4 needs a sharding"),
    "kernel of a copy": (
        rules("{match='hour', sharding='data_parallel', kernel='fused'}"),
        r"hour: sharding = 'data_parallel' has no kernel",
    ),
    "half a copy": (rules("{match='hour', sharding='data_parallel', precision='fp16'}"), r"keeps fp32 weights"),
    "adam of a copy": (
        rules("{match='hour', sharding='data_parallel'}") + "#adam",
        r"data_parallel' with train\.sparse\.optimizer = 'adam'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions_are_refused_on_any_device(name: str) -> None:
    text, message = WRONG[name]
    text, adam, _ = text.partition("#adam")
    with pytest.raises(UserError, match=message):
        controls_of(config(text, *(["train.sparse.optimizer='adam'"] if adam else [])), SCHEMA, "cuda")


ON_CPU = {
    "bf16": ("sharding.communication='bf16'", r"communication = 'bf16': is for GPUs; .*fp16"),
    "replicas": ("sharding.replica_groups=2", r"replica_groups = 2: TorchRec's DMPCollection runs on GPUs only"),
    "uvm": (rules("{match='*', kernel='fused_uvm'}"), r"kernel = 'fused_uvm' is for GPUs"),
    "gpu": ("sharding.hardware='h100'", r"sharding\.hardware = 'h100': computes on cuda, and this rank on cpu"),
    "no such hardware": ("sharding.hardware='h10'", r"h10: is not in the catalogue \(did you mean 'h100'\?\)"),
    "copied sequence": (rules("{match='seq_sku', sharding='data_parallel'}"), r"seq_sku.*data_parallel cannot shard"),
    "sequence in a node": (rules("{match='seq_sku', sharding='table_row_wise'}"), r"seq_sku.*table_row_wise cannot"),
    "grid of means": (rules("{match='tags', sharding='grid_shard'}"), r"tags.*grid_shard returns sums"),
    "narrow": (rules("{match='sku', sharding='column_wise', min_columns=8}"), r"sku.*8 columns cannot be cut"),
    "no plan": ("sharding.plan='none.json'", r"none\.json: no such file"),
    "adam": ("train.sparse.optimizer='adam'", r"has no fused kernel on CPU"),
}


@pytest.mark.parametrize("name", ON_CPU)
def test_what_a_cpu_cannot_do_is_refused_before_a_process_group(name: str, rich_shop) -> None:
    override, message = ON_CPU[name]
    store = str(rich_shop.store.path)
    given = sharded_runs.small_config(store, ["data.profile='all'", "train.global_batch_size=8", override])
    with pytest.raises(UserError, match=message) as raised:
        check_run(given, open_data(given), sharded_runs.world_of(0, 2))
    assert "\n" not in str(raised.value)


def test_ranks_must_be_spread_evenly(rich_shop) -> None:
    store = str(rich_shop.store.path)
    given = sharded_runs.small_config(store, ["data.profile='all'", "train.global_batch_size=12"])
    uneven = replace(sharded_runs.world_of(0, 3), local_world_size=2)
    with pytest.raises(UserError, match="3 ranks with 2 on this machine"):
        check_run(given, open_data(given), uneven)
