"""What users type: every option of the command line, and every key of config files. Prints them, one a line."""

import typing
from collections.abc import Iterator
from typing import Any

import typer
from pydantic import BaseModel

from infnet_rec.cli import app
from infnet_rec.config.experiment import ExperimentConfig
from infnet_rec.config.model import ModelConfig
from infnet_rec.config.run import RunConfig
from infnet_rec.data.ingest.recipe import Recipe

HEADER = """\
# What users type: options of the command line, keys of config files. None of them goes away, or comes, unnoticed.
# Made anew by
#     .venv/bin/python tests/helpers/surface.py > tests/golden/surface.txt
"""


def options(command: Any, words: tuple[str, ...] = ("infnet-rec",)) -> Iterator[str]:
    """Verbs with their options and arguments, of typer's own tree of commands."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from options(inner, (*words, name))
    for parameter in command.params:
        yield " ".join((*words, "/".join([*parameter.opts, *parameter.secondary_opts])))


def keys(section: type[BaseModel], path: str) -> Iterator[str]:
    """Keys of a section and of what is inside it; of a run's model, those of every model there is."""
    for name, field in section.model_fields.items():
        key = f"{path}.{field.alias or name}"
        yield key
        if name == "model" and section is RunConfig:
            for model in _subclasses(ModelConfig):
                for called in typing.get_args(model.model_fields["name"].annotation):
                    yield from keys(model, f"{key}({called})")
        else:
            for inner in _sections(field.annotation):
                yield from keys(inner, key)


def _subclasses(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Those of the package, not those that a test or a plugin made."""
    for inner in section.__subclasses__():
        if inner.__module__.startswith("infnet_rec."):
            yield inner
        yield from _subclasses(inner)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _sections(inner)


def surface() -> str:
    """The whole of it, sorted."""
    lines = set(options(typer.main.get_command(app)))
    for name, section in {"run": RunConfig, "experiment": ExperimentConfig, "recipe": Recipe}.items():
        lines.update(keys(section, name))
    return HEADER + "".join(f"{line}\n" for line in sorted(lines))


if __name__ == "__main__":
    print(surface(), end="")
