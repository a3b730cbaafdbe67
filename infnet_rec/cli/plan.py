"""`infnet-rec plan`: a run on hardware that nobody has rented yet, and the difference between two plans."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infnet_rec.cli.options import AsJson, Overrides, leave
from infnet_rec.errors import UserError
from infnet_rec.launcher.rank_environment import is_rank

if TYPE_CHECKING:
    from infnet_rec.planner.verb import PlanArgs as Asked

EPILOG = """\b
Example:
  $ infnet-rec plan configs/kuairand_27k_h100.toml -j 4x8 --hardware h100
  kuairand_27k on 4x8 H100-SXM5-80GB: fits
  89 tables with 55,073,532 rows of width 64, rowwise_adagrad; 1,011,331 dense parameters, bf16
  ...
  GiB of HBM         weights  optimizer  inputs  activations  dense  reserve   free    of  tables ms  host GiB
  median of 32          0.30       0.00    0.17         2.61   0.02     1.78  74.23  79.1      12.08      1.80
  fullest: rank 15      3.68       0.06    0.16         2.61   0.02     1.78  70.80  79.1      11.37      1.80
  slowest: rank 0 *     0.31       0.00    0.17         2.61   0.02     1.78  74.22  79.1      12.08      1.80
  ...
  table               rows  dim  sharding    kernel  shards     bytes  ms a shard
  video_id      32,038,727   64  row_wise    fused       32  7.98 GiB       4.980
  music_id      14,155,987   64  table_wise  fused        1  3.43 GiB       0.706
  ...
  a step of rank 0                                   ms
  look-ups and updates of tables                   0.53
  embeddings between ranks                        11.55
  tower, forward and backward (memory bandwidth)   7.06
  all-reduce of dense gradients                    0.16
  dense optimizer                                  0.01
  in all, estimated                               19.31
  ...
  also planned                                     answer                     step ms  fullest rank  rank h an epoch
  largest local batch                              65,536 (2,097,152 in all)   466.08      65.9 GiB             0.28
  smallest cluster, same global batch              1x1                         158.03      75.5 GiB             0.10
  ..."""

What = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG | diff BEFORE AFTER", help="A run's TOML file; or 'diff' and two plan files."),
]
Clusters = Annotated[
    str | None,
    typer.Option(
        "-j",
        "--sweep",
        metavar="NODESxRANKS[,...]",
        help="Nodes, and ranks on each, such as 4x8; of several, such as 1x8,2x8, a row each.",
    ),
]
Hardware = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE.toml", help="a100-40g, a100-80g, b200, cpu-node, h100, h200, l20; or your own."),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the plan, for sharding.plan.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw memory, time and tables.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Build it here with that many processes, and set what was predicted beside what is."),
]


def plan(
    what: What,
    clusters: Clusters = None,
    hardware: Hardware = None,
    overrides: Overrides = None,
    out: Out = None,
    plot: Plot = None,
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a run fits on hardware, how it is laid out and how long a step is; without GPU or data.

    Of a store only the manifest is read. Exit code 3: it does not fit; the cheapest change that does is printed.
    """
    options = {"-j": clusters, "--hardware": hardware, "--set": overrides, "--out": out, "--plot": plot}
    given = [name for name, value in options.items() if value is not None]
    if what[0] == "diff":
        _diff(what[1:], [*given, *(["--check"] if check else [])], as_json=as_json)
        return
    if len(what) > 1:
        raise UserError(
            f"plan {' '.join(what)}: takes one run's file; 'infnet-rec plan diff BEFORE AFTER' compares plans"
        )
    if clusters is None:
        raise UserError("-j: is missing; say on how many nodes and ranks, such as -j 4x8, or several, such as 1x8,2x8")
    sizes = clusters.split(",")
    if (check or len(sizes) > 1) and (out or plot):
        raise UserError("--out, --plot: are for the plan of one cluster, without --check; leave them out")
    if check and len(sizes) > 1:
        raise UserError(f"--check: builds one cluster, and -j says {clusters}; name one")
    from infnet_rec.planner.verb import plan_args

    question = plan_args(Path(what[0]), overrides or [], sizes, hardware)
    if check:
        _check(question, as_json=as_json)
        return
    from infnet_rec.planner import verb as command
    from infnet_rec.planner.report.advice import PlanRefused
    from infnet_rec.planner.report.text import plan_lines

    if len(sizes) > 1:
        result = command.sweep_clusters(question)
        _say(result, command.cluster_sweep_lines(result), as_json=as_json)
        return
    try:
        result = command.make_plan_report(question, out=out, plot=plot)
    except PlanRefused as refusal:
        if not as_json:
            raise
        print(json.dumps(refusal.facts))
        leave(3)
    _say(result, plan_lines(result), as_json=as_json)


def _check(question: "Asked", *, as_json: bool) -> None:
    """Alone it is one rank or starts several; under torchrun it is one of torchrun's."""
    (cluster,) = question.clusters
    if cluster.num_nodes > 1:
        raise UserError(
            f"-j {cluster.name} with --check: it is built on this machine, which is one node; say -j 1xRANKS"
        )
    if cluster.world_size > 1 and not is_rank():
        from infnet_rec.trainer import local_ranks

        local_ranks.check_ranks(question.config_path, question.overrides, cluster.world_size)
        words = [str(question.config_path), *(f"--set={o}" for o in question.overrides), "--check", "-j", cluster.name]
        words += ["--hardware", question.hardware_name, *(["--json"] if as_json else [])]
        local_ranks.launch_local_ranks(["plan", *words], cluster.world_size)
    from infnet_rec.trainer import plan_check as command

    result = command.check_plan(question.config_path, question.overrides, question.hardware_name)
    if result is not None:
        if as_json or not result["num_wrong"]:
            _say(result, command.plan_check_lines(result), as_json=as_json)
        command.require_right(result)


def _diff(files: list[str], given: list[str], *, as_json: bool) -> None:
    if len(files) != 2 or given:
        unused = f", and no {', '.join(given)}" if given else ""
        raise UserError(
            f"plan diff: takes two plan files{unused}, such as 'infnet-rec plan diff before.json after.json'"
        )
    from infnet_rec.planner import verb as command

    _say(*command.diff_plans(Path(files[0]), Path(files[1])), as_json=as_json)


def _say(result: dict[str, Any], text: list[str], *, as_json: bool) -> None:
    print(json.dumps(result) if as_json else "\n".join(text))
