"""Output on a terminal that lacks letters: they are escaped, and no command ends because of a name in a log."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import QUIET, ROOT
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe
from test_build_summary import RECIPE, made

NAMES = ["美食", "Música", "Кино", "🎮"]
# What a cluster's default locale may be; the last two are C without Python's own remedies.
TERMINALS: dict[str, dict[str, str]] = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
# All verbs of `data` that print, and a fault whose message holds such a name.
VERBS = {
    "show": (["data", "show", "störe", "--row", "0"], 0),
    "stats": (["data", "stats", "störe"], 0),
    "check": (["data", "check", "störe"], 0),
    "fault": (["data", "stats", "störe/美食"], 2),
    "sniff": (["data", "sniff", "log.csv", "--out", "récipe-TERMINAL.toml"], 0),
    "build": (["data", "build", "r.toml", "--raw", ".", "--out", "störe-TERMINAL"], 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose name and values no ASCII terminal has."""
    folder = tmp_path_factory.mktemp("terminals")

    def edit(log: list[list[Any]], users: list[list[Any]], recipe: dict[str, Any]) -> None:
        for row in users:
            row[1] = NAMES[row[0] % 4]
        for row in log:
            row[4] = NAMES[row[0] % 4]

    build_store(made(folder, edit), folder, folder / "störe", QUIET)
    text = (
        'name = "tiny"\nlicence = "Wörter"\n[log]\nfiles = ["log.csv"]\nuser = "user"\nitem = "item"\ntime = "ts"\n'
        'time_unit = "s"\n[[features]]\nside = "user"\nencoding = "index"\ncolumns = ["user"]\n'
        '[[tasks]]\nname = "click"\nlabel = "click"\n[splits]\nby = "random"\nvalid = 0.1\ntest = 0.1\n'
    )
    (folder / "r.toml").write_text(text, encoding="utf-8")
    assert validate_model(Recipe, {**RECIPE, "splits": {"by": "random", "valid": 0.1, "test": 0.1}}, "x")
    return folder


@pytest.mark.slow(smoke=["ascii"])
@pytest.mark.parametrize("terminal", TERMINALS)
def test_letters_that_a_terminal_lacks_are_escaped(terminal: str, folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("LANG", "LC_ALL", "PYTHONUTF8", "PYTHONIOENCODING")}
    environment |= TERMINALS[terminal] | {"PYTHONPATH": str(ROOT)}
    shown = b""
    for verb, (words, code) in VERBS.items():
        words = [word.replace("TERMINAL", terminal) for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "infnet_rec.cli", *map(os.fsencode, words)],
            cwd=folder,
            env=environment,
            capture_output=True,
        )
        assert done.returncode == code and b"Traceback" not in done.stderr, (verb, done.stderr[-500:])
        shown += done.stdout + done.stderr
    plain, escaped = "美食".encode(), rb"\u7f8e\u98df"
    assert (plain in shown) == (terminal == "utf-8") and (escaped in shown) == (terminal != "utf-8")


def without_an_encoding(source: str) -> Iterator[int]:
    """Lines that read or write text in whatever encoding the machine happens to have."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        is_text = (
            name in ("read_text", "write_text")
            or (
                name == "open"
                and owner not in ("os", "self.files", "fsspec", "gzip")
                and not any("b" in m for m in modes)
            )
            or (name in ("run", "Popen", "check_output") and "text" in given)
        )
        # Ours takes a path and a text, and writes UTF-8.
        if is_text and "encoding" not in given and not (name == "write_text" and not owner):
            yield node.lineno


def test_files_are_read_and_written_in_a_named_encoding() -> None:
    assert list(without_an_encoding("a.read_text()\nopen(x)\nb.open('w')\nsubprocess.run(c, text=True)")) == [
        1,
        2,
        3,
        4,
    ]
    assert not list(without_an_encoding("a.read_text(encoding='utf-8')\nb.open('rb')\nos.open(p, 0)\nwrite_text(p, t)"))
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for room in ("infnet_rec", "launch")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line in without_an_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found
