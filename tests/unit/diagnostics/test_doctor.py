"""Every check of the doctor passes on what is sound and fails on what is not."""

import json
import os
import time
from collections import namedtuple
from pathlib import Path

import pytest

from infnet_rec.diagnostics import doctor
from infnet_rec.diagnostics.doctor import Check, Torch
from infnet_rec.diagnostics.probe import collective_fault, fault_of, lookup_fault

SOUND = {
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu": None,
    "fbgemm-gpu-cpu": "1.8.0",
    "torchmetrics": "1.0.3",
    "torchx": "0.7.0",
    "urllib3": "1.26.20",
}
ON_CUDA = SOUND | {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": None}
CPU, CUDA = Torch(), Torch("13.0", num_gpus=2)
TWO_GPUS = ["GPU 0: NVIDIA H100", "GPU 1: NVIDIA H100"]


def test_every_check_passes_on_sound_versions() -> None:
    assert doctor.check_python((3, 11)).sound
    for versions, torch, gpus in ((SOUND, CPU, []), (ON_CUDA, CUDA, TWO_GPUS)):
        checks = [
            doctor.check_fit(versions),
            doctor.check_one_fbgemm(versions, torch),
            doctor.check_torchmetrics(versions),
            doctor.check_urllib3(versions),
            doctor.check_gpu(gpus, torch, versions),
        ]
        assert [check for check in checks if not check.sound] == []


@pytest.mark.parametrize(
    "versions",
    [
        SOUND | {"torch": "2.12.1", "torchrec": "1.7.0", "fbgemm-gpu-cpu": "1.7.0"},
        SOUND | {"torch": "2.11.0+cu130", "torchrec": "1.6.1", "fbgemm-gpu": "1.6.0", "fbgemm-gpu-cpu": None},
        # As on a machine that finds torchrec and fbgemm through PYTHONPATH.
        SOUND | {"torch": "2.11.0+cu130", "torchrec": "", "fbgemm-gpu": "", "fbgemm-gpu-cpu": None},
    ],
)
def test_older_generations_fit_too(versions: dict[str, str | None]) -> None:
    assert doctor.check_fit(versions).sound


@pytest.mark.parametrize(
    "other",
    [
        {"torch": "2.12.0"},
        {"torch": "2.14.0", "torchrec": "1.9.0", "fbgemm-gpu-cpu": "1.9.0"},
        {"torch": "2.11.0"},
        {"torchrec": "1.6.1"},
        {"fbgemm-gpu-cpu": "1.7.0"},
        {"torch": None},
        {"torchrec": None},
        {"fbgemm-gpu-cpu": None},
    ],
)
def test_versions_of_two_generations_are_a_fault(other: dict[str, str | None]) -> None:
    check = doctor.check_fit(SOUND | other)
    assert "do not fit" in check.found
    assert "torch==2.13.0" in check.remedy
    assert "--no-deps torchrec==1.8.0" in check.remedy


OLDEST = {"torch": "2.11.0+cu130", "torchrec": "1.6.1", "fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.6.0"}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (OLDEST | {"torchrec": None}, ("2.11.0", "1.6.1", "1.6.0")),
        # As a machine that has torch alone, and a driver for just that.
        (OLDEST | {"torchrec": None, "fbgemm-gpu-cpu": None}, ("2.11.0", "1.6.1", "1.6.0")),
        (OLDEST | {"torchrec": None, "fbgemm-gpu-cpu": "1.8.0"}, ("2.11.0", "1.6.1", "1.6.0")),
        (OLDEST | {"torch": "2.12.0", "torchrec": "1.7.0"}, ("2.12.1", "1.7.0", "1.7.0")),
        (OLDEST | {"torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}, ("2.13.0", "1.8.0", "1.8.0")),
        ({"torch": None, "torchrec": None, "fbgemm-gpu-cpu": None}, ("2.13.0", "1.8.0", "1.8.0")),
    ],
)
def test_remedies_change_as_little_as_will_do(found: dict[str, str | None], wanted: tuple[str, str, str]) -> None:
    check, (torch, torchrec, fbgemm) = doctor.check_fit(SOUND | found), wanted
    assert "do not fit" in check.found
    for words in (f"install torch=={torch} fbgemm-gpu-cpu=={fbgemm} && ", f"--no-deps torchrec=={torchrec}"):
        assert words in check.remedy


def test_remedies_about_fbgemm_and_torch_are_of_the_releases_at_hand() -> None:
    both = SOUND | OLDEST | {"fbgemm-gpu": "1.6.0"}
    assert doctor.check_one_fbgemm(both, CPU).remedy.endswith("install fbgemm-gpu-cpu==1.6.0")
    for torch, words in ((CUDA, "fbgemm-gpu==1.6.0"), (CPU, "--force-reinstall torch==2.11.0")):
        assert doctor.check_gpu(TWO_GPUS, torch, SOUND | OLDEST).remedy.endswith(words)


def test_two_builds_of_fbgemm_are_a_fault() -> None:
    check = doctor.check_one_fbgemm(SOUND | {"fbgemm-gpu": "1.8.0"}, CPU)
    assert "overwrite" in check.found
    assert "uninstall -y fbgemm-gpu fbgemm-gpu-cpu" in check.remedy
    assert check.remedy.endswith("install fbgemm-gpu-cpu==1.8.0")
    on_cuda = doctor.check_one_fbgemm(SOUND | {"fbgemm-gpu": "1.8.0"}, CUDA)
    assert on_cuda.remedy.endswith("install fbgemm-gpu==1.8.0")


def test_cuda_fbgemm_beside_a_torch_for_the_cpu_is_a_fault() -> None:
    assert "does not load" in doctor.check_one_fbgemm(ON_CUDA, CPU).found
    assert not doctor.check_one_fbgemm(ON_CUDA, CPU).sound


def test_no_fbgemm_is_a_fault() -> None:
    assert not doctor.check_one_fbgemm(SOUND | {"fbgemm-gpu-cpu": None}, CPU).sound


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_another_python_is_a_fault(version: tuple[int, int]) -> None:
    assert not doctor.check_python(version).sound


def test_another_torchmetrics_is_a_fault_and_none_is_not() -> None:
    assert "torchmetrics==1.0.3" in doctor.check_torchmetrics(SOUND | {"torchmetrics": "1.9.0"}).remedy
    assert doctor.check_torchmetrics(SOUND | {"torchmetrics": None}).sound


def test_a_new_urllib3_is_a_fault_beside_torchx_only() -> None:
    assert "'urllib3<1.27'" in doctor.check_urllib3(SOUND | {"urllib3": "2.8.0"}).remedy
    assert not doctor.check_urllib3(SOUND | {"urllib3": None}).sound
    assert doctor.check_urllib3(SOUND | {"urllib3": "2.8.0", "torchx": None}).sound


@pytest.mark.parametrize(
    ("torch", "versions", "words"),
    [
        (CPU, SOUND, "torch is built for the CPU"),
        (Torch("13.0", num_gpus=0), ON_CUDA, "can use none"),
        (CUDA, SOUND, "fbgemm is built for the CPU"),
    ],
)
def test_gpus_that_cannot_be_trained_on_are_a_fault(torch: Torch, versions: dict[str, str | None], words: str) -> None:
    check = doctor.check_gpu(TWO_GPUS, torch, versions)
    assert words in check.found
    assert not check.sound


def test_a_torch_that_cannot_be_imported_is_the_only_thing_said_of_it() -> None:
    (check,) = doctor.check_torch(Torch(fault="OSError: libcudart.so.13"), TWO_GPUS, SOUND)
    assert check.found == "OSError: libcudart.so.13"
    assert not check.sound


def test_little_space_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(free=2**30))
    assert doctor.check_free("disk", tmp_path, 1.0, "df -h").sound
    check = doctor.check_free("disk", tmp_path, 1.5, "df -h")
    assert (check.found, check.remedy) == ("1.0 GiB free; at least 1.5 needed", "df -h")
    assert doctor.check_free("shared memory", tmp_path / "none", 1.5, "df -h").sound


