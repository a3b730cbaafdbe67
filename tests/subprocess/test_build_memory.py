"""A build's memory does not grow with the log beyond what it was given."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from data_fixtures import ROOT
from infnet_rec.data.store import Store
from kiosk import DAY_S, FILES, hashes

NUM_ROWS = 1_200_000
LIMIT_GIB = 0.28
BUILD = """
import sys
from pathlib import Path
from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.config.toml import validate_model
from kiosk import KIOSK
recipe, quiet = validate_model(Recipe, KIOSK, "kiosk"), BuildProgress(lambda *_: None, lambda _: None)
build_store(recipe, Path("raw"), Path(sys.argv[1]), quiet, memory_gib=float(sys.argv[2]), num_threads=1)
# Not ru_maxrss, which begins at what the parent had.
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) / 2**20)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large kiosk: users and items with some hundred and some five rows."""
    folder = tmp_path_factory.mktemp("memory")
    raw, draw = folder / "raw", np.random.default_rng(0)
    raw.mkdir()
    num_users, num_items = NUM_ROWS // 100, NUM_ROWS // 5
    log = pa.table(
        {
            "user": draw.integers(0, num_users, NUM_ROWS),
            "item": draw.integers(0, num_items, NUM_ROWS),
            "time": draw.integers(0, 3 * DAY_S, NUM_ROWS),
            "click": draw.integers(0, 2, NUM_ROWS),
            "page": draw.integers(0, 9, NUM_ROWS),
            "mark": pa.array(draw.integers(0, 99, NUM_ROWS)).cast(pa.string()),
        }
    )
    pacsv.write_csv(log, raw / "log_1.csv")
    (raw / "log_2.csv").write_text(FILES["log_2.csv"][0] + "\n")
    (raw / "users.csv").write_text("user,city\n" + "".join(f"{k},c{k % 50}\n" for k in range(num_users)))
    (raw / "items.csv").write_text("item,price\n" + "".join(f"{k},{k * 0.5}\n" for k in range(num_items)))
    return folder


def peak_gib(folder: Path, out: str, memory_gib: float) -> float:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUILD, out, str(memory_gib)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_peak_memory_stays_under_the_limit_given(folder: Path) -> None:
    """Of the whole process, Python and its libraries too; with a larger limit it takes more, for the same store."""
    low, high = peak_gib(folder, "low", LIMIT_GIB), peak_gib(folder, "high", 6.0)
    print(f"peak {low:.3f} GiB of {LIMIT_GIB}, {high:.3f} GiB of 6")
    assert low < LIMIT_GIB < high
    assert hashes(folder / "low") == hashes(folder / "high")
    assert sum(Store(folder / "low").num_examples(split) for split in ("train", "valid", "test")) == NUM_ROWS
