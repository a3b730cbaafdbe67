"""The container image, where there is no Docker: its steps are the Makefile's, and work on what it copies."""

import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
# Instruction and its arguments, continued lines joined.
STEPS = [
    (found[1], found[2])
    for line in re.sub(r"\\\n", " ", TEXT).splitlines()
    if (found := re.match(r"([A-Z]+)\s+(.*)", line)) is not None
]


def stage(name: str) -> list[tuple[str, str]]:
    """The steps of a stage and of those that it stands on."""
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for instruction, words in STEPS:
        if instruction == "FROM":
            source, _, own = words.partition(" AS ")
            current = stages[own] = list(stages.get(source, []))
        current.append((instruction, words))
    return stages[name]


def copied(name: str) -> list[str]:
    return [word for instruction, words in stage(name) if instruction == "COPY" for word in words.split()[:-1]]


def make_steps(name: str) -> list[list[str]]:
    return [words.split() for instruction, words in stage(name) if instruction == "RUN" and words.startswith("make ")]


def lay_out(name: str, folder: Path) -> None:
    """What the stage copies, and nothing else."""
    for source in copied(name):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / source)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_steps_are_the_makefiles_and_find_what_they_need(name: str, tmp_path: Path) -> None:
    (step,) = make_steps(name)
    assert step == ["make", "runtime", f"DEVICE={name}"]
    lay_out(name, tmp_path)
    shown = subprocess.run([*step, "--dry-run"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    # The same pins as everywhere, from the files that were copied; nothing is installed beside them.
    assert "-r requirements.txt" in shown.stdout and "-m venv --clear .venv" in shown.stdout
    assert "requirements-dev.txt" not in shown.stdout
    others = [words for instruction, words in stage(name) if instruction == "RUN" and "pip" in words]
    assert not others


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_everything_that_is_copied_is_there_and_reaches_docker(name: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), f"{source} is ignored by .dockerignore"


def test_the_packages_of_the_installation_are_copied() -> None:
    """Of what setuptools looks for, and the files that pyproject.toml names."""
    project = (ROOT / "pyproject.toml").read_text()
    for package in re.findall(r'"(\w+)\*"', project.split("[tool.setuptools.packages.find]")[1].split("]")[0]):
        assert package in copied("cpu")
    assert {"README.md", "LICENSE", "pyproject.toml"} <= set(copied("cuda"))


def test_a_device_that_is_none_is_refused(tmp_path: Path) -> None:
    lay_out("cpu", tmp_path)
    (tmp_path / "fake").mkdir()
    python = tmp_path / "fake" / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    os.utime(tmp_path / ".venv" / "installed", (1, 1))
    shown = subprocess.run(["make", "runtime", "DEVICE=tpu", "BIN=fake"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode != 0 and "DEVICE=tpu: is auto, cpu or cuda" in shown.stderr


def test_the_path_and_the_command_lead_into_the_environment() -> None:
    for name in ("cpu", "cuda"):
        steps = dict(stage(name))
        assert "/opt/infnet-rec/.venv/bin:" in steps["ENV"] and "infnet-rec" in steps["CMD"]
    assert "compute,utility" in dict(stage("cuda"))["ENV"]


@pytest.mark.slow
@pytest.mark.skipif("INFNET_REC_SLOW" not in os.environ, reason="installs everything anew; INFNET_REC_SLOW=1 runs it")
def test_the_cpu_image_installs_in_a_bare_folder(tmp_path: Path) -> None:
    lay_out("cpu", tmp_path)
    (step,) = make_steps("cpu")
    made = subprocess.run(step, cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    assert made.returncode == 0, made.stdout + made.stderr
    done = subprocess.run(
        [tmp_path / ".venv" / "bin" / "infnet-rec", "doctor"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
