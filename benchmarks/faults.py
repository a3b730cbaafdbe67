"""The fault table: real processes that die, hang, lie or run out of disk, and what becomes of the run.

    python -m benchmarks.faults                  all faults, 20 tries of those that are random
    python -m benchmarks.faults --tries 2 --only kill_rank_0 nan
    python -m benchmarks.faults --quick          one try of one fault, written to runs/quick
    make faults

Two ranks (gloo) train 40 steps of 64 generated examples and save every 5. A try is one run that is hurt and goes on.
Tries are written as they end, to `faults.jsonl` in the work folder, and not repeated when the command is started again.
The program ends with 1 if a try failed.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import fault_disks as disks
from benchmarks import fault_kinds as kinds
from benchmarks.fault_kinds import Bench, Outcome
from benchmarks.fault_runs import NUM_STEPS, ROOT, Run

MANY, FEW = 20, 3
FAULTS: dict[str, tuple[str, int, Callable[[Bench], Outcome]]] = {
    "kill_rank_0": ("SIGKILL of rank 0 at a random step", MANY, kinds.kill([0])),
    "kill_rank_1": ("SIGKILL of rank 1 at a random step", MANY, kinds.kill([1])),
    "kill_both": ("SIGKILL of both ranks at once", MANY, kinds.kill([0, 1])),
    "kill_write": ("SIGKILL at a random byte of a checkpoint", MANY, kinds.kill_writing("sync")),
    "kill_write_async": ("the same, written in the background", MANY, kinds.kill_writing("async")),
    "sigterm_one": ("SIGTERM to one rank", FEW, kinds.ask_to_stop(15, [1])),
    "sigterm": ("SIGTERM to all ranks", FEW, kinds.ask_to_stop(15, [0, 1])),
    "sigint": ("Ctrl-C", FEW, kinds.ask_to_stop(2, [0, 1])),
    "truncated": ("a checkpoint's file cut short", FEW, disks.broken(disks.truncate)),
    "bit_flipped": ("a checkpoint's file with a flipped bit", FEW, disks.broken(disks.flip_bit)),
    "disk_full": ("the disk fills up during a checkpoint", FEW, disks.disk_full),
    "store_cut": ("a file of the store cut while training", FEW, disks.store_truncated),
    "nan": ("a NaN in a batch", FEW, kinds.nan_in_a_batch),
    "hung": ("a rank that hangs (SIGSTOP)", FEW, kinds.hung),
    "resume_on_1": ("killed, resumed on 1 rank", FEW, kinds.resume_on(1)),
    "resume_on_2": ("killed, resumed on 2 ranks", FEW, kinds.resume_on(2)),
    "resume_on_4": ("killed, resumed on 4 ranks", FEW, kinds.resume_on(4)),
    "other_plan": ("killed, resumed under another plan", FEW, kinds.other_plan),
    "config": ("a setting changed between", FEW, kinds.config_changed),
    "elastic": ("SIGKILL of a worker under torchrun", FEW, kinds.elastic),
}


def main() -> int:
    """Runs the tries that are missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=None, help="of every fault")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=None, metavar="FAULT")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "faults", help="kept between calls")
    parser.add_argument("--quick", action="store_true", help="one try of one fault in a folder that goes again")
    parser.add_argument("--store", type=Path, default=None, help="a store of KuaiRand-Pure; one is generated")
    parser.add_argument("--out", type=Path, default=None, help="of the .md and .json, without suffix")
    arguments = parser.parse_args()
    results = ROOT / "runs" / "quick" if arguments.quick else ROOT / "benchmarks" / "results"
    out = arguments.out or results / "faults"
    if arguments.quick:
        with tempfile.TemporaryDirectory(prefix="faults-") as work:
            return hurt(arguments.only or ["kill_rank_0"], 1, arguments.store, Path(work), out)
    return hurt(arguments.only or list(FAULTS), arguments.tries, arguments.store, arguments.work, out)


