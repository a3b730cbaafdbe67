"""Folders of experiments for the tests of reports, as if models had been trained."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from infnet_rec.metrics import evaluate_scores

TASKS = ("click", "long_view")
# How well each model's scores follow the label, by task.
MODELS = {"FM": (0.6, 0.7), "DCNv2": (1.0, 0.9), "MMoE": (0.95, 1.2), "INFNet": (1.4, 1.1)}
SEEDS = (0, 1, 2)


def make_results(folder: Path) -> list[dict[str, Any]]:
    """An experiment's folder as if four models had been trained on KuaiRand-Pure; PLE's last seed failed."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 1500)
    labels = (rng.random((1500, 2)) < 0.4).astype(np.float32)
    cells = []
    for name, seed in product((*MODELS, "PLE"), SEEDS):
        cell = describe(name, seed)
        if (name, seed) == ("PLE", 2):
            cells.append({**cell, "status": "failed", "reason": "exit code 1: loss is NaN", "log": "cells/PLE/2.log"})
            continue
        signal = np.array(MODELS.get(name, (1.0, 1.0)), dtype=np.float32)
        logits = (labels * signal + rng.standard_normal((1500, 2))).astype(np.float32)
        path = folder / cell["predictions"]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, logits=logits, labels=labels, users=users, tasks=np.array(TASKS))
        metrics = {task: m.to_json() for task, m in evaluate_scores(logits, labels, users, TASKS).items()}
        cells.append({**cell, "metrics": {"valid": metrics, "test": metrics}})
    write(folder, cells)
    return cells


def describe(name: str, seed: int) -> dict[str, Any]:
    sizes = {"train": 1_300_000, "valid": 60_000, "test": 70_000}
    return {
        "experiment": "golden",
        "variant": name,
        "seed": seed,
        "status": "done",
        "label": name,
        "setting": "shared" if name in ("FM", "DCNv2") else "",
        "series": "",
        "at": "",
        "ours": name == "INFNet",
        "key": name.lower(),
        "chosen": {"train.dense.lr": 0.001} if name != "INFNet" else {},
        "dataset": {"name": "kuairand_pure", "fingerprint": "f00d", "num_examples": sizes},
        "paper": "KuaiRand-Pure",
        "reference": "",
        "num_dense_parameters": 1000 * len(name),
        "num_sparse_parameters": 814_400,
        "examples_per_s": 1000.0 + seed,
        "scoring": {"batch_size": 4096, "ms_per_batch": 100.0 + 10 * seed},
        "environment": {"versions": {"torch": "2.13.0", "numpy": "2"}},
        "predictions": f"cells/{name}/{seed}/predictions.npz",
    }


def write(folder: Path, cells: list[dict[str, Any]]) -> None:
    (folder / "cells.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
