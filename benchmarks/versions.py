"""All tests beside older versions of torch, each with the torchrec and the fbgemm that fit it.

    python -m benchmarks.versions                the oldest set that pyproject.toml allows
    python -m benchmarks.versions --torch 2.12   another one
    python -m benchmarks.versions --list         what sets there are, and nothing else
    make test-versions

Each set gets a virtual environment in `runs/versions`, kept between calls. An older torch comes as the build for CUDA,
which is 3 GB to fetch and 6 GB on the disk; it computes on the CPU here. The result is one row of the table in
`benchmarks/results/versions.md`. The program ends with 1 if a test failed, and with 2 if an environment cannot be made.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
MOST_NAMED = 10
# Asked of the Python of an environment.
INSTALLED = """
import json, platform
from importlib import metadata
names = ("torch", "torchrec", "fbgemm-gpu-cpu", "triton", "numpy")
found = {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
import torch
print(json.dumps(found | {"torch": torch.__version__}))
"""


@dataclass(frozen=True, slots=True)
class VersionSet:
    """Releases that fit together: they share compiled interfaces."""

    torch: str
    triton: str
    torchrec: str
    fbgemm: str


SETS = {
    "2.11": VersionSet("2.11.0", "3.6.0", "1.6.1", "1.6.0"),
    "2.12": VersionSet("2.12.1", "3.7.1", "1.7.0", "1.7.0"),
    "2.13": VersionSet("2.13.0", "3.9.0", "1.8.0", "1.8.0"),
}


class CannotStart(Exception):
    """An environment could not be made, or its tests not be started; the message says why."""


def main(words: Sequence[str] | None = None) -> int:
    """Makes the environments, runs the tests and writes the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="+", choices=SETS, default=[min(SETS)], help="release of torch, by its set")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "versions", help="kept between calls")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "versions", help="without suffix")
    parser.add_argument(
        "pytest", nargs="*", metavar="-- PYTEST_ARGUMENT", help="for fewer tests; then nothing is written"
    )
    parser.add_argument("--list", action="store_true", help="print the sets; nothing is made, fetched or tested")
    arguments = parser.parse_args(words)
    if arguments.list:
        print(json.dumps({name: asdict(one) for name, one in SETS.items()}))
        return 0
    passed = True
    for name in arguments.torch:
        try:
            python = environment(SETS[name], arguments.work / f"torch-{name}")
            row = tested(python, arguments.work / f"torch-{name}.xml", arguments.pytest)
        except CannotStart as error:
            print(f"benchmarks.versions: torch {name}: {error}", file=sys.stderr)
            return 2
        print("\n".join(markdown([row])), flush=True)
        passed = passed and not row["failed"]
        if not arguments.pytest:
            write(arguments.out, name, row)
    return 0 if passed else 1


