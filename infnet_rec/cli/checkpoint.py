"""The verbs of `infnet-rec checkpoint`."""

import json
from typing import Annotated

import typer

from infnet_rec.cli.options import SETTINGS, AsJson, leave

checkpoint = typer.Typer(
    help="What a run has saved: list it, look into it, check every byte.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)

Source = Annotated[
    str, typer.Argument(metavar="DIR", help="A run directory, a folder or URL of checkpoints, or one of them.")
]


@checkpoint.command(
    epilog="""\b
Example:
  $ infnet-rec checkpoint ls runs/two
  checkpoint                    step  mean AUC       MiB  files  ranks  written
  step-00000200                  200    0.7783       4.2      3      2  2026-11-22T02:32:06+00:00
  step-00000206                  206    0.7797       4.2      3      2  2026-11-22T02:32:10+00:00  best"""
)
def ls(source: Source, as_json: AsJson = False) -> None:
    """List checkpoints: step, mean AUC on valid, size, and what is torn. Files are not read: see verify."""
    from infnet_rec.checkpoint import inspect as command

    result = command.list_checkpoints(source)
    print(json.dumps(result) if as_json else "\n".join(command.list_lines(result)))


@checkpoint.command(
    epilog="""\b
Example:
  $ infnet-rec checkpoint show runs/two/checkpoints/step-00000206
  runs/two/checkpoints/step-00000206
  step            206, written 2026-11-22T02:32:10+00:00
  best so far     step 206; evaluations since: 0
  trained         105,472 examples in 91 s
  run             seed 0, store 9553970e46d2aeae856c410e62e9c359
  written by      2 ranks; tables: 89 table_wise
  valid           click: AUC 0.7240, gAUC 0.6416
  ...
  __0_0.distcp         2,052,954 bytes  SHA-256 75508ed32931d3d7c29e9bebb28743e8759ffba8a7b1c89cca7c..."""
)
def show(source: Source, as_json: AsJson = False) -> None:
    """Show what a checkpoint holds: progress, metrics, the run it is of, every file. Of several, the best."""
    from infnet_rec.checkpoint import inspect as command

    result = command.show_checkpoint(source)
    print(json.dumps(result) if as_json else "\n".join(command.show_lines(result)))


@checkpoint.command(
    epilog="""\b
Example:
  $ infnet-rec checkpoint verify runs/two
  whole  step-00000200
  whole  step-00000206

Exit code 0 when all are whole, 3 when one is torn."""
)
def verify(source: Source, as_json: AsJson = False) -> None:
    """Read every file and compare its size and SHA-256 with the marker's."""
    from infnet_rec.checkpoint import inspect as command

    result = command.verify_checkpoints(source)
    print(json.dumps(result) if as_json else "\n".join(command.verify_lines(result)))
    if not result["whole"]:
        leave(3)
