"""What is installed, and whether it can be imported; asked in processes of their own, with Python's own library alone.

A package that was built for another one raises at import what its loader raises, or takes the process with it, and
packages that all verbs lean on may be missing. So nothing here, nor in `doctor.py`, imports any before it was tried.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

OURS = "infnet_rec"
# In the order in which one leans on the other: the first that fails is what is wrong.
FOUNDATION = ("numpy", "torch", "triton", "fbgemm_gpu", "tensordict", "torchrec")
# What a copy of the code without a record of its requirements cannot do without.
NEEDED = ("filelock", "fsspec", "psutil", "pyarrow", "pydantic", "tqdm", "typer", "pyyaml")
MODULES = {"pyyaml": "yaml"}
# torchrec.metrics alone needs torchmetrics; torchx, which alone needs an old urllib3, is asked for it by its own check.
JUDGED_ELSEWHERE = ("torch", "torchrec", "torchmetrics", "urllib3")
TRIAL_TIMEOUT_S = 600.0
# What packages print goes elsewhere: answers are lines on the first descriptor of our own.
TRIAL = """
import importlib, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for name in sys.argv[1:]:
    answers.write(json.dumps({"begins": name}) + "\\n"); answers.flush()
    fault = None
    try:
        importlib.import_module(name)
    except BaseException as error:
        fault = (type(error).__name__ + ": " + str(error)).strip().splitlines()[0]
    answers.write(json.dumps({"name": name, "fault": fault}) + "\\n"); answers.flush()
os._exit(0)
"""
REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package that is asked for, by its normal name, and the versions that will do, such as `<3,>=2`."""

    name: str
    versions: str

    @property
    def module(self) -> str:
        """The module that is imported from the package."""
        return MODULES.get(self.name, self.name.replace("-", "_"))

    @property
    def words(self) -> str:
        """As pip takes it."""
        return f"{self.name}{self.versions}"


def requirements() -> tuple[Requirement, ...]:
    """What this package asks for without extras, as its record says; the least where there is no record."""
    try:
        recorded = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        return tuple(Requirement(name, "") for name in NEEDED)
    found = [REQUIREMENT.fullmatch(line) for line in recorded]
    return tuple(
        Requirement(re.sub(r"[-_.]+", "-", match[1]).lower(), match[2].strip())
        for match in found
        if match is not None and "extra" not in (match[3] or "")
    )


def version_of(package: str) -> str | None:
    """Of an installed package; None where there is none, or its record is damaged."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, KeyError):
        return None


def asked_by_torch(package: str) -> str | None:
    """The one version of a package that the installed torch was built with; None where it names none."""
    try:
        lines = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    exact = [re.match(rf"{package}\s*\(?==\s*([0-9][^\s;,)]*)", line) for line in lines]
    return next((match[1] for match in exact if match is not None), None)


def will_do(version: str, wanted: str) -> bool:
    """Whether a version is among those that are asked for; true where nobody here can tell."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion
    except ImportError:
        return True
    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


@functools.cache
def import_faults(modules: tuple[str, ...], timeout_s: float = TRIAL_TIMEOUT_S) -> Mapping[str, str]:
    """Imports modules one after the other in another process, which may die of it.

    Args:
        modules: names, in the order in which they are tried.
        timeout_s: for all of them.

    Returns:
        By module, why it cannot be imported, in one line; those that can are not in it.
    """
    faults: dict[str, str] = {}
    left = list(modules)
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-c", TRIAL, *left],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
            said, ended = done.stdout, _ended(done.returncode)
        except subprocess.TimeoutExpired as late:
            said, ended = late.stdout or b"", f"cannot be imported within {timeout_s:.0f} s"
        answers = _answers(said)
        faults |= {a["name"]: a["fault"] for a in answers if a.get("fault")}
        tried = {a["name"] for a in answers if "name" in a}
        begun = next((a["begins"] for a in reversed(answers) if "begins" in a), left[0])
        if begun not in tried:
            faults[begun] = ended
            tried.add(begun)
        left = [name for name in left if name not in tried]
    return faults


def _answers(said: bytes) -> list[dict[str, Any]]:
    lines = said.decode(errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith("{")]


def _ended(code: int) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"ended the process that imported it with {how}"


def modules_of(asked: Sequence[Requirement]) -> tuple[str, ...]:
    """All that is tried: what tables and towers are made of first, then what else is asked for and there."""
    # triton comes with torch for GPUs; a CPU does without.
    foundation = [name for name in FOUNDATION if name != "triton" or version_of("triton") is not None]
    there = [r.module for r in asked if r.name not in JUDGED_ELSEWHERE and version_of(r.name) is not None]
    return tuple(dict.fromkeys([*foundation, *there]))
