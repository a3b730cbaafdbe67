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
  LS_EXAMPLE"""
)
def ls(source: Source, as_json: AsJson = False) -> None:
    """List checkpoints: step, mean AUC on valid, size, and what is torn. Files are not read: see verify."""
    from infnet_rec.commands import checkpoint as command

    result = command.list_all(source)
    print(json.dumps(result) if as_json else "\n".join(command.list_lines(result)))


@checkpoint.command(
    epilog="""\b
Example:
  $ infnet-rec checkpoint show runs/two/checkpoints/step-00000206
  SHOW_EXAMPLE"""
)
def show(source: Source, as_json: AsJson = False) -> None:
    """Show what a checkpoint holds: progress, metrics, the run it is of, every file. Of several, the best."""
    from infnet_rec.commands import checkpoint as command

    result = command.show(source)
    print(json.dumps(result) if as_json else "\n".join(command.show_lines(result)))


@checkpoint.command(
    epilog="""\b
Example:
  $ infnet-rec checkpoint verify runs/two
  VERIFY_EXAMPLE

Exit code 0 when all are whole, 3 when one is torn."""
)
def verify(source: Source, as_json: AsJson = False) -> None:
    """Read every file and compare its size and SHA-256 with the marker's."""
    from infnet_rec.commands import checkpoint as command

    result = command.verify(source)
    print(json.dumps(result) if as_json else "\n".join(command.verify_lines(result)))
    if not result["whole"]:
        leave(3)
