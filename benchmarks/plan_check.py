"""How far a plan's numbers are from the truth, for every way of sharding that the device can do; all ranks' numbers.

    OMP_NUM_THREADS=1 python benchmarks/plan_check.py [--ranks 2] [--hardware NAME] [--store DIR] [--set KEY=VALUE ...]
    OMP_NUM_THREADS=1 python benchmarks/plan_check.py --quick          one way on one rank, written to runs/quick

Each way is one run of the machinery of `infnet-rec plan --check` under torchrun on this machine: the model is built and
trained for some steps, and what the plan said is set beside what stands there. Runs on the quickstart's generated store
by default. `benchmarks/results/plan_check.json` holds every number of every table, `plan_check.md` the sums.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "plan_check.json"
CONFIG = ROOT / "configs" / "quickstart.toml"
INFNET_REC = [sys.executable, "-m", "infnet_rec.cli"]

COLUMNS = ("rank", "part", "table", "unit", "predicted", "measured")

JSON = dict[str, Any]


# Of KuaiRand-Pure's recipe: tables that sequences read.
SEQUENCE_TABLES = ("video_id", "author_id", "tag", "video_duration")


def rules(bags: str, events: str, more: str = "") -> str:
    """One sharding for the tables of features, one for the sequences'; `more` is laid on both."""
    names = [("*", bags), *((name, events) for name in SEQUENCE_TABLES)]
    return f"sharding.tables=[{', '.join(f'{{match={name!r}, sharding={way!r}{more}}}' for name, way in names)}]"


HALF = ", precision='fp16'"
ROWWISE, ADAGRAD, SGD = (f"train.sparse.optimizer='{name}'" for name in ("rowwise_adagrad", "adagrad", "sgd"))
WAYS: dict[str, list[str]] = {
    "what the search takes": [],
    "table_wise": [rules("table_wise", "table_wise")],
    "row_wise": [rules("row_wise", "row_wise")],
    "row_wise, adagrad": [rules("row_wise", "row_wise"), ADAGRAD],
    "row_wise, sgd": [rules("row_wise", "row_wise"), SGD],
    "row_wise, fp16 tables": [rules("row_wise", "row_wise", HALF)],
    "column_wise": [rules("column_wise", "column_wise")],
    "column_wise, adagrad": [rules("column_wise", "column_wise"), ADAGRAD],
    "data_parallel bags": [rules("data_parallel", "row_wise")],
    "data_parallel bags, adagrad": [rules("data_parallel", "row_wise"), ADAGRAD],
    "table_row_wise bags": [rules("table_row_wise", "row_wise")],
    "grid_shard bags": [rules("grid_shard", "column_wise")],
}
QUICK_WAYS = ("row_wise",)
ON_GPU: dict[str, list[str]] = {
    "data_parallel": [rules("data_parallel", "data_parallel")],
    "uvm": ["sharding.tables=[{match='*', kernel='fused_uvm'}]"],
    "uvm_caching": ["sharding.tables=[{match='*', kernel='fused_uvm_caching', cache_load_factor=0.1}]"],
}


