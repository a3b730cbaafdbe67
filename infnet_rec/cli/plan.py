"""`infnet-rec plan`: a run on hardware that nobody has rented yet, and the difference between two plans."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from infnet_rec.cli.options import AsJson, Overrides, leave
from infnet_rec.faults import Fault

EPILOG = """\b
Example:
  $ infnet-rec plan configs/kuairand_27k_h100.toml -j 4x8 --hardware h100
  TODO
"""

What = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG | diff BEFORE AFTER", help="A run's TOML file; or 'diff' and two plan files."),
]
Cluster = Annotated[
    str | None, typer.Option("-j", metavar="NODESxRANKS", help="Nodes, and ranks on each, such as 4x8.")
]
Hardware = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE.toml", help="a100-40g, a100-80g, b200, cpu-node, h100, h200, l20; or your own."),
]
Out = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the plan, for sharding.plan.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw memory, time and tables.")]
Sweep = Annotated[str | None, typer.Option(metavar="1x8,2x8,...", help="A row a cluster in the place of the report.")]


def plan(
    what: What,
    cluster: Cluster = None,
    hardware: Hardware = None,
    overrides: Overrides = None,
    out: Out = None,
    plot: Plot = None,
    sweep: Sweep = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a run fits on hardware, how it is laid out and how long a step is; without GPU or data.

    Of a store only the manifest is read. Exit code 3: it does not fit; the cheapest change that does is printed.
    """
    options = {"-j": cluster, "--hardware": hardware, "--set": overrides, "--out": out, "--plot": plot}
    options["--sweep"] = sweep
    given = [name for name, value in options.items() if value is not None]
    if what[0] == "diff":
        _diff(what[1:], given, as_json=as_json)
        return
    if len(what) > 1:
        raise Fault(f"plan {' '.join(what)}: takes one run's file; 'infnet-rec plan diff BEFORE AFTER' compares plans")
    if (cluster is None) == (sweep is None):
        raise Fault("plan: needs either -j NODESxRANKS, such as -j 4x8, or --sweep with several, such as 1x8,2x8")
    if sweep is not None and (out or plot):
        raise Fault("--sweep: writes no plan and no picture; leave out --out and --plot, or give -j")
    from infnet_rec.commands.plan_asked import asked

    sizes = [cluster] if cluster is not None else str(sweep).split(",")
    question = asked(Path(what[0]), overrides or [], sizes, hardware)
    from infnet_rec.commands import plan as command
    from infnet_rec.commands.plan_remedy import PlanRefused
    from infnet_rec.commands.plan_text import lines

    if sweep is not None:
        result = command.sweep(question)
        _say(result, command.sweep_lines(result), as_json=as_json)
        return
    try:
        result = command.plan(question, out=out, plot=plot)
    except PlanRefused as refusal:
        if not as_json:
            raise
        print(json.dumps(refusal.facts))
        leave(3)
    _say(result, lines(result), as_json=as_json)


def _diff(files: list[str], given: list[str], *, as_json: bool) -> None:
    if len(files) != 2 or given:
        unused = f", and no {', '.join(given)}" if given else ""
        raise Fault(f"plan diff: takes two plan files{unused}, such as 'infnet-rec plan diff before.json after.json'")
    from infnet_rec.commands import plan as command

    _say(*command.diff(Path(files[0]), Path(files[1])), as_json=as_json)


def _say(result: dict[str, Any], text: list[str], *, as_json: bool) -> None:
    print(json.dumps(result) if as_json else "\n".join(text))
