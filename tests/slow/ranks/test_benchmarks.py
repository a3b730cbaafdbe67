"""Every program in `benchmarks/` still runs: its quick form, as a process, and what comes out of it is looked at."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from infnet_rec.trainer.plan_check import EXACT

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
TIMEOUT_S = 280
ELSEWHERE = {
    "fault_rank": "no program: a rank that benchmarks.faults starts under torchrun",
    "faults": "test_faults.py runs one try of each of the most telling faults",
    "gpu": "test_gpu_benchmark.py rehearses every part",
}


def planner(out: Path, said: str) -> None:
    rows = json.loads((out / "planner.json").read_text())["rows"]
    found = {(row["freedom"], row["method"]): row for row in rows}
    assert len(found) == len(rows) == 10 and not any("fault" in row for row in rows), rows
    for freedom in ("exact", "any"):
        least = min(row["critical_ms"] for (other, _), row in found.items() if other == freedom)
        assert 0 < found[freedom, "ours"]["critical_ms"] <= 1.1 * least
    assert (out / "planner.md").read_text().count("**ours**") == 2


def checkpoint(out: Path, said: str) -> None:
    found = json.loads((out / "checkpoint.json").read_text())
    assert found["bytes"] > 1e6 and found["rounds"] == found["ranks"] == 1
    assert min(found["ms"].values()) > 0 and {"step", "sync_stall", "async_stall"} <= found["ms"].keys()
    assert "training stands still, asynchronous" in said


def data(out: Path, said: str) -> None:
    found = json.loads((out / "data.json").read_text())
    assert found["build"]["rows"] == 3000 and found["build"]["build_s"] > 0
    assert set(found["sort"]) == {"duckdb", "polars"} and found["loader"].keys() == {"5", "20"}
    ours = found["bytes"]["ours"]
    assert found["bytes"]["parquet_20_shuffled"] > ours["examples"] and ours["all"] > ours["examples"] > 0
    assert all(length[name] > 0 for length in found["loader"].values() for name in ("ours", "parquet", "copy"))


def deterministic(out: Path, said: str) -> None:
    found = json.loads((out / "deterministic.json").read_text())
    assert found["different_checkpoints"]["on"] == 1 and min(found["examples_per_s"].values()) > 0


def gbdt_reference(out: Path, said: str) -> None:
    lines = [line for line in said.splitlines() if " valid " in line]
    assert len(lines) == 9
    aucs = [float(line.split("valid ")[1].split(" / ")[0]) for line in lines if " click " in line]
    assert len(aucs) == 3 and all(0.6 < auc < 1 for auc in aucs), said


def kuairand_pure_late(out: Path, said: str) -> None:
    (cell,) = [json.loads(line) for line in (out / "late.jsonl").read_text().splitlines()]
    assert cell["variant"] == "ctx89" and cell["steps_done"] >= 1
    assert set(cell["metrics"]["test"]) == {"click", "like", "long_view"}
    assert 0 < cell["metrics"]["test"]["click"]["auc"] < 1
    assert (out / "late.md").read_text().count("| ctx89 | 1 |") == 2


def plan_check(out: Path, said: str) -> None:
    ways = json.loads((out / "plan_check.json").read_text())["ways"]
    assert list(ways) == ["row_wise"]
    for way, result in ways.items():
        exact = [row for row in result["rows"] if row[1] in EXACT]
        assert len(exact) > 50 and all(predicted == measured for *_, predicted, measured in exact), way


def scaling(out: Path, said: str) -> None:
    found = json.loads((out / "scaling.json").read_text())
    (run,) = found["measured"]["runs"]
    assert run["num_ranks"] == 1 and run["examples_per_s"] > 0
    weak, strong = found["simulated"]["rows"]
    assert (weak["kind"], strong["kind"], weak["gpus"], strong["gpus"]) == ("weak", "strong", 8, 8)
    # The same global batch is for four nodes, so one has four times as much to do in a step.
    assert strong["local_batch_size"] == 4 * weak["local_batch_size"] and strong["step_ms"] > 2 * weak["step_ms"]
    assert "SIMULATED" in said and (out / "scaling.png").read_bytes().startswith(b"\x89PNG")


def tower(out: Path, said: str) -> None:
    found = json.loads((out / "tower.json").read_text())
    forms = found["tower"]["16"]["passes"]["forward_backward"]["forms"]
    assert {"literal", "eager"} <= forms.keys() and all(form["ms"] > 0 for form in forms.values())
    assert forms["eager"]["flops"] < forms["literal"]["flops"]
    assert "| 16, eager |" in (out / "tower.md").read_text()


def step(out: Path, said: str) -> None:
    lines = [json.loads(line) for line in (ROOT / "runs" / "quick" / "step.jsonl").read_text().splitlines()]
    before, after = lines[-2:]
    assert (before["form"], after["form"]) == ("before", "after") and min(before["shortest_ms"], after["median_ms"]) > 0
    # One checkout against itself.
    assert before["first_losses"] == after["first_losses"] and before["peak_mib"] == after["peak_mib"]


def versions(out: Path, said: str) -> None:
    sets = json.loads(said)
    assert sets["2.13"]["torchrec"] == "1.8.0" and all(set(one) == set(sets["2.13"]) for one in sets.values())


@dataclass(frozen=True, slots=True)
class Program:
    """What is typed after the program's name, and what looks at its results; STORE and OUT are filled in."""

    words: str
    check: Callable[[Path, str], None]


ON_STORE = "--quick --store STORE --out OUT"
SMALL = "--set data.store='STORE' --set train.global_batch_size=64"
PROGRAMS = {
    "planner": Program("--quick --out OUT", planner),
    "checkpoint": Program(f"configs/quickstart.toml {SMALL} --quick --work OUT/work --out OUT/checkpoint", checkpoint),
    "data": Program("--quick --work OUT/work --out OUT/data.json", data),
    "deterministic": Program(f"{ON_STORE}/deterministic.json", deterministic),
    "gbdt_reference": Program("STORE --quick", gbdt_reference),
    "kuairand_pure_late": Program(f"{ON_STORE}/late.jsonl", kuairand_pure_late),
    "plan_check": Program(f"{ON_STORE}/plan_check.json", plan_check),
    "scaling": Program(f"{ON_STORE}/scaling.json", scaling),
    "step": Program("--quick", step),
    "tower": Program(f"{ON_STORE}/tower.json", tower),
    "versions": Program("--list", versions),
}


def results() -> dict[str, tuple[int, int]]:
    """Size and time of everything that is committed as a result."""
    files = [path for path in (BENCHMARKS / "results").rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow(smoke=["planner", "versions"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_quick_form_runs(name: str, small_store: Path, tmp_path: Path) -> None:
    """Nothing that is committed as a result is touched."""
    program, before = PROGRAMS[name], results()
    words = program.words.replace("STORE", str(small_store)).replace("OUT", str(tmp_path)).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    program.check(tmp_path, done.stdout)
    assert results() == before


def test_no_program_is_left_out() -> None:
    runnable = {path.stem for path in BENCHMARKS.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    runnable |= {path.parent.name for path in BENCHMARKS.glob("*/__main__.py")}
    assert runnable == PROGRAMS.keys() | ELSEWHERE.keys()