def test_a_driver_that_fails_lists_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.driver_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    program.chmod(0o755)
    assert doctor.driver_gpus() == ["GPU 0: NVIDIA H100"]
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\nexit 9\n")
    assert doctor.driver_gpus() == []


def test_exit_code_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check("python", "3.11"), Check("urllib3", "2.8.0", "pip install 'urllib3<1.27'")]
    monkeypatch.setattr(doctor, "diagnose", lambda: checks)
    assert doctor.run_checks(json=False) == 3
    assert capsys.readouterr().out.splitlines() == [
        "ok     python   3.11",
        "FAULT  urllib3  2.8.0",
        "        remedy  pip install 'urllib3<1.27'",
        "",
        "1 of 2 checks failed",
    ]
    assert doctor.run_checks(json=True) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["sound"] is False
    assert printed["checks"][0] == {"name": "python", "found": "3.11", "remedy": "", "state": "ok", "sound": True}
    monkeypatch.setattr(doctor, "diagnose", lambda: checks[:1])
    assert doctor.run_checks(json=False) == 0


def _raise(rank: int, world_size: int, rendezvous: str) -> None:
    raise ArithmeticError("an all-reduce gave 2.0, not 3.0")


def _die(rank: int, world_size: int, rendezvous: str) -> None:
    os._exit(4)


def _hang_on_rank_one(rank: int, world_size: int, rendezvous: str) -> None:
    time.sleep(3600 * rank)


@pytest.mark.slow
def test_a_trial_that_fails_dies_or_hangs_is_a_fault() -> None:
    assert fault_of(_raise, 1, timeout_s=60) == "ArithmeticError: an all-reduce gave 2.0, not 3.0"
    assert fault_of(_die, 1, timeout_s=60) == "process 0 died without a word"
    assert fault_of(_hang_on_rank_one, 2, timeout_s=4) == "no answer in 4 s"
    assert not doctor.check_trial("gloo", "right", "no answer in 4 s", "ip addr").sound
    assert doctor.check_trial("gloo", "right", None, "ip addr").sound


def test_lookup_and_gloo_work_here() -> None:
    assert lookup_fault("cpu") is None
    assert collective_fault("gloo", 2) is None
