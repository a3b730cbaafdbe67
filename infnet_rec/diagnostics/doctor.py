"""Is this machine, with what is installed on it, fit to train?

The checks are functions of what was found, so that every one of them can be tried on a machine that has nothing wrong.
`diagnose` does the finding.
"""

import importlib.util
import json as json_module
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NoReturn

from infnet_rec.diagnostics.installation import (
    JUDGED_ELSEWHERE,
    Requirement,
    asked_by_torch,
    import_faults,
    modules_of,
    requirements,
    version_of,
    will_do,
)

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchmetrics", "torchx", "urllib3")
PYTHONS = ((3, 11), (3, 12))
# torch, torchrec, fbgemm: they share compiled interfaces, so nothing between these lines works. Newest first; of each,
# the release to install.
FITTING = (("2.13.0", "1.8.0", "1.8.0"), ("2.12.1", "1.7.0", "1.7.0"), ("2.11.0", "1.6.1", "1.6.0"))
_ANEW = "make clean && make install"
MIN_DISK_GIB = 2.0
MIN_SHARED_MEMORY_GIB = 0.5

# What importlib.metadata knows; None is not installed, "" is there without a record of its version.
Versions = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `remedy` says what to do, mostly a command, and is empty when nothing is wrong.

    A warning is of something that training can do with.
    """

    name: str
    found: str
    remedy: str = ""
    kind: Literal["fault", "warning"] = "fault"

    @property
    def state(self) -> Literal["ok", "fault", "warning"]:
        """What came out of the check, in a word."""
        return self.kind if self.remedy else "ok"

    @property
    def sound(self) -> bool:
        """Whether nothing needs mending."""
        return self.state != "fault"

    def to_json(self) -> dict[str, Any]:
        """The check as a JSON object."""
        return {"name": self.name, "found": self.found, "remedy": self.remedy, "state": self.state, "sound": self.sound}


@dataclass(frozen=True, slots=True)
class Torch:
    """What the installed torch says of itself; `fault` is why it cannot be imported."""

    cuda_build: str | None = None
    num_gpus: int = 0
    fault: str | None = None


def run_checks(*, json: bool) -> int:
    """Prints the diagnosis to stdout, as a table or as one JSON object; returns 0 when all is sound, else 3."""
    return tell(diagnose(), {}, json=json)


def tell(checks: Sequence[Check], measured: Mapping[str, Any], *, json: bool) -> int:
    """Prints checks as a table, or as one JSON object with what was measured; the exit code."""
    sound = all(check.sound for check in checks)
    if json:
        listed = [check.to_json() for check in checks]
        print(json_module.dumps({"sound": sound, **measured, "checks": listed}, indent=2), flush=True)
    else:
        print(checks_table(checks), flush=True)
    return 0 if sound else 3


def diagnose(collectives: Literal["tried", "left out"] = "tried") -> list[Check]:
    """Looks at everything; takes some seconds, since it starts processes.

    Args:
        collectives: left out by ranks, which are about to do them.
    """
    versions, gpus = installed_versions(), driver_gpus()
    asked = requirements()
    # A rank has imported what the others would be asked about.
    faults = {} if collectives == "left out" else import_faults(modules_of(asked))
    torch = Torch(fault=faults["torch"]) if "torch" in faults else installed_torch()
    trials = [] if torch.fault or faults else lookup_trials(torch)
    trials += [] if torch.fault or faults or collectives == "left out" else collective_trials(torch)
    return [
        check_python(sys.version_info[:2]),
        check_fit(versions),
        *check_packages(asked, {r.name: version_of(r.name) for r in asked}),
        check_torchmetrics(versions),
        check_urllib3(versions),
        check_triton(version_of("triton"), asked_by_torch("triton")),
        *check_torch(torch, gpus, versions),
        *([] if collectives == "left out" else check_imports(faults)),
        check_host_name(socket.gethostname()),
        *gpu_checks(torch, gpus),
        *trials,
        check_free("disk", Path.cwd(), MIN_DISK_GIB, "df -h . && du -sh runs"),
        check_free("shared memory", Path("/dev/shm"), MIN_SHARED_MEMORY_GIB, "mount -o remount,size=2G /dev/shm"),
    ]


def broken() -> bool:
    """Whether something that verbs lean on is missing or cannot be imported; `diagnose` then says what."""
    asked = requirements()
    missing = [r for r in asked if r.name not in JUDGED_ELSEWHERE and version_of(r.name) is None]
    return bool(missing or import_faults(modules_of(asked)))


def without_command_line(arguments: Sequence[str], error: ImportError) -> NoReturn:
    """Answers in the place of a command line that cannot be read, as what reads it cannot be imported.

    Args:
        arguments: of the command; all but `doctor` are answered with the fault.
        error: what was raised.
    """
    if list(arguments[:1]) == ["doctor"]:
        sys.exit(run_checks(json="--json" in arguments))
    print(f"infnet-rec: fault: {missing_in_words(error)}", file=sys.stderr)
    sys.exit(2)


def missing_in_words(error: ImportError) -> str:
    """One line for a verb that met a package that is missing or broken."""
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"installation: {first_line}; 'infnet-rec doctor' says what to do"


def checks_table(checks: Sequence[Check]) -> str:
    """The checks for people: one line each, and the remedy below a fault."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for check in checks:
        word = {"ok": "ok", "fault": "FAULT", "warning": "WARN"}[check.state]
        lines.append(f"{word:5}  {check.name:{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':5}  {'remedy':>{width}}  {check.remedy}")
    faults = sum(not check.sound for check in checks)
    return "\n".join([*lines, "", f"{faults} of {len(checks)} checks failed" if faults else "all sound"])


