"""`infnet-rec plan`: does it fit, how is it laid out, and how long is a step. No process group, GPU or data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import read_json
from infnet_rec.data.inspect.stats_text import aligned
from infnet_rec.distributed.process_group import silence_third_party_warnings
from infnet_rec.errors import Refusal, UserError
from infnet_rec.files import try_file
from infnet_rec.planner.case import PlanCase, open_source
from infnet_rec.planner.hardware import Cluster, load_hardware, parse_cluster
from infnet_rec.planner.plan import DoesNotFit
from infnet_rec.planner.plan_file import read_plan, write_plan
from infnet_rec.planner.report import diff
from infnet_rec.planner.report import plot as plan_plot
from infnet_rec.planner.report.advice import Inquiry, fits, found, hints, refuse_plan
from infnet_rec.planner.report.facts import plan_report
from infnet_rec.plotting import check_picture


@dataclass(frozen=True, slots=True)
class PlanArgs:
    """A checked command line.

    Attributes:
        config_path: the run's file.
        overrides: laid on it.
        config: what comes of both.
        hardware_name: as it was given.
        clusters: one; several in a sweep.
    """

    config_path: Path
    overrides: tuple[str, ...]
    config: RunConfig
    hardware_name: str
    clusters: tuple[Cluster, ...]


def plan_args(config_path: Path, overrides: Sequence[str], sizes: Sequence[str], hardware: str | None) -> PlanArgs:
    """Checks a command line.

    Args:
        config_path: a run's TOML file.
        overrides: laid on it, see `load_config`.
        sizes: NODESxRANKS each.
        hardware: a name of the catalogue or a TOML file; None takes what the run's configuration names.

    Raises:
        UserError: no such hardware or file, or a size that is none.
    """
    config = load_config(config_path, overrides)
    hardware = hardware or config.sharding.hardware
    if hardware is None:
        raise UserError(
            "--hardware: is missing; name what to plan for, such as --hardware h100, or set sharding.hardware"
        )
    kind = load_hardware(hardware)
    clusters = tuple(parse_cluster(size, kind) for size in sizes)
    return PlanArgs(config_path, tuple(overrides), config, hardware, clusters)


def check_plan_destination(path: Path) -> None:
    """Refuses a file that a plan cannot be written to; an older plan may give way.

    Raises:
        UserError: no such folder, or something that is not a plan stands there.
    """
    try_file("--out", path, replaces=(b"", "a plan"))
    if not path.exists():
        return
    try:
        is_plan = path.is_file() and "fingerprint" in read_json(path)
    except UserError:
        is_plan = False
    if not is_plan:
        raise UserError(f"--out {path}: exists and is not a plan, so it is left alone; name another")


GIB = 2**30

JSON = dict[str, Any]


def make_plan_report(asked: PlanArgs, *, out: Path | None = None, plot: Path | None = None) -> JSON:
    """Plans a run, and some others to compare it with.

    Args:
        asked: the command line, with one cluster.
        out: where to write the plan, in the place of an older one.
        plot: a PNG file for the picture, likewise.

    Raises:
        UserError: what was asked is at fault; said before anything is planned.
        PlanRefused: it does not fit.
    """
    silence_third_party_warnings()
    if plot is not None:
        check_picture(plot)
    if out is not None:
        check_plan_destination(out)
    source, (cluster,) = open_source(asked.config), asked.clusters
    inquiry = Inquiry(asked.config_path, asked.overrides, source, asked.hardware_name, cluster)
    case = inquiry.case()
    try:
        result = plan_report(case)
    except DoesNotFit as reason:
        raise refuse_plan(inquiry, case, reason) from reason
    result |= {"command": inquiry.command, "hints": hints(inquiry, case)}
    if out is not None:
        write_plan(out, case.file())
        result["out"] = str(out)
    if plot is not None:
        plan_plot.draw_plan(result, plot)
        result["plot"] = str(plot)
    return result


def sweep_clusters(asked: PlanArgs) -> JSON:
    """The same run on several clusters of one kind of hardware.

    Args:
        asked: the command line, with all clusters.

    Raises:
        UserError: see `plan`; a batch that some of the clusters cannot share out is said in their row.
        Refusal: the run fits on none of them.
    """
    silence_third_party_warnings()
    source, rows = open_source(asked.config), []
    for cluster in asked.clusters:
        inquiry = Inquiry(asked.config_path, asked.overrides, source, asked.hardware_name, cluster)
        row: JSON = {"cluster": cluster.name, "world_size": cluster.world_size, "command": inquiry.command}
        try:
            case = inquiry.case()
            reason = None if fits(case) else _lacking(case)
        except UserError as fault:
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


def cluster_sweep_lines(result: JSON) -> list[str]:
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


def diff_plans(before: Path, after: Path) -> tuple[JSON, list[str]]:
    """What differs between two plans, for scripts and for people.

    Raises:
        UserError: one of them is not a plan.
    """
    found_out = diff.plan_diff(read_plan(before), read_plan(after))
    return asdict(found_out), diff.plan_diff_lines(found_out)


def _lacking(case: PlanCase) -> str:
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
