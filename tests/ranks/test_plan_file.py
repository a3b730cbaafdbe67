"""plan.json: what is written is what is read, and the plan that was reviewed is the plan that trains."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import planned_runs
import sharded_runs
from infnet_rec import cli
from infnet_rec.data.run_data import open_data
from infnet_rec.errors import Refusal, UserError
from infnet_rec.planner.plan_file import PlanFile, fingerprint_differences, read_plan, write_plan
from infnet_rec.planner.report.diff import plan_diff, plan_diff_lines
from infnet_rec.planner.run_plan import check_run
from planned_runs import make_plan
from rank_pair import RankPair
from sharded_runs import small_config, world_of


@pytest.fixture(scope="module")
def store(rich_shop) -> str:
    return str(rich_shop.store.path)


@pytest.fixture(scope="module")
def plan(store: str) -> PlanFile:
    return make_plan(store)


# Kernels and caches that a CPU has not are planned for GPUs; nothing of it runs.
PLANS = {
    "cpu": ([], "1x2", "cpu-node"),
    "uneven": (["sharding.tables=[{match='*', sharding='row_wise'}]", "train.global_batch_size=9"], "1x3", "cpu-node"),
    "copies": (["sharding.data_parallel_max_rows=30"], "2x8", "h100"),
    "columns": (["sharding.tables=[{match='*', sharding='column_wise', min_columns=4}]"], "1x2", "h100"),
    "nodes": (["sharding.tables=[{match='sku', sharding='table_row_wise'}]"], "2x2", "h100"),
    "cache": (
        ["sharding.tables=[{match='sku', kernel='fused_uvm_caching', cache_load_factor=0.25, precision='fp16'}]"],
        "1x2",
        "h100",
    ),
    "replicas": (["sharding.replica_groups=2"], "2x2", "h100"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_survives_its_file(name: str, store: str, tmp_path: Path) -> None:
    """Every field, and the very plan that TorchRec gets (`plan_file` asserts that it is the search's)."""
    overrides, cluster, hardware = PLANS[name]
    batch = [] if name == "uneven" else ["train.global_batch_size=16"]
    plan = make_plan(store, *overrides, *batch, cluster=cluster, hardware=hardware)
    write_plan(tmp_path / "plan.json", plan)
    again = read_plan(tmp_path / "plan.json")
    assert again == plan
    assert again.sharding_plan() == plan.sharding_plan()
    assert again.text() == plan.text()
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_what_was_planned_is_in_the_file(store: str) -> None:
    cache = make_plan(store, *PLANS["cache"][0], cluster="1x2", hardware="h100")
    table = next(table for table in cache.tables if table.name == "sku")
    assert (table.kernel, table.cache and table.cache.load_factor) == ("fused_uvm_caching", 0.25)
    assert next(table for table in cache.fingerprint.tables if table.name == "sku").precision == "fp16"
    replicas = make_plan(store, "sharding.replica_groups=2", cluster="2x2", hardware="h100")
    assert replicas.fingerprint.world.group_size == 2
    assert {shard.rank for table in replicas.tables for shard in table.shards} == {0, 1}


def test_a_file_that_is_no_plan_is_a_fault(plan: PlanFile, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    data = json.loads(plan.text())
    for broken, message in (
        ("{", "not a JSON file"),
        ("{}", r"(?s)fingerprint: missing.*tables: missing"),
        (json.dumps(data | {"format": 2}), "format"),
        (json.dumps(data | {"colour": "blue"}), "colour: unknown key"),
        (json.dumps(data | {"tables": [data["tables"][0] | {"sharding": "row_size"}]}), "did you mean 'row_wise'"),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match=message):
            read_plan(path)


OTHER = {
    "ranks": (["1x4"], r"it is for 1 x 4 ranks, here are 1 x 2 ranks"),
    "width": (["1x2", "model.width=16"], r"table age had width 16, here 8; .*and \d+ more tables"),
    "precision": (
        ["1x2", "sharding.tables=[{match='sku', precision='fp16'}]"],
        r"table sku had precision fp16, here fp32",
    ),
    "profile": (["1x2", "data.profile='no_context'"], r"it lacks table day"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_plan_for_something_else_is_refused_before_a_process_group(name: str, store: str, tmp_path: Path) -> None:
    (cluster, *overrides), message = OTHER[name]
    plan = make_plan(store, *overrides, cluster=cluster)
    assert_refused(plan, store, tmp_path, message)


def assert_refused(plan: PlanFile, store: str, folder: Path, message: str, *overrides: str) -> None:
    write_plan(folder / "plan.json", plan)
    config = small_config(store, [*planned_runs.SHOP, f"sharding.plan='{folder / 'plan.json'}'", *overrides])
    with pytest.raises(UserError, match=message) as raised:
        check_run(config, open_data(config), world_of(0, 2))
    text = str(raised.value)
    assert "\n" not in text
    if not overrides:
        here = make_plan(store).fingerprint.short
        assert plan.fingerprint.short != here and plan.fingerprint.short in text and here in text


def test_a_plan_for_other_hardware_or_versions_is_refused(plan: PlanFile, store: str, tmp_path: Path) -> None:
    gpu = plan.fingerprint.model_copy(update={"hardware": "H100-SXM5-80GB", "device": "cuda"})
    wrong = plan.model_copy(update={"fingerprint": gpu})
    assert_refused(wrong, store, tmp_path, r"it is for H100-SXM5-80GB \(cuda\), this is CPU-node \(cpu\)")
    here = plan.fingerprint.versions
    old = plan.fingerprint.model_copy(update={"versions": here | {"torchrec": "1.5.1"}})
    wrong = plan.model_copy(update={"fingerprint": old})
    assert_refused(wrong, store, tmp_path, rf"it was made with torchrec 1\.5\.1, here is {re.escape(here['torchrec'])}")


def test_a_plan_against_the_configurations_rules_is_refused(plan: PlanFile, store: str, tmp_path: Path) -> None:
    rule = "sharding.tables=[{match='sku', sharding='column_wise'}]"
    assert_refused(plan, store, tmp_path, r"gives sku sharding '\w+', and .* asks for 'column_wise'", rule)


def test_training_follows_its_plan_to_the_letter(plan: PlanFile, store: str, ranks: RankPair, tmp_path: Path) -> None:
    """A plan that the search would not have made: the tables of features change places."""
    tables = []
    for table in plan.tables:
        shards = table.shards
        if table.sharding == "table_wise":
            shards = tuple(type(s)(1 - s.rank, 0, 0, s.num_rows, s.num_columns, s.hbm, s.host, s.times) for s in shards)
        tables.append(table.model_copy(update={"shards": shards}))
    moved = plan.model_copy(update={"tables": tuple(tables)})
    write_plan(tmp_path / "plan.json", moved)
    overrides = [f"sharding.plan='{tmp_path / 'plan.json'}'"]
    for text, applied in ranks(planned_runs.plan_of_run, store, overrides):
        assert text == moved.text()
        assert applied == repr(moved.sharding_plan()) != repr(plan.sharding_plan())


def test_training_without_a_plan_makes_the_one_that_plan_would(plan: PlanFile, store: str, ranks: RankPair) -> None:
    first, second = ranks(planned_runs.plan_of_run, store, ["sharding.hardware='cpu-node'"])
    assert first == second == (plan.text(), repr(plan.sharding_plan()))


ALIKE = {
    "as it is": [],
    "rules": ["sharding.tables=[{match='sku', sharding='table_wise'}, {match='age', precision='fp16'}]"],
    "another reserve": ["train.global_batch_size=64", "model.width=16", "data.loader_threads=3", "data.read_ahead=9"],
    "another model": ["model={name='mmoe', width=8}", "train.dense.optimizer='adagrad'"],
}


def test_every_way_to_a_plan_gives_the_same_bytes(store: str, ranks: RankPair, tmp_path: Path) -> None:
    """The verb's file, and the plans of the check, the doctor and the training on the hardware that the verb was told
    of: reserves are in it, as what is left of every rank's memory."""
    hardware = str(planned_runs.small_hardware(tmp_path, 24.0))
    each = [[*overrides, f"sharding.hardware='{hardware}'"] for overrides in ALIKE.values()]
    first, second = ranks(planned_runs.plans_of_all_ways, store, each, timeout_s=200)
    texts = []
    for name, overrides, found, other in zip(ALIKE, each, first, second, strict=True):
        out = tmp_path / f"{name.replace(' ', '-')}.json"
        sets = [f"--set={override}" for override in (f"data.store='{store}'", *planned_runs.SHOP, *overrides)]
        words = ["plan", str(sharded_runs.CONFIG), "-j", "1x2", *sets, "--out", str(out)]
        assert CliRunner().invoke(cli.app, words).exit_code == 0, name
        assert {*found.values(), *other.values()} == {out.read_text()}, name
        texts.append(out.read_text())
    free = [json.loads(text)["ranks"][0]["host_free_bytes"] for text in texts]
    assert len(set(free)) == len(ALIKE), "what is reserved depends on the run"


@pytest.mark.parametrize(("host_gib", "answer"), [(1.0, "DoesNotFit"), (4.0, "")])
def test_what_the_verb_says_of_memory_training_says_too(
    host_gib: float, answer: str, store: str, ranks: RankPair, tmp_path: Path
) -> None:
    """A process with torch needs most of a GiB, so two of them do not fit into one, however small the tables are."""
    hardware = str(planned_runs.small_hardware(tmp_path, host_gib))
    try:
        made = make_plan(store, hardware=hardware).text()
    except Refusal as refusal:
        kind, made = type(refusal).__name__, str(refusal)
    else:
        kind = ""
    (trained_kind, trained), _ = ranks(planned_runs.error_of_run, store, [f"sharding.hardware='{hardware}'"])
    assert kind == trained_kind == answer
    assert not answer or trained == made


def test_a_plan_that_rank_0_cannot_make_is_one_refusal_on_all_ranks(
    store: str, ranks: RankPair, tmp_path: Path
) -> None:
    hardware = planned_runs.small_hardware(tmp_path, host_gib=1e-5)
    (kind, text), (other_kind, other_text) = ranks(
        planned_runs.error_of_run, store, [f"sharding.hardware='{hardware}'"], timeout_s=60
    )
    assert (kind, other_kind) == ("DoesNotFit", "Refusal")
    assert text == other_text and "does not fit on 1x2 of small" in text


def test_a_fault_or_a_bug_on_rank_0_leaves_no_rank_waiting(
    plan: PlanFile, store: str, ranks: RankPair, tmp_path: Path
) -> None:
    write_plan(tmp_path / "plan.json", make_plan(store, cluster="1x4"))
    faults = ranks(planned_runs.error_of_run, store, [f"sharding.plan='{tmp_path / 'plan.json'}'"], timeout_s=60)
    assert [kind for kind, _ in faults] == ["UserError", "UserError"] and faults[0][1] == faults[1][1]
    bugs = ranks(planned_runs.error_of_broken_planner, store, timeout_s=60)
    assert bugs[0] == ("ZeroDivisionError", "the planner divided by nothing")
    assert bugs[1] == ("Failure", "rank 0: ZeroDivisionError: the planner divided by nothing")


def test_the_same_plan_differs_in_nothing(plan: PlanFile) -> None:
    diff = plan_diff(plan, plan)
    assert not diff.tables and not diff.made_for and fingerprint_differences(plan.fingerprint, plan.fingerprint) == []
    assert plan_diff_lines(diff) == [f"the same plan: all {len(plan.tables)} tables stand where they stood"]


def test_a_difference_names_tables_bytes_and_time(plan: PlanFile, store: str) -> None:
    rule = "sharding.tables=[{match='sku', sharding='table_wise'}, {match='age', sharding='data_parallel'}]"
    other = make_plan(store, rule)
    diff = plan_diff(plan, other)
    changes = {change.name: change for change in diff.tables}
    assert {"sku", "age"} <= changes.keys()
    sku, age = changes["sku"], changes["age"]
    assert sku.before == "row_wise fused ranks 0,1" and sku.after.startswith("table_wise fused rank ")
    assert age.after == "data_parallel dense ranks 0,1" and age.after_bytes > age.before_bytes
    for rank in diff.ranks:
        expected = [
            sum(s.hbm.total_bytes + s.host.total_bytes for t in p.tables for s in t.shards if s.rank == rank.rank)
            for p in (plan, other)
        ]
        assert [a + b for a, b in zip(rank.hbm_bytes, rank.host_bytes, strict=True)] == expected
    text = "\n".join(plan_diff_lines(diff))
    assert f"{len(changes)} of {len(plan.tables)} tables moved" in text and "the slowest rank takes" in text
    grown = plan_diff(plan, make_plan(store, cluster="1x4"))
    assert grown.made_for == ("it is for 1 x 2 ranks, here are 1 x 4 ranks",)
    assert len(grown.ranks) == 4 and grown.ranks[3].host_bytes[0] == 0
