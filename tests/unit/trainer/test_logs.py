"""Progress lines, bars, and each rank's own log."""

import json
import logging
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infnet_rec.errors import Interrupted
from infnet_rec.metrics import auc
from infnet_rec.models.ranking_model import Scores
from infnet_rec.trainer import metric_logger
from infnet_rec.trainer.metric_logger import MetricLogger, ProcessMemory, TrainWindow, memory_now, progress_line
from infnet_rec.trainer.rank_log import RankLog
from screens import in_terminal, screen

TALKS = """
import os, signal, sys, time
from infnet_rec.trainer.signals import GracefulStop
from infnet_rec.console import batches_bar, log_line, steps_bar
with GracefulStop(speaks=True), steps_bar(20, 60, "7,188 examples/s, 0:18 left", speaks=True) as bar:
    for step in range(21, 41):
        bar.update()
        time.sleep(0.03)
        if step == 30:
            log_line("line of step 30")
            os.kill(os.getpid(), signal.SIGTERM)
with steps_bar(0, 9, "of another rank", speaks=False) as bar:
    bar.update()
for _ in batches_bar(12, "valid"):
    time.sleep(0.12)
for _ in batches_bar(12, None):
    time.sleep(0.12)
log_line("the end")
"""


def scores(logits_BT: np.ndarray, labels_BT: np.ndarray) -> Scores:
    logits, labels = torch.from_numpy(logits_BT), torch.from_numpy(labels_BT)
    return Scores(logits, labels, torch.ones(len(logits)), torch.zeros(len(logits)), torch.zeros(labels.shape[1]))


def test_the_training_auc_is_that_of_the_last_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_logger, "WINDOW_EXAMPLES", 100)
    rng, kept = np.random.default_rng(0), TrainWindow()
    assert kept.take() == []
    logits_NT = rng.normal(size=(500, 2)).astype(np.float32)
    labels_NT = (rng.random((500, 2)) < 0.4).astype(np.float32)
    labels_NT[:, 1] = 0
    for first in range(0, 500, 30):
        kept.keep(scores(logits_NT[first : first + 30], labels_NT[first : first + 30]))
        assert len(kept._kept) <= 5
    found = kept.take()
    assert found[0] == pytest.approx(auc(logits_NT[-100:, 0].astype(float), labels_NT[-100:, 0]), abs=1e-12)
    assert math.isnan(found[1])
    assert kept.take() == []


def test_a_line_of_three_tasks_can_be_read_at_a_glance() -> None:
    names = ["click", "like", "long_view"]
    losses, aucs = dict(zip(names, [0.58123, 0.0712, 0.5], strict=True)), {"click": 0.71239, "like": math.nan}
    aucs["long_view"] = 0.7
    memory = ProcessMemory(rss_bytes=112 << 30, mapped_bytes=0, gpu_peak_bytes=70 << 30)
    line = progress_line(["20000/206000", "1.17"], 718_800.2, losses, aucs, 36_000.0, memory)
    assert "\n" not in line and len(line) < 160
    assert line == (
        "step 20000/206000  epoch 1.17  718,800 examples/s  loss click 0.5812 AUC 0.712  like 0.0712 AUC -  "
        "long_view 0.5000 AUC 0.700  10:00:00 left  112, GPU 70 GiB"
    )


def test_memory_is_that_of_this_process() -> None:
    before = memory_now()
    held = np.ones(32 << 20, np.uint8)
    grown = memory_now().rss_bytes - before.rss_bytes
    assert len(held) * 0.9 < grown < len(held) * 1.5
    assert before.rss_bytes > before.mapped_bytes > 0


def test_the_time_left_is_that_of_all_steps_at_the_pace_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done before this process, and its start, say nothing; evaluations between the steps do."""
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    report = MetricLogger(tmp_path, 100)
    now[0] += 50
    for first in (60, 70):
        with report.training(first):
            for _ in range(10):
                now[0] += 1
                report.step_done(64)
            report.progress(first + 10, 0.5, {"click": 0.5}, {"sparse": 0.1})
        now[0] += 10
    report.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["left_s"] for line in lines] == [30.0, 30.0]
    assert [line["examples_per_s"] for line in lines] == [64.0, 64.0]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rank_says_when_it_began_how_it_went_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    said: list[str] = []
    log = RankLog(tmp_path, 1, said.append)
    log.report(1, {"examples_per_s": 1.0})
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="broken"), warnings.catch_warnings(), log:
        warnings.simplefilter("always")
        log.started(local_rank=0, device="cpu")
        log.report(20, {"examples_per_s": 64.0})
        for _ in range(2):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            logging.getLogger("some.library").warning("low on %s", "fuel")
        raise ValueError("broken")
    with pytest.warns(UserWarning, match="after the end"):
        warnings.warn("after the end", UserWarning, stacklevel=1)
    start, report, gap, fuel, error = lines_of(tmp_path / "logs" / "rank_1.jsonl")
    assert start["kind"] == "start" and start["restart"] == 2 and start["local_rank"] == 0 and start["pid"] > 0
    assert (report["kind"], report["step"], report["examples_per_s"]) == ("report", 20, 64.0)
    assert gap["kind"] == "warning" and "mind the gap" in gap["message"]
    assert (fuel["source"], fuel["message"]) == ("some.library", "low on fuel")
    assert (error["kind"], error["type"], error["message"]) == ("error", "ValueError", "broken")
    assert "in test_a_rank_says" in error["traceback"]
    assert len(said) == 2
    assert (tmp_path / "log").read_text() == str(tmp_path / "logs" / "rank_1.jsonl")


@pytest.mark.parametrize(("end", "how"), [(None, "done"), (Interrupted("asked to"), "stopped")])
def test_a_log_ends_with_how_the_rank_did(tmp_path: Path, end: Exception | None, how: str) -> None:
    """A second start appends."""
    for _ in range(2):
        log = RankLog(tmp_path, 0, print)
        try:
            with log:
                log.started(local_rank=0, device="cpu")
                if end is not None:
                    raise end
        except Interrupted:
            pass
    assert [line["kind"] for line in lines_of(log.path)] == ["start", "end"] * 2
    assert lines_of(log.path)[-1]["how"] == how


def test_bars_on_a_terminal_are_not_torn() -> None:
    code, written = in_terminal([sys.executable, "-c", TALKS])
    assert code == 0, written
    assert "step 30/60  50%|" in written and "7,188 examples/s, 0:18 left" in written
    assert "valid:" in written and "of another rank" not in written
    lines = [line for line in screen(written) if line]
    assert lines[0] == "line of step 30" and lines[1].startswith("infnet-rec: saving a checkpoint")
    assert lines[2:] == ["the end"]


def test_elsewhere_there_are_lines_only() -> None:
    done = subprocess.run([sys.executable, "-c", TALKS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "line of step 30" and lines[1].startswith("infnet-rec: saving a checkpoint")
    assert lines[2:] == ["the end"]
