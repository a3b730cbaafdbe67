"""`infnet-rec data stats`: the numbers of a store as text."""

from pathlib import Path
from typing import Any

from infnet_rec.console import aligned, amount_bar, format_bytes
from infnet_rec.data.inspect.counters import rows_to_read
from infnet_rec.data.inspect.stats import store_stats
from infnet_rec.data.store import SPLITS, Store

SHOWN_FEATURES = 8
SHOWN_COPY_LENGTHS = ("20", "50")
SHOWN_TABLES = 5
SHOWN_WIDTH = "64"
SHOWN_SAMPLE_LENGTH = 50
# A feature is named in the text when one of its shares is at least this.
REMARKABLE_SHARE = 0.0005

JSON = dict[str, Any]


def stats_report(path: Path, plot: Path | None) -> JSON:
    """Counts a store with a progress bar on stderr, and draws the picture if a file is named for it.

    Raises:
        UserError: no store, or the picture cannot be written there; said before anything is counted.
    """
    from infnet_rec.data.inspect.plot import draw_stats
    from infnet_rec.plotting import check_picture

    store = Store(path)
    if plot is not None:
        check_picture(plot)
    total = rows_to_read(store)
    with amount_bar(total, " rows") as bar:

        def progress(number: int) -> None:
            bar.update(number)

        report = store_stats(store, progress)
    if plot is not None:
        draw_stats(report, plot)
        report["plot"] = str(plot)
    return report


def stats_lines(report: JSON) -> list[str]:
    """The numbers for people, some sixty lines."""
    # It speaks DuckDB, which those who only plan, and format sizes, may not have.
    from infnet_rec.data.ingest.build_summary import log_lines

    kind = "in time order" if report["order"] == "time" else "in the order of their files"
    parts = [
        [
            f"{report['store']}: {report['name']}, {report['num_examples']:,} examples {kind}, "
            f"{report['num_users']:,} users, {report['num_items']:,} items"
        ],
        _split_lines(report),
        log_lines(report),
        _popularity_lines(report),
        _history_lines(report),
        _feature_lines(report["features"]),
        _table_lines(report),
        _disk_lines(report["disk"], has_histories=bool(report["histories"])),
        [f"warning: {line}" for line in report["warnings"] or []],
    ]
    if "plot" in report:
        parts.append([f"plot: {report['plot']}"])
    return "\n\n".join("\n".join(part) for part in parts if part).split("\n")


def percent(share: float) -> str:
    """A share in percent; one that rounds to nothing, though it is not, says so."""
    if 0 < share < REMARKABLE_SHARE:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if share else "0 %"


def _split_lines(report: JSON) -> list[str]:
    tasks = list(report["splits"]["train"]["label_rates"])
    header = ["split", "from", "to", "examples", "share", "users", "items", "new users", "new items", *tasks]
    rows = [header]
    for split, facts in report["splits"].items():
        rows.append(
            [
                split,
                *(end[:16] if isinstance(end, str) else f"row {end:,}" for end in (facts["first"], facts["last"])),
                f"{facts['num_examples']:,}",
                percent(facts["num_examples"] / report["num_examples"]),
                f"{facts['num_users']:,}",
                f"{facts['num_items']:,}",
                percent(facts["new_user_share"]) if split != "train" else "",
                percent(facts["new_item_share"]) if split != "train" else "",
                *(f"{facts['label_rates'][task]:.4f}" for task in tasks),
            ]
        )
    return [
        *aligned(rows, range(3)),
        "(new: share of the split's examples whose user or item has no training example; then the label rates)",
        _period_line(report["periods"]),
    ]


def _period_line(periods: JSON) -> str:
    """How evenly the examples lie along the log."""
    totals = [sum(numbers) for numbers in zip(*(s["num_examples"] for s in periods["splits"].values()), strict=True)]
    fewest, most = totals.index(min(totals)), totals.index(max(totals))
    span = "day" if periods["unit"] == "day" else f"{periods['length']:,} rows of the log"
    at = "on" if periods["unit"] == "day" else "from row"
    return (
        f"examples a {span}: median {sorted(totals)[len(totals) // 2]:,}, "
        f"fewest {totals[fewest]:,} ({at} {periods['starts'][fewest]}), "
        f"most {totals[most]:,} ({at} {periods['starts'][most]})"
    )


def _popularity_lines(report: JSON) -> list[str]:
    rows = [["examples of", "mean", "p50", "p90", "p99", "max", "top 1 % hold", "top 10 % hold", "without any"]]
    for one in ("user", "item"):
        facts = report[f"examples_per_{one}"]
        rows.append(
            [
                f"one {one}",
                f"{facts['mean']:,.1f}",
                *(f"{facts[key]:,}" for key in ("p50", "p90", "p99", "max")),
                percent(facts["top_1_percent_share"]),
                percent(facts["top_10_percent_share"]),
                f"{facts['num_without']:,}",
            ]
        )
    return aligned(rows)


