"""What another version of the package wrote is read, or refused in one line that names it: never a traceback."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from infnet_rec.checkpoint.store import MARKER, CheckpointManifest, CheckpointStore, checkpoint_name
from infnet_rec.checkpoint.train_state import TimeSpent, TrainState, metrics_from_json
from infnet_rec.config.toml import read_fields
from infnet_rec.errors import UserError
from infnet_rec.metrics import TaskMetrics
from infnet_rec.schema import Feature, Schema, Sequence, Table, Task

METRICS = TaskMetrics(10, 4, 0.7, 0.6, 0.55, 3, 0.5, 0.9, 1.1)
SCHEMA = Schema(
    (Table("a", 5), Table("b", 6)),
    (Feature("a", "a", "item"), Feature("b", "b", "context")),
    (Sequence("seq_click_a", "click", "a", "a", "click"),),
    (Task("click", "is_click"),),
)


def progress() -> TrainState:
    return TrainState(
        step=7,
        best_step=5,
        best_auc=0.7,
        best_valid={"click": METRICS},
        judged=(0.7, {"click": METRICS}),
        losses=[[0.5]],
        spent=TimeSpent(1.5, 1.0, 700),
    )


@pytest.mark.parametrize("name", [field.name for field in fields(TaskMetrics)])
def test_a_metric_that_came_later_is_unknown(name: str) -> None:
    written = METRICS.to_json()
    del written[name]
    read = metrics_from_json({"click": written})["click"]
    assert math.isnan(getattr(read, name))
    assert all(getattr(read, f.name) == getattr(METRICS, f.name) for f in fields(TaskMetrics) if f.name != name)


def test_a_metric_that_a_later_version_wrote_is_passed_over() -> None:
    assert metrics_from_json({"click": METRICS.to_json() | {"pr_auc": 0.3}}) == {"click": METRICS}


@pytest.mark.parametrize("name", progress().to_json())
def test_progress_is_read_without_any_one_field_or_refused(name: str) -> None:
    written = json.loads(json.dumps(progress().to_json() | {"from_a_later_version": 1}))
    del written[name]
    if name == "step":
        with pytest.raises(UserError, match="lacks step"):
            TrainState.from_json(written)
    else:
        assert TrainState.from_json(written).step == 7


@pytest.mark.parametrize("name", [field.name for field in fields(TimeSpent)])
def test_spent_is_read_without_any_one_field(name: str) -> None:
    written = progress().to_json()
    del written["spent"][name]
    assert getattr(TrainState.from_json(written).spent, name) == 0


@pytest.mark.parametrize("name", [field.name for field in fields(CheckpointManifest)])
def test_a_marker_of_another_version_is_read_or_said_to_be_unusable(name: str, tmp_path: Path) -> None:
    from infnet_rec.checkpoint import store as module

    body: dict[str, Any] = {
        "step": 3,
        "progress": progress().to_json(),
        "run": {},
        "parts": {},
        "written_at": "now",
        "later": 1,
    }
    folder = tmp_path / checkpoint_name(3)
    folder.mkdir()

    def write() -> None:
        (folder / MARKER).write_text(json.dumps({**body, "sha256": module._hash_of(body)}))

    write()
    assert [c.step for c in CheckpointStore(tmp_path).commits()] == [3]
    del body[name]
    write()
    (found,) = CheckpointStore(tmp_path).found()
    assert found.commit is None and name in found.torn and "\n" not in found.torn


def test_a_schema_of_another_version_is_read_or_refused_in_one_line() -> None:
    written = json.loads(json.dumps(SCHEMA.to_json()))
    for part in ("tables", "features", "sequences", "tasks"):
        for name in written[part][0]:
            changed = json.loads(json.dumps(written))
            changed[part][0]["later"] = 1
            assert Schema.from_json(changed) == SCHEMA
            del changed[part][0][name]
            try:
                Schema.from_json(changed)
            except UserError as fault:
                assert name in str(fault) and "\n" not in str(fault)


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(UserError, match="holds list where an object is expected"):
        read_fields(TimeSpent, [1], "a file")
