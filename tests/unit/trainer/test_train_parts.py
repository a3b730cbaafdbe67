"""The pure parts of training: learning rates, the pace of a run, losses, reports."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from infnet_rec.batch import Batch
from infnet_rec.config.train import DenseConfig, LossConfig, ScheduleConfig, SparseConfig, TrainConfig, hasty_patience
from infnet_rec.metrics import TaskMetrics
from infnet_rec.models.ranking_model import MultiTaskLoss
from infnet_rec.models.tokens import Tokens
from infnet_rec.trainer.loop import RunLength, Schedule
from infnet_rec.trainer.metric_logger import MetricLogger, format_duration


def test_a_constant_rate_warms_up_and_stays() -> None:
    """Up in a line, the full rate first reached at the last warm-up step."""
    schedule = Schedule(DenseConfig(lr=2.0, schedule=ScheduleConfig(warmup_steps=4)), num_steps=10)
    assert [schedule.at(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_a_cosine_ends_at_its_final_fraction() -> None:
    """Half-way down in the middle; level after the end; never rising."""
    down = ScheduleConfig(kind="cosine", warmup_steps=10, final_fraction=0.1)
    schedule = Schedule(SparseConfig(lr=1.0, schedule=down), num_steps=110)
    rates = [schedule.at(step) for step in range(10, 130)]
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1) == rates[-1]
    assert all(a >= b for a, b in itertools.pairwise(rates))


def walk(pace: RunLength) -> list[tuple[int, bool]]:
    """Every stop of a run, and whether valid is scored there."""
    stops, step = [], 0
    while step < pace.num_steps:
        step = pace.next_stop(step)
        stops.append((step, pace.evaluates_at(step)))
    return stops


def test_a_run_stops_for_evaluations_and_at_its_end() -> None:
    """Evaluations at multiples, and a last one at the end."""
    pace = RunLength(10, 6, 4, 1, 0, 8, fresh_tables=False)
    assert walk(pace) == [(4, True), (8, True), (10, True)]


def test_fresh_tables_stop_a_run_at_every_epoch() -> None:
    """The change of tables is no evaluation."""
    pace = RunLength(13, 6, 4, 1, 0, 8, fresh_tables=True)
    assert walk(pace) == [(4, True), (6, False), (8, True), (12, True), (13, True)]


def test_a_patience_that_fresh_tables_cannot_meet_is_doubted() -> None:
    """Five evaluations of 50 steps in an epoch of 309; nothing is said where tables are kept or there is one epoch."""
    fresh = SparseConfig(each_epoch="fresh")
    hasty = TrainConfig(global_batch_size=10, num_epochs=4, eval_every_steps=50, patience=5, sparse=fresh)
    said = hasty_patience(hasty, 3095)
    assert said is not None and "over in 250 steps" in said and "of 309" in said and "eval_every_steps=0" in said
    patient = ({"eval_every_steps": 62}, {"eval_every_steps": 0}, {"patience": 0}, {"num_epochs": 1})
    for change in (*patient, {"sparse": SparseConfig()}):
        assert hasty_patience(hasty.model_copy(update=change), 3095) is None


def batch(labels: list[list[float]], weight: list[float], rarity: float = 0.0) -> Batch:
    """A batch of which the loss reads only these."""
    none = KeyedJaggedTensor(keys=[], values=torch.empty(0), lengths=torch.empty(0, dtype=torch.int64))
    num = torch.zeros(len(labels), dtype=torch.int64)
    rarity_BM = torch.full((len(labels), 3), rarity)
    return Batch(none, none, num, num, torch.tensor(labels), num, rarity_BM, torch.tensor(weight))


def tokens(batch_size: int) -> Tokens:
    """Tokens of ones."""
    return Tokens(torch.ones(batch_size, 3, 2), torch.zeros(0, 2), torch.zeros(1, batch_size, dtype=torch.int64))


def test_the_loss_is_the_weighted_sum_of_cross_entropies() -> None:
    """Padding counts for nothing; the penalty is half the squared norm of each token times its rarity."""
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5], [9.0, 9.0]])
    labels = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    given = batch(labels, [1.0, 1.0, 0.0], rarity=0.5)
    weights = {"a": 2.0, "b": 0.5}
    loss, by_task = MultiTaskLoss(LossConfig(task_weights=weights), ("a", "b"))(logits, tokens(3), given)
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    y = np.array(labels)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p))[:2].mean(0)
    np.testing.assert_allclose(by_task.numpy(), expected, atol=1e-6)
    assert loss.item() == pytest.approx(2.0 * expected[0] + 0.5 * expected[1], abs=1e-6)
    penalty = LossConfig(task_weights=weights, embedding_l2=0.1)
    penalised, _ = MultiTaskLoss(penalty, ("a", "b"))(logits, tokens(3), given)
    assert penalised.item() - loss.item() == pytest.approx(0.1 / 2 * 6 * 0.5, abs=1e-6)


def test_uncertainty_weights_settle_at_the_losses() -> None:
    """exp(-s) L + s is least where exp(s) = L."""
    criterion = MultiTaskLoss(LossConfig(weighting="uncertainty"), ("a", "b"))
    logits, given = torch.tensor([[0.0, 3.0]]), batch([[1.0, 0.0]], [1.0])
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        loss, by_task = criterion(logits, tokens(1), given)
        loss.backward()
        optimizer.step()
    assert criterion.log_variance_T is not None
    np.testing.assert_allclose(criterion.log_variance_T.detach().exp(), by_task, atol=1e-3)


def metrics(auc: float, num_positives: int = 5) -> TaskMetrics:
    """Metrics with one AUC."""
    return TaskMetrics(10, num_positives, auc, auc, auc, 2, 0.5, 1.0, 1.0)


def test_a_report_writes_lines_that_machines_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON lines, null where a metric has no value, and a line for people."""
    report = MetricLogger(tmp_path, 100)
    with report.training(0):
        report.step_done(64)
        report.progress(1, 0.01, {"click": 0.7}, {"sparse": 0.1, "dense": 0.2})
    report.evaluated("valid", 1, {"click": metrics(math.nan).to_json()})
    report.close()
    train, valid = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert train["loss"] == {"click": 0.7} and train["examples_per_s"] > 0
    assert valid["metrics"]["click"]["auc"] is None
    err = capsys.readouterr().err
    assert "step 1/100" in err and "click AUC - gAUC -" in err


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Only rank 0 has a folder and a voice."""
    report = MetricLogger(None, 100)
    report.progress(1, 0.01, {"click": 0.7}, {"sparse": 0.1})
    report.say("hello")
    assert capsys.readouterr().err == ""


def test_the_clock_reads_well() -> None:
    """Minutes and seconds, hours only when there are some."""
    assert [format_duration(5), format_duration(65), format_duration(3725)] == ["0:05", "1:05", "1:02:05"]
