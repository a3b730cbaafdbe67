"""Files of small experiments, for the tests that load or run them."""

from pathlib import Path

TWO = """
seeds = [3, 1]
set = ["model.width=4"]
[[variants]]
name = "INFNet"
ours = true
[[variants]]
name = "w/o1"
set = ["model.ablation=no_task_tokens", "train.num_epochs=2"]
"""
SEARCH = """
[search]
num_trials = 3
[search.space]
"train.dense.lr" = [1e-4, 1e-3, 1e-2]
"model.dropout" = [0.0, 0.5]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'base = "{Path(__file__).parents[1] / "small.toml"}"\n{text}')
    return path
