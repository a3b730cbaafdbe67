"""What counts as a checkpoint, what is kept, and what happens when a write goes wrong."""

import errno
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from infnet_rec.checkpoint import dcp_files
from infnet_rec.checkpoint import inspect as command
from infnet_rec.checkpoint.loader import load_weights, newest_whole, restore
from infnet_rec.checkpoint.saver import CheckpointSaver
from infnet_rec.checkpoint.store import CheckpointStore, best_checkpoint, checkpoint_name
from infnet_rec.checkpoint.train_state import TrainState
from infnet_rec.config.checkpoint import CheckpointConfig
from infnet_rec.distributed.process_group import process_group
from infnet_rec.errors import UserError
from infnet_rec.metrics import TaskMetrics
from rank_pair import RankPair
from sharded_runs import world_of


class Adam:
    """Torch's optimizer of one layer, as `Optimizers` would offer it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.adam = model, torch.optim.Adam(model.parameters())

    def state_dict(self) -> dict[str, Any]:
        return {str(i): state for i, state in enumerate(self.adam.state_dict()["state"].values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass  # read in place

    def allocate_state(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.adam.step()

    def kernel_steps(self) -> int:
        return 7

    def set_kernel_steps(self, count: int) -> None:
        assert count == 7


class Run:
    """A layer that is trained and saved."""

    def __init__(self, where: Path | str, *, mode: Any = "sync", last: int = 2, best: int = 1) -> None:
        self.shelf, self.model, self.said = CheckpointStore(where), nn.Linear(40, 30), []
        self.optimizers = Adam(self.model)
        self.optimizers.allocate_state()
        about = {"config": {"train": {"seed": 0}}, "store": "", "world_size": dist.get_world_size(), "plan": {}}
        self.saver = CheckpointSaver(
            self.shelf,
            self.model,
            self.optimizers,
            CheckpointConfig(keep_last=last, keep_best=best, mode=mode),
            about,
            self.said.append,
        )

    def save(self, step: int, auc: float | None = None) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(step)
        at = TrainState(step=step)
        if auc is not None:
            at.judged = (auc, {"click": TaskMetrics(10, 5, auc, auc, auc, 2, 0.5, 1.0, 1.0)})
        self.saver.save(at)

    def steps(self) -> list[int]:
        return [c.step for c in self.shelf.commits()]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with process_group(world_of(0, 1)):
        yield


@pytest.fixture(params=["folder", "memory"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """A local folder, where a rename commits, and a store without one, where the marker does."""
    return tmp_path / "checkpoints" if request.param == "folder" else f"memory://{tmp_path}/checkpoints"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_newest_and_best_are_kept(alone: None, where: Path | str, mode: str) -> None:
    run = Run(where, mode=mode)
    for step, auc in ((1, 0.6), (2, 0.8), (3, 0.7), (4, None), (5, None), (6, float("nan"))):
        run.save(step, auc)
    run.saver.close()
    assert run.steps() == [2, 5, 6]
    best = best_checkpoint(run.shelf.commits())
    assert best is not None and best.step == 2 and best.progress["valid"]["click"]["auc"] == 0.8
    assert [c["whole"] for c in command.verify_checkpoints(str(where))["checkpoints"]] == [True] * 3
    load_weights(run.shelf, best, run.model)
    assert set(run.model.weight.flatten().tolist()) == {2.0}
    assert run.said == []


def test_a_copy_is_written_while_training_goes_on(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` returns before anything is written, and what changes afterwards is not in it; one write at a time."""
    go_on, writing = threading.Event(), threading.Event()
    original = CheckpointStore.begin

    def slow_begin(shelf: CheckpointStore, step: int) -> str:
        writing.set()
        assert go_on.wait(30)
        return original(shelf, step)

    monkeypatch.setattr(CheckpointStore, "begin", slow_begin)
    run = Run(tmp_path / "checkpoints", mode="async")
    run.save(1)
    assert writing.wait(30) and run.steps() == []
    with torch.no_grad():
        run.model.weight.fill_(99)
    go_on.set()
    run.save(2)
    run.saver.close()
    assert run.steps() == [1, 2]
    for step in (1, 2):
        commit = next(c for c in run.shelf.commits() if c.step == step)
        load_weights(run.shelf, commit, run.model)
        assert set(run.model.weight.flatten().tolist()) == {step}


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    match how:
        case "cut":
            path.write_bytes(data[:middle])
        case "flipped":
            path.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
        case "gone":
            path.unlink()


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "commit.json"])
def test_a_damaged_file_is_named_and_an_older_checkpoint_used(alone: None, tmp_path: Path, file: str, how: str) -> None:
    run = Run(tmp_path)
    run.save(1)
    run.save(2)
    damage(tmp_path / checkpoint_name(2) / file, how)
    assert not command.verify_checkpoints(str(tmp_path))["whole"]
    said: list[str] = []
    commit = newest_whole(run.shelf, said.append)
    assert commit is not None and commit.step == 1
    assert len(said) == 1 and file in said[0] and checkpoint_name(2) in said[0], said
    # The run comes to step 2 again.
    again = Run(tmp_path)
    restore(again.shelf, commit, again.model, again.optimizers, {})
    again.save(2)
    assert again.steps() == [1, 2] and command.verify_checkpoints(str(tmp_path))["whole"]


