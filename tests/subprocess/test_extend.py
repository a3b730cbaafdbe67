"""The differences that docs/extend.md shows apply to the package as it is, and what they add works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_fixtures import ROOT

PAGE = ROOT / "docs" / "extend.md"
# Run beside the changed copy; every line that is printed is checked.
TRIES = """
import numpy as np, torch
from infnet_rec.config.experiment import SearchConfig
from infnet_rec.config.load import validate_run
from infnet_rec.config.train import DenseConfig
from infnet_rec.data.ingest.vocabulary import clock_ids, clock_vocabulary
from infnet_rec.distributed.optimizers import DENSE, dense_optimizer
from infnet_rec.metrics import evaluate_scores, mean_over_tasks
from infnet_rec.models.registry import _maker
from infnet_rec.models.tokens import TokenLayout, Tokens

weight = torch.nn.Parameter(torch.ones(4))
optimizer, _ = dense_optimizer({"weight": weight}, DenseConfig(optimizer="nadam", lr=0.1))
weight.square().sum().backward()
optimizer.step()
states = [s for s in optimizer.state[weight].values() if s.numel() == 4]
print("optimizer", float(weight.detach().max()) < 1, len(states) == DENSE["nadam"].num_states)

logits, labels = np.array([[2.0], [-1.0], [0.0], [3.0]]), np.array([[1.0], [0.0], [0.0], [1.0]])
found = evaluate_scores(logits, labels, np.arange(4), ["click"])
p = 1 / (1 + np.exp(-logits))
expected = 1 - np.square(p - labels).mean() / 0.25
print("metric", abs(mean_over_tasks(found, "brier_skill") - expected) < 1e-12)
SearchConfig(num_trials=1, metric="brier_skill", space={"train.seed": (1,)})

days = np.arange(7, dtype=np.int64) * 86_400  # from a Thursday on
print("encoding", clock_ids("weekend", days, 1, 0).tolist(), clock_vocabulary("when", "weekend").num_rows)

model = validate_run({"data": {"store": "x"}, "model": {"name": "linear", "width": 8}}, "run.toml").model
tower = _maker(model)(TokenLayout(("user", "item"), ("click",), (0,), (0,), (1,), 2), model)
tokens = Tokens(torch.randn(3, 2, 8), torch.randn(4, 8), torch.tensor([[0, 1, 3]]))
print("model", tuple(tower(tokens).shape), sum(p.numel() for p in tower.parameters()))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with every difference of the page."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "infnet_rec", copy / "infnet_rec", ignore=shutil.ignore_patterns("__pycache__"))
    for number, text in enumerate(differences()):
        path = copy / f"{number}.diff"
        path.write_text(text)
        subprocess.run(["git", "apply", path.name], cwd=copy, check=True)
    return copy


def differences() -> list[str]:
    return re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_each_addition_takes_two_files() -> None:
    assert [text.count("diff --git") for text in differences()] == [2, 2, 2, 2]


@pytest.mark.slow
def test_what_the_page_adds_works(extended: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRIES], cwd=extended, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "optimizer True True",
        "metric True",
        "encoding [2, 2, 3, 3, 2, 2, 2] 4",
        "model (3, 2) 50",
    ]
