"""The most telling faults, one try each; `make faults` does all of them, many times."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lanes import cannot_start

ROOT = Path(__file__).parents[3]
FAULTS = ["kill_rank_1", "kill_write", "sigterm_one", "truncated", "nan", "hung", "disk_full"]
BITS = {"equal_bits": 1, "equal_close": 0, "examples_lost": 0, "examples_twice": 0, "survived": 1}


@pytest.fixture(scope="module")
def rows(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The table, by fault. A program of its own makes it, because its processes are forks of it."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "benchmarks.faults", "--tries", "1", "--work", str(folder / "work")]
    command += ["--store", str(small_store), "--out", str(folder / "table"), "--only", *FAULTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return {row["fault"]: row for row in json.loads((folder / "table.json").read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_run_is_the_one_that_nothing_happened_to(rows: dict[str, Any], fault: str) -> None:
    """All weights, optimizer and random states and progress lines, to the bit; no example lost or seen twice."""
    if fault == "disk_full" and fault not in rows:
        cannot_start("no file system may be mounted here")
    assert {name: rows[fault][name] for name in BITS} == BITS
