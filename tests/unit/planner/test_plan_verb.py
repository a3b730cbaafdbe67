"""`infnet-rec plan`: what it answers, refuses and leaves behind."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infnet_rec import cli
from infnet_rec.cli.plan import EPILOG
from infnet_rec.data.store import Store
from infnet_rec.errors import Refusal, UserError
from infnet_rec.planner.report import plot
from infnet_rec.planner.report import text as plan_text
from infnet_rec.planner.report.advice import PlanRefused
from infnet_rec.planner.report.facts import PARTS, STEP_PARTS

ROOT = Path(__file__).parents[3]
LARGE = ROOT / "configs" / "kuairand_27k_h100.toml"
SMALL = Path(__file__).parents[2] / "small.toml"
GIB = 2**30
MINE = """
name = "mine"
device = "cuda"
ranks_per_node = 4
hbm_gib = 20.0
host_memory_gib = 256.0
hbm_gb_per_s = 900.0
host_memory_gb_per_s = 300.0
pcie_gb_per_s = 30.0
intra_node_gb_per_s = 25.0
inter_node_gb_per_s = 6.0
bf16_tflops = 100.0
fp32_tflops = 50.0
price_per_node_hour = 7.5
currency = "EUR"
"""


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest's path in the run's file is relative."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of something else: each hint is a plan more."""
    monkeypatch.setattr("infnet_rec.planner.report.advice.hints", lambda inquiry, run: [])


def invoke(*words: object) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *map(str, words)])


def answer(*words: object) -> Any:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def four_nodes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return answer(LARGE, "-j", "4x8", "--hardware", "h100")


def test_every_byte_of_every_rank_is_accounted_for(four_nodes: Any) -> None:
    assert four_nodes["verdict"] == "fits"
    capacity = four_nodes["cluster"]["hbm_bytes_per_rank"]
    assert len(four_nodes["ranks"]) == 32
    for rank in four_nodes["ranks"]:
        assert sum(rank["hbm"][part] for part in (*PARTS, "free")) == capacity
        assert sum(rank["host"][part] for part in (*PARTS, "free")) == four_nodes["cluster"]["host_bytes_per_rank"]
    weights = sum(rank["hbm"]["weights"] for rank in four_nodes["ranks"])
    assert weights == 4 * 64 * four_nodes["model"]["num_rows"] == sum(t["weight_bytes"] for t in four_nodes["tables"])
    optimizer = sum(rank["hbm"]["optimizer"] for rank in four_nodes["ranks"])
    assert optimizer == 4 * four_nodes["model"]["num_rows"], "row-wise Adagrad keeps one number a row"
    dense = four_nodes["dense"]
    assert all(
        rank["hbm"]["dense"] * 4 >= 16 * four_nodes["model"]["num_dense_parameters"] for rank in four_nodes["ranks"]
    )
    assert dense["total_bytes"] == sum(value for key, value in dense.items() if key != "total_bytes")


def test_a_step_adds_up_and_names_who_is_waited_for(four_nodes: Any) -> None:
    step = four_nodes["step"]
    assert step["total_ms"] == pytest.approx(sum(step[part] for part in STEP_PARTS))
    slowest = max(four_nodes["ranks"], key=lambda rank: rank["tables_ms"])
    assert slowest["tables_ms"] == four_nodes["ranks"][step["critical_rank"]]["tables_ms"]
    assert step["examples_per_s"] == pytest.approx(65_536 / step["total_ms"] * 1e3)
    epoch = four_nodes["epoch"]
    assert epoch["num_steps"] == 142_780_909 // 65_536 and epoch["price"] is None
    assert epoch["rank_hours"] == pytest.approx(32 * epoch["num_steps"] * step["total_ms"] / 3.6e6)
    sent = four_nodes["sent_bytes_per_step"]
    assert sent["embedding_bytes"] == sent["gradient_bytes"] > sent["id_bytes"] > 0


def test_hints_were_planned_and_can_be_typed(four_nodes: Any, no_hints: None) -> None:
    hints = {hint["question"]: hint for hint in four_nodes["hints"]}
    assert list(hints) == [
        "largest local batch",
        "smallest cluster, same global batch",
        "the 3 largest tables in host memory, 10% cached",
        "the 3 largest tables in fp16",
    ]
    *_, cached, half = (hint["found"]["fullest_gib"] for hint in four_nodes["hints"])
    fullest = 79.1 - min(rank["hbm"]["free"] for rank in four_nodes["ranks"]) / GIB
    assert cached < half < fullest
    command = shlex.split(hints["largest local batch"]["command"])
    assert command[:2] == ["infnet-rec", "plan"]
    larger = answer(*command[2:])
    assert larger["batch"]["local_batch_size"] > 2048
    assert larger["step"]["total_ms"] == pytest.approx(hints["largest local batch"]["found"]["step_ms"])
    smallest = hints["smallest cluster, same global batch"]
    assert 1 <= int(smallest["answer"].split("x")[1]) < 8


