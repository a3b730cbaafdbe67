"""Proves the package on a GPU, or rehearses that on a CPU.

    python -m benchmarks.gpu                        everything at its smallest, within five minutes
    python -m benchmarks.gpu --parts tower full_size    these parts at full length, within four
    python -m benchmarks.gpu --rehearse             every part on a CPU, with small shapes

Parts, in order of worth: see `PARTS`. Results go to `gpu.jsonl` in --out, a line at a time; the closing table is made
from them, and from those of earlier calls of the same --out.

Exit codes: 0 all is right, 1 a part failed or a number is wrong, 2 the command line or the machine is at fault, 3 the
numbers are right and an aim was missed.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.pack import CONTENTS, PACKED_STORE, misfit
from benchmarks.gpu.records import BEGINS, RESULTS, Settings, Size, Writer, closing_table, latest, read_lines

ROOT = Path(__file__).parents[2]
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part and how long it may take, in seconds: at its smallest (with a rehearsal's) and in full."""

    name: str
    smallest_s: float
    full_s: float

    def limit_s(self, size: Size) -> float:
        """The limit at a size; a rehearsal shares its processor with others."""
        return {"rehearsal": 10 * self.smallest_s, "smallest": self.smallest_s, "full": self.full_s}[size]


PARTS = (
    Part("ceilings", 40, 90),
    Part("kernels", 60, 200),
    Part("quickstart", 60, 150),
    Part("shardings", 60, 150),
    Part("tower", 50, 150),
    Part("full_size", 90, 220),
    Part("plan_check", 60, 150),
    Part("every_model", 50, 120),
    Part("hardware", 30, 60),
)
NAMES = tuple(part.name for part in PARTS)
BUDGET_S = {"rehearsal": 3600.0, "smallest": 290.0, "full": 230.0}


def main() -> int:
    """Runs what is asked for; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=NAMES, metavar="PART", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--smallest", action="store_true", help="everything small; the default without --parts")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, small shapes, gloo, Triton's interpreter")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where gpu.jsonl goes (%(default)s)")
    parser.add_argument("--store", type=Path, help="a small store; else the packed one, else runs/quickstart/store")
    parser.add_argument("--limit-s", type=float, help="for everything; by default 290, and 230 with --parts")
    parser.add_argument("--one-part", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size: Size = "rehearsal" if arguments.rehearse else "full" if arguments.parts else "smallest"
    if arguments.smallest and size == "full":
        size = "smallest"
    settings = Settings(arguments.out.absolute(), size, _store(arguments.store))
    if arguments.one_part:
        return _run_here(arguments.one_part, settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    if fault := _machine_fault(settings):
        print(f"benchmarks.gpu: fault: {fault}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + (arguments.limit_s or BUDGET_S[size])
    for part in PARTS:
        if arguments.parts is None or part.name in arguments.parts:
            _run_part(part, settings, deadline - time.monotonic())
    lines = read_lines(settings.out / RESULTS)
    print(closing_table(lines, NAMES))
    print(f"\nresults: {settings.out / RESULTS}")
    verdicts = {line["verdict"] for name in arguments.parts or NAMES for line in latest(lines, name)}
    return 1 if verdicts & {"failed", "wrong"} else 3 if "missed" in verdicts else 0


def _machine_fault(settings: Settings) -> str | None:
    """Why nothing can be run here at all, in one line."""
    from infnet_rec.diagnostics.doctor import driver_gpus, installed_torch
    from infnet_rec.diagnostics.gpu import gpu_fault, installed_gpus

    torch = installed_torch()
    if torch.fault:
        return f"torch cannot be imported: {torch.fault}"
    missing = [name for name in ("torchrec", "fbgemm_gpu", "pydantic") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; unpack the packed folder onto PYTHONPATH (benchmarks/gpu/pack.py)"
    if (reason := _packed_fault(None)) is not None:
        return reason
    if settings.is_rehearsal:
        return None
    if (reason := gpu_fault(driver_gpus(), torch)) is not None:
        return f"{reason}; --rehearse runs every part on a CPU"
    return _packed_fault(installed_gpus().capabilities[0])


def _packed_fault(capability: tuple[int, int] | None) -> str | None:
    """Why the packed folder, if there is one, is not for this machine."""
    folder = _packed_folder()
    if folder is None or not (folder / CONTENTS).is_file():
        return None
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    return misfit(contents, sys.version_info[:2], capability)


def _packed_folder() -> Path | None:
    """Where fbgemm was found: a packed folder, or an environment."""
    found = importlib.util.find_spec("fbgemm_gpu")
    return Path(found.origin).parents[1] if found and found.origin else None


def _store(given: Path | None) -> Path | None:
    """The small store to train on, if there is one."""
    if given is not None:
        return given.absolute()
    packed = _packed_folder()
    for folder in (*([packed / PACKED_STORE] if packed else []), ROOT / "runs" / "quickstart" / "store"):
        if (folder / "manifest.json").is_file():
            return folder.absolute()
    return None


def _run_part(part: Part, settings: Settings, left_s: float) -> None:
    """Runs a part as a process, and writes how it ended."""
    write = Writer(settings.out / RESULTS, part.name)
    limit_s = min(part.limit_s(settings.size), left_s)
    if limit_s < GRACE_S:
        write("whole part", "not run", note="no time was left", size=settings.size)
        return
    print(f"{part.name}: at most {limit_s:.0f} s ...", file=sys.stderr, flush=True)
    write(BEGINS, "measured", size=settings.size)
    log, started_at = settings.out / f"{part.name}.log", time.monotonic()
    with log.open("wb") as file:
        # A session of its own, so that what the part started ends with it.
        process = subprocess.Popen(
            _command(part.name, settings),
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=_environment(settings),
            cwd=ROOT,
        )
        try:
            process.wait(limit_s)
            ending = "" if process.returncode == 0 else f"exit code {process.returncode}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            ending = f"cut off after {limit_s:.0f} s"
        finally:
            _end_session(process)
    wall_s = round(time.monotonic() - started_at, 1)
    facts = {"wall_s": wall_s, "limit_s": round(limit_s, 1), "size": settings.size}
    if ending:
        write("whole part", "failed", note=ending[:400], **facts)
    else:
        write("whole part", "measured", **facts)
    print(f"{part.name}: {wall_s:.0f} s{': ' + ending if ending else ''}", file=sys.stderr, flush=True)


def _end_session(process: "subprocess.Popen[bytes]") -> None:
    """Ends whatever is left of a part's processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(part: str, settings: Settings) -> Sequence[str]:
    store = ["--store", str(settings.store)] if settings.store else []
    size = {"rehearsal": ["--rehearse"], "smallest": ["--smallest"], "full": ["--parts", part]}[settings.size]
    return [sys.executable, "-m", "benchmarks.gpu", "--one-part", part, "--out", str(settings.out), *store, *size]


def _environment(settings: Settings) -> dict[str, str]:
    """This process's own; a rehearsal sees no GPU and interprets the kernels."""
    rehearsal = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if settings.is_rehearsal else {}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **rehearsal}


def _run_here(name: str, settings: Settings) -> int:
    """The part itself, in this process."""
    part = importlib.import_module(f"benchmarks.gpu.{name}")
    part.run(settings, Writer(settings.out / RESULTS, name))
    return 0


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
