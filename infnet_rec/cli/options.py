"""Options and settings that all verbs share."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

# Help must not wait for what checks configurations.
PLUGINS = "infnet_rec.config.plugins"
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable.")
]
Ranks = Annotated[int, typer.Option(min=1, help="Processes to start on this machine, one a GPU or CPU share.")]


Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Also know the model in this file; repeatable."),
]


def with_plugins(verb: Callable[..., None]) -> Callable[..., None]:
    """Gives a verb that reads a run's configuration the option `--plugin`.

    The files are read where the configuration is: a fault of theirs is one of the verb, and help does not wait for
    them.
    """

    @functools.wraps(verb)
    def told(*args: Any, plugins: list[str] | None = None, **kwargs: Any) -> None:
        if plugins or PLUGINS in sys.modules:
            from infnet_rec.config.plugins import use_plugins

            use_plugins(plugins or [])
        verb(*args, **kwargs)

    # Typer asks for both.
    option = inspect.Parameter("plugins", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Plugins)
    signature = inspect.signature(verb)
    told.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
    told.__annotations__ = {**verb.__annotations__, "plugins": Plugins}
    return told


def leave(code: int) -> NoReturn:
    """Ends the process with this exit code."""
    raise typer.Exit(code)
