"""The data room against the limits: bytes an example, examples a second, and the speed and memory of a build.

    python benchmarks/data.py [--examples 20000000] [--memory-gib 6] [--work DIR] [--only build bytes loader sort]
    python benchmarks/data.py --quick

Everything is measured in this one run on generated KuaiRand-27K files, which are made first if DIR does not hold them
(3.2 GB and two minutes for 20 million rows):

- build: `infnet-rec data build` in a process of its own, its time and peak memory, against DuckDB counting the rows of
  the same CSV files (the limit of anything that reads them), before and after;
- bytes: the store against zstd Parquet files with the same 28 histories copied into every row, at length 20 and 50;
- loader: batches of 4,096 examples with 89 features and 28 sequences on one core, against pyarrow reading that Parquet
  into the same two KeyedJaggedTensors, and against copying the ids of a batch from memory to memory;
- sort: DuckDB against polars on the sort of the log by user and time, each in a process of its own.

Results go to `benchmarks/results/data.json` and `data.md`, with the machine they were measured on; those of `--quick`,
which takes a few thousand rows and small batches, to `runs/quick`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
RECIPE = HERE.parent / "configs" / "datasets" / "kuairand_27k.toml"
RESULTS = HERE / "results" / "data.json"
COMMAND = [sys.executable, "-m", "infnet_rec.cli"]
PROFILE, PARTS = "ctx89", ("build", "bytes", "loader", "sort")
REAL_ROWS = 322_278_385


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        examples: rows that are generated.
        sampled: of them, those that are written as Parquet.
        batch_size: of the loaders.
        num_batches: that a loader reads in a round.
        lengths: of histories.
        repeats: rounds.
    """

    examples: int
    sampled: int
    batch_size: int
    num_batches: int
    lengths: tuple[int, ...]
    repeats: int


FULL = Effort(20_000_000, 262_144, 4096, 100, (20, 50), 3)
QUICK = Effort(3_000, 512, 64, 4, (5, 20), 1)


def main() -> None:
    """Measures what is asked for and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=None, help=f"rows; by default {FULL.examples:,}")
    parser.add_argument("--memory-gib", type=float, default=6.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infnet_rec_data_benchmark")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="a few thousand rows, in seconds")
    parser.add_argument("--out", type=Path, default=None, help="of data.json and data.md")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    arguments.examples = arguments.examples or effort.examples
    path = arguments.out or (HERE.parent / "runs" / "quick" / "data.json" if arguments.quick else RESULTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw, store = arguments.work / f"raw-{arguments.examples}", arguments.work / f"store-{arguments.examples}"
    if not raw.exists():
        generate = ["data", "generate", "--dataset", "kuairand-27k", "--examples", str(arguments.examples)]
        subprocess.run([*COMMAND, *generate, "--workers", "2", "--out", str(raw)], check=True)
    # A quick call looks whether all still runs, so nothing is taken from an earlier one.
    results = json.loads(path.read_text()) if path.exists() and not arguments.quick else {}
    if "build" in arguments.only or not store.exists():
        results["build"] = measure_build(raw, store, arguments.memory_gib)
    if "sort" in arguments.only:
        results["sort"] = measure_sorts(raw)
    if "bytes" in arguments.only or "loader" in arguments.only:
        # One core: the numeric libraries read these when they are imported.
        one_core = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        asked = [sys.executable, __file__, "child", str(store), json.dumps(asdict(effort))]
        child = subprocess.run(asked, env=one_core, stdout=subprocess.PIPE)
        child.check_returncode()
        results |= json.loads(child.stdout)
    results["machine"] = machine()
    results["command"] = (
        f"python benchmarks/data.py --examples {arguments.examples} --memory-gib {arguments.memory_gib}"
    )
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(results, effort), encoding="utf-8")
    print(path.with_suffix(".md").read_text())


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "python": platform.python_version(),
    }


def csv_files(raw: Path) -> list[Path]:
    """The CSV files that the recipe reads."""
    from infnet_rec.data.ingest.recipe import load_recipe

    recipe = load_recipe(RECIPE)
    sources = [recipe.log.files, *(s.files for s in (*recipe.sides.user, *recipe.sides.item))]
    return [raw / name for files in sources for name in files]


def timed_child(code: str, *arguments: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory in GiB of a Python process of its own."""
    started_at = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=HERE.parent)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - started_at
    if status:
        raise SystemExit(f"a measured process failed with status {status}")
    return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


COUNT = """
import sys, duckdb
connection = duckdb.connect()
connection.execute("SET threads = 2; SET enable_progress_bar = false")
for path in sys.argv[1:]:
    connection.execute(f"SELECT count(*) FROM read_csv('{path}', header = true, delim = ',', quote = '\\"')").fetchall()
"""
BUILD = "import sys; from infnet_rec.cli import main; sys.argv = ['infnet-rec', *sys.argv[1:]]; main()"


