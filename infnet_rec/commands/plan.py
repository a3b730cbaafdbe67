"""`infnet-rec plan`: does it fit, how is it laid out, and how long is a step. No process group, GPU or data."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from infnet_rec.commands import plan_plot
from infnet_rec.commands.plan_asked import Asked, check_plan_destination
from infnet_rec.commands.plan_case import Case, open_source
from infnet_rec.commands.plan_hints import Inquiry, fits, found, hints
from infnet_rec.commands.plan_remedy import refuse
from infnet_rec.commands.plan_report import report
from infnet_rec.commands.stats import aligned
from infnet_rec.commands.stats_plot import check_destination
from infnet_rec.commands.train import quieten
from infnet_rec.faults import Fault, Refusal
from infnet_rec.shard.planning import plan_diff
from infnet_rec.shard.planning.plan_file import read_plan, write_plan
from infnet_rec.shard.planning.planned import DoesNotFit

GIB = 2**30

JSON = dict[str, Any]


def plan(asked: Asked, *, out: Path | None = None, plot: Path | None = None) -> JSON:
    """Plans a run, and some others to compare it with.

    Args:
        asked: the command line, with one cluster.
        out: where to write the plan, in the place of an older one.
        plot: a PNG file for the picture, likewise.

    Raises:
        Fault: what was asked is at fault; said before anything is planned.
        PlanRefused: it does not fit.
    """
    quieten()
    if plot is not None:
        check_destination(plot)
    if out is not None:
        check_plan_destination(out)
    source, (cluster,) = open_source(asked.config), asked.clusters
    inquiry = Inquiry(asked.config_path, asked.overrides, source, asked.hardware_name, cluster)
    case = inquiry.case()
    try:
        result = report(case)
    except DoesNotFit as reason:
        raise refuse(inquiry, case, reason) from reason
    result |= {"command": inquiry.command, "hints": hints(inquiry, case)}
    if out is not None:
        write_plan(out, case.file())
        result["out"] = str(out)
    if plot is not None:
        plan_plot.draw(result, plot)
        result["plot"] = str(plot)
    return result


def sweep(asked: Asked) -> JSON:
    """The same run on several clusters of one kind of hardware.

    Args:
        asked: the command line, with all clusters.

    Raises:
        Fault: see `plan`; a batch that some of the clusters cannot share out is said in their row.
        Refusal: the run fits on none of them.
    """
    quieten()
    source, rows = open_source(asked.config), []
    for cluster in asked.clusters:
        inquiry = Inquiry(asked.config_path, asked.overrides, source, asked.hardware_name, cluster)
        row: JSON = {"cluster": cluster.name, "world_size": cluster.world_size, "command": inquiry.command}
        try:
            case = inquiry.case()
            reason = None if fits(case) else _lacking(case)
        except Fault as fault:
            rows.append({**row, "fits": False, "reason": str(fault), "found": None})
            continue
        rows.append({**row, "fits": reason is None, "reason": reason, "found": found(case) if reason is None else None})
    if not any(row["fits"] for row in rows):
        raise Refusal("\n".join(["fits on none of these clusters", *(f"{r['cluster']}: {r['reason']}" for r in rows)]))
    return {
        "sweep": rows,
        "hardware": asked.clusters[0].hardware.name,
        "global_batch_size": asked.config.train.global_batch_size,
    }


def sweep_lines(result: JSON) -> list[str]:
    """A row a cluster."""
    rows = [["cluster", "ranks", "step ms", "examples/s", "fullest rank", "rank hours an epoch", "price"]]
    notes = []
    for row in result["sweep"]:
        if not row["fits"]:
            rows.append([row["cluster"], f"{row['world_size']:,}", "no", "", "", "", ""])
            notes.append(f"{row['cluster']}: {row['reason']}")
            continue
        one = row["found"]
        price = "-" if one["price"] is None else f"{one['price']:,.2f} {one['currency']}"
        cells = [f"{one['step_ms']:.2f}", f"{one['examples_per_s']:,.0f}", f"{one['fullest_gib']:.1f} GiB"]
        rows.append([row["cluster"], f"{row['world_size']:,}", *cells, f"{one['rank_hours']:,.2f}", price])
    head = f"global batch {result['global_batch_size']:,} on {result['hardware']}, all estimated"
    return [head, *aligned(rows), *notes]


def diff(before: Path, after: Path) -> tuple[JSON, list[str]]:
    """What differs between two plans, for scripts and for people.

    Raises:
        Fault: one of them is not a plan.
    """
    found_out = plan_diff.plan_diff(read_plan(before), read_plan(after))
    return asdict(found_out), plan_diff.lines(found_out)


def _lacking(case: Case) -> str:
    """Why a case that was found not to fit does not."""
    if case.on_gpu and case.dense.total_bytes >= case.cluster.hbm_bytes:
        return (
            f"what is no table needs {case.dense.total_bytes / GIB:.1f} GiB of a rank's "
            f"{case.cluster.hbm_bytes / GIB:.1f}: {case.local_batch_size:,} examples a rank are too many"
        )
    try:
        _ = case.planned
    except DoesNotFit as reason:
        return str(reason)
    raise AssertionError("it fits")
