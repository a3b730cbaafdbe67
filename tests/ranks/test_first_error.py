"""What a person reads when ranks fail: the first error, once, with its rank and host."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infnet_rec.errors import TRY_AGAIN, Failure, UserError
from infnet_rec.launcher.failures import (
    CODES,
    ERROR_FILE,
    SPOKEN_FOR,
    WORDS,
    Cause,
    End,
    describe_cause,
    first_of,
    left_to_launcher,
    read_end,
)
from screens import in_terminal, screen

HERE = Path(__file__).parents[1]
GONE = "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2967"
TORCHRUN = [sys.executable, "-m", "infnet_rec.launcher.torchrun", "--standalone", "--nproc-per-node=2"]


def said(message: str, at: float, word: str | None = None) -> dict[str, object]:
    facts = {"py_callstack": f"Traceback\n{message}\n", "timestamp": str(int(at)), "at": at, "word": word}
    return {"message": message, "extraInfo": {**facts, "text": message}}


def end(rank: int, code: int | None, message: str = "", at: float = 0.0, **more: object) -> End:
    word = more.pop("word", None)
    return End(rank, code, said(message, at, word) if message else {}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ends", "first", "cause"),
    [
        # The others lose their peer and may be quicker to say so.
        ([end(0, 1, GONE, 1.0), end(1, 1, "ValueError: x", 1.2)], 1, Cause.SAID_WHY),
        ([end(0, 1, "ValueError: x", 1.3), end(1, 1, "ValueError: y", 1.2)], 1, Cause.SAID_WHY),
        # It wrote why, and is not gone yet.
        ([end(0, 1, GONE, 1.0), end(1, None, "ValueError: x", 1.2)], 1, Cause.SAID_WHY),
        # Out of memory: nothing is written.
        ([end(0, 1, GONE, 1.0), end(1, -signal.SIGKILL)], 1, Cause.KILLED),
        ([end(0, 1, "KeyError: wrapped", 1.0), end(1, -signal.SIGKILL)], 1, Cause.KILLED),
        # The launcher kills what hangs on after half a minute.
        ([end(0, -signal.SIGKILL, was_told_to=True), end(1, 1, "ValueError: x", 1.0)], 1, Cause.SAID_WHY),
        ([end(0, -signal.SIGTERM), end(1, 7)], 1, Cause.SILENT),
        ([end(0, 1, GONE, 1.0), end(1, -signal.SIGABRT)], 1, Cause.SILENT),
        ([end(0, 2, "x = 1: must be 2", 1.0, word="fault"), end(1, None)], 0, Cause.SAID_WHY),
        # A failure of ours about a connection is not another rank's.
        ([end(0, 1, GONE, 1.0), end(1, 1, "the bucket: connection reset by peer", 2.0, word="failed")], 1, 1),
        ([end(0, TRY_AGAIN), end(1, TRY_AGAIN)], 0, Cause.ASKED_TO),
        ([end(0, 1, GONE, 2.0), end(1, 1, GONE, 1.0)], 1, Cause.MISSED_ANOTHER),
    ],
)
def test_the_first_to_fail_is_found(ends: list[End], first: int, cause: Cause) -> None:
    found = first_of(ends)
    assert (found.rank, found.cause) == (first, cause)


def test_a_rank_that_was_ended_while_it_said_why_counts_with_the_code_of_its_word() -> None:
    assert end(1, -signal.SIGTERM, "x = 1: must be 2", word="fault").exit_code == 2
    assert end(1, None, "the plan does not fit", word="no").exit_code == 3
    assert end(1, -signal.SIGTERM, "saved", word="stopped").exit_code == TRY_AGAIN
    assert end(1, -signal.SIGTERM, "KeyError: x").exit_code == -signal.SIGTERM
    words = {word: CODES[word] for word in WORDS.values()}
    assert words == CODES


def test_a_rank_leaves_its_first_error_and_a_launcher_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.delenv(ERROR_FILE, raising=False)
    assert not left_to_launcher(UserError("x"))
    monkeypatch.setenv(ERROR_FILE, str(path))
    monkeypatch.delenv(SPOKEN_FOR, raising=False)
    assert not left_to_launcher(ValueError("the first\nof two lines")), "torchrun alone says nothing for us"
    monkeypatch.setenv(SPOKEN_FOR, "1")
    assert left_to_launcher(Failure("a second one, of the end"))
    (tmp_path / "log").write_text("runs/a/logs/rank_3.jsonl")
    found = read_end(3, 1, path)
    text = describe_cause(found, "node7", others_elsewhere=False)
    head = "infnet-rec: rank 3 on host node7 failed: ValueError: the first (its log: runs/a/logs/rank_3.jsonl)\n"
    assert text == f"{head}ValueError: the first\nof two lines"
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    assert "the first" in str(ProcessFailure(0, 1, 1, str(path)).message)
    path.write_text('{"message": ')
    assert read_end(3, 1, path).cause is Cause.SILENT


def test_faults_of_all_ranks_are_one_line_and_others_name_theirs() -> None:
    fault = end(0, 2, "nowhere.toml: is not there", word="fault")
    assert describe_cause(fault, "a", others_elsewhere=False) == "infnet-rec: fault: nowhere.toml: is not there"
    other = end(1, 2, "nowhere.toml: is not there", word="fault")
    assert describe_cause(other, "a", others_elsewhere=False).splitlines()[1:] == ["  (rank 1 on host a)"]


def test_an_error_that_only_follows_one_on_another_host_says_so() -> None:
    text = describe_cause(end(2, 1, GONE, 1.0), "b", others_elsewhere=True)
    assert text.startswith("infnet-rec: rank 2 on host b failed: RuntimeError") and "Traceback" not in text
    assert text.endswith("a rank on another host was gone before: what happened is said there")
    assert "Traceback" in describe_cause(end(2, 1, GONE, 1.0), "b", others_elsewhere=False)


def test_silent_ends_are_described(tmp_path: Path) -> None:
    log = tmp_path / "rank_1.jsonl"
    lines = [{"restart": 0, "kind": "report", "step": 9, "rss_bytes": 7}, {"restart": 1, "kind": "start"}]
    lines += [{"restart": 1, "kind": "report", "step": 40, "rss_bytes": 3 << 29}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert describe_cause(end(1, -9, log=log), "a", others_elsewhere=False) == (
        "infnet-rec: rank 1 on host a was killed by signal 9 (SIGKILL); was the machine out of memory? "
        f"At step 40 it held 1.5 GiB (its log: {log})"
    )
    text = describe_cause(end(1, -11), "a", others_elsewhere=False)
    assert text == "infnet-rec: rank 1 on host a was killed by signal 11 (SIGSEGV)."
    assert "ended with exit code 7 and said nothing" in describe_cause(end(1, 7), "a", others_elsewhere=False)


def kinds_of(run: Path, rank: int) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (run / "logs" / f"rank_{rank}.jsonl").read_text().splitlines()]
    return [(line["restart"], line["kind"]) for line in lines if line["kind"] not in ("report", "warning")]


@pytest.mark.slow
def test_an_error_ends_what_stands_on_a_terminal(small_store: Path, tmp_path: Path) -> None:
    """One rank raises; the other, whose peer is gone, is not heard. Bars are cleared away."""
    run = tmp_path / "run"
    command = [*TORCHRUN, HERE / "helpers" / "failing_rank.py", HERE / "small.toml", small_store, run]
    code, written = in_terminal(command, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert code == 1, written
    assert "step 20/" in written and "%|" in written
    lines = [line for line in screen(written) if line]
    (first,) = [i for i, line in enumerate(lines) if line.startswith("infnet-rec: rank 1 on host ")]
    assert lines[first].endswith(
        f"failed: RuntimeError: the disk of rank 1 is on fire (its log: {run}/logs/rank_1.jsonl)"
    )
    assert lines[first + 1] == "Traceback (most recent call last):"
    assert lines[-2] == "RuntimeError: the disk of rank 1 is on fire"
    assert lines[-1].startswith("raised while rank 1 read the batch of step ")
    assert sum(line.startswith("Traceback") for line in lines) == 1
    progress = [line for line in lines[:first] if line.startswith("step ")]
    # The other rank may come a step or so further before it is ended.
    assert [line.split()[1].split("/")[0] for line in progress][:3] == ["10", "20", "20"]
    assert not any("%|" in line for line in lines)
    assert kinds_of(run, 1) == [(0, "start"), (0, "error")]
    assert "Connection closed" in (run / "logs" / "rank_0.jsonl").read_text()


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(small_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAILING_RANK": "kill"}
    command = [
        *TORCHRUN,
        "--max-restarts=1",
        HERE / "helpers" / "failing_rank.py",
        HERE / "small.toml",
        small_store,
        run,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    (first,) = [i for i, line in enumerate(lines) if line.startswith("infnet-rec: rank 1 on host ")]
    assert "was killed by signal 9 (SIGKILL); was the machine out of memory? At step 20 it held " in lines[first]
    assert lines[first + 1] == "infnet-rec: the ranks are started again (restarts left: 0)"
    assert kinds_of(run, 1) == [(0, "start"), (1, "start"), (1, "end")]
    reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in reports if line["kind"] == "train"]
    assert all(0 <= line["train_auc"]["click"] <= 1 for line in trained)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"train/auc_click", "train/rss_gib", "train/examples_per_s"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_a_fault_of_the_ranks_is_not_asked_for_again(tmp_path: Path) -> None:
    verb = ["infnet_rec.cli", "train", "nowhere.toml", f"--run-dir={tmp_path / 'run'}"]
    command = [*TORCHRUN, "--max-restarts=3", "-m", *verb]
    finished = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2, finished.stderr
    assert finished.stderr.count("infnet-rec: fault: nowhere.toml") == 1
    assert "Traceback" not in finished.stderr
    assert not any(tmp_path.iterdir())
