"""A run inside one Python process, as docs/python.md shows it."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from infnet_rec.errors import UserError
from infnet_rec.notebook import Run

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "small.toml"


def test_what_the_page_shows_runs(small_store: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert len([line for line in shown.splitlines() if line]) <= 10
    here = f'"{SMALL}", ["data.store={small_store}", "train.num_epochs=0.5"], run_dir="{tmp_path}/run"'
    code = shown.replace('"configs/quickstart.toml", ["train.num_epochs=1"]', here)
    assert code != shown
    names: dict[str, object] = {}
    exec(code, names)
    run, result = names["run"], names["result"]
    assert isinstance(run, Run) and isinstance(result, dict)
    assert (run.run_dir / "result.json").exists()
    probability_N, label_N = names["probability_N"], names["label_N"]
    assert isinstance(probability_N, np.ndarray) and isinstance(label_N, np.ndarray)
    assert len(probability_N) == run.data.store.num_examples("test") == len(label_N)
    assert ((probability_N > 0) & (probability_N < 1)).all()
    # The same numbers as the run's own test.
    assert roc_auc_score(label_N, probability_N) == pytest.approx(result["metrics"]["test"]["click"]["auc"], abs=1e-6)
    # A second time in the same process, and a finished run is not trained again.
    assert run.train() == result


def test_what_cannot_be_is_said_in_one_line(small_store: Path, tmp_path: Path) -> None:
    run = Run(SMALL, [f"data.store={small_store}"], run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="holds no run yet"):
        run.predict("test")
    with pytest.raises(UserError, match="must be at least one of 0 to"):
        run.batch("train", [10**9])
    with pytest.raises(UserError, match="did you mean 'train'"):
        run.batch("trian", [0])
    assert not (tmp_path / "run").exists()


def test_one_of_many_ranks_is_refused(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="is for one process"):
        Run(SMALL, [f"data.store={small_store}"])
