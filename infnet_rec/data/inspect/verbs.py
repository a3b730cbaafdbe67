"""The verbs of `infnet-rec data`, but for `generate`: build, check, show."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from infnet_rec.console import amount_bar
from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.data.ingest.build_summary import log_lines
from infnet_rec.data.ingest.recipe import load_recipe
from infnet_rec.data.inspect.check import bytes_to_read, reference_differences
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.data.store import Store


def build_verb(
    recipe_path: Path,
    raw: str,
    out: Path,
    *,
    memory_gib: float,
    num_threads: int,
    max_bad_fraction: float,
    replace: bool,
) -> dict[str, Any]:
    """Builds a store with a progress bar on stderr and returns its manifest's summary."""
    recipe = load_recipe(recipe_path)
    started_at = time.perf_counter()
    with progress_stages() as progress:
        manifest = build_store(
            recipe,
            raw,
            out,
            progress,
            memory_gib=memory_gib,
            num_threads=num_threads,
            max_bad_fraction=max_bad_fraction,
            replace=replace,
        )
    kept = ("name", "num_users", "num_items", "splits", "behaviours", "history_lengths", "bad_rows", "log", "joins")
    kept += ("flat_features", "warnings")
    bytes_on_disk = sum(file["bytes"] for file in manifest["files"].values())
    return {
        "store": str(out),
        "wall_s": time.perf_counter() - started_at,
        "bytes": bytes_on_disk,
        **{key: manifest[key] for key in kept},
    }


@contextmanager
def progress_stages() -> Iterator[BuildProgress]:
    """A bar on stderr with rate and time left for each stage of a build; a line a stage where there is no terminal."""
    bars = ExitStack()
    bar: Any = None

    def stage(text: str, total: int, unit: str) -> None:
        nonlocal bar
        bars.close()
        if not sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)
        bar = bars.enter_context(amount_bar(total or None, unit, desc=text))

    def done(amount: int) -> None:
        if bar is not None:
            bar.update(amount - bar.n)

    with bars:
        yield BuildProgress(stage, done)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """A built store for people."""
    lines = [
        f"{summary['store']}: {summary['num_users']:,} users, {summary['num_items']:,} items, "
        f"{summary['bytes'] / 2**20:,.1f} MiB, built in {summary['wall_s']:.1f} s"
    ]
    lines += [f"  {line}" for line in log_lines(summary)]
    for split, facts in summary["splits"].items():
        rates = "  ".join(f"{task} {rate:.4f}" for task, rate in facts["label_rates"].items())
        lines.append(f"  {split:<6}{facts['num_examples']:>12,} examples   label rates  {rates}")
    for table, count in summary["bad_rows"].items():
        lines.append(f"  {count:,} bad rows of {table} left out; see {summary['store']}/quarantine.csv")
    lengths = "  ".join(f"{name} {stats['mean']:.1f}" for name, stats in summary["history_lengths"].items())
    events = "  ".join(f"{name} {facts['num_events']:,}" for name, facts in summary["behaviours"].items())
    if events:
        lines.append(f"  events  {events}")
        lines.append(f"  events before a training example, mean  {lengths}")
    lines += [f"  warning: {line}" for line in summary["warnings"]]
    return lines


def check_store_verb(path: Path, *, stop_at: Literal["first", "last"]) -> dict[str, Any]:
    """Reads the whole store again, with a progress bar on stderr; `faults` names what differs from the manifest.

    Args:
        path: the store.
        stop_at: which difference ends the reading.
    """
    store = Store(path)
    total = bytes_to_read(store)
    with amount_bar(total, "B") as bar:

        def progress(num_bytes: int) -> None:
            bar.update(num_bytes)

        found = reference_differences(store, progress)
        faults = list(islice(found, 1) if stop_at == "first" else found)
    return {"store": str(path), "files": len(store.manifest["files"]), "ok": not faults, "faults": faults}


def check_lines(result: dict[str, Any]) -> list[str]:
    """The answer for people."""
    if result["ok"]:
        return [f"{result['store']}: {result['files']} files are what the manifest says"]
    return [f"{result['store']} is not what its manifest says", *(f"  {fault}" for fault in result["faults"])]


def show_examples(path: Path, split: str, row: int, sequence_length: int) -> dict[str, Any]:
    """One example; see `describe_example`."""
    return describe_example(Store(path), split, row, sequence_length)


def example_lines(example: dict[str, Any]) -> list[str]:
    """One example for people: labels, features, histories newest last."""
    labels = "  ".join(f"{task} {label}" for task, label in example["labels"].items())
    lines = [
        f"{example['split']} row {example['row']}: user {example['user']} was shown item {example['item']} at "
        f"{example['local_time']} ({example['time']})",
        f"labels: {labels}",
        "",
    ]
    for side in ("user", "item", "context"):
        lines.append(f"{side + ' features':<34}{'id':>11}  value")
        for feature in example["features"]:
            if feature["side"] == side:
                lines.append(f"  {feature['feature']:<32}{feature['id']:>11}  {feature['value']}")
        lines.append("")
    for behaviour, history in example["histories"].items():
        shown = history["shown"]
        lines.append(f"{behaviour}: {history['num_events']} events before, the last {len(shown)} shown, newest last")
        for event in shown:
            values = "  ".join(f"{name}={a['value']} ({a['id']})" for name, a in event["attributes"].items())
            lines.append(f"  {event['local_time']}  item {event['item']}: {values}")
    return lines


def print_result(result: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """One JSON object on stdout, or text."""
    print(json.dumps(result) if as_json else "\n".join(lines))
