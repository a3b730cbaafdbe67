"""Lanes that need another engine than this machine's Python; they are run on demand and then must not be left out."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from slurm_cluster import CannotStart, SlurmCluster, slurm_cluster

ROOT = Path(__file__).parent.parent.parent
ASKED, RESULTS = "INFNET_REC_ENGINES", "INFNET_REC_ENGINES_RESULTS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.engines)
            if os.environ.get(ASKED) != "1":
                item.add_marker(
                    pytest.mark.skip(reason="'make test-engines' runs it, as root, where Slurm is installed")
                )


class Record:
    """What came of every case, for the page of results."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.began = time.monotonic()

    def add(self, case: str, outcome: str, seconds: float) -> None:
        self.rows.append((case, outcome, f"{seconds:.0f}"))

    def page(self) -> str:
        git = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git[:3], "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.strip()
        lines = [
            "# On a real Slurm",
            "",
            f"{version}, two nodes of 2 cores as namespaces of one machine, jobs of an ordinary user; made by "
            f"`make test-engines` on {datetime.now(UTC):%Y-%m-%d}, at commit {commit}{'+' if changed else ''}, in "
            f"{(time.monotonic() - self.began) / 60:.0f} minutes. A requeued job waits 10 s here, two minutes with "
            "Slurm's defaults; a node counts as lost after 20 s here, 300 s with Slurm's defaults.",
            "",
            "| what was done | what came of it | s |",
            "|---|---|---|",
            *(f"| {case} | {outcome} | {seconds} |" for case, outcome, seconds in self.rows),
        ]
        return "\n".join(lines) + "\n"


RECORD = Record()


@pytest.fixture(scope="session")
def record() -> Record:
    return RECORD


def pytest_sessionfinish(exitstatus: int) -> None:
    """Only a whole lane that passed is a result."""
    if exitstatus == 0 and RECORD.rows and (path := os.environ.get(RESULTS)):
        Path(path).write_text(RECORD.page(), encoding="utf-8")


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    folder = Path(tempfile.mkdtemp(prefix="infnet-slurm-", dir="/tmp"))
    try:
        with slurm_cluster(folder) as running:
            yield running
    except CannotStart as reason:
        pytest.fail(f"the lane cannot start: {reason}")
    finally:
        if os.environ.get(f"{ASKED}_KEEP") != "1":
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def config(cluster: SlurmCluster, small_store: Path) -> Path:
    """The tests' run, where the jobs' user can read it."""
    store = cluster.shared / "store"
    shutil.copytree(small_store, store)
    for path in (store, *store.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    path = cluster.shared / "small.toml"
    text = (ROOT / "tests" / "small.toml").read_text()
    path.write_text(text.replace('"given by the test"', json.dumps(str(store))))
    return path