def test_the_text_sums_up_many_ranks_and_many_tables(four_nodes: Any) -> None:
    text = plan_text.plan_lines(four_nodes)
    assert text[0] == "kuairand_27k on 4x8 H100-SXM5-80GB: fits"
    assert any("stands in for a store that is not there" in line for line in text)
    assert any("how often a batch repeats an id is not known" in line for line in text)
    assert any(line.startswith("median of 32") for line in text) and any("slowest: rank" in line for line in text)
    assert len(text) < 60 and max(map(len, text)) < 140
    assert next(line for line in text if line.startswith("video_id")).split()[1:5] == [
        "32,038,727",
        "64",
        "row_wise",
        "fused",
    ]
    assert any("81 more" in line for line in text)
    few = {**four_nodes, "ranks": four_nodes["ranks"][:8], "step": {**four_nodes["step"], "critical_rank": 3}}
    named = [line for line in plan_text.plan_lines(few) if line.startswith("rank ")]
    assert len(named) == 8 and named[3].startswith("rank 3 *")


def test_a_store_with_repeats_says_what_they_save(small_store: Path, no_hints: None) -> None:
    words = (SMALL, "-j", "1x2", "--hardware", "cpu-node", "--set", f"data.store={small_store}")
    found = answer(*words)
    assert found["manifest"]["is_store"] and found["batch"]["repeats_are_measured"]
    assert found["batch"]["tokens_per_distinct_id"] > 2
    assert found["ranks"][0]["hbm"] is None
    capacity = found["cluster"]["host_bytes_per_rank"]
    assert sum(found["ranks"][0]["host"][part] for part in (*PARTS, "free")) == capacity == 256 * GIB
    text = invoke(*words).stdout
    assert "each looked up once: saves" in text and "GiB of host memory" in text


def test_what_does_not_fit_is_refused_with_a_change_that_fits(no_hints: None) -> None:
    words = (LARGE, "-j", "1x1", "--hardware", "l20", "--set", "model.width=128")
    tables = (*words, "--set", "train.sparse.optimizer=adagrad", "--set", "train.global_batch_size=1024")
    refusal = invoke(*tables).exception
    assert isinstance(refusal, PlanRefused)
    facts = refusal.facts
    missing = facts["missing"]
    assert missing["kind"] == "hbm" and missing["worst_gib"] == missing["gib_by_rank"]["0"] > 5
    assert missing["blame"][0]["table"] == "video_id"
    assert missing["blame"][0]["weights_gib"] == pytest.approx(32_038_727 * 128 * 4 / GIB)
    assert len(facts["changes"]) >= 2
    hours = [change["found"]["rank_hours"] for change in facts["changes"]]
    assert hours == sorted(hours) and facts["remedy"] == facts["changes"][0]["command"]
    message = str(refusal)
    assert f"rank 0 lacks {missing['worst_gib']:.2f} GiB of HBM" in message
    assert "tables to blame: video_id (15.28 GiB)" in message
    assert message.splitlines()[-1] == facts["remedy"]
    assert answer(*shlex.split(facts["remedy"])[2:])["verdict"] == "fits"


def test_a_refusal_is_one_object_and_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PlanRefused("it does not", {"verdict": "does not fit"})

    monkeypatch.setattr("infnet_rec.planner.verb.make_plan_report", refuse)
    result = invoke(LARGE, "-j", "1x1", "--hardware", "l20", "--json")
    assert result.exit_code == 3 and json.loads(result.stdout) == {"verdict": "does not fit"}
    code = "import infnet_rec.cli as c\nfrom infnet_rec.errors import Refusal\n"
    code += "def app(): raise Refusal('it does not')\nc.app = app\nc.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr == "infnet-rec: no: it does not\n"


def test_a_batch_that_is_too_large_is_told_from_tables_that_are() -> None:
    refusal = invoke(LARGE, "-j", "1x1", "--hardware", "l20", "--set", "model.width=128").exception
    assert isinstance(refusal, PlanRefused)
    facts = refusal.facts
    assert facts["missing"]["not_tables_gib"] > facts["missing"]["capacity_gib"]
    # What the search was not told of is in the number too.
    tables = facts["model"]["num_rows"] * 129 * 4 / GIB
    lacking = facts["missing"]["not_tables_gib"] + tables - facts["missing"]["capacity_gib"]
    assert facts["missing"]["worst_gib"] == pytest.approx(lacking, rel=0.01)
    assert "train.global_batch_size=" in facts["remedy"] or "-j 1x8" in facts["remedy"]


def test_pairs_of_changes_are_tried_where_no_single_one_helps(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace("ranks_per_node = 4", "ranks_per_node = 1").replace("hbm_gib = 20.0", "hbm_gib = 6.0"))
    refusal = invoke(LARGE, "-j", "1x1", "--hardware", path, "--set", "train.global_batch_size=16384").exception
    assert isinstance(refusal, PlanRefused)
    assert refusal.facts["remedy"], refusal


