"""Part 6: KuaiRand-27K's tables in full (55 million rows, width 64, 14 GB) on a store that is drawn here, trained.

Examples a second, parts of a step, launches a step, peak memory and waiting for the loader, at several batch sizes.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.records import Settings, Writer
from benchmarks.gpu.small_runs import ROOT, guarded
from infnet_rec.benchmark.run import BenchArgs, bench_run
from infnet_rec.benchmark.trace import STEP, read_trace
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.store import Store
from infnet_rec.synthetic.store_writer import StoreSize, write_store
from infnet_rec.trainer.metric_logger import GIB

CONFIG = ROOT / "configs" / "kuairand_27k_h100.toml"
MANIFEST = ROOT / "configs" / "manifests" / "kuairand_27k.json"
WRITE_LIMIT_S = 60.0
# Of a step, that may be spent waiting for the loader.
WAITING_LIMIT = 0.05
REHEARSED = ("model.width=8", "data.sequence_length=4", "data.profile='safe'")


def run(settings: Settings, write: Writer) -> None:
    """Draws the store, checks it, and measures."""
    store = full_size_store(settings, write)
    faults = check_store(Store(store))
    write.compared("data check", len(faults), 0, note="; ".join(faults[:3]))
    steps = settings.pick(2, 30, 100)
    for batch_size in settings.pick((4,), (2048,), (2048, 8192, 32_768)):
        title = f"{batch_size:,} examples"
        guarded(write, title, lambda size=batch_size, t=title: _measure(settings, store, size, steps, t, write))


def full_size_store(settings: Settings, write: Writer) -> Path:
    """The store of this part and the next; drawn once for a folder of results."""
    store = settings.out / f"kuairand_27k_{settings.size}"
    if (store / "manifest.json").is_file():
        return store
    sizes = {
        "rehearsal": StoreSize((300, 40, 40), 500, num_users=60, most_table_rows=1000),
        "smallest": StoreSize((1_500_000, 20_000, 20_000), 500_000),
        "full": StoreSize((5_000_000, 50_000, 50_000), 2_000_000),
    }
    started_at = time.perf_counter()
    manifest = write_store(MANIFEST, store, sizes[settings.size], num_threads=8)
    taken_s = time.perf_counter() - started_at
    rows = sum(table["num_rows"] for table in manifest["schema"]["tables"])
    num_bytes = sum(file["bytes"] for file in manifest["files"].values())
    verdict = "reached" if taken_s <= WRITE_LIMIT_S else "missed"
    write("store drawn", verdict, taken_s, WRITE_LIMIT_S, unit="s", table_rows=rows, store_bytes=num_bytes)
    return store


def overrides_of(settings: Settings, store: Path, batch_size: int) -> list[str]:
    """What is laid on the configuration."""
    own = [f"data.store='{store}'", f"train.global_batch_size={batch_size}", "data.loader_threads=8"]
    return [*own, *(REHEARSED if settings.is_rehearsal else ())]


def _measure(settings: Settings, store: Path, batch_size: int, steps: int, title: str, write: Writer) -> None:
    trace = settings.out / f"trace_{batch_size}.json"
    trace.unlink(missing_ok=True)
    result = bench_run(CONFIG, overrides_of(settings, store, batch_size), BenchArgs(steps=steps, trace=trace))
    assert result is not None
    launches = launches_of(trace)
    trace.unlink()
    parts = {name: round(part["ms"], 4) for name, part in result["parts"].items()}
    step_ms = result["step"]["mean_ms"]
    write(f"{title}: examples/s", "measured", result["examples_per_s"], unit="examples/s", headline=True)
    write(f"{title}: step", "measured", step_ms, unit="ms", parts_ms=parts, p95_ms=result["step"]["p95_ms"])
    peak_gib = result["memory"]["peak_bytes"] / GIB
    write(f"{title}: peak memory", "measured", peak_gib, unit="GiB", kind=result["memory"]["kind"])
    write(f"{title}: launches a step", "measured", launches["launches"], unit="launches", **launches)
    waiting = result["waited_for_data_ms"] / step_ms
    if settings.is_rehearsal:
        write(f"{title}: waiting for the loader", "measured", waiting, unit="of a step")
    else:
        verdict = "reached" if waiting <= WAITING_LIMIT else "missed"
        write(f"{title}: waiting for the loader", verdict, waiting, WAITING_LIMIT, unit="of a step")
    write(f"{title}: verdict", "measured", note=str(result["verdict"].get("text", result["verdict"]))[:300])


def launches_of(trace: Path) -> dict[str, Any]:
    """What the host asked the device to do in a mean step, by the trace of a few; operators where there is no device.

    Args:
        trace: a Chrome trace with ranges named `STEP`.
    """
    spans = read_trace(trace)
    steps = [s for s in spans if s.name == STEP and s.category != "gpu_user_annotation"]
    first, last = min(s.start_s for s in steps), max(s.end_s for s in steps)
    inside = [s for s in spans if first <= s.start_s <= last]
    count = len(steps)
    by_kind = {
        "kernels": sum(s.category == "kernel" for s in inside) / count,
        "copies": sum(s.category in ("gpu_memcpy", "gpu_memset") for s in inside) / count,
        "kernel_launches": sum("LaunchKernel" in s.name for s in inside) / count,
        "graph_launches": sum("GraphLaunch" in s.name for s in inside) / count,
        "operators": sum(s.category == "cpu_op" for s in inside) / count,
    }
    on_gpu = by_kind["kernels"] > 0
    launches = by_kind["kernel_launches"] + by_kind["graph_launches"] if on_gpu else by_kind["operators"]
    return {"launches": launches, "counted": "launches" if on_gpu else "operators of the CPU", **by_kind}
