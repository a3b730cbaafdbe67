"""What differs between versions of torch and TorchRec, and the program that runs the tests beside older ones."""

import json
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import CommOp

from benchmarks import versions
from infnet_rec.diagnostics import doctor
from infnet_rec.distributed.optimizers import GradientClip
from infnet_rec.distributed.process_group import process_group
from infnet_rec.distributed.sharders import make_sharders
from infnet_rec.distributed.versions import estimator_sharders
from infnet_rec.errors import Refusal
from infnet_rec.planner.request import TableControl
from infnet_rec.planner.search.search import search_plan
from infnet_rec.planner.tables import plain_sharders
from planning_models import gpu_cluster, make_tables, make_workload
from sharded_runs import world_of

ROOT = Path(__file__).parents[3]
ONE = {"a": 100_000}


def exchange_ms(precision: Any, communication: Any, *, events: bool, sharding: str) -> tuple[float, float]:
    """Of the slowest shard of a table on two hosts, forward and backward."""
    bags, sequences = ({}, ONE) if events else (ONE, {})
    controls = {"a": TableControl((sharding,), precision=precision)}  # pyright: ignore[reportArgumentType]
    sharders = make_sharders(communication)
    model, workload = make_tables(bags, sequences), make_workload(bags, sequences)
    (table,) = search_plan(model, gpu_cluster("2x2"), workload, controls, sharders=sharders).tables
    worst = max(table.shards, key=lambda shard: shard.times.total_ms).times
    return worst.forward_comms_ms, worst.backward_comms_ms


@pytest.mark.parametrize(("events", "sharding"), [(False, "table_wise"), (False, "row_wise"), (True, "row_wise")])
def test_the_estimated_exchange_is_of_what_travels_not_of_what_is_kept(events: bool, sharding: str) -> None:
    whole = exchange_ms("fp32", "fp32", events=events, sharding=sharding)
    assert min(whole) > 0
    assert exchange_ms("fp16", "fp32", events=events, sharding=sharding) == pytest.approx(whole, rel=1e-9)
    halved = exchange_ms("fp32", "fp16", events=events, sharding=sharding)
    assert all(half < 0.7 * full for half, full in zip(halved, whole, strict=True))


def test_estimates_leave_the_sharders_as_they_were() -> None:
    for sharders in (plain_sharders(), make_sharders("fp16")):
        before = [dict(sharder.qcomm_codecs_registry or {}) for sharder in sharders]
        names = estimator_sharders(sharders)
        assert len(names) == len(sharders) == 3
        assert [dict(sharder.qcomm_codecs_registry or {}) for sharder in sharders] == before
        assert all(set(codecs) <= {operation.name for operation in CommOp} for codecs in before)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_before_every_step_as_torch_clips_them(limit: float) -> None:
    torch.manual_seed(1)
    ours, theirs = ([nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))] for _ in range(2))
    clip, optimizer = GradientClip(limit), torch.optim.SGD(ours, lr=1.0)
    optimizer.register_step_pre_hook(clip)
    assert clip.norm is None
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        expected = nn.utils.clip_grad_norm_(theirs, limit or float("inf"))
        optimizer.step()
        assert clip.norm is not None and torch.equal(clip.norm, expected)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert clip.norm is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_norm_of_a_gradient_that_is_not_finite_is_not_finite(bad: float) -> None:
    for limit in (0.0, 1.0):
        parameter = nn.Parameter(torch.ones(4))
        parameter.grad = torch.tensor([1.0, bad, 1.0, 1.0])
        clip = GradientClip(limit)
        clip(torch.optim.SGD([parameter]), (), {})
        assert clip.norm is not None and not clip.norm.isfinite()


@pytest.mark.parametrize("error", [None, TypeError("a bug"), Refusal("no"), KeyboardInterrupt()])
def test_a_single_rank_leaves_no_process_group_behind_whatever_happens(error: BaseException | None) -> None:
    try:
        with process_group(world_of(0, 1)):
            assert dist.is_initialized()
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert not dist.is_initialized()


def test_fbgemm_does_not_say_once_a_library_that_it_does_not_know_its_torch(caplog: pytest.LogCaptureFixture) -> None:
    logging.warning("\n \033[33m\n _fbgemm_torch_compat_table has no entry for 1.6.0 of FBGEMM;\n")
    logging.warning("FBGEMM_GPU version is 1.6.0, which is not guaranteed to be compatible with PyTorch 2.13.0")
    assert [record.getMessage()[:11] for record in caplog.records] == ["FBGEMM_GPU "]