def installed_versions() -> dict[str, str | None]:
    """The versions of `PACKAGES` in this environment."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    # A folder on PYTHONPATH brings modules without records.
    for package, module in (("torchrec", "torchrec"), ("fbgemm-gpu", "fbgemm_gpu")):
        recorded = versions[package] or (package == "fbgemm-gpu" and versions["fbgemm-gpu-cpu"])
        if not recorded and importlib.util.find_spec(module):
            versions[package] = ""
    return versions


def installed_torch() -> Torch:
    """What torch says of its build and of the GPUs it can use."""
    try:
        import torch
    except Exception as error:  # a broken build raises whatever its loader raises
        return Torch(fault=f"{type(error).__name__}: {error}")
    return Torch(torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def driver_gpus() -> list[str]:
    """GPUs that a working NVIDIA driver lists."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in listing.stdout.splitlines() if line.startswith("GPU ")] if not listing.returncode else []


def check_python(version: tuple[int, int]) -> Check:
    """The Python that the pinned versions are built for."""
    found = ".".join(map(str, version))
    if version in PYTHONS:
        return Check("python", found)
    wanted = " or ".join(".".join(map(str, v)) for v in PYTHONS)
    return Check("python", f"{found}, which is not {wanted}", f"{_ANEW}  # with python3.11 on PATH")


def check_fit(versions: Versions) -> Check:
    """Torch, torchrec and fbgemm are of one generation."""
    fbgemm = "fbgemm-gpu" if versions["fbgemm-gpu"] is not None else "fbgemm-gpu-cpu"
    found = ", ".join(f"{name} {_shown(versions[name])}" for name in ("torch", "torchrec", fbgemm))
    torch, torchrec, number = wanted = fitting(versions)
    # A version without a record cannot be judged here; the lookup below is its judge.
    if all(_belong(versions, wanted)):
        return Check("versions", found)
    install = _pip("install", f"torch=={torch}", f"{fbgemm}=={number}")
    return Check(
        "versions", f"{found} do not fit", f"{install} && {_pip('install', '--no-deps', f'torchrec=={torchrec}')}"
    )


def fitting(versions: Versions) -> tuple[str, str, str]:
    """Releases of torch, torchrec and fbgemm that fit, and of which most are here; of equals those that leave torch."""
    return max(FITTING, key=lambda wanted: (sum(_belong(versions, wanted)), _belong(versions, wanted)[0]))


def _belong(versions: Versions, wanted: tuple[str, str, str]) -> list[bool]:
    """Which of the three are of the wanted releases."""
    fbgemm = versions["fbgemm-gpu-cpu"] if versions["fbgemm-gpu"] is None else versions["fbgemm-gpu"]
    found = (versions["torch"], versions["torchrec"], fbgemm)
    return [_is(version, release) for version, release in zip(found, wanted, strict=True)]


