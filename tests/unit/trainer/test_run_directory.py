"""Whether a run may go on in a folder, and what becomes of what stands there."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resumed_runs
from infnet_rec.checkpoint.store import CheckpointManifest, CheckpointStore
from infnet_rec.checkpoint.train_state import TimeSpent
from infnet_rec.data.run_data import open_data
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import Busy, UserError
from infnet_rec.trainer.metric_logger import MetricLogger
from infnet_rec.trainer.resume import RunDirState, inspect_run_dir, lock_run_dir
from infnet_rec.trainer.run_dir import prepare_run_dir
from sharded_runs import small_config, world_of


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with process_group(world_of(0, 1)):
        yield


@pytest.fixture
def run_dir(small_store: Path, tmp_path: Path) -> Path:
    """A run that has begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    prepare_run_dir(folder, small_config(str(small_store), []))
    return folder


def look_at(run_dir: Path, store: Path, *overrides: str) -> RunDirState:
    config = small_config(str(store), list(overrides))
    return inspect_run_dir(run_dir, config, open_data(config))


def commit(store: Path, shelf: CheckpointStore, step: int, *overrides: str, fingerprint: str | None = None) -> None:
    """A checkpoint without parts."""
    config = small_config(str(store), list(overrides))
    run = {
        "config": config.model_dump(mode="json"),
        "store": fingerprint or open_data(config).store.fingerprint,
        "world_size": 1,
        "plan": {},
    }
    shelf.begin(step)
    shelf.commit(CheckpointManifest(step, {"auc": None, "valid": {}}, run, {}, "2026-01-01T00:00:00+00:00"))


