"""A plan for people: what `infnet-rec plan` prints, from its JSON object alone."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from infnet_rec.console import aligned, format_bytes
from infnet_rec.planner.report.facts import PARTS

# More ranks are summed up.
SHOWN_RANKS = 16
SHOWN_TABLES = 8
GIB = 2**30
STEP_WORDS = {
    "lookup_ms": "look-ups and updates of tables",
    "exchange_ms": "embeddings between ranks",
    "tower_ms": "tower, forward and backward",
    "all_reduce_ms": "all-reduce of dense gradients",
    "optimizer_ms": "dense optimizer",
}

JSON = dict[str, Any]


def plan_lines(result: JSON) -> list[str]:
    """The whole report."""
    parts = [
        plan_heading(result),
        _rank_lines(result),
        _table_lines(result),
        _step_lines(result),
        hint_lines(result.get("hints", [])),
        [f"{name}: {result[name]}" for name in ("out", "plot") if name in result],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part).split("\n")


def plan_heading(result: JSON) -> list[str]:
    """What was asked, and whether it fits."""
    cluster, model, batch, manifest = (result[name] for name in ("cluster", "model", "batch", "manifest"))
    nodes = f"{cluster['name']} {cluster['hardware']['name']}"
    where = manifest["path"] + ("" if manifest["is_store"] else ", which stands in for a store that is not there")
    repeats = (
        f"a rank's batch has {batch['sequence_tokens']:,.0f} of them of {batch['distinct_ids']:,.0f} distinct ids, "
        f"each looked up once: saves {format_bytes(batch['exchange_bytes_saved'])} of embeddings"
    )
    if not batch["repeats_are_measured"]:
        repeats = "how often a batch repeats an id is not known, so none is taken to, up to the rows of its table"
    return [
        f"{manifest['name']} on {nodes}: {result['verdict']}",
        f"{model['num_tables']} tables with {model['num_rows']:,} rows of width {model['width']}, "
        f"{model['sparse_optimizer']}; {model['num_dense_parameters']:,} dense parameters, {model['precision']}",
        f"batch {batch['global_batch_size']:,}, {batch['local_batch_size']:,} a rank with "
        f"{batch['events_per_example']:,.0f} sequence tokens an example",
        repeats,
        f"sizes and lengths: {where}",
    ]


def _rank_lines(result: JSON) -> list[str]:
    kind = "hbm" if result["ranks"][0]["hbm"] else "host"
    ranks, critical = result["ranks"], result["step"]["critical_rank"]
    capacity = result["cluster"][f"{kind}_bytes_per_rank"]
    has_cache = any(rank[kind]["cache"] for rank in ranks)
    parts = [part for part in PARTS if part != "cache" or has_cache]
    header = [f"GiB of {'HBM' if kind == 'hbm' else 'host memory'}", *parts, "free", "of", "tables ms"]
    if kind == "hbm":
        header.append("host GiB")
    rows = [header]

    def row(name: str, value: Any) -> list[str]:
        cells = [name, *(f"{value(lambda r, p=part: r[kind][p]) / GIB:.2f}" for part in [*parts, "free"])]
        cells += [f"{capacity / GIB:.1f}", f"{value(lambda r: r['tables_ms']):.2f}"]
        return cells + ([f"{value(_host_used) / GIB:.2f}"] if kind == "hbm" else [])

    if len(ranks) <= SHOWN_RANKS:
        chosen = [(f"rank {rank['rank']}{' *' * (rank['rank'] == critical)}", rank) for rank in ranks]
    else:
        rows += [
            row(f"{word} of {len(ranks)}", lambda f, of=of: of([f(r) for r in ranks]))
            for word, of in (("least", min), ("median", median), ("most", max))
        ]
        fullest = min(ranks, key=lambda r: r[kind]["free"])
        chosen = [(f"fullest: rank {fullest['rank']}", fullest)]
        chosen.append((f"slowest: rank {critical} *", ranks[critical]))
    rows += [row(name, lambda f, rank=rank: f(rank)) for name, rank in chosen]
    return [
        *aligned(rows),
        "(* the rank that the others wait for; reserve: CUDA context, libraries and the allocator's gaps, assumed)"
        if kind == "hbm"
        else "(* the rank that the others wait for; reserve: process, loader and allocator, assumed)",
    ]


def _host_used(rank: JSON) -> float:
    return sum(rank["host"][part] for part in PARTS)


def _table_lines(result: JSON) -> list[str]:
    """The largest tables one by one, the rest by how they are kept."""
    tables = sorted(result["tables"], key=lambda t: -(t["hbm_bytes"] + t["host_bytes"]))
    rows = [["table", "rows", "dim", "sharding", "kernel", "shards", "bytes", "ms a shard"]]
    rows += [_table_row(t["table"], f"{t['num_rows']:,}", t, [t]) for t in tables[:SHOWN_TABLES]]
    groups: dict[tuple[Any, ...], list[JSON]] = {}
    for table in tables[SHOWN_TABLES:]:
        groups.setdefault((table["width"], table["sharding"], table["kernel"]), []).append(table)
    for group in groups.values():
        rows_of = [t["num_rows"] for t in group]
        least, most = min(rows_of), max(rows_of)
        span = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        rows.append(_table_row(f"{len(group)} more" if len(group) > 1 else group[0]["table"], span, group[0], group))
    # The first column and the two words in the middle read better from the left.
    return aligned(rows, (0, 3, 4))


def _table_row(name: str, rows: str, one: JSON, group: Sequence[JSON]) -> list[str]:
    return [
        name,
        rows,
        str(one["width"]),
        one["sharding"],
        one["kernel"],
        f"{sum(t['num_shards'] for t in group):,}",
        format_bytes(sum(t["hbm_bytes"] + t["host_bytes"] for t in group)),
        f"{max(t['slowest_shard_ms'] for t in group):.3f}",
    ]


def _step_lines(result: JSON) -> list[str]:
    step, sent, epoch = result["step"], result["sent_bytes_per_step"], result["epoch"]
    rows = [[f"a step of rank {step['critical_rank']}", "ms"]]
    for key, words in STEP_WORDS.items():
        bound = f" ({step['tower_bound']})" if key == "tower_ms" else ""
        rows.append([words + bound, f"{step[key]:.2f}"])
    rows.append(["in all, estimated", f"{step['total_ms']:.2f}"])
    return [
        *aligned(rows),
        f"{step['examples_per_s']:,.0f} examples/s, if every rank's loader reads "
        f"{step['examples_per_s'] / result['cluster']['world_size']:,.0f} of them",
        f"an epoch of {epoch['num_steps']:,} steps takes {cost(epoch)}",
        f"imbalance of tables: the slowest rank takes {step['imbalance']:.3f} times the mean",
        f"between ranks: {format_bytes(sent['total_bytes'])} a step (ids {format_bytes(sent['id_bytes'])}, "
        f"embeddings {format_bytes(sent['embedding_bytes'])}, their gradients {format_bytes(sent['gradient_bytes'])}, "
        f"dense gradients {format_bytes(sent['dense_bytes'])})",
    ]


def cost(epoch: JSON) -> str:
    """Hours, and money where a price is set."""
    text = f"{epoch['hours']:.2f} h, {epoch['rank_hours']:,.2f} rank hours"
    return text if epoch["price"] is None else f"{text}, {epoch['price']:,.0f} {epoch['currency']}"


def hint_lines(hints: Sequence[JSON]) -> list[str]:
    """What else was planned."""
    if not hints:
        return []
    rows = [["also planned", "answer", "step ms", "fullest rank", "rank h an epoch"]]
    for hint in hints:
        found = hint.get("found")
        cells = (
            ["-", "-", "-"]
            if found is None
            else [f"{found['step_ms']:.2f}", f"{found['fullest_gib']:.1f} GiB", f"{found['rank_hours']:,.2f}"]
        )
        rows.append([hint["question"], hint["answer"], *cells])
    return aligned(rows, range(2))