def environment(wanted: VersionSet, folder: Path) -> Path:
    """The Python of an environment with a set of versions, made or brought up to date where needed.

    Args:
        wanted: the set.
        folder: of the environment.

    Raises:
        CannotStart: pip or venv failed; what they said is on stderr.
    """
    python = folder / "bin" / "python"
    stamp = folder / "made-for.json"
    pinned = pins([(ROOT / name).read_text() for name in REQUIREMENTS])
    made_for = json.dumps([wanted.torch, wanted.triton, wanted.torchrec, wanted.fbgemm, str(ROOT), *pinned])
    if stamp.is_file() and stamp.read_text() == made_for:
        return python
    stamp.unlink(missing_ok=True)
    if not python.is_file():
        print(f"making {folder}; torch alone may be 3 GB to fetch", flush=True)
        _call(sys.executable, "-m", "venv", "--clear", str(folder))
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # With what it needs, before everything else: nothing that comes later is allowed to replace it.
    _call(*pip, f"torch=={wanted.torch}", f"triton=={wanted.triton}")
    _call(*pip, "--no-deps", *pinned, f"torchrec=={wanted.torchrec}", f"fbgemm-gpu-cpu=={wanted.fbgemm}")
    _call(*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    stamp.write_text(made_for)
    return python


def pins(requirements: Sequence[str]) -> list[str]:
    """What the requirements files pin, without what a set pins itself."""
    lines = {line.strip() for text in requirements for line in text.splitlines()}
    pinned = sorted(line for line in lines if "==" in line and not line.startswith("#"))
    return [line for line in pinned if line.partition("==")[0] not in ("torch", "triton")]


def tested(python: Path, report: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs the tests of this checkout with a Python; a row of the table.

    Args:
        python: of an environment.
        report: where pytest writes what came of each test.
        arguments: for pytest; none run all tests.

    Raises:
        CannotStart: the environment cannot import torch, or pytest ended before its report.
    """
    installed = json.loads(_call(str(python), "-c", INSTALLED))
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    row = {"at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": commit()}
    started_at = time.monotonic()
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    # The shell's own choice of an environment must not reach the tests' child processes.
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}).returncode
    if code not in (0, 1) or not report.is_file():
        raise CannotStart(f"pytest ended with {code} before all tests were run")
    machine = f"{os.cpu_count()} CPU cores, {platform.system()}, no GPU used"
    minutes = round((time.monotonic() - started_at) / 60, 1)
    return row | {"versions": installed, **counts(report.read_text()), "minutes": minutes, "machine": machine}


def counts(report: str) -> dict[str, Any]:
    """What a JUnit report says: how many tests passed, failed and were skipped, and which failed."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    names = sorted({f"{case.get('classname')}::{case.get('name')}" for case in bad})
    # A test that fails in its body and once more in what is torn down after it stands there twice.
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": len(names),
        "skipped": len(skipped),
        "failures": names,
    }


def commit() -> str:
    """This checkout's, with a mark where files differ from it."""
    return _call("git", "-C", str(ROOT), "describe", "--always", "--dirty").strip()


def write(out: Path, name: str, row: dict[str, Any]) -> None:
    """Puts a set's row into the table and its JSON, in the place of an older one.

    Args:
        out: the files' name, without suffix.
        name: of the set.
        row: as `tested` gives it; a `note` of how else it came about is a sentence below the table.
    """
    file = out.with_suffix(".json")
    rows = json.loads(file.read_text()) if file.is_file() else {}
    rows = dict(sorted({**rows, name: row}.items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=2) + "\n")
    title = ["# Versions", "", *(__doc__ or "").strip().splitlines(), ""]
    out.with_suffix(".md").write_text("\n".join([*title, *markdown(list(rows.values()))]) + "\n")


def markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table, and below it the names of tests that failed."""
    heads = [
        "torch",
        "torchrec",
        "fbgemm",
        "triton",
        "Python",
        "passed",
        "failed",
        "skipped",
        "minutes",
        "when",
        "commit",
    ]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        v = row["versions"]
        cells = [v[key] for key in ("torch", "torchrec", "fbgemm-gpu-cpu", "triton", "python")]
        cells += [f"{row[key]:,}" for key in ("passed", "failed", "skipped")]
        lines.append(f"| {' | '.join([*cells, str(row['minutes']), row['at'], row['commit']])} |")
    for row in rows:
        if row["failures"]:
            named = ", ".join(f"`{re.sub(r'[`|]', ' ', name)}`" for name in row["failures"][:MOST_NAMED])
            more = len(row["failures"]) - MOST_NAMED
            lines += ["", f"torch {row['versions']['torch']} failed: {named}{f' and {more} more' if more > 0 else ''}."]
        if row.get("note"):
            lines += ["", f"torch {row['versions']['torch']}: {row['note']}"]
    machines = sorted({row["machine"] for row in rows})
    return [*lines, "", f"On {'; '.join(machines)}."]


def _call(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise CannotStart(f"`{' '.join(command[:6])} ...` ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