def hurt(names: Sequence[str], num_tries: int | None, store: Path | None, work: Path, out: Path) -> int:
    """Makes the tries that are missing.

    Args:
        names: of faults.
        num_tries: of each; None takes each fault's own number.
        store: of KuaiRand-Pure; None generates one.
        work: folder of the runs.
        out: of the table, without suffix.

    Returns:
        1 if a try failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    reference = undisturbed(store or generated(work), work)
    log = work / "faults.jsonl"
    tries: list[dict[str, Any]] = [json.loads(line) for line in log.open()] if log.exists() else []
    for name in names:
        title, most, fault = FAULTS[name]
        done = sum(t["fault"] == name for t in tries)
        for number in range(done, num_tries or most):
            try:
                record = one_try(name, number, fault, reference, work)
            except kinds.NotHere as reason:
                print(f"{title}: left out, {reason}", flush=True)
                break
            tries.append(record)
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{title}, try {number + 1}: {verdict(record)}", flush=True)
    rows = table(tries)
    write(out, rows)
    print("\n".join(markdown(rows)))
    return 1 if any(not row["passed"] for row in rows) else 0


def generated(work: Path) -> Path:
    """A store of 4,000 generated impressions, made once."""
    store, raw = work / "store", work / "raw"
    recipe = ROOT / "configs" / "datasets" / "kuairand_pure.toml"
    if not (store / "manifest.json").is_file():
        shutil.rmtree(raw, ignore_errors=True)
        command = [sys.executable, "-m", "infnet_rec.cli", "data"]
        for verb in (["generate", "--examples", "4000", "--seed", "3", "--out", raw], ["build", recipe, "--raw", raw]):
            out = ["--out", store] if verb[0] == "build" else []
            subprocess.run([*command, *verb, *out], check=True, cwd=ROOT, capture_output=True)
    return store


def undisturbed(store: Path, work: Path) -> Run:
    """The run that nothing happens to."""
    folder = work / "undisturbed"
    for old in (folder, work / "without_chance"):
        shutil.rmtree(old, ignore_errors=True)
    run = Run(store.resolve(), folder).make()
    last = run.complete()
    examples = run.examples()
    assert not any(last.exits.values()) and examples.in_order and not examples.lost, last.said
    assert run.commits()[-1].step == NUM_STEPS
    return run


def one_try(name: str, number: int, fault: Callable[[Bench], Outcome], reference: Run, work: Path) -> dict[str, Any]:
    """Runs it in a folder of its own, which stays if it failed."""
    folder = work / f"{name}-{number}"
    for leftover in work.glob(f"{folder.name}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    started_at = time.monotonic()
    try:
        outcome = asdict(fault(Bench(reference, random.Random(f"{name}/{number}"), folder)))
    except kinds.NotHere:
        raise
    except Exception as error:
        outcome = asdict(Outcome(False, -1, -1, "no", 0, f"{type(error).__name__}: {error}"))  # noqa: FBT003
    record = {"fault": name, "try": number, **outcome, "seconds": round(time.monotonic() - started_at, 1)}
    if passed(record):
        for leftover in work.glob(f"{folder.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return record


def passed(record: dict[str, Any]) -> bool:
    """Whether nothing was lost in a try."""
    return record["survived"] and record["lost"] == record["doubled"] == 0 and record["equal"] != "no"


def verdict(record: dict[str, Any]) -> str:
    """A try for people."""
    word = "ok" if passed(record) else "FAILED"
    numbers = f"lost {record['lost']}, doubled {record['doubled']}, equal {record['equal']}, redone {record['redone']}"
    return f"{word} ({numbers}; {record['seconds']} s) {record['note']}"


def table(tries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a fault."""
    rows = []
    for name, (title, _, _) in FAULTS.items():
        mine = [t for t in tries if t["fault"] == name]
        if mine:
            rows.append(
                {
                    "fault": name,
                    "title": title,
                    "tries": len(mine),
                    "survived": sum(t["survived"] for t in mine),
                    "examples_lost": sum(t["lost"] for t in mine),
                    "examples_twice": sum(t["doubled"] for t in mine),
                    "equal_bits": sum(t["equal"] == "bits" for t in mine),
                    "equal_close": sum(t["equal"] == "close" for t in mine),
                    "mean_steps_redone": round(sum(t["redone"] for t in mine) / len(mine), 1),
                    "passed": all(map(passed, mine)),
                    "notes": sorted({t["note"] for t in mine if t["note"]}),
                }
            )
    return rows


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The table for people."""
    lines = [
        "| fault | tries | survived | examples lost | seen twice | equal to the undisturbed run | steps done again |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kinds_of_equal = [f"{row['equal_bits']} in every bit"] if row["equal_bits"] else []
        kinds_of_equal += [f"{row['equal_close']} in losses"] if row["equal_close"] else []
        cells = [row["title"], row["tries"], row["survived"], row["examples_lost"], row["examples_twice"]]
        cells += [", ".join(kinds_of_equal) or "none", row["mean_steps_redone"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the table as .json and .md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    text = ["# Faults", "", *(line.strip() for line in (__doc__ or "").splitlines()), "", *markdown(rows), ""]
    out.with_suffix(".md").write_text("\n".join(text))


if __name__ == "__main__":
    sys.exit(main())
