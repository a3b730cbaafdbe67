"""Real ranks before a run: they agree and are measured, or all of them hear one fault."""

import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from infnet_rec.config.run import RunConfig
from infnet_rec.data.run_data import RunData, open_data
from infnet_rec.diagnostics import agreement as identity_module
from infnet_rec.diagnostics import rank_checks
from infnet_rec.diagnostics.exchange import exchanges, meetings, offset_s
from infnet_rec.diagnostics.preflight import Preflight
from infnet_rec.distributed.process_group import World, process_group
from infnet_rec.errors import UserError
from infnet_rec.planner.run_plan import plan_model
from infnet_rec.planner.tables import meta_model
from infnet_rec.trainer.build import shard
from rank_pair import RankPair
from sharded_runs import CONFIG, small_config, world_of

REAL_TIME = time.time


def plan_and_allocate(config: RunConfig, data: RunData, world: World, preflight: Preflight) -> None:
    """As training does, up to its first table."""
    model = meta_model(config, data)
    plan = plan_model(model, config, data, world)
    preflight.before_tables(plan)
    shard(model, plan, config, world)


def look(rank: int, world_size: int, store: str, odd: dict[str, Any]) -> dict[str, Any]:
    """A whole preflight with the real plan; `odd` is what is different on rank 1, which calls its host "b".

    Returns:
        What was said, written and raised, and whether any table was allocated.
    """
    odd = odd if rank == 1 else {}
    config, world = small_config(odd.get("store", store), odd.get("set", [])), world_of(rank, world_size)
    real = identity_module.metadata.version
    versions = odd.get("versions", {})
    with ExitStack() as patches:
        enter = patches.enter_context
        enter(mock.patch.object(socket, "gethostname", lambda: "ab"[rank]))
        enter(mock.patch.object(identity_module.metadata, "version", lambda name: versions.get(name) or real(name)))
        if "code" in odd:
            enter(mock.patch.object(identity_module, "code", lambda package: odd["code"]))
        if "free" in odd:
            enter(mock.patch.object(rank_checks.host, "free_memory_bytes", lambda: odd["free"]))
        allocated = enter(mock.patch("infnet_rec.trainer.build.parallelize", side_effect=AllocatedError))
        fault, preflight = "", None
        try:
            preflight = Preflight(config, open_data(config), world)
            plan_and_allocate(config, open_data(config), world, preflight)
        except UserError as raised:
            fault = str(raised)
        except AllocatedError:
            pass
    lines, facts = (preflight.lines(), preflight.to_json()) if preflight and not fault else ([], {})
    return {"fault": fault, "lines": lines, "json": facts, "allocated": allocated.called}


class AllocatedError(Exception):
    """The tables' turn has come."""


def test_ranks_that_agree_are_measured_and_may_allocate(ranks: RankPair, small_store: Path) -> None:
    first, second = ranks(look, str(small_store), {})
    assert (first["fault"], second["fault"]) == ("", "") and first["allocated"] and second["allocated"]
    (line,) = first["lines"]
    assert line.startswith("preflight: 2 ranks on 2 hosts agree; gloo over ") and "GB/s a rank; clocks within" in line
    assert second["lines"] == []
    facts = first["json"]
    assert set(facts["agreed"]) == {"config", "code", "store", "versions"}
    assert facts["ranks_by_host"] == {"a": 1, "b": 1}
    assert [kind["rank_bytes"] for kind in facts["all_to_all"]] == [1024, 4 << 20]
    assert all(kind["best_s"] > 0 for kind in facts["all_to_all"])
    assert {check["state"] for check in facts["checks"]} == {"ok"}
    json.dumps(facts)


