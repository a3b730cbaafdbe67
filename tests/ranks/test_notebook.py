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
    # Not what another configuration would have said.
    other = Run(SMALL, [f"data.store={small_store}", "train.num_epochs=0.5", "model.width=12"], run_dir=run.run_dir)
    with pytest.raises(UserError, match="is of a run with other settings"):
        other.predict("test")
    # A second time in the same process, and a finished run is not trained again.
    assert run.train() == result


def test_what_cannot_be_is_said_in_one_line(small_store: Path, tmp_path: Path) -> None:
    run = Run(SMALL, [f"data.store={small_store}"], run_dir=tmp_path / "run")
    with pytest.raises(UserError, match="holds no run yet"):
        run.predict("test")
    with pytest.raises(UserError, match="must be from 0 to"):
        run.batch("train", [10**9])
    for rows in ([], [0.5], [True, False], [[1, 2]], 5, ["a"]):
        with pytest.raises(UserError, match="must be a list of whole numbers"):
            run.batch("train", rows)  # type: ignore[arg-type]
    assert run.batch("train", range(3)).labels_BT.shape[0] == 3
    with pytest.raises(UserError, match="did you mean 'train'"):
        run.batch("trian", [0])
    assert not (tmp_path / "run").exists()


MODEL = """
from typing import Literal

import torch
from infnet_rec.config.model import ModelConfig
from infnet_rec.models.registry import register


class SumConfig(ModelConfig):
    name: Literal["sum_of_tokens"] = "sum_of_tokens"


@register(SumConfig)
class Sum(torch.nn.Module):
    def __init__(self, layout, section):
        super().__init__()
        self.out = torch.nn.Linear(section.width, layout.num_tasks)

    def reset_parameters(self):
        self.out.reset_parameters()

    def forward(self, tokens):
        return self.out(tokens.categorical_BMD.sum(dim=1)) * SCALE
"""


def test_every_run_has_its_own_plugins_and_a_file_may_be_edited(small_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MODEL.replace("SCALE", "1.0"))
    overrides = [f"data.store={small_store}", 'model={name="sum_of_tokens", width=8}', "train.num_epochs=0.05"]
    mine = Run(SMALL, overrides, run_dir=tmp_path / "mine", plugins=file)
    Run(SMALL, [f"data.store={small_store}"])  # without
    with pytest.raises(UserError, match=r"model\.name"):
        Run(SMALL, overrides)
    mine.train()
    assert (tmp_path / "mine" / "plugin.json").exists()
    file.write_text(MODEL.replace("SCALE", "2.0"))
    edited = Run(SMALL, overrides, run_dir=tmp_path / "edited", plugins=[file])
    assert edited.config.model.name == "sum_of_tokens"
    with pytest.raises(UserError, match="give it as it was then"):
        Run(SMALL, overrides, run_dir=tmp_path / "mine", plugins=[file]).predict("test")


def test_one_of_many_ranks_is_refused(small_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="is for one process"):
        Run(SMALL, [f"data.store={small_store}"])
