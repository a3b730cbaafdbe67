"""The doctor's look at GPUs, by what was found: nothing here needs one."""

import os
import stat
from pathlib import Path

import pytest

from infnet_rec.diagnostics import gpu
from infnet_rec.diagnostics.doctor import Torch
from infnet_rec.diagnostics.gpu import Driver, Gpus
from infnet_rec.diagnostics.probe import optimizer_faults

H100 = Gpus(("NVIDIA H100",), ((9, 0),), ("sm_75", "sm_80", "sm_90", "sm_120"))
CUDA = Torch("13.0", num_gpus=1)
NEW = Driver("580.82", "13.0")


def test_a_sound_gpu_passes_every_check() -> None:
    checks = [
        gpu.check_capability(H100),
        gpu.check_driver(NEW, CUDA),
        gpu.check_nccl(H100, CUDA),
        gpu.check_kernels(dict.fromkeys(gpu.OPTIMIZERS), 1),
    ]
    assert [check.state for check in checks] == ["ok"] * 4


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (Gpus(("Tesla P100",), ((6, 0),), ("sm_75", "sm_90")), ["Tesla P100", "6.0: too old, torch is built for 7.5"]),
        (Gpus(("Tesla T4",), ((7, 5),), ("sm_75", "sm_90")), ["7.5: too old, fbgemm's kernels and fused attention"]),
        # The oldest of several counts.
        (Gpus(("H100", "Tesla V100"), ((9, 0), (7, 0)), ("sm_70", "sm_90a")), ["Tesla V100", "too old"]),
    ],
)
def test_a_gpu_that_is_too_old_is_a_fault(gpus: Gpus, words: list[str]) -> None:
    check = gpu.check_capability(gpus)
    assert check.state == "fault" and all(word in check.found for word in words), check.found
    assert "\n" not in check.found and "CUDA_VISIBLE_DEVICES=" in check.remedy


@pytest.mark.parametrize(
    ("driver", "torch", "state"),
    [
        (NEW, CUDA, "ok"),
        (Driver("590.1", "13.2"), CUDA, "ok"),
        (Driver("570.0", "12.8"), Torch("12.6", num_gpus=1), "ok"),
        (Driver("535.1", "12.2"), Torch("12.6", num_gpus=1), "ok"),
        (Driver("535.1", "12.2"), Torch("13.0"), "fault"),
        (Driver("470.0", "11.4"), Torch("12.6"), "fault"),
        (Driver("580.0", ""), CUDA, "ok"),
        (Driver(), CUDA, "ok"),
        (NEW, Torch(None), "ok"),
    ],
)
def test_a_driver_that_is_too_small_is_a_fault(driver: Driver, torch: Torch, state: str) -> None:
    check = gpu.check_driver(driver, torch)
    assert check.state == state
    if state == "fault":
        assert f"CUDA {driver.cuda} at most: too small, torch is built for CUDA {torch.cuda_build}" in check.found
        assert "update the NVIDIA driver" in check.remedy


def test_no_nccl_is_a_fault_beside_a_gpu_only() -> None:
    check = gpu.check_nccl(Gpus(has_nccl=False), CUDA)
    assert check.state == "fault" and "without nccl" in check.found
    assert gpu.check_nccl(Gpus(has_nccl=False), Torch()).state == "ok"


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "AcceleratorError: CUDA error: device kernel image is invalid",
        "RuntimeError: CUDA error: invalid device function",
        "RuntimeError: CUDA error: named symbol not found",
    ],
)
def test_a_kernel_that_was_left_out_is_named_with_what_to_pack(said: str) -> None:
    sound = dict.fromkeys(gpu.OPTIMIZERS)
    check = gpu.check_kernels(sound | {"sgd": said, "adagrad": said}, 1)
    # A run that does not use them can do without.
    assert check.state == "warning" and "no kernel of adagrad, sgd" in check.found and "--keep" in check.remedy
    assert gpu.check_kernels(sound | {"rowwise_adagrad": said}, 1).state == "fault"


def test_a_kernel_that_gives_wrong_numbers_is_a_fault_whatever_is_missing() -> None:
    missing, wrong = "RuntimeError: CUDA error: invalid device function", "ArithmeticError: a step of adam gave [1.0]"
    check = gpu.check_kernels({"rowwise_adagrad": None, "sgd": missing, "adam": wrong}, 1)
    assert check.state == "fault" and check.found == f"adam: {wrong}"


@pytest.mark.parametrize(
    ("listed", "torch", "words"),
    [
        ([], Torch(), "no NVIDIA GPU: the driver lists none"),
        (["GPU 0: H100"], Torch(), "this torch is built for the CPU"),
        (["GPU 0: H100"], Torch("13.0"), "driver 535.1, CUDA 12.2 at most: too small"),
    ],
)
def test_why_nothing_can_run_on_a_gpu_is_one_line(
    listed: list[str], torch: Torch, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "installed_driver", lambda: Driver("535.1", "12.2"))
    assert words in str(gpu.gpu_fault(listed, torch))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Gpus(("Tesla P100",), ((6, 0),), ("sm_75",)), "too old"),
        (Gpus(("NVIDIA H100",), ((9, 0),), ("sm_90",), has_nccl=False), "without nccl"),
        (H100, None),
    ],
)
def test_a_gpu_that_torch_can_use_may_still_not_do(
    found: Gpus, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "installed_driver", lambda: NEW)
    monkeypatch.setattr(gpu, "installed_gpus", lambda: found)
    said = gpu.gpu_fault(["GPU 0: NVIDIA"], CUDA)
    assert said is None if words is None else words in str(said)


@pytest.mark.parametrize("label", ["CUDA Version", "CUDA UMD Version"])
def test_the_driver_is_asked_by_nvidia_smi(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '| NVIDIA-SMI 580.82   Driver Version: 580.82.07   {label}: 13.0     |'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu.installed_driver() == Driver("580.82.07", "13.0")
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert gpu.installed_driver() == Driver()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert gpu.installed_driver() == Driver()


def test_the_trial_of_the_fused_optimizers_gives_the_right_numbers_here() -> None:
    """On the CPU, which has no kernel for Adam: that one is said to be missing, and does not hide the others."""
    found = optimizer_faults(("adam", "rowwise_adagrad", "adagrad", "sgd"), "cpu")
    assert found["adam"] is not None
    assert [found[name] for name in ("rowwise_adagrad", "adagrad", "sgd")] == [None] * 3
