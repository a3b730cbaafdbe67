"""INFNet on the last two weeks of KuaiRand-Pure: AUC and gAUC per task, mean and deviation over seeds.

    python benchmarks/kuairand_pure_late.py --raw DIR [--only NAME ...] [--seeds 0 1 2]
    python benchmarks/kuairand_pure_late.py --store STORE --quick

DIR holds the raw files that `configs/datasets/kuairand_pure_late.toml` names. Every (variant, seed) is one training
run; its result is one JSON line in `benchmarks/results/kuairand_pure_late.jsonl`. A run that is there is not repeated
(unless the configuration or the recipe changed), so the command can be stopped and started again. The table is written
beside it. Variants differ from `configs/kuairand_pure_late.toml` by the overrides below; what became that file was
decided on valid alone. `--quick` trains the first of them for a few steps, and writes to `runs/quick`.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "kuairand_pure_late.toml"
RECIPE = HERE.parent / "configs" / "datasets" / "kuairand_pure_late.toml"
RESULTS = HERE / "results" / "kuairand_pure_late.jsonl"
QUICK = HERE.parent / "runs" / "quick" / RESULTS.name
QUICKLY = ["train.global_batch_size=64", "train.num_epochs=0.02", "train.eval_every_steps=100000"]
COMMAND = [sys.executable, "-m", "infnet_rec.cli"]

VARIANTS: dict[str, list[str]] = {
    "ctx89": [],
    "ctx89_exposures": ["data.profile=ctx89_exposures"],
    "paper89": ["data.profile=paper89"],
    "ctx89, one epoch": ["train.num_epochs=1"],
    "ctx89, 4 epochs of kept tables": ["train.sparse.each_epoch=keep", "train.eval_every_steps=83"],
    "ctx89, length 10": ["data.sequence_length=10"],
    "ctx89, width 32": ["model.width=32"],
    "ctx89, no residuals": ["model.residual=none"],
}


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder of the raw files, from which a store is built")
    parser.add_argument("--store", type=Path, help="a store that is there already, in the place of --raw")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_kuairand_pure_late")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one variant and seed for a few steps")
    parser.add_argument("--out", type=Path, default=None, help="the .jsonl of results, with its .md beside it")
    arguments = parser.parse_args()
    if (arguments.raw is None) == (arguments.store is None):
        parser.error("--raw, --store: name one of them")
    if arguments.quick:
        arguments.only, arguments.seeds = arguments.only[:1], arguments.seeds[:1]
    path, more = arguments.out or (QUICK if arguments.quick else RESULTS), QUICKLY if arguments.quick else []
    if path == QUICK:
        # It is to run again, not to be found done.
        path.unlink(missing_ok=True)
    store = arguments.store or arguments.work / "store"
    if not store.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        build = ["data", "build", str(RECIPE), "--raw", str(arguments.raw), "--out", str(store)]
        subprocess.run([*COMMAND, *build], check=True)
    done = {(cell["key"], cell["seed"]) for cell in read_results(path)}
    for variant in arguments.only:
        for seed in arguments.seeds:
            if (key_of(variant), seed) not in done:
                run_cell(variant, seed, store, path, more)
                path.with_suffix(".md").write_text(table(read_results(path)), encoding="utf-8")


def key_of(variant: str) -> str:
    """A hash of everything that a variant's runs are made from: another configuration or recipe is another cell."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (CONFIG.read_text(encoding="utf-8"), RECIPE.read_text(encoding="utf-8"), *VARIANTS[variant]):
        digest.update(part.encode())
    return digest.hexdigest()


def run_cell(variant: str, seed: int, store: Path, path: Path, more: Sequence[str]) -> None:
    """One training run with more overrides, appended to the results when it is whole."""
    overrides = [f"data.store='{store}'", f"train.seed={seed}", "train.num_threads=1", *VARIANTS[variant], *more]
    with tempfile.TemporaryDirectory() as folder:
        train = ["train", str(CONFIG), "--json", "--run-dir", f"{folder}/run", *(f"--set={o}" for o in overrides)]
        finished = subprocess.run([*COMMAND, *train], check=True, stdout=subprocess.PIPE, text=True)
        environment = json.loads((Path(folder) / "run" / "environment.json").read_text(encoding="utf-8"))
    result = json.loads(finished.stdout.splitlines()[-1])
    result.pop("run_dir")
    cell = {"variant": variant, "key": key_of(variant), "overrides": [*VARIANTS[variant], *more], "seed": seed}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**cell, **result, "environment": environment}) + "\n")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Finished cells."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(cells: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of each variant, on valid and on test."""
    lines = [
        "Made by `python benchmarks/kuairand_pure_late.py`: AUC / gAUC, mean over seeds (standard deviation), gAUC",
        "weighted by impressions; like's gAUC stands on few users, so its 95 % interval (first seed) is given.",
        "",
        "| variant | seeds | split | click | like | long_view |",
        "|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(cell["variant"] for cell in cells):
        mine = [cell for cell in cells if cell["variant"] == variant]
        for split in ("valid", "test"):
            texts = [_cell(mine, split, task) for task in ("click", "like", "long_view")]
            lines.append(f"| {variant} | {len(mine)} | {split} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _cell(cells: list[dict[str, Any]], split: str, task: str) -> str:
    texts = []
    for name in ("auc", "gauc"):
        values = [cell["metrics"][split][task][name] for cell in cells]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        texts.append(f"{statistics.mean(values):.4f} ({spread})")
    text = " / ".join(texts)
    if split == "test" and task == "like":
        low, high = cells[0]["metrics"][split][task]["gauc_interval"]
        text += f" [{low:.3f}, {high:.3f}], {cells[0]['metrics'][split][task]['num_users']} users"
    return text


if __name__ == "__main__":
    main()