def check_one_fbgemm(versions: Versions, torch: Torch) -> Check:
    """One build of fbgemm, and one that the torch beside it can load."""
    name = "fbgemm build"
    cuda, cpu = versions["fbgemm-gpu"], versions["fbgemm-gpu-cpu"]
    wanted = "fbgemm-gpu" if torch.cuda_build else "fbgemm-gpu-cpu"
    install = _pip("install", f"{wanted}=={fitting(versions)[2]}")
    anew = f"{_pip('uninstall', '-y', 'fbgemm-gpu', 'fbgemm-gpu-cpu')} && {install}"
    if cuda is not None and cpu is not None:
        return Check(name, "fbgemm-gpu and fbgemm-gpu-cpu, which overwrite each other's files", anew)
    if cuda is None and cpu is None:
        return Check(name, "none", anew)
    if cuda and not torch.cuda_build:
        return Check(name, "fbgemm-gpu for CUDA, which does not load beside a torch built for the CPU", anew)
    return Check(name, "fbgemm-gpu" if cuda is not None else "fbgemm-gpu-cpu")


def check_torchmetrics(versions: Versions) -> Check:
    """torchrec.metrics computes with torchmetrics 1.0.3 only; the rest of torchrec does without."""
    version = versions["torchmetrics"]
    if version in (None, "1.0.3"):
        return Check("torchmetrics", version or "none; only torchrec.metrics needs it")
    found = f"{version}; torchrec.metrics, which training does not use, needs 1.0.3"
    return Check("torchmetrics", found, _pip("install", "torchmetrics==1.0.3"), "warning")


def check_urllib3(versions: Versions) -> Check:
    """A urllib3 of the old line, which torchx asks for and upgrades of other packages push out."""
    version = versions["urllib3"]
    if versions["torchx"] is None:
        return Check("urllib3", f"{_shown(version)}; torchx, which is particular about it, is not installed")
    if version is not None and _numbers(version) < (1, 27):
        return Check("urllib3", version)
    return Check("urllib3", f"{_shown(version)}; torchx needs one below 1.27", _pip("install", "urllib3<1.27"))


def check_triton(version: str | None, wanted: str | None) -> Check:
    """The triton that torch was built with, where it was built with one: kernels are compiled by it."""
    if wanted is None or version == wanted:
        return Check("triton", f"{_shown(version)}{'' if wanted else '; torch asks for none'}")
    return Check("triton", f"{_shown(version)}; torch was built with {wanted}", _pip("install", f"triton=={wanted}"))


def check_packages(asked: Sequence[Requirement], versions: Versions) -> list[Check]:
    """Everything that is asked for is there, in a version that will do; what has a check of its own is left to that."""
    faults, num_there = [], 0
    for requirement in asked:
        version = versions[requirement.name]
        if requirement.name in JUDGED_ELSEWHERE:
            continue
        if version is not None and will_do(version, requirement.versions):
            num_there += 1
            continue
        found = f"{_shown(version)}; {requirement.words} is needed"
        faults.append(Check(requirement.name, found, _pip("install", requirement.words)))
    return faults or [Check("packages", f"{num_there} there, in versions that will do")]


def check_imports(faults: Mapping[str, str]) -> list[Check]:
    """What is installed can be imported; torch has a line of its own."""
    remedies = {"triton": "the line 'triton' above, or " + _ANEW}
    others = {name: fault for name, fault in faults.items() if name != "torch"}
    if not faults:
        return [Check("imports", "all of them")]
    return [Check(f"import {name}", fault, remedies.get(name, _ANEW)) for name, fault in others.items()]


def check_host_name(name: str) -> Check:
    """The name that this host gives itself has an address here; ranks of one host do without."""
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError):
        found = f"{name} does not resolve; ranks of this host meet at the loopback, those of several hosts cannot"
        return Check("host name", found, f"echo '127.0.1.1 {name}' >> /etc/hosts", "warning")
    return Check("host name", f"{name} is {address}")