def test_what_a_killed_run_left_is_cleared_if_it_is_ours(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)
    ours, theirs = tmp_path / ".step-00000002.writing", tmp_path / ".step-00000003.writing"
    for folder in (ours, theirs, tmp_path / "notes"):
        folder.mkdir()
        (folder / "__0_0.distcp").write_bytes(b"half")
    (theirs / "thesis.txt").write_text("dear to someone")
    said: list[str] = []
    commit = newest_whole(run.shelf, said.append)
    assert commit is not None and commit.step == 1
    assert not ours.exists() and theirs.exists() and (tmp_path / "notes").exists()
    assert any(ours.name in line and "removed" in line for line in said)
    assert any(theirs.name in line and "skipped" in line for line in said)


def test_without_a_marker_it_does_not_count_behind_a_url(alone: None, tmp_path: Path) -> None:
    run = Run(f"memory://{tmp_path}")
    run.save(1)
    run.save(2)
    run.shelf.files.rm_file(run.shelf.path(checkpoint_name(2), "commit.json"))
    said: list[str] = []
    commit = newest_whole(run.shelf, said.append)
    assert commit is not None and commit.step == 1
    assert [f.step for f in run.shelf.found()] == [1]


def test_a_committed_checkpoint_is_never_written_over(alone: None, tmp_path: Path) -> None:
    Run(tmp_path).save(1)
    second = Run(tmp_path)
    second.save(1, 0.9)
    assert "there already" in second.said[0]
    commit = second.shelf.commits()[0]
    assert commit.auc is None and not list(second.shelf.broken_parts(commit))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_evaluation_that_was_owed_is_added_to_its_checkpoint(alone: None, where: Path | str, mode: str) -> None:
    """A run that is stopped at a step that it was to evaluate is saved without; the run that goes on begins with it."""
    stopped = Run(where)
    stopped.save(1, 0.6)
    stopped.saver.save(TrainState(step=2, owes_evaluation=True))
    files = {c.step: c.parts for c in stopped.shelf.commits()}
    going_on = Run(where, mode=mode)
    going_on.save(2, 0.9)
    going_on.saver.close()
    assert going_on.said == []
    best = best_checkpoint(going_on.shelf.commits())
    assert best is not None and (best.step, best.auc) == (2, 0.9)
    assert not best.progress["owes_evaluation"] and best.progress["kernel_steps"] == 7
    assert best.parts == files[2] and not list(going_on.shelf.broken_parts(best))
    # It is no longer owed, so nothing is added any more.
    again = Run(where)
    again.save(2, 0.1)
    assert "there already" in again.said[0]


