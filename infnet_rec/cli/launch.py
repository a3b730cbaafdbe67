"""`infnet-rec launch`: a run on a cluster, as a file to hand in."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import AsJson, Overrides

EPILOG = """\b
Example:
  $ infnet-rec launch configs/quickstart.toml -j 2x8 --as sbatch --run-dir runs/two --out two.sh
  two.sh: infnet-rec-train on 2x8 for sbatch
"""
SUBMIT_EPILOG = """\b
Example:
  $ infnet-rec submit configs/quickstart.toml -j 2x8 --as sbatch --run-dir runs/two
  Submitted batch job 4321
"""

Size = Annotated[
    str,
    typer.Option(
        "-j", metavar="NODESxRANKS", help="Nodes and ranks on each, such as 4x8; MIN:MAXxRANKS, such as 2:4x8."
    ),
]
Form = Annotated[str, typer.Option("--as", metavar="torchrun|sbatch|k8s", help="What to write.")]
RunDir = Annotated[Path, typer.Option(help="A folder that all nodes share; that of a run to go on.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="A new file; default: print it.")]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="KEY=VALUE",
        help="gpus (of a node; default: one a rank; 0: CPUs), cpus, memory_gib, name, port, image, mount, user, "
        "env.NAME; repeatable.",
    ),
]


def launch(
    config: Annotated[Path, typer.Argument(help="A run's TOML file, at this path on every node.")],
    size: Size,
    form: Form,
    run_dir: RunDir,
    overrides: Overrides = None,
    settings: With = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write the script or manifest that trains on a cluster, to read, to change and to hand in.

    torchrun: bash, to start on every node. sbatch: Slurm; goes back into the queue when preempted. k8s: a Job and a
    headless Service. All of them go on where the run was last saved.
    """
    from infnet_rec.launcher import launch as command

    if out is not None:
        command.check_new(out)
    result = command.write_launch(config, overrides or [], size, form, run_dir, settings or [])
    if out is not None:
        command.write_script(result["text"], out)
        result["out"] = str(out)
        print(f"{out}: {result['name']} on {size} for {form}", file=sys.stderr)
    if as_json:
        print(json.dumps(result))
    elif out is None:
        print(result["text"], end="")


def submit(
    config: Annotated[Path, typer.Argument(help="A run's TOML file, at this path on every node.")],
    size: Size,
    form: Form,
    run_dir: RunDir,
    overrides: Overrides = None,
    settings: With = None,
    as_json: AsJson = False,
) -> None:
    """Write the same as launch and hand it in at once, to the sbatch or kubectl of this machine.

    What sbatch wants besides, it reads from its own variables, such as SBATCH_PARTITION and SBATCH_TIMELIMIT.
    """
    from infnet_rec.launcher import launch as command

    command.check_hand_in(form)
    result = command.write_launch(config, overrides or [], size, form, run_dir, settings or [])
    result["said"] = command.hand_in(form, result["text"])
    print(json.dumps(result) if as_json else result["said"])