def check_gpu(gpus: Sequence[str], torch: Torch, versions: Versions) -> Check:
    """Every GPU that the driver lists can be trained on."""
    if not gpus:
        return Check("GPU", "none; training runs on the CPU with gloo")
    found = f"{len(gpus)} listed by the driver"
    if not torch.cuda_build:
        remedy = _pip("install", "--force-reinstall", f"torch=={fitting(versions)[0]}")
        return Check("GPU", f"{found}, but torch is built for the CPU", remedy)
    if not torch.num_gpus:
        remedy = "nvidia-smi  # its CUDA version must not be older than torch's"
        return Check("GPU", f"{found}, but torch, built for CUDA {torch.cuda_build}, can use none", remedy)
    if versions["fbgemm-gpu-cpu"] is not None:
        remedy = (
            f"{_pip('uninstall', '-y', 'fbgemm-gpu-cpu')} && {_pip('install', f'fbgemm-gpu=={fitting(versions)[2]}')}"
        )
        return Check("GPU", f"{found}, but fbgemm is built for the CPU", remedy)
    return Check("GPU", f"{found}, {torch.num_gpus} usable by torch (CUDA {torch.cuda_build})")


def check_trial(name: str, right: str, fault: str | None, remedy: str) -> Check:
    """Something that was tried, and what came of it."""
    return Check(name, right) if fault is None else Check(name, fault, remedy)


def check_free(name: str, folder: Path, min_gib: float, remedy: str) -> Check:
    """Space left where checkpoints, or the buffers that processes share, are written."""
    if not folder.exists():
        return Check(name, f"no {folder} on this system")
    free_gib = shutil.disk_usage(folder).free / 2**30
    found = f"{free_gib:.1f} GiB free"
    return Check(name, found) if free_gib >= min_gib else Check(name, f"{found}; at least {min_gib:g} needed", remedy)


def check_torch(torch: Torch, gpus: Sequence[str], versions: Versions) -> list[Check]:
    """What can be asked of a torch that can be imported."""
    if torch.fault is not None:
        both = versions["fbgemm-gpu"] is not None and versions["fbgemm-gpu-cpu"] is not None
        # Which of the two is wanted is known once torch can be asked.
        builds = [check_one_fbgemm(versions, Torch("unknown" if gpus else None))] if both else []
        return [Check("torch", torch.fault, _ANEW), *builds]
    return [check_one_fbgemm(versions, torch), check_gpu(gpus, torch, versions)]


def lookup_trials(torch: Torch) -> list[Check]:
    """Whether fbgemm's kernels give the right numbers, on each device."""
    from infnet_rec.diagnostics.probe import lookup_fault

    checks = [check_trial("lookup", "right on the CPU", lookup_fault("cpu"), _ANEW)]
    if torch.num_gpus:
        checks.append(check_trial("lookup on a GPU", "right", lookup_fault("cuda"), _ANEW))
    return checks


def gpu_checks(torch: Torch, gpus: Sequence[str]) -> list[Check]:
    """What is asked where a GPU is listed: its generation, its driver, nccl, and the kernels of every optimizer."""
    from infnet_rec.diagnostics import gpu as doctor_gpu

    return doctor_gpu.gpu_checks(torch) if gpus and not torch.fault else []


def collective_trials(torch: Torch) -> list[Check]:
    """Whether processes of this machine find each other."""
    from infnet_rec.diagnostics.probe import collective_fault

    interface = "export GLOO_SOCKET_IFNAME=lo  # or one that `ip addr` lists"
    checks = [check_trial("gloo", "2 processes add up", collective_fault("gloo", 2), interface)]
    if torch.num_gpus:
        right = f"{torch.num_gpus} GPU{'s' * (torch.num_gpus > 1)} add up"
        nccl = collective_fault("nccl", torch.num_gpus)
        checks.append(check_trial("nccl", right, nccl, "export NCCL_DEBUG=INFO && infnet-rec doctor"))
    return checks


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def _is(version: str | None, release: str) -> bool:
    return version == "" or (version is not None and _numbers(version)[:2] == _numbers(release)[:2])


def _shown(version: str | None) -> str:
    return {None: "(not installed)", "": "(version unknown)"}.get(version, str(version))


def _pip(*arguments: str) -> str:
    python = sys.executable or "python"
    if Path(python).is_relative_to(Path.cwd()):
        python = os.path.relpath(python)
    return shlex.join([python, "-m", "pip", *arguments])
