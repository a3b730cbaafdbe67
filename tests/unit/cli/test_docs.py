"""What the documentation tells a person to type exists: every verb and every option of every line."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from infnet_rec.cli import app

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINE = re.compile(r"^(?:    )?(?:\$ )?(?:PYTHONUTF8=1 )?(?:\.venv/bin/)?infnet-rec (.*)$")


def typed_lines(text: str) -> list[str]:
    """The words after `infnet-rec` of each line to type, with lines that go on put together."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [found[1].split("  #")[0].split(" | ")[0] for line in joined.splitlines() if (found := LINE.match(line))]


def wrong_with(words: str) -> str:
    """What the command line would refuse before it looks at any file; "" if nothing."""
    command: Any = typer.main.get_command(app)
    rest = shlex.split(words)
    while getattr(command, "commands", None):
        if not rest or rest[0].startswith("--"):
            return "" if rest else "no verb"
        if rest[0] not in command.commands:
            return f"unknown verb {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context(command.name, list(rest))
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_the_documentation_can_be_typed(page: Path) -> None:
    lines = typed_lines(page.read_text(encoding="utf-8"))
    assert {line: wrong for line in lines if (wrong := wrong_with(line))} == {}


def test_a_wrong_line_is_noticed() -> None:
    assert wrong_with("data biuld recipe.toml") and wrong_with("train run.toml --rank 2") and wrong_with("")
    assert not wrong_with("data build recipe.toml --raw DIR --out STORE")
    assert sum(len(typed_lines(page.read_text(encoding="utf-8"))) for page in PAGES) > 20


def test_what_makes_the_reference_finds_the_package() -> None:
    """The pages themselves need mkdocs, which only `make docs` installs."""
    for path in sorted((ROOT / "docs" / "_build").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("infnet_rec"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), f"{path.name}: {ast.unparse(node)}"
