"""Options and settings that all verbs share."""

from typing import Annotated, NoReturn

import typer

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable.")
]
Ranks = Annotated[int, typer.Option(min=1, help="Processes to start on this machine, one a GPU or CPU share.")]


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code."""
    raise typer.Exit(code)