def measure_build(raw: Path, store: Path, memory_gib: float) -> dict[str, Any]:
    """Scan, build, scan: the page cache is warm for all three."""
    files = [str(path) for path in csv_files(raw)]
    build = ["data", "build", str(RECIPE), "--raw", str(raw), "--out", str(store)]
    build += ["--memory-gib", str(memory_gib), "--workers", "2", "--replace", "--json"]
    timed_child(COUNT, *files)
    before_s, before_cpu_s, _ = timed_child(COUNT, *files)
    build_s, build_cpu_s, peak_gib = timed_child(BUILD, *build)
    after_s, after_cpu_s, _ = timed_child(COUNT, *files)
    scan_s, scan_cpu_s = (before_s + after_s) / 2, (before_cpu_s + after_cpu_s) / 2
    manifest = json.loads((store / "manifest.json").read_text())
    rows = json.loads((raw / "generated.json").read_text())["num_examples"]
    return {
        "rows": rows,
        "items": manifest["num_items"],
        "csv_gb": sum(Path(f).stat().st_size for f in files) / 1e9,
        "scan_s": scan_s,
        "scan_cpu_s": scan_cpu_s,
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "times_the_scan": build_s / scan_s,
        "rows_per_s": rows / build_s,
        "minutes_per_100m_rows": 1e8 / rows * build_s / 60,
        "memory_gib_given": memory_gib,
        "peak_gib": peak_gib,
    }


SORT_DUCKDB = """
import sys, duckdb
files, folder = sys.argv[2:], sys.argv[1]
connection = duckdb.connect(folder + "/sort.duckdb")
connection.execute(f"SET threads = 2; SET memory_limit = '1GiB'; SET temp_directory = '{folder}/spill'")
connection.execute("SET preserve_insertion_order = false; SET enable_progress_bar = false")
rows = f"SELECT user_id, video_id, time_ms, is_click, is_like, long_view, tab FROM read_csv({files})"
connection.execute(f"COPY ({rows} ORDER BY user_id, time_ms) TO '{folder}/out.parquet'")
"""
SORT_POLARS = """
import sys, polars
files, folder = sys.argv[2:], sys.argv[1]
columns = ["user_id", "video_id", "time_ms", "is_click", "is_like", "long_view", "tab"]
rows = polars.scan_csv(files).select(columns).sort("user_id", "time_ms")
rows.sink_parquet(folder + "/out.parquet", engine="streaming")
"""


def measure_sorts(raw: Path) -> dict[str, Any]:
    """The same CSV log to a sorted Parquet file; DuckDB is held to 1 GiB, polars takes what it takes."""
    files = [str(path) for path in csv_files(raw) if "log_standard" in path.name]
    found: dict[str, Any] = {}
    for name, code in (("duckdb", SORT_DUCKDB), ("polars", SORT_POLARS)):
        with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
            os.environ["POLARS_MAX_THREADS"] = "2"
            wall_s, cpu_s, peak_gib = timed_child(code, folder, *files)
            found[name] = {"cpu_s": cpu_s, "wall_s": wall_s, "peak_gib": peak_gib}
    return found


def measure_store(store_path: Path, effort: Effort) -> dict[str, Any]:
    """Bytes and the loader, in this process, on one core."""
    import loader_rivals as rivals
    import torch

    from infnet_rec.data.store import Store

    torch.set_num_threads(1)
    store = Store(store_path)
    schema = store.profile_schema(PROFILE)
    sampled = min(effort.sampled, store.num_examples("train"))
    bytes_: dict[str, Any] = {"ours": ours_bytes(store)}
    speed: dict[str, Any] = {}
    for length in effort.lengths:
        with tempfile.TemporaryDirectory(dir=store_path.parent) as folder:
            paths = {order: Path(folder) / f"{order}.parquet" for order in ("stored", "shuffled")}
            for order, path in paths.items():
                rows = rivals.rows_of(store, "train", sampled, order)  # pyright: ignore[reportArgumentType]
                size = rivals.write_parquet(store, "train", schema, length, rows, path)
                bytes_[f"parquet_{length}_{order}"] = size / sampled
            speed[str(length)] = loader_speeds(rivals, store, length, paths["shuffled"], effort)
        bytes_[f"lists_{length}"] = speed[str(length)]["ids_an_example"] * 4
    return {"bytes": bytes_, "loader": speed, "sampled_examples": sampled}


def ours_bytes(store: Any) -> dict[str, float]:
    """Bytes an example by part; items and users are shared by all examples of any number."""
    rows = sum(facts["num_examples"] for facts in store.manifest["splits"].values())
    parts: dict[str, float] = {}
    for name, file in store.manifest["files"].items():
        part = name.split("/")[0].removesuffix(".arrow")
        parts[part] = parts.get(part, 0.0) + file["bytes"] / rows
    return {**parts, "all": sum(parts.values())}


