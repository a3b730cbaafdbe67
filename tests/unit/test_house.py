"""The rules of the house that tools can keep: sizes, names, direction of imports, what is imported when.

Every rule is a function from sources to faults, tried on a source that breaks it and then on the repository.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("infnet_rec", "launch", "benchmarks")
BANNED_NAMES = {"utils.py", "util.py", "common.py", "helpers.py", "base.py", "manager.py", "misc.py"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_PUBLIC_METHODS = 700, 60, 8, 10

Sources = Mapping[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _repository_files() -> list[Path]:
    """Files that git tracks or would track; deleted ones are left out."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("this copy of the repository is not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def _sources(*folders: str) -> dict[str, str]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def long_files(sources: Sources) -> Iterator[str]:
    for name, text in sources.items():
        if (length := len(text.splitlines())) > MAX_FILE_LINES:
            yield f"{name}: {length} lines"


def large_functions(sources: Sources) -> Iterator[str]:
    for name, text in sources.items():
        for node in _nodes(text, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines"


def many_parameters(sources: Sources) -> Iterator[str]:
    for name, text in sources.items():
        for node in _nodes(text, Function):
            known = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            names = [argument.arg for argument in known if argument and argument.arg not in ("self", "cls")]
            if len(names) > MAX_PARAMETERS:
                yield f"{name}:{node.lineno}: {node.name} has {len(names)} parameters"


def many_methods(sources: Sources) -> Iterator[str]:
    for name, text in sources.items():
        for node in _nodes(text, ast.ClassDef):
            methods = [child for child in node.body if isinstance(child, Function) and not child.name.startswith("_")]
            # Properties read as attributes, so they are not among what a class can be told to do.
            verbs = [child for child in methods if not any("property" in ast.unparse(d) for d in child.decorator_list)]
            if len(verbs) > MAX_PUBLIC_METHODS:
                yield f"{name}:{node.lineno}: {node.name} has {len(verbs)} public methods"


def _nodes(text: str, kind: Any) -> Iterator[Any]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, kind))


def vague_names(sources: Sources) -> Iterator[str]:
    for name in sources:
        if Path(name).name in BANNED_NAMES:
            yield f"{name}: a name that says nothing about what is inside"


# Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:home|root|Users|work|mnt|scratch)/[\w.]+")
REGISTRY = re.compile(
    r"\bpypi[.](?:org|python)|\b(?:files[.])?pythonhosted[.]org|\bdownload[.]pytorch[.]org"
    r"|--(?:extra-)?index[-]url|--find[-]links"
)


def machine_paths_and_registries(sources: Sources) -> Iterator[str]:
    for name, text in sources.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if found := MACHINE_PATH.search(line) or REGISTRY.search(line):
                yield f"{name}:{number}: {found.group()}"


def _function(num_lines: int, parameters: str = "") -> str:
    return f"def f({parameters}):\n" + "    x = 1\n" * (num_lines - 1)


def _class(num_methods: int, decorator: str = "") -> str:
    return "class A:\n" + "".join(f"    {decorator}\n    def f{i}(self): ...\n" for i in range(num_methods))


BROKEN = [
    (long_files, {"a.py": "x = 1\n" * 701}),
    (large_functions, {"a.py": _function(61)}),
    (many_parameters, {"a.py": _function(2, "a, b, c, d, e, *, f, g, h, i")}),
    (many_parameters, {"a.py": "class A:\n    def f(self, a, b, c, d, e, f, g, *args, **kwargs): ..."}),
    (many_methods, {"a.py": _class(11)}),
    (vague_names, {"infnet_rec/data/utils.py": ""}),
    (machine_paths_and_registries, {"a.md": "see /" + "home/ada/data"}),
    (machine_paths_and_registries, {"a.py": 'path = "/' + 'root/x"'}),
    (machine_paths_and_registries, {"a.txt": "--index" + "-url https://x"}),
    (machine_paths_and_registries, {"a.lock": "https://pypi" + ".org/simple"}),
]
SOUND = {
    "a.py": "x = 1\n" * 700,
    "small.py": "x = 1\n" * 2,
    "smaller.py": "x = 1\n" * 2,
    "b.py": _function(60, "a, b, c, d, e, f, *args, **kwargs"),
    "c.py": "class A:\n    def f(self, a, b, c, d, e, f, g, h): ...",
    "d.py": _class(10),
    "e.py": _class(11, "@property"),
    "f.py": "# https://example.com" + "/work" + "/x and data/home/x and ./root" + "/x and https://www.pypi-like.com",
}


@pytest.mark.parametrize(("rule", "sources"), BROKEN)
def test_each_rule_can_fail(rule, sources: Sources) -> None:
    assert len(list(rule(sources))) == 1


@pytest.mark.parametrize("rule", {rule: None for rule, _ in BROKEN})
def test_each_rule_lets_sound_code_pass(rule) -> None:
    assert not list(rule(SOUND))


@pytest.mark.parametrize("rule", [long_files, large_functions, many_parameters, many_methods, vague_names])
def test_code_keeps_its_size_budgets_and_names(rule) -> None:
    assert not list(rule(_sources(*CODE_FOLDERS)))


@pytest.mark.parametrize("rule", [long_files, large_functions, vague_names])
def test_tests_keep_theirs(rule) -> None:
    assert not list(rule(_sources("tests")))


def test_no_machine_paths_and_no_registry_hosts() -> None:
    sources = {}
    for path in _repository_files():
        try:
            sources[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    assert len(sources) > 20
    assert not list(machine_paths_and_registries(sources))


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_imports_run_one_way() -> None:
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


def test_the_direction_of_imports_can_break(tmp_path: Path) -> None:
    for path in (*ROOT.glob("*/__init__.py"), *ROOT.glob("infnet_rec/*/__init__.py"), *ROOT.glob("infnet_rec/*.py")):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    (tmp_path / "infnet_rec" / "models" / "upward.py").write_text("import infnet_rec.trainer\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    result = _lint_imports(tmp_path)
    assert result.returncode == 1
    assert "infnet_rec.models is not allowed to import infnet_rec.trainer" in result.stdout


def _imports_torch(module: str) -> bool:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip() == "True"


@pytest.mark.parametrize(
    "module", ["schema", "errors", "files", "config", "config.toml", "config.run", "config.load", "cli", "launcher.job"]
)
def test_torch_is_imported_by_those_who_need_it_only(module: str) -> None:
    assert not _imports_torch(f"infnet_rec.{module}")


def test_an_import_of_torch_is_noticed() -> None:
    assert _imports_torch("infnet_rec.batch")