def test_an_empty_or_missing_folder_is_a_new_run(small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        assert look_at(tmp_path / name, small_store) == RunDirState(is_new=True, changed=[], result=None)


def test_a_folder_of_something_else_is_refused(small_store: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear to someone")
    with pytest.raises(UserError, match="holds no run"):
        look_at(tmp_path, small_store)
    with pytest.raises(UserError, match="holds no run"):
        look_at(tmp_path / "thesis.txt", small_store)


def test_another_configuration_is_refused_with_every_key_that_differs(small_store: Path, run_dir: Path) -> None:
    with pytest.raises(UserError) as refused:
        look_at(run_dir, small_store, "model.width=16", "train.dense.lr=0.5", "train.num_threads=3")
    text = str(refused.value)
    assert "model.width = 16, was 8" in text and "train.dense.lr = 0.5, was 0.001" in text
    assert "num_threads" not in text and "--from" in text


def test_what_may_change_is_listed(small_store: Path, run_dir: Path) -> None:
    overrides = ["train.num_epochs=3", "sharding.row_wise_min_rows=7", "checkpoint.keep_last=5", "train.patience=9"]
    standing = look_at(run_dir, small_store, *overrides, "train.dense.schedule.kind=constant")
    assert sorted(line.split(" = ")[0] for line in standing.changed) == sorted(o.split("=")[0] for o in overrides)
    prepare_run_dir(run_dir, small_config(str(small_store), ["train.dense.schedule.kind=cosine"]))
    longer = look_at(run_dir, small_store, "train.num_epochs=3", "train.dense.schedule.kind=cosine")
    assert "cosine" in longer.changed[0]


def test_another_store_is_refused_wherever_it_was_noted(small_store: Path, run_dir: Path) -> None:
    (run_dir / "environment.json").write_text('{"store": "another"}')
    with pytest.raises(UserError, match=r"has fingerprint .*, that one another"):
        look_at(run_dir, small_store)
    (run_dir / "environment.json").unlink()
    commit(small_store, CheckpointStore(run_dir / "checkpoints"), 3, fingerprint="a third")
    with pytest.raises(UserError, match="that one a third"):
        look_at(run_dir, small_store)


def test_checkpoints_of_another_run_behind_the_same_url_are_refused(small_store: Path, tmp_path: Path) -> None:
    """Where the run directory was lost, the checkpoints say whose they are."""
    url = f"checkpoint.folder='memory://{tmp_path}/a'"
    commit(small_store, CheckpointStore(f"memory://{tmp_path}/a"), 3, url)
    assert not look_at(tmp_path / "lost", small_store, url).is_new
    with pytest.raises(UserError, match=r"step-00000003.*\n.*train.seed = 5, was 0"):
        look_at(tmp_path / "lost", small_store, url, "train.seed=5")


def test_a_new_place_for_checkpoints_must_hold_them(small_store: Path, run_dir: Path, tmp_path: Path) -> None:
    commit(small_store, CheckpointStore(run_dir / "checkpoints"), 3)
    with pytest.raises(UserError, match="move them there"):
        look_at(run_dir, small_store, f"checkpoint.folder='{tmp_path}/elsewhere'")
    (run_dir / "checkpoints").rename(tmp_path / "elsewhere")
    assert look_at(run_dir, small_store, f"checkpoint.folder='{tmp_path}/elsewhere'").changed


def test_a_finished_run_gives_its_result_again_unless_it_is_to_be_longer(small_store: Path, run_dir: Path) -> None:
    (run_dir / "result.json").write_text('{"steps_done": 50}')
    assert look_at(run_dir, small_store).result == {"steps_done": 50}
    assert look_at(run_dir, small_store, "train.num_epochs=0.5").result == {"steps_done": 50}
    assert look_at(run_dir, small_store, "train.num_epochs=2").result is None
    assert look_at(run_dir, small_store, "train.patience=0").result is None
    prepare_run_dir(run_dir, small_config(str(small_store), ["train.num_epochs=2"]))
    assert not (run_dir / "result.json").exists()
    assert json.loads((run_dir / "result.step-50.json").read_text()) == {"steps_done": 50}


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    code = "import sys, time, pathlib; from infnet_rec.trainer.resume import lock_run_dir\n"
    code += "with lock_run_dir(pathlib.Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        who = f"process {other.pid} on host {socket.gethostname()} trains in it"
        with pytest.raises(Busy, match=who), lock_run_dir(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with lock_run_dir(tmp_path):
        pass


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(alone: None, small_store: Path, tmp_path: Path) -> None:
    """It says so, and what it had reported is set aside."""
    folder = tmp_path / "run"
    folder.mkdir()
    overrides = ["train.global_batch_size=1700", "train.log_every_steps=1"]
    prepare_run_dir(folder, small_config(str(small_store), overrides))
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    done = resumed_runs.train_run(0, 1, str(small_store), str(folder), overrides)
    assert done["started_at"] == 0 and [line["step"] for line in done["lines"]] == [1, 2, 2]
    assert any("starts again from step 0" in line for line in done["said"])
    assert (folder / "metrics.dropped.jsonl").read_text() == '{"kind": "train", "step": 1}\n{"kind": "tra\n'


def test_reports_after_the_checkpoint_are_set_aside_not_lost(tmp_path: Path) -> None:
    report = MetricLogger(tmp_path, 10)
    for step in range(1, 6):
        report.progress(step, 0.1, {"click": 0.5}, {"sparse": 0.1})
    report.evaluated("test", 3, {})
    report.close()
    again = MetricLogger(tmp_path, 10)
    again.go_on(3, TimeSpent(elapsed_s=100.0, train_s=50.0, train_examples=5_000))
    assert again.examples_per_s == 100.0 and again.settle().elapsed_s > 100.0
    again.progress(4, 0.1, {"click": 0.4}, {"sparse": 0.1})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]["click"]) for line in lines] == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.4)]
    dropped = [json.loads(line) for line in (tmp_path / "metrics.dropped.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in dropped] == [("train", 4), ("train", 5), ("eval", 3)]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("train/loss_click")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
        (4, 0.4),
    ]