def main() -> None:
    """Checks every way and writes the tables; under torchrun, as one of its ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_tower_benchmark")
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--hardware", default=None)
    parser.add_argument("--out", type=Path, default=None, help="of plan_check.json and plan_check.md")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--quick", action="store_true", help="one way on one rank")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.ranks = 1
    arguments.out = arguments.out or (ROOT / "runs" / "quick" / RESULTS.name if arguments.quick else RESULTS)
    arguments.store = store = arguments.store or made_store(arguments.work)
    if "WORLD_SIZE" in os.environ or arguments.ranks == 1:
        check_all(arguments)
        return
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.ranks}"]
    command = [*launch, str(Path(__file__)), *sys.argv[1:], f"--store={store}"]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


def check_all(arguments: argparse.Namespace) -> None:
    """As one rank of several: way after way in one process group."""
    import torch

    from infnet_rec.benchmark.machine import describe_machine
    from infnet_rec.config.load import load_config
    from infnet_rec.data.run_data import open_data
    from infnet_rec.distributed.process_group import (
        process_group,
        silence_third_party_warnings,
        use_threads,
        world_from_env,
    )
    from infnet_rec.planner.run_plan import check_run
    from infnet_rec.trainer.plan_check import compare_plan, result_of

    silence_third_party_warnings()
    world = world_from_env()
    named = [f"sharding.hardware='{arguments.hardware}'"] if arguments.hardware else []
    ways = WAYS | (ON_GPU if world.device.type == "cuda" else {})
    if arguments.quick:
        ways = {way: ways[way] for way in QUICK_WAYS}
    common = [f"data.store='{arguments.store}'", *arguments.overrides, *named]
    configs = {way: load_config(CONFIG, [*common, *overrides]) for way, overrides in ways.items()}
    data = open_data(next(iter(configs.values())))
    for config in configs.values():
        check_run(config, data, world)
    use_threads(next(iter(configs.values())).train.num_threads, world)
    results: dict[str, JSON] = {}
    with process_group(world):
        for way, config in configs.items():
            found = result_of(compare_plan(config, data, world))
            if world.is_first:
                results[way] = {"overrides": ways[way], "rows": found["rows"]}
                print(f"{way}: {found['num_wrong']} of {len(found['rows'])} numbers wrong", file=sys.stderr, flush=True)
    if world.is_first:
        first = next(iter(configs.values()))
        run = {"global_batch_size": first.train.global_batch_size, "width": first.model.width}
        everything = {
            "machine": describe_machine(torch.device(world.device)),
            "num_ranks": world.world_size,
            **run,
            "ways": results,
        }
        text = page(everything)
        for result in results.values():
            # A list of numbers a row, not their names again.
            result["rows"] = [[row[key] for key in COLUMNS] for row in result["rows"]]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(everything) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")


def made_store(work: Path) -> Path:
    """The quickstart's store."""
    built = work / "store"
    if not built.exists():
        work.mkdir(parents=True, exist_ok=True)
        raw = work / "raw"
        generate = ["--dataset", "kuairand-pure", "--examples", "60000", "--seed", "1", "--out", str(raw)]
        subprocess.run([*INFNET_REC, "data", "generate", *generate], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        build = ["configs/datasets/kuairand_pure.toml", "--raw", str(raw), "--out", str(built)]
        subprocess.run([*INFNET_REC, "data", "build", *build], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return built


def page(everything: JSON) -> str:
    """The error table for people: of every way the sums, and the worst of its single tables."""
    machine = everything["machine"]
    lines = [
        "# What a plan says and what is there",
        "",
        f"Made by `python benchmarks/plan_check.py` on {machine['name']} ({machine['device']}), "
        f"{everything['num_ranks']} ranks, global batch {everything['global_batch_size']:,}, width "
        f"{everything['width']}. Ratio: predicted over measured, from the lowest to the highest of all ranks. Tables, "
        "their optimizer state and the dense part are counted and must be right to the byte; ids are estimated from "
        "mean lengths. All numbers of all tables: [plan_check.json](plan_check.json).",
        "",
        "| sharding | part | predicted, rank 0 | measured, rank 0 | ratio | tables right |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for way, result in everything["ways"].items():
        lines += way_rows(way, result["rows"])
    return "\n".join(lines) + "\n"


def way_rows(way: str, rows: Sequence[JSON]) -> list[str]:
    """The rows of one way."""
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows if not row["table"]):
        same = [row for row in rows if row["part"] == part and not row["table"]]
        ratios = sorted({round(row["ratio"], 4) for row in same if row["ratio"] is not None})
        ratio = " to ".join(f"{r:.4g}" for r in dict.fromkeys((ratios[0], ratios[-1]))) if ratios else "-"
        tables = [row for row in rows if row["table"] and row["part"] == part.removeprefix("all ")]
        right = f"{sum(not row['wrong'] for row in tables)} of {len(tables)}" if tables else ""
        unit = "" if same[0]["unit"] == "bytes" else " ms"
        numbers = [f"{same[0][key]:,.{0 if not unit else 3}f}{unit}" for key in ("predicted", "measured")]
        lines.append(f"| {way} | {part}{' (bytes)' * (not unit)} | {numbers[0]} | {numbers[1]} | {ratio} | {right} |")
    return lines


if __name__ == "__main__":
    main()