CODE = {"infnet_rec/batch.py": "000000000000"}


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"set": ["train.seed=9"]}, ["config: train.seed is 0 on rank 0 (host a) and 9 on rank 1 (host b); "]),
        ({"versions": {"numpy": "1.0"}}, ["versions: numpy is ", " on rank 0 (host a) and 1.0 on rank 1 (host b); "]),
        ({"code": CODE}, ["code: infnet_rec/", " on rank 0 (host a) and missing on rank 1 (host b)", "; and "]),
        (
            {"free": 1000},
            ["memory: ", " by the plan, 1.0 KiB of host memory free on rank 1 (host b); "],
        ),
    ],
)
def test_what_differs_on_one_rank_is_one_fault_on_both(
    odd: dict[str, Any], words: list[str], ranks: RankPair, small_store: Path
) -> None:
    first, second = ranks(look, str(small_store), odd)
    for part in words:
        assert part in first["fault"]
    assert first["fault"] == second["fault"] and "\n" not in first["fault"]
    assert not first["allocated"] and not second["allocated"]


def test_settings_of_a_host_alone_may_differ(ranks: RankPair, small_store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(small_store, tmp_path / "elsewhere")
    odd = {"store": str(copied), "set": ["data.loader_threads=2", "train.num_threads=2"]}
    assert [each["fault"] for each in ranks(look, str(small_store), odd)] == ["", ""]


def test_another_store_and_a_store_that_was_copied_badly_are_found(
    ranks: RankPair, small_store: Path, tmp_path: Path
) -> None:
    spoilt = shutil.copytree(small_store, tmp_path / "spoilt")
    path = spoilt / "examples" / "train.arrow"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    first, second = ranks(look, str(small_store), {"store": str(spoilt)})
    assert first["fault"].startswith("store: examples/train.arrow is ") and first["fault"] == second["fault"]
    assert "on rank 0 (host a) and " in first["fault"] and "on rank 1 (host b); copy" in first["fault"]
    vocabulary = next((spoilt / "vocab").iterdir())
    vocabulary.unlink()
    path.write_bytes(whole)
    first, second = ranks(look, str(small_store), {"store": str(spoilt)})
    assert first["fault"].startswith(f"store: {vocabulary} is missing, and its manifest says ")
    assert "bytes on rank 1 (host b)" in first["fault"] and first["fault"] == second["fault"]


def measure(rank: int, world_size: int, ahead_s: float) -> tuple[Any, Any]:
    world = world_of(rank, world_size)
    with mock.patch("time.time", lambda: REAL_TIME() + ahead_s * rank):
        met = meetings(world)
    return met, exchanges(world, [1, 1 << 16], 2)


def test_the_clock_of_a_rank_is_measured_and_parts_are_whole_numbers(ranks: RankPair) -> None:
    (first, sent), (second, _) = ranks(measure, 5000.0)
    least, most = offset_s(first, second)
    assert least <= 5000.0 <= most and least > 4000.0
    assert [(kind.rank_bytes, len(kind.seconds)) for kind in sent] == [(8, 2), (1 << 16, 2)]
    assert all(second > 0 for kind in sent for second in kind.seconds)


def test_one_rank_looks_at_its_own_host(small_store: Path) -> None:
    config, world = small_config(str(small_store), []), world_of(0, 1)
    data = open_data(config)
    with process_group(world):
        preflight = Preflight(config, data, world)
        with (
            pytest.raises(AllocatedError),
            mock.patch("infnet_rec.trainer.build.parallelize", side_effect=AllocatedError),
        ):
            plan_and_allocate(config, data, world, preflight)
    (line,) = preflight.lines()
    assert line.startswith("preflight: 1 rank; tables ")
    assert "all_to_all" not in preflight.to_json()


@pytest.mark.slow
def test_the_doctor_of_two_ranks_as_a_person_calls_it(small_store: Path) -> None:
    command = [sys.executable, "-m", "infnet_rec.cli", "doctor", str(CONFIG), "--set", f"data.store={small_store}"]
    finished = subprocess.run([*command, "-j", "1x2", "--json"], capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = json.loads(finished.stdout)
    names = [check["name"] for check in told["checks"]]
    assert len(names) == len(set(names)) and told["sound"]
    assert {"python", "lookup", "same config", "same store", "all-to-all", "clocks", "memory", "open files"} <= set(
        names
    )
    assert "gloo" not in names, "real ranks are tried in the place of processes made for it"
    assert told["all_to_all"][-1]["best_s"] > 0
    refused = subprocess.run([*command, "-j", "2x2"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "torchrun --nnodes=2 --nproc-per-node=2" in refused.stderr
