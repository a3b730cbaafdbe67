"""What checkpoints a run has, and whether they are whole. Needs no process group and no torch."""

from collections import Counter
from typing import Any

from infnet_rec.checkpoint.locate import find_checkpoint, open_checkpoints
from infnet_rec.checkpoint.store import CheckpointManifest, best_checkpoint, checkpoint_name


def list_checkpoints(source: str) -> dict[str, Any]:
    """Every checkpoint of a run, whole or torn; files are not read, see `verify`."""
    store, only = open_checkpoints(source)
    best = best_checkpoint(store.commits())
    checkpoints = [
        {
            "name": found.name,
            "step": found.step,
            "state": "torn" if found.commit is None else "committed",
            "torn": found.torn or None,
            "best": best is not None and found.commit is not None and found.step == best.step,
            **({} if found.commit is None else _summary(found.commit)),
        }
        for found in store.found()
        if only in (None, found.step)
    ]
    return {"where": store.where, "checkpoints": checkpoints}


def list_lines(result: dict[str, Any]) -> list[str]:
    """What `list_checkpoints` found, for people."""
    lines = [f"{'checkpoint':<24}{'step':>10}{'mean AUC':>10}{'MiB':>10}{'files':>7}{'ranks':>7}  written"]
    for c in result["checkpoints"]:
        if c["state"] == "torn":
            lines.append(f"{c['name']:<24}{c['step']:>10,}  torn: {c['torn']}")
            continue
        auc = "-" if c["mean_auc"] is None else f"{c['mean_auc']:.4f}"
        lines.append(
            f"{c['name']:<24}{c['step']:>10,}{auc:>10}{c['bytes'] / 2**20:>10,.1f}{c['files']:>7}{c['ranks']:>7}  "
            f"{c['written_at']}{'  best' if c['best'] else ''}"
        )
    return lines


def show_checkpoint(source: str) -> dict[str, Any]:
    """Everything that a checkpoint's marker says; of several, of the best."""
    store, commit = find_checkpoint(source)
    return {
        "where": store.path(checkpoint_name(commit.step)),
        **_summary(commit),
        "progress": commit.progress,
        "run": commit.run,
        "parts": commit.parts,
    }


def _best_so_far(progress: dict[str, Any]) -> str:
    if progress["best_auc"] is None:
        return "none: no evaluation of valid could be judged"
    return f"step {progress['best_step']:,}; evaluations since: {progress['evaluations_since_best']}"


def show_lines(result: dict[str, Any]) -> list[str]:
    """What `show_checkpoint` found, for people."""
    progress, run = result["progress"], result["run"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(run["plan"].values()).items()))
    lines = [
        result["where"],
        f"{'step':<16}{result['step']:,}, written {result['written_at']}",
        f"{'best so far':<16}{_best_so_far(progress)}",
        f"{'trained':<16}{progress['spent']['train_examples']:,} examples in {progress['spent']['elapsed_s']:,.0f} s",
        f"{'run':<16}seed {run['config']['train']['seed']}, store {run['store']}",
        f"{'written by':<16}{run['world_size']} ranks; tables: {kinds}",
    ]
    for task, metrics in progress["valid"].items():
        auc, gauc = ("-" if metrics[name] is None else f"{metrics[name]:.4f}" for name in ("auc", "gauc"))
        lines.append(f"{'valid':<16}{task}: AUC {auc}, gAUC {gauc}")
    for name, part in sorted(result["parts"].items()):
        lines.append(f"{name:<16}{part['bytes']:>14,} bytes  SHA-256 {part['sha256']}")
    return lines


def verify_checkpoints(source: str) -> dict[str, Any]:
    """Reads every file of every checkpoint, or of the one that is named, and compares size and hash."""
    store, only = open_checkpoints(source)
    checkpoints = []
    for found in store.found():
        if only in (None, found.step):
            broken = [found.torn] if found.commit is None else list(store.broken_parts(found.commit))
            checkpoints.append({"name": found.name, "step": found.step, "whole": not broken, "faults": broken})
    return {"where": store.where, "whole": all(c["whole"] for c in checkpoints), "checkpoints": checkpoints}


def verify_lines(result: dict[str, Any]) -> list[str]:
    """What `verify_checkpoints` found, for people."""
    return [
        f"whole  {c['name']}" if c["whole"] else f"torn   {c['name']}: {'; '.join(c['faults'])}"
        for c in result["checkpoints"]
    ]


def _summary(commit: CheckpointManifest) -> dict[str, Any]:
    return {
        "step": commit.step,
        "mean_auc": commit.auc,
        "bytes": commit.num_bytes,
        "files": len(commit.parts),
        "ranks": commit.run["world_size"],
        "written_at": commit.written_at,
    }
