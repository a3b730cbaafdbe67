"""Pages that are made when the site is built: the reference, from the code, and what was measured, from the results."""

import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import mkdocs_gen_files
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from infnet_rec.cli import app
from infnet_rec.config.run import run_config
from infnet_rec.data.ingest.recipe import Recipe

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (".md", ".png")


def described(model: type[BaseModel]) -> dict[str, str]:
    """What a model's docstring says of each field."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(model.__doc__ or "").splitlines():
        if started := re.fullmatch(r"    (\w+): (.*)", line):
            name = started[1]
            found[name] = started[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        elif line and not line.startswith(" "):
            name = ""
    return found


def kind(annotation: Any) -> str:
    """A type as a person would write it."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return kind(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(part) for part in typing.get_args(annotation) if part is not type(None))
    if origin is tuple:
        return f"list of {kind(typing.get_args(annotation)[0])}"
    if origin is dict:
        return f"table of {kind(typing.get_args(annotation)[1])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def sections(model: type[BaseModel], title: str, lines: list[str], seen: set[type[BaseModel]]) -> None:
    """A table of a model's keys, and then of those below it."""
    seen.add(model)
    head = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    texts, below = described(model), []
    lines += ["", f"## {title}", "", head, "", "| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        inner = models_in(field.annotation)
        default = "" if field.default is PydanticUndefined or inner else f"`{field.default!r}`"
        text = texts.get(name, "").replace("|", "\\|")
        shown = "section" if inner else kind(field.annotation).replace("|", "\\|")
        lines.append(f"| `{name}` | {shown} | {default} | {text} |")
        below += [(m, f"{title}.{name}" if title[0] != "(" else name) for m in inner if m not in seen]
    for inner, name in below:
        several = sum(n == name for _, n in below) > 1
        sections(inner, f"{name} ({inner.__name__})" if several else name, lines, seen)


def commands(command: Any, name: str, lines: list[str]) -> None:
    """A section for each verb: what it does, its arguments and options, and its example."""
    below = getattr(command, "commands", {})
    for word, inner in below.items():
        commands(inner, f"{name} {word}", lines)
    if below:
        return
    lines += ["", f"## {name}", "", plain(command.help)]
    rows = []
    for parameter in command.params:
        if parameter.name in ("help", "json") or getattr(parameter, "hidden", False):
            continue
        names = ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))
        shown = names if names.startswith("`-") else f"`{parameter.name.upper()}`"
        rows.append(f"| {shown} | {plain(getattr(parameter, 'help', None)).replace('|', chr(92) + '|')} |")
    if rows:
        lines += ["", "| | |", "|---|---|", *rows]
    if command.epilog:
        lines += ["", "```text", inspect.cleandoc(command.epilog).replace("\b\n", ""), "```"]


def plain(text: str | None) -> str:
    """Help as one paragraph after the other."""
    return inspect.cleandoc(text or "").replace("\b\n", "")


def write(name: str, lines: list[str]) -> None:
    with mkdocs_gen_files.open(name, "w") as file:
        file.write("\n".join(lines) + "\n")


def main() -> None:
    """Writes all of them."""
    for name, model, title, text in (
        ("configuration", run_config(), "Configuration", "A run is one TOML file with these sections and keys."),
        ("recipe", Recipe, "Recipe", "A recipe says what raw files are and mean; `configs/datasets/template.toml` has an example of each key."),
    ):
        lines = [f"# {title}", "", text]
        sections(model, "(the file)", lines, set())
        write(f"reference/{name}.md", lines)
    lines = ["# Command line", "", "Every verb takes `--json` and answers `--help` with an example."]
    commands(typer.main.get_command(app), "infnet-rec", lines)
    write("reference/cli.md", lines)
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in PAGES:
            name = str(path.relative_to(RESULTS))
            name = "index.md" if name == "README.md" else name
            with mkdocs_gen_files.open(f"measured/{name}", "wb") as file:
                file.write(path.read_bytes())


main()