def test_importing_torchrec_says_nothing() -> None:
    code = "import infnet_rec.distributed.parallelize"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def test_the_doctor_the_requirements_and_the_tested_sets_are_one() -> None:
    assert {(s.torch, s.torchrec, s.fbgemm) for s in versions.SETS.values()} == set(doctor.FITTING)
    assert list(doctor.FITTING) == sorted(doctor.FITTING, reverse=True)
    assert all(name == release(wanted.torch) for name, wanted in versions.SETS.items())
    newest, makefile = versions.SETS[max(versions.SETS)], (ROOT / "Makefile").read_text()
    assert f"torch=={newest.torch}" in (ROOT / "requirements.txt").read_text()
    assert f"triton=={newest.triton}" in (ROOT / "requirements-dev.txt").read_text()
    for pin in (f"torchrec=={newest.torchrec}", f"fbgemm-gpu-cpu=={newest.fbgemm}", f"fbgemm-gpu=={newest.fbgemm}"):
        assert pin in makefile


def test_the_oldest_set_is_what_the_project_promises() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lowest = {m[1]: m[2] for line in asked if (m := re.match(r"([\w-]+)>=([\d.]+)", line))}
    oldest = versions.SETS[min(versions.SETS)]
    assert {name: release(getattr(oldest, name)) for name in ("torch", "torchrec", "triton")} == {
        name: lowest[name] for name in ("torch", "torchrec", "triton")
    }
    # And nothing newer than the newest is allowed.
    for name, major in (("torch", "2.14"), ("torchrec", "1.9")):
        assert any(line.startswith(f"{name}>=") and line.endswith(f"<{major}") for line in asked)


REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.test_a" name="test_x[1|2]" time="1"/>
<testcase classname="tests.test_a" name="test_y" time="1"><failure message="no">E</failure></testcase>
<testcase classname="tests.test_b" name="test_z" time="1"><error message="no">E</error></testcase>
<testcase classname="tests.test_b" name="test_s" time="1"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def test_the_table_says_what_pytest_reported(tmp_path: Path) -> None:
    found = versions.counts(REPORT)
    assert found == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["tests.test_a::test_y", "tests.test_b::test_z"],
    }
    installed = {
        "torch": "2.11.0",
        "torchrec": "1.6.1",
        "fbgemm-gpu-cpu": "1.6.0",
        "triton": "3.6.0",
        "python": "3.11.7",
    }
    row = {"versions": installed, **found, "minutes": 20.5, "at": "now", "commit": "abc", "machine": "2 CPU cores"}
    out = tmp_path / "results" / "versions"
    versions.write(out, "2.12", row | {"commit": "replaced"})
    versions.write(out, "2.12", row)
    versions.write(out, "2.11", row | {"failures": [], "failed": 0})
    assert list(json.loads(out.with_suffix(".json").read_text())) == ["2.11", "2.12"]
    page = out.with_suffix(".md").read_text()
    assert page.count("| 2.11.0 | 1.6.1 | 1.6.0 | 3.6.0 | 3.11.7 | 1 |") == 2 and "replaced" not in page
    assert page.count("failed: `tests.test_a::test_y`, `tests.test_b::test_z`.") == 1


def test_pins_are_of_everything_but_what_a_set_chooses() -> None:
    found = versions.pins(["# torch==1\ntorch==2.13.0\nnumpy==2.4.6\n\n", "triton==3.9.0\nnumpy==2.4.6\npytest==9\n"])
    assert found == ["numpy==2.4.6", "pytest==9"]


@pytest.mark.slow
def test_a_python_that_runs_fewer_tests_says_how_they_ended(tmp_path: Path) -> None:
    """With this environment as the set's."""
    good = tmp_path / "test_good.py"
    good.write_text("import pytest\n\ndef test_right(): pass\n\n@pytest.mark.skip\ndef test_left_out(): pass\n")
    row = versions.tested(Path(sys.executable), tmp_path / "report.xml", [str(good), "-p", "no:randomly"])
    assert (row["passed"], row["failed"], row["skipped"]) == (1, 0, 1)
    assert row["versions"]["torch"] == torch.__version__
    with pytest.raises(versions.CannotStart, match="pytest ended with 4"):
        versions.tested(Path(sys.executable), tmp_path / "report.xml", ["--no-such-option"])