def _history_lines(report: JSON) -> list[str]:
    histories = report["histories"]
    if not histories:
        return ["no behaviours: examples have no histories"]
    rows = [["history", "events", "mean", "p50", "p90", "p95", "p99", "max", "empty", "empty in test"]]
    for behaviour, facts in histories.items():
        train = facts["train"]
        rows.append(
            [
                behaviour,
                f"{facts['num_events']:,}",
                f"{train['mean']:.2f}",
                *(f"{train[key]:,}" for key in ("p50", "p90", "p95", "p99", "max")),
                percent(train["empty_share"]),
                percent(facts["test"]["empty_share"]),
            ]
        )
    num_sequences = sum(len(facts["attributes"]) for facts in histories.values())
    tokens = ", ".join(f"{mean:,.0f} at {length}" for length, mean in report["tokens_per_example"].items())
    return [
        *aligned(rows),
        "(events before a training example, whole histories)",
        f"sequence tokens an example, by truncation length: {tokens} ({num_sequences} sequences)",
        *_repeat_lines(report.get("repeats")),
    ]


def _repeat_lines(repeats: JSON | None) -> list[str]:
    """How often a batch names an id; a store of an older version does not know."""
    if not repeats:
        return []
    parts = []
    for sample in repeats["samples"]:
        tokens = sum(table["num_tokens"] for table in sample["tables"].values())
        distinct = sum(table["num_distinct"] for table in sample["tables"].values())
        if sample["sequence_length"] == SHOWN_SAMPLE_LENGTH:
            parts.append(f"{tokens / max(1, distinct):,.1f} in a batch of {sample['num_examples']:,}")
    return [f"tokens for each distinct id, at {SHOWN_SAMPLE_LENGTH} events: {', '.join(parts)}; each is looked up once"]


def _worst(feature: JSON, key: str) -> float:
    return max(feature[key].values())


def _feature_lines(features: list[JSON]) -> list[str]:
    """The features with the highest never-seen and null shares; the others are counted."""
    remarkable = []
    for key in ("unseen_share", "null_share"):
        ranked = sorted((f for f in features if _worst(f, key) >= REMARKABLE_SHARE), key=lambda f: -_worst(f, key))
        remarkable += [f for f in ranked[:SHOWN_FEATURES] if f not in remarkable]
    sides = ", ".join(f"{sum(f['side'] == side for f in features)} {side}" for side in ("user", "item", "context"))
    if not remarkable:
        return [f"features: {sides}; none is null or never seen in 0.05 % of any split's examples"]
    header = ["feature", "side", *(f"unseen {split}" for split in SPLITS), "null train", "null test"]
    alike: dict[tuple[str, ...], list[str]] = {}
    for feature in remarkable:
        unseen, null = feature["unseen_share"], feature["null_share"]
        shares = (*(unseen[split] for split in SPLITS), null["train"], null["test"])
        alike.setdefault((feature["side"], *map(percent, shares)), []).append(feature["feature"])
    rows = [header]
    for (side, *shares), names in alike.items():
        rows.append([names[0] + (f" and {len(names) - 1} alike" if len(names) > 1 else ""), side, *shares])
    others = [f for f in features if f not in remarkable]
    result = aligned(rows, range(2))
    if others:
        unseen, null = (max(_worst(f, key) for f in others) for key in ("unseen_share", "null_share"))
        result.append(
            f"{len(others)} more of {len(features)} features ({sides}): "
            f"unseen in at most {percent(unseen)}, null in at most {percent(null)} of a split's examples"
        )
    several = [f for f in features if "values_per_example" in f]
    for feature in several:
        result.append(f"{feature['feature']}: {feature['values_per_example']['train']:.2f} values an example")
    return result


def _table_lines(report: JSON) -> list[str]:
    tables, memory = report["tables"], report["memory"]
    rows = [["table", "rows", "share", "read by"]]
    for table in tables[:SHOWN_TABLES]:
        readers = [", ".join(table["features"])] if table["features"] else []
        readers += [f"{table['num_sequences']} sequences"] if table["num_sequences"] else []
        rows.append(
            [
                table["table"],
                f"{table['num_rows']:,}",
                percent(table["num_rows"] / memory["num_rows"]),
                " and ".join(readers),
            ]
        )
    result = aligned(rows, (0, 3))
    if len(tables) > SHOWN_TABLES:
        rest = sum(table["num_rows"] for table in tables[SHOWN_TABLES:])
        result.append(f"{len(tables) - SHOWN_TABLES} more tables: {rest:,} rows")
    sizes = {width: facts["weights_gib"] * 2**30 for width, facts in memory["by_width"].items()}
    widths = ", ".join(f"{format_bytes(num)} at width {width}" for width, num in sizes.items())
    shown = memory["by_width"][SHOWN_WIDTH]
    return [
        *result,
        f"float32 weights of all {memory['num_rows']:,} rows: {widths}",
        f"at width {SHOWN_WIDTH}: {format_bytes(shown['total_gib'] * 2**30)} with row-wise Adagrad's state "
        f"({format_bytes(shown['row_wise_adagrad_gib'] * 2**30)}); the largest table: {tables[0]['table']}",
    ]


def _disk_lines(disk: JSON, *, has_histories: bool) -> list[str]:
    parts = ", ".join(f"{name} {number:.1f}" for name, number in disk["bytes_per_example"].items())
    per_example = sum(disk["bytes_per_example"].values())
    result = [f"on disk: {format_bytes(disk['bytes'])}, {per_example:.1f} bytes an example: {parts}"]
    if has_histories:
        copied = " and ".join(
            f"{disk['copied_history_bytes_per_example'][length]:,.0f} at length {length}"
            for length in SHOWN_COPY_LENGTHS
        )
        result.append(
            f"histories: {disk['history_bytes_per_example']:.1f} bytes an example of it; "
            f"as int32 lists in every row they would be {copied}"
        )
    return result
