"""The doctor's look at the GPUs: too old, a driver too small, no nccl, kernels that an installation was packed without.

As in `doctor.py`, checks are functions of what was found, so that each can be tried where there is no GPU.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from infnet_rec.diagnostics.doctor import Check, Torch

# The fused attention's; fbgemm's wheels begin with the same generation.
MIN_CAPABILITY = (8, 0)
HIDE = "export CUDA_VISIBLE_DEVICES=  # trains on the CPU"
PACK = "python -m benchmarks.gpu.pack --keep PATTERN  # and unpack it again, or install the whole fbgemm-gpu"
# Of fbgemm's fused optimizers, those that a run may ask for; the first is the default, and training rests on it.
OPTIMIZERS = ("rowwise_adagrad", "adam", "adagrad", "sgd")
# What CUDA and torch say of a kernel that is not in the library that was loaded.
MISSING = re.compile(
    r"no kernel image|invalid device function|named symbol not found|invalid (kernel|resource) image|invalid image"
    r"|device kernel image is invalid|invalid resource handle|CUDA_ERROR_NOT_FOUND",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Gpus:
    """What torch says of the GPUs that it can use.

    Attributes:
        names: of each.
        capabilities: of each, (major, minor).
        archs: what torch is compiled for, such as "sm_90".
        has_nccl: whether torch can speak it.
    """

    names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    archs: tuple[str, ...] = ()
    has_nccl: bool = True


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver says of itself; an empty text where it says nothing."""

    version: str = ""
    cuda: str = ""


def installed_gpus() -> Gpus:
    """Asks torch which GPUs there are."""
    import torch

    from infnet_rec.diagnostics.probe import has_nccl

    if not torch.cuda.is_available():
        return Gpus(has_nccl=has_nccl())
    numbers = range(torch.cuda.device_count())
    return Gpus(
        tuple(torch.cuda.get_device_name(k) for k in numbers),
        tuple(torch.cuda.get_device_capability(k) for k in numbers),
        tuple(torch.cuda.get_arch_list()),
        has_nccl(),
    )


def installed_driver() -> Driver:
    """Asks nvidia-smi, whose table begins with both versions."""
    try:
        said = subprocess.run(["nvidia-smi"], capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Driver()
    version = re.search(r"Driver Version:\s*([\d.]+)", said.stdout)
    cuda = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", said.stdout)
    return Driver(version[1] if version else "", cuda[1] if cuda else "")


def check_capability(gpus: Gpus) -> Check:
    """No GPU is older than what torch and the kernels are compiled for."""
    name = "GPU generation"
    if not gpus.capabilities:
        return Check(name, "no GPU that torch can use")
    oldest = min(range(len(gpus.capabilities)), key=lambda k: gpus.capabilities[k])
    capability = gpus.capabilities[oldest]
    built = sorted(tuple(divmod(int(arch[1]), 10)) for a in gpus.archs if (arch := re.fullmatch(r"sm_(\d+)a?", a)))
    found = f"{gpus.names[oldest]}, compute capability {_dotted(capability)}"
    if built and capability < built[0]:
        return Check(name, f"{found}: too old, torch is built for {_dotted(built[0])} and later", HIDE)
    if capability < MIN_CAPABILITY:
        wanted = f"fbgemm's kernels and fused attention need {_dotted(MIN_CAPABILITY)}"
        return Check(name, f"{found}: too old, {wanted}", HIDE)
    return Check(name, found)


def check_driver(driver: Driver, torch: Torch) -> Check:
    """The driver speaks the CUDA that torch is built for; within one major version it may be older."""
    name = "driver"
    if not driver.version:
        return Check(name, "none that nvidia-smi knows of")
    found = f"{driver.version}, CUDA {driver.cuda or 'unknown'}"
    if not torch.cuda_build or not driver.cuda:
        return Check(name, found)
    if int(driver.cuda.split(".")[0]) < int(torch.cuda_build.split(".")[0]):
        remedy = f"update the NVIDIA driver, or install a torch built for CUDA {driver.cuda.split('.')[0]}"
        return Check(name, f"{found} at most: too small, torch is built for CUDA {torch.cuda_build}", remedy)
    return Check(name, found)


def check_nccl(gpus: Gpus, torch: Torch) -> Check:
    """Ranks on GPUs speak nccl."""
    if not torch.num_gpus:
        return Check("nccl build", "not needed without a GPU")
    if gpus.has_nccl:
        return Check("nccl build", "torch has it")
    return Check("nccl build", "torch was built without nccl, which ranks on GPUs need", "install torch's CUDA wheel")


def check_kernels(missing: dict[str, str | None], num_gpus: int) -> Check:
    """Fused optimizers whose kernels ran, and those that are not there.

    Args:
        missing: by optimizer, what is wrong with its kernel; None where it gave the right numbers.
        num_gpus: that torch can use.
    """
    name = "fused optimizers"
    if not num_gpus:
        return Check(name, "tried on GPUs only")
    wrong = {optimizer: fault for optimizer, fault in missing.items() if fault is not None}
    if not wrong:
        return Check(name, f"{', '.join(missing)} give the right numbers")
    absent = [optimizer for optimizer, fault in wrong.items() if MISSING.search(str(fault))]
    if len(absent) == len(wrong):
        found = f"no kernel of {', '.join(absent)} in this fbgemm: left out of the packed folder, or for other GPUs"
        # A run may do without an optimizer that it does not use.
        return Check(name, found, PACK, "fault" if OPTIMIZERS[0] in absent else "warning")
    first = next(optimizer for optimizer in wrong if optimizer not in absent)
    return Check(name, f"{first}: {wrong[first]}", "install fbgemm-gpu anew")


def gpu_checks(torch: Torch) -> list[Check]:
    """Everything of the above on this machine; one process tries all kernels."""
    from infnet_rec.diagnostics.probe import optimizer_faults

    gpus, driver = installed_gpus(), installed_driver()
    checks = [check_capability(gpus), check_driver(driver, torch), check_nccl(gpus, torch)]
    faults = optimizer_faults(OPTIMIZERS) if torch.num_gpus and all(check.sound for check in checks) else {}
    return [*checks, check_kernels(faults, torch.num_gpus if faults else 0)] if torch.num_gpus else checks


def gpu_fault(listed: Sequence[str], torch: Torch) -> str | None:
    """Why nothing can be computed on a GPU here, in a line; None where it can.

    Args:
        listed: GPUs that the driver lists.
        torch: what torch says of itself.
    """
    driver = installed_driver()
    too_small = check_driver(driver, torch)
    if not listed and not torch.num_gpus:
        return "no NVIDIA GPU: the driver lists none"
    if not torch.cuda_build:
        return f"{len(listed)} GPUs are listed, but this torch is built for the CPU"
    if not too_small.sound:
        return f"driver {too_small.found}"
    if not torch.num_gpus:
        return f"{len(listed)} GPUs are listed, but torch, built for CUDA {torch.cuda_build}, can use none"
    gpus = installed_gpus()
    for check in (check_capability(gpus), check_nccl(gpus, torch)):
        if not check.sound:
            return check.found
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
