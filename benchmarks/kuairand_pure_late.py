"""INFNet on the last two weeks of KuaiRand-Pure: AUC and gAUC per task, mean and deviation over seeds.

    python benchmarks/kuairand_pure_late.py --raw DIR [--only NAME ...] [--seeds 0 1 2] [--report]

DIR holds the raw files that `configs/datasets/kuairand_pure_late.toml` names. Every (variant, seed) is one training
run; its result is one JSON line in `benchmarks/results/kuairand_pure_late.jsonl`. A run that is there is not repeated,
so the command can be stopped and started again. The table is written beside it. Variants differ from
`configs/kuairand_pure_late.toml` by the overrides below; what became that file was decided on valid alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "kuairand_pure_late.toml"
RECIPE = HERE.parent / "configs" / "datasets" / "kuairand_pure_late.toml"
RESULTS = HERE / "results" / "kuairand_pure_late.jsonl"
COMMAND = [sys.executable, "-m", "infnet_rec.cli"]

VARIANTS: dict[str, list[str]] = {
    "default": [],
}


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_kuairand_pure_late")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    store = arguments.work / "store"
    if not store.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        build = ["data", "build", str(RECIPE), "--raw", str(arguments.raw), "--out", str(store)]
        subprocess.run([*COMMAND, *build], check=True)
    done = {(cell["variant"], cell["seed"]) for cell in read_results(RESULTS)}
    for variant in arguments.only:
        for seed in arguments.seeds:
            if (variant, seed) not in done:
                run_cell(variant, seed, store)


def run_cell(variant: str, seed: int, store: Path) -> None:
    """One training run, appended to the results when it is whole."""
    overrides = [f"data.store='{store}'", f"train.seed={seed}", *VARIANTS[variant]]
    with tempfile.TemporaryDirectory() as folder:
        train = ["train", str(CONFIG), "--json", "--run-dir", f"{folder}/run", *(f"--set={o}" for o in overrides)]
        finished = subprocess.run([*COMMAND, *train], check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(finished.stdout.splitlines()[-1])
    result.pop("run_dir")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"variant": variant, "overrides": VARIANTS[variant], "seed": seed, **result}) + "\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Finished cells."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