def full_disk(monkeypatch: pytest.MonkeyPatch | None, file: str) -> Any:
    """Makes the disk full when a file with this in its name is written."""
    original = dcp_files.HashedStream.write
    created = dcp_files._Files.create_stream
    current = threading.local()

    def create_stream(self: Any, path: Any, mode: str) -> Any:
        current.path = str(path)
        return created(self, path, mode)

    def write(self: Any, data: Any) -> int:
        if file in current.path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    if monkeypatch is None:
        dcp_files._Files.create_stream, dcp_files.HashedStream.write = create_stream, write
        return created, original
    monkeypatch.setattr(dcp_files._Files, "create_stream", create_stream)
    monkeypatch.setattr(dcp_files.HashedStream, "write", write)
    return None


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("file", ["distcp", ".metadata"])
def test_a_full_disk_loses_that_checkpoint_only(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, file: str
) -> None:
    run = Run(tmp_path, mode=mode)
    run.save(1)
    with monkeypatch.context() as patched:
        run.saver.wait()
        full_disk(patched, file)
        run.save(2)
        run.saver.wait()
    run.save(3)
    run.saver.close()
    assert run.steps() == [1, 3]
    assert len(run.said) == 1 and "step 2 is lost" in run.said[0] and "No space left" in run.said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint_name(1), checkpoint_name(3)]


def save_on_full_disk(rank: int, world_size: int, folder: str) -> tuple[list[int], list[str]]:
    run = Run(folder, mode="async")
    run.save(1)
    run.saver.wait()
    undo = full_disk(None, "__1_0") if rank == 1 else None
    run.save(2)
    run.saver.wait()
    if undo:
        dcp_files._Files.create_stream, dcp_files.HashedStream.write = undo
    run.save(3)
    run.saver.close()
    return run.steps(), run.said


def test_a_full_disk_on_one_rank_is_known_to_all(ranks: RankPair, tmp_path: Path) -> None:
    for steps, said in ranks(save_on_full_disk, str(tmp_path)):
        assert steps == [1, 3]
        assert len(said) == 1 and "rank 1" in said[0] and "No space left" in said[0]


def test_another_model_is_refused_and_nothing_loaded(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)
    other = nn.Linear(40, 31)
    before = other.weight.clone()
    with pytest.raises(UserError, match=r"model\.weight: 31 x 40 here, 30 x 40 in the checkpoint"):
        load_weights(run.shelf, run.shelf.commits()[0], other)
    assert torch.equal(other.weight, before)


def test_verbs_need_no_process_group(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path / "run" / "checkpoints")
    run.save(1, 0.75)
    run.save(2)
    (tmp_path / "run" / "checkpoints" / ".step-00000003.writing").mkdir()
    listed = command.list_checkpoints(str(tmp_path / "run" / "checkpoints"))
    json.dumps(listed)
    assert [(c["step"], c["state"], c["best"]) for c in listed["checkpoints"]] == [
        (1, "committed", True),
        (2, "committed", False),
        (3, "torn", False),
    ]
    assert "0.7500" in command.list_lines(listed)[1] and "torn" in command.list_lines(listed)[3]
    shown = command.show_checkpoint(str(tmp_path / "run" / "checkpoints"))
    assert shown["step"] == 1 and set(shown["parts"]) == {"__0_0.distcp", ".metadata"}
    assert any("click: AUC 0.7500" in line for line in command.show_lines(shown))
    one = command.show_checkpoint(str(tmp_path / "run" / "checkpoints" / checkpoint_name(2)))
    assert one["step"] == 2
    verified = command.verify_checkpoints(str(tmp_path / "run" / "checkpoints"))
    assert not verified["whole"] and [c["whole"] for c in verified["checkpoints"]] == [True, True, False]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / ".step-00000003.writing")
    assert command.verify_checkpoints(str(tmp_path / "run" / "checkpoints"))["whole"]
    with pytest.raises(UserError, match="holds no checkpoint"):
        command.list_checkpoints(str(tmp_path))