def loader_speeds(rivals: Any, store: Any, length: int, parquet: Path, effort: Effort) -> dict[str, Any]:
    """Medians of rounds in which all take their turn."""
    from infnet_rec.data.loader import BatchReader

    rounds: dict[str, list[float]] = {"ours": [], "parquet": [], "parquet_distinct": [], "copy": []}
    schema, batch_size = store.profile_schema(PROFILE), effort.batch_size
    reader = BatchReader(store, "train", schema, length)
    id_bytes = rivals.id_bytes(reader, batch_size)
    for _ in range(effort.repeats):
        rounds["ours"].append(rivals.our_examples_per_s(reader, batch_size, effort.num_batches))
        rounds["parquet"].append(rivals.parquet_examples_per_s(parquet, schema, batch_size))
        rounds["parquet_distinct"].append(rivals.parquet_distinct_examples_per_s(parquet, schema, batch_size))
        rounds["copy"].append(rivals.copy_examples_per_s(int(id_bytes), batch_size, effort.num_batches))
    found: dict[str, Any] = {name: median(values) for name, values in rounds.items()}
    return found | {"ids_an_example": id_bytes / 8 / batch_size}


def table(results: dict[str, Any], effort: Effort) -> str:
    """The results for people, with what each ratio means."""
    machine_, lines = results["machine"], ["# The data room, measured", ""]
    lines += [f"`{results['command']}`, {machine_['date']}, {machine_['cores']} cores of {machine_['cpu']},"]
    lines += [f"{machine_['memory_gib']} GiB, Python {machine_['python']}. Ratios were measured side by side.", ""]
    if "build" in results:
        b = results["build"]
        real_minutes = b["minutes_per_100m_rows"] * REAL_ROWS / 1e8
        lines += ["## Build", "", "| | |", "|---|---|"]
        lines += [f"| rows, items, CSV | {b['rows']:,}, {b['items']:,}, {b['csv_gb']:.2f} GB |"]
        lines += [
            f"| DuckDB counts the rows of the files | {b['scan_s']:.1f} s, {b['scan_cpu_s']:.0f} processor seconds |"
        ]
        lines += [f"| build | {b['build_s']:.1f} s, {b['build_cpu_s']:.0f} processor seconds |"]
        lines += [f"| build / scan | **{b['times_the_scan']:.1f}** |"]
        lines += [f"| peak memory | {b['peak_gib']:.2f} GiB of {b['memory_gib_given']:g} given |"]
        lines += [f"| 100 million rows | {b['minutes_per_100m_rows']:.1f} minutes |"]
        lines += [f"| KuaiRand-27K ({REAL_ROWS:,} rows), in proportion | {real_minutes:.0f} minutes |", ""]
    if "sort" in results:
        lines += ["## Sort of the log by (user, time), CSV to Parquet", "", "| | wall | peak memory |", "|---|---|---|"]
        lines += [f"| {n} | {s['wall_s']:.1f} s | {s['peak_gib']:.2f} GiB |" for n, s in results["sort"].items()]
        lines += [""]
    if "bytes" in results:
        lines += bytes_lines(results["bytes"], results["sampled_examples"], effort.lengths)
        lines += speed_lines(results["loader"], effort.batch_size)
    return "\n".join(lines)


def bytes_lines(found: dict[str, Any], sampled: int, lengths: Sequence[int]) -> list[str]:
    """Ours against Parquet and against plain lists."""
    ours = found["ours"]
    per_example = ours["examples"] + ours["events"]
    lines = ["## Bytes an example", "", "| | bytes | times ours |", "|---|---|---|"]
    lines += [f"| ours: what grows with examples (examples and events) | {per_example:.1f} | 1 |"]
    lines += [f"| ours: and items, users and vocabularies of this store | {ours['all']:.1f} | |"]
    for length in lengths:
        rows = [("int32 lists alone, not compressed", found[f"lists_{length}"])]
        rows += [(f"zstd Parquet, {o} order", found[f"parquet_{length}_{o}"]) for o in ("shuffled", "stored")]
        lines += [f"| length {length}: {n} | {size:.0f} | **{size / per_example:.1f}** |" for n, size in rows]
    return [*lines, "", f"Parquet from {sampled:,} examples; ours holds whole histories, whatever the length.", ""]


def speed_lines(found: dict[str, Any], batch_size: int) -> list[str]:
    """Examples a second on one core."""
    lines = [f"## Loader, one core, batches of {batch_size:,}", ""]
    lines += ["| length | ids an example | ours | Parquet | ours / Parquet | to distinct ids too | copying the ids |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for length, s in found.items():
        lines += [
            f"| {length} | {s['ids_an_example']:.0f} | {s['ours']:,.0f} examples/s | {s['parquet']:,.0f} | "
            f"**{s['ours'] / s['parquet']:.1f}** | {s['parquet_distinct']:,.0f}, "
            f"**{s['ours'] / s['parquet_distinct']:.1f}** | {s['copy']:,.0f} |"
        ]
    return [*lines, ""]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(measure_store(Path(sys.argv[2]), Effort(**json.loads(sys.argv[3])))))
    else:
        main()
