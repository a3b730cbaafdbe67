"""Weak and strong scaling: measured on the ranks that this machine can run, simulated for 8 to 1,024 GPUs.

    python -m benchmarks.scaling [CONFIG] [--ranks 1 2] [--rounds 5] [--only measured|simulated] [--again]

Measured: `infnet-rec bench run` on CONFIG (the quickstart, on its generated store), in rounds in which all numbers of
ranks take turns, one thread a rank in all of them. Weak scaling gives every rank as many examples, strong scaling
shares the same global batch out.

Simulated: the planner's estimates for configs/kuairand_27k_h100.toml, see `scaling_simulated.py`. No GPU is needed, and
none was used.

Writes `benchmarks/results/scaling.json`, `.md` and `.png`, after every run; a second call adds the rounds that are
missing, and `--again` measures all of them anew. `--quick` measures a few steps of one rank, simulates one node, and
writes to `runs/quick`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import scaling_page, scaling_plot
from benchmarks.plan_check import made_store
from benchmarks.scaling_simulated import BASE_GPUS, KINDS, SIZES, Latency, Loader, efficiency, simulate
from infnet_rec.config.load import load_config
from infnet_rec.distributed.process_group import silence_third_party_warnings
from infnet_rec.files import write_json
from infnet_rec.planner.hardware import load_hardware
from infnet_rec.planner.step_time import BANDWIDTH_EFFICIENCY, LAUNCH_MS, MATMUL_EFFICIENCY

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "scaling.json"
DATA = HERE / "results" / "data.json"
QUICKSTART = ROOT / "configs" / "quickstart.toml"
LARGE, HARDWARE = ROOT / "configs" / "kuairand_27k_h100.toml", "h100"
# Of a run: what is kept of what `bench run` says.
KEPT = ("num_ranks", "global_batch_size", "examples_per_s", "step", "parts", "imbalance", "waited_for_data_ms")

# The node to which the others are compared.
QUICK_SIZES, QUICK_BATCH_SIZE = (BASE_GPUS,), 32

JSON = dict[str, Any]


def main() -> None:
    """Measures and simulates what is asked for and missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=QUICKSTART)
    parser.add_argument("--store", type=Path, default=None, help="by default CONFIG's; the quickstart's is generated")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_tower_benchmark")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", choices=("measured", "simulated"), default=None)
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    parser.add_argument("--quick", action="store_true", help="one round of one rank, one simulated node")
    parser.add_argument("--out", type=Path, default=None, help="of scaling.json, .md and .png")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ranks, arguments.rounds, arguments.steps = [1], 1, 3
    out: Path = arguments.out or (ROOT / "runs" / "quick" / RESULTS.name if arguments.quick else RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    if 1 not in arguments.ranks:
        parser.error("--ranks: must hold 1, to which all others are compared")
    # A quick call looks whether all still runs, so nothing is taken from an earlier one.
    results: JSON = json.loads(out.read_text()) if out.exists() and not arguments.quick else {}

    def keep() -> None:
        write(out, results)

    if arguments.only != "measured":
        add_simulated(results, QUICK_SIZES if arguments.quick else SIZES)
        keep()
    if arguments.only != "simulated":
        add_measured(results, arguments, keep)
    print(scaling_page.page(results))


def write(path: Path, results: JSON) -> None:
    """All three files, each whole or not at all."""
    write_json(path, results)
    page, temporary = path.with_suffix(".md"), path.with_name(f".{path.stem}.md.writing")
    temporary.write_text(scaling_page.page(results), encoding="utf-8")
    temporary.replace(page)
    scaling_plot.draw(results, path.with_suffix(".png"))


def add_simulated(results: JSON, sizes: Sequence[int] = SIZES) -> None:
    """Makes the curves anew: they take seconds, and depend on no machine but by the loader's rate."""
    silence_third_party_warnings()
    config, latency, loader = load_config(LARGE, []), Latency(), measured_loader(LARGE)
    rows: list[JSON] = []
    for row in simulate(LARGE, HARDWARE, loader, sizes, latency):
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
    results["simulated"] = {
        "config": str(LARGE.relative_to(ROOT)),
        "hardware": load_hardware(HARDWARE).model_dump(mode="json"),
        "latency_us": asdict(latency),
        "loader": None if loader is None else asdict(loader),
        "loader_threads": config.data.loader_threads,
        "communication": config.sharding.communication,
        "matmul_efficiency": MATMUL_EFFICIENCY,
        "bandwidth_efficiency": BANDWIDTH_EFFICIENCY,
        "launch_ms": LAUNCH_MS,
        "rows": rows,
    }


def measured_loader(config_path: Path) -> Loader | None:
    """What `benchmarks/data.py` found at the length of the run; None if it was not run at that."""
    if not DATA.exists():
        return None
    found = json.loads(DATA.read_text())
    of_length = found["loader"].get(str(load_config(config_path, []).data.sequence_length))
    return of_length and Loader(of_length["ours"], of_length["ids_an_example"], found["machine"]["cpu"])


def add_measured(results: JSON, arguments: argparse.Namespace, keep: Callable[[], None]) -> None:
    """Adds the runs that are missing, round after round; runs of another question go."""
    asked = {"config": shown(arguments.config), "steps": arguments.steps}
    measured: JSON = results.get("measured", {})
    if arguments.again or measured.get("asked") != asked:
        measured = {"asked": asked, "runs": []}
    store = arguments.store
    if store is None and arguments.config == QUICKSTART:
        store = made_store(arguments.work)
    words = [str(arguments.config), *([f"--set=data.store='{store.resolve()}'"] if store else [])]
    batch = QUICK_BATCH_SIZE if arguments.quick else load_config(arguments.config, []).train.global_batch_size
    for number in range(arguments.rounds):
        sizes = wanted(arguments.ranks, batch)
        # There and back, so that whoever comes first gains nothing.
        for ranks, size in sizes if number % 2 == 0 else sizes[::-1]:
            key = {"round": number, "num_ranks": ranks, "global_batch_size": size}
            if any(key.items() <= run.items() for run in measured["runs"]):
                continue
            load = os.getloadavg()[0]
            result = ask(words, ranks, size, asked)
            run = {**key, "load_before": load, **{name: result[name] for name in KEPT}}
            run["step"] = {name: value for name, value in run["step"].items() if name != "samples_s"}
            measured["runs"].append(run)
            measured |= {"machine": result["machine"], "scaling": scaled(measured["runs"], batch)}
            results["measured"] = measured
            print(json.dumps({**key, "examples_per_s": run["examples_per_s"], "load": load}), file=sys.stderr)
            keep()


def shown(path: Path) -> str:
    """Within the repository, where it is."""
    return str(path.resolve().relative_to(ROOT)) if path.resolve().is_relative_to(ROOT) else path.name


def wanted(ranks: Sequence[int], batch: int) -> list[tuple[int, int]]:
    """Ranks and global batch of the runs of a round; one rank is the base of both kinds."""
    sizes = [(n, size) for n in sorted(set(ranks)) for size in dict.fromkeys((batch * n, batch))]
    return [(n, size) for n, size in sizes if size % n == 0]


def ask(words: Sequence[str], ranks: int, batch: int, asked: JSON) -> JSON:
    """One run of the meter, in processes of its own with a thread each."""
    options = [f"--set=train.global_batch_size={batch}", "--set=train.num_threads=1", "-j", f"1x{ranks}", "--json"]
    options += [f"--steps={asked['steps']}"]
    command = [sys.executable, "-m", "infnet_rec.cli", "bench", "run", *words, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def scaled(runs: Sequence[JSON], batch: int) -> list[JSON]:
    """Of each number of ranks and kind: medians over rounds, and efficiencies within rounds.

    Args:
        runs: all of them; a round that lacks its run of one rank is left out.
        batch: of one rank.
    """
    rows = []
    for ranks in sorted({run["num_ranks"] for run in runs}):
        for kind in KINDS:
            size = batch * ranks if kind == "weak" else batch
            own = [run for run in runs if (run["num_ranks"], run["global_batch_size"]) == (ranks, size)]
            base = {run["round"]: run["examples_per_s"] for run in runs if run["num_ranks"] == 1}
            found = [
                efficiency(run["examples_per_s"], ranks, base[run["round"]]) for run in own if run["round"] in base
            ]
            if found:
                rows.append({"kind": kind, "num_ranks": ranks, "global_batch_size": size, **_row(own, found)})
    return rows


def _row(runs: Sequence[JSON], efficiencies: Sequence[float]) -> JSON:
    parts = {
        part: {
            name: mean(run["parts"][part][name] for run in runs)
            for name in ("ms", "exposed_ms", "in_flight_ms")
            if name in fact
        }
        for part, fact in runs[0]["parts"].items()
    }
    return {
        "num_rounds": len(efficiencies),
        "examples_per_s": median(run["examples_per_s"] for run in runs),
        "step_ms": mean(run["step"]["mean_ms"] for run in runs),
        "efficiency": median(efficiencies),
        "efficiency_low": min(efficiencies),
        "efficiency_high": max(efficiencies),
        "load_before": [min(run["load_before"] for run in runs), max(run["load_before"] for run in runs)],
        "parts": parts,
    }


if __name__ == "__main__":
    main()
