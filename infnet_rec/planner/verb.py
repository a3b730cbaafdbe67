"""`infnet-rec plan`: does it fit, how is it laid out, and how long is a step. No process group, GPU or data.

A command line is checked before torch is imported, so that slips of the pen are found at once; what plans is imported
by the functions that need it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infnet_rec.config.load import load_config
from infnet_rec.config.run import RunConfig
from infnet_rec.config.toml import read_json
from infnet_rec.console import aligned
from infnet_rec.errors import Refusal, UserError
from infnet_rec.files import try_file
from infnet_rec.planner.hardware import Cluster, load_hardware, parse_cluster
from infnet_rec.plotting import check_picture

if TYPE_CHECKING:
    from infnet_rec.planner.plan import DoesNotFit
    from infnet_rec.planner.report.advice import Inquiry
    from infnet_rec.planner.run_plan import PlanRequest

GIB = 2**30

JSON = dict[str, Any]


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
    from infnet_rec.distributed.process_group import silence_third_party_warnings
    from infnet_rec.planner.plan import DoesNotFit
    from infnet_rec.planner.plan_file import write_plan
    from infnet_rec.planner.report.advice import Inquiry, hints, refuse_plan
    from infnet_rec.planner.report.facts import plan_report
    from infnet_rec.planner.report.plot import draw_plan
    from infnet_rec.planner.run_plan import open_source

    silence_third_party_warnings()
    if plot is not None:
        check_picture(plot)
    if out is not None:
        check_plan_destination(out)
    source, (cluster,) = open_source(asked.config), asked.clusters
    inquiry = Inquiry(asked.config_path, asked.overrides, source, asked.hardware_name, cluster)
    try:
        run = inquiry.planned()
    except DoesNotFit as reason:
        raise refuse_plan(inquiry, reason) from reason
    result = {**plan_report(run, source), "command": inquiry.command, "hints": hints(inquiry, run)}
    if out is not None:
        write_plan(out, run.file())
        result["out"] = str(out)
    if plot is not None:
        draw_plan(result, plot)
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
    from infnet_rec.distributed.process_group import silence_third_party_warnings
    from infnet_rec.planner.report.advice import Inquiry
    from infnet_rec.planner.run_plan import open_source

    silence_third_party_warnings()
    source = open_source(asked.config)
    rows = [
        _sweep_row(Inquiry(asked.config_path, asked.overrides, source, asked.hardware_name, cluster))
        for cluster in asked.clusters
    ]
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
    from infnet_rec.planner.plan_file import read_plan
    from infnet_rec.planner.report.diff import plan_diff, plan_diff_lines

    found = plan_diff(read_plan(before), read_plan(after))
    return asdict(found), plan_diff_lines(found)


def _sweep_row(inquiry: "Inquiry") -> JSON:
    """One cluster of a sweep; a fault that only its size makes is the reason in its row."""
    from infnet_rec.planner.plan import DoesNotFit
    from infnet_rec.planner.report.advice import found

    row: JSON = {
        "cluster": inquiry.cluster.name,
        "world_size": inquiry.cluster.world_size,
        "command": inquiry.command,
    }
    try:
        return {**row, "fits": True, "reason": None, "found": found(inquiry.planned())}
    except DoesNotFit as lacking:
        return {**row, "fits": False, "reason": _lacking(inquiry.request(), lacking), "found": None}
    except UserError as fault:
        return {**row, "fits": False, "reason": str(fault), "found": None}


def _lacking(request: "PlanRequest", reason: "DoesNotFit") -> str:
    """Why there is no plan; where tables do not matter, they are not named."""
    if not request.leaves_no_room:
        return str(reason)
    return (
        f"what is no table needs {request.dense.total_bytes / GIB:.1f} GiB of a rank's "
        f"{request.cluster.hbm_bytes / GIB:.1f}: {request.local_batch_size:,} examples a rank are too many"
    )
