"""Cells that are made at the same time have GPUs of their own."""

from pathlib import Path

import pytest

from infnet_rec.experiments.process import Job, gpus_here, gpus_of_jobs, shortage, train_in_a_process

EIGHT = [str(number) for number in range(8)]


def test_each_job_gets_as_many_as_it_has_ranks() -> None:
    assert gpus_of_jobs(EIGHT, 4, 2) == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7")]
    assert gpus_of_jobs(["GPU-a", "GPU-b", "GPU-c"], 2, 1) == [("GPU-a",), ("GPU-b",)]
    assert shortage(EIGHT, 4, 2) is None


def test_too_few_are_dealt_again_and_a_line_says_so() -> None:
    assert gpus_of_jobs(["4", "5", "6"], 2, 2) == [("4", "5"), ("6", "4")]
    assert gpus_of_jobs(["7"], 2, 1) == [("7",), ("7",)]
    # More ranks than GPUs: none is named twice.
    assert gpus_of_jobs(["0", "1"], 2, 3) == [("0", "1"), ("1", "0")]
    assert shortage(["4", "5", "6"], 2, 2) == (
        "--jobs 2: 4 GPUs are wanted and 3 found, so some cells share one; --jobs 1 gives each its own"
    )


def test_one_job_or_no_gpu_changes_nothing() -> None:
    assert gpus_of_jobs(EIGHT, 1, 2) == [()]
    assert gpus_of_jobs([], 3, 1) == [(), (), ()]
    assert shortage([], 3, 1) is None and shortage(["0"], 1, 2) is None


@pytest.mark.parametrize(
    ("told", "found"),
    [("", []), ("-1", []), ("2, 3", ["2", "3"]), ("1,-1,2", ["1"]), ("GPU-8a,MIG-3", ["GPU-8a", "MIG-3"])],
)
def test_what_is_visible_is_as_cuda_reads_it(told: str, found: list[str]) -> None:
    assert gpus_here({"CUDA_VISIBLE_DEVICES": told}) == found


def test_without_a_word_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_here({}) == []
    lines = [
        "GPU 0: NVIDIA H100 (UUID: GPU-1)",
        "  MIG 1g.10gb Device 0: (UUID: MIG-1)",
        "GPU 1: NVIDIA H100 (UUID: GPU-2)",
    ]
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    assert gpus_here({}) == ["0", "1"]
    program.write_text("#!/bin/sh\necho 'GPU 0 is lost'\nexit 9\n")
    assert gpus_here({}) == []


def test_a_job_sees_its_own_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the GPUs of others, nor the file in which torchx wants the experiment's own error."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "error.json")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    job = Job(Path("a.toml"), (), Path("run"), Path("log"), gpus=("6", "7"))
    assert job.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "TORCHELASTIC_ERROR_FILE" not in job.environment
    assert Job(Path("a.toml"), (), Path("run"), Path("log")).environment["CUDA_VISIBLE_DEVICES"] == "4,5,6,7"


def test_the_process_of_a_job_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "sees $CUDA_VISIBLE_DEVICES"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    job = Job(Path("a.toml"), (), tmp_path / "run", tmp_path / "log", gpus=("6", "7"))
    assert train_in_a_process(job, lambda: False).reason == "exit code 3: sees 6,7"