def test_prices_of_your_own_hardware_reach_the_report(tmp_path: Path, no_hints: None) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    found = answer(LARGE, "-j", "8x4", "--hardware", path)
    assert found["epoch"]["price"] == pytest.approx(8 * 7.5 * found["epoch"]["hours"])
    assert "EUR" in "\n".join(plan_text.plan_lines(found))


def test_a_run_without_a_store_and_without_a_manifest_is_refused(tmp_path: Path) -> None:
    fault = invoke(SMALL, "-j", "1x1", "--hardware", "h100", "--set", f"data.store={tmp_path}/absent").exception
    assert isinstance(fault, UserError) and "--set data.manifest=FILE" in str(fault)


def test_a_sweep_has_a_row_a_cluster() -> None:
    words = (LARGE, "--hardware", "h100", "--set", "train.global_batch_size=81920")
    found = answer(*words, "--sweep", "1x1,1x3,1x8,2x8")
    fitting = {row["cluster"]: row["fits"] for row in found["sweep"]}
    assert fitting == {"1x1": False, "1x3": False, "1x8": True, "2x8": True}
    assert "does not fit" in found["sweep"][0]["reason"] and "does not divide" in found["sweep"][1]["reason"]
    text = invoke(*words, "--sweep", "1x1,1x8").stdout.splitlines()
    assert text[1].split()[:2] == ["cluster", "ranks"] and text[2].split() == ["1x1", "1", "no"]
    refusal = invoke(*words, "--sweep", "1x1,1x1").exception
    assert isinstance(refusal, Refusal) and "fits on none" in str(refusal)


def test_plans_are_written_and_compared(tmp_path: Path, small_store: Path, no_hints: None) -> None:
    words = (SMALL, "-j", "1x2", "--hardware", "cpu-node", "--set", f"data.store={small_store}")
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    assert answer(*words, "--out", before)["out"] == str(before)
    answer(*words, "--out", after, "--set", "sharding.row_wise_min_rows=1000000")
    answer(*words, "--out", after, "--set", "sharding.row_wise_min_rows=1000000")
    assert "the same plan" in invoke("diff", before, before).stdout
    difference = answer("diff", before, after)
    assert {change["name"] for change in difference["tables"]} >= {"video_id", "author_id"}
    assert "tables moved" in invoke("diff", before, after).stdout
    for wrong in ((before,), (before, after, before), (before, after, "-j", "1x1")):
        fault = invoke("diff", *wrong).exception
        assert isinstance(fault, UserError) and "takes two plan files" in str(fault)
    assert isinstance(invoke("diff", before, SMALL).exception, UserError)
    assert isinstance(invoke(SMALL, SMALL, "-j", "1x1").exception, UserError)


@pytest.mark.slow(smoke=["8"])
@pytest.mark.parametrize("num_ranks", [1, 8, 512])
def test_the_picture_is_drawn_for_few_ranks_and_many(num_ranks: int, four_nodes: Any, tmp_path: Path) -> None:
    ranks = [{**four_nodes["ranks"][rank % 32], "rank": rank} for rank in range(num_ranks)]
    result = {**four_nodes, "ranks": ranks, "step": {**four_nodes["step"], "critical_rank": 0}}
    path = tmp_path / "plan.png"
    for _ in range(2):
        plot.draw_plan(result, path)
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["plan.png"]
    figure = plot.plan_figure(result)
    memory, step, _, tables = figure.axes
    free = min(rank["hbm"]["free"] for rank in ranks) / GIB
    assert f"{free:.1f} of 79.1 GiB are free" in memory.get_title()
    assert f"{result['step']['total_ms']:.3g} ms" in step.get_title()
    assert next(iter(tables.get_yticklabels())).get_text() == "video_id"


def test_a_full_rank_shows_its_capacity(four_nodes: Any) -> None:
    full = [{**rank, "hbm": {**rank["hbm"], "weights": 60 * GIB}} for rank in four_nodes["ranks"]]
    memory = plot.plan_figure({**four_nodes, "ranks": full}).axes[0]
    assert any("79.1 GiB" in text.get_text() for text in memory.texts)


def test_slips_of_the_pen_are_found_without_torch() -> None:
    code = "import sys, infnet_rec.planner.verb; print({'torch', 'torchrec'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_a_manifest_alone_is_a_store_to_plan_with(small_store: Path) -> None:
    manifest = small_store / "manifest.json"
    assert Store(manifest).schema == Store(small_store).schema
    assert Store.of_manifest(Path("elsewhere"), Store(manifest).manifest).num_examples("train") > 0


def test_examples_print_what_the_verb_prints() -> None:
    """Those of `--help` and of the page: they need no machine, so their numbers are today's."""
    printed = [line.strip() for line in invoke(LARGE, "-j", "4x8", "--hardware", "h100").stdout.splitlines()]
    page = (ROOT / "docs" / "planner.md").read_text().partition("--plot plan.png\n")[2].partition("```")[0]
    shown = [line.strip() for text in (EPILOG.partition("h100\n")[2], page) for line in text.splitlines()]
    assert len(shown) > 25 and page
    assert [line for line in shown if line != "..." and line not in printed] == []
