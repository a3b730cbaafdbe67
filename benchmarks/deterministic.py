"""What `train.deterministic = true` costs, and what it gives.

    python -m benchmarks.deterministic [--rounds 5] [--ranks 2]
    python -m benchmarks.deterministic --quick       one round on one rank, written to runs/quick

Trains the same short run with and without it, in turns, each in processes of its own, and compares examples per second
(evaluation and saving aside), and the last checkpoints of all runs byte by byte.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.fault_runs import ROOT, Run
from benchmarks.faults import generated

MODES = {"off": (), "on": ("train.deterministic=true",)}


def main() -> None:
    """Prints and writes one line a mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--store", type=Path, default=None, help="a store of KuaiRand-Pure; one is generated")
    parser.add_argument("--quick", action="store_true", help="one round on one rank")
    parser.add_argument("--out", type=Path, default=None, help="of deterministic.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = arguments.ranks = 1
    results = ROOT / "runs" / "quick" if arguments.quick else ROOT / "benchmarks" / "results"
    out = arguments.out or results / "deterministic.json"
    work = Path(tempfile.mkdtemp(prefix="deterministic-"))
    store = (arguments.store or generated(work)).resolve()
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    weights: dict[str, set[str]] = {mode: set() for mode in MODES}
    for number in range(arguments.rounds):
        for mode, overrides in MODES.items():
            run = Run(store, work / f"{mode}-{number}", overrides).make()
            last = run.complete(arguments.ranks)
            assert not any(last.exits.values()), last.said
            rates[mode].append(json.loads((run.run_dir / "result.json").read_text())["examples_per_s"])
            weights[mode].add(json.dumps(run.final_parts()))
    slower = statistics.median(off / on for off, on in zip(rates["off"], rates["on"], strict=True)) - 1
    result = {
        "ranks": arguments.ranks,
        "rounds": arguments.rounds,
        "examples_per_s": {mode: round(statistics.median(values)) for mode, values in rates.items()},
        "slower_by_percent": round(100 * slower, 1),
        "different_checkpoints": {mode: len(found) for mode, found in weights.items()},
    }
    print(json.dumps(result, indent=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
