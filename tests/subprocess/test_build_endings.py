"""Builds that are killed, stopped, run twice at once or out of disk: no store or a whole one, and nothing else."""

import errno
import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data_fixtures import QUIET, ROOT
from infnet_rec.data import publish
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.publish import new_store
from infnet_rec.data.store import Store
from infnet_rec.errors import Failure, UserError
from kiosk import hashes, kiosk
from shop_data import shop_recipe, shop_rows, write_shop

NUM_ROWS, NUM_KILLS = 40_000, 8
# Imports once and forks for each build, so that a signal meets the build and not the imports.
BUILDER = """
import errno
import os
import sys
from pathlib import Path
from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.errors import Failure, UserError
from shop_data import shop_recipe
folder, quiet = Path(sys.argv[1]), BuildProgress(lambda *_: None, lambda _: None)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            build_store(shop_recipe(), folder / "raw", folder / "store", quiet, replace=line == "replace\\n")
        except (UserError, Failure) as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        except BaseException as error:
            print("stopped by", type(error).__name__, file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    print("pid", child, flush=True)
    print("status", os.waitpid(child, 0)[1], flush=True)
"""


class Builder:
    """Builds the shop again and again in processes of its own."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def _number(self, of: str) -> int:
        assert self._child.stdout is not None
        kind, number = self._child.stdout.readline().split()
        assert kind == of, "a signal must not go to another process"
        return int(number)

    def build(self, how: str, stop: signal.Signals | None = None, after_s: float = 0.0) -> tuple[int, float]:
        """The wait status and the seconds of one build, which gets a signal after some seconds."""
        assert self._child.stdin is not None
        self._child.stdin.write(how + "\n")
        self._child.stdin.flush()
        started_at = time.perf_counter()
        number = self._number("pid")
        if stop is not None:
            time.sleep(after_s)
            with suppress(ProcessLookupError):  # it was faster
                os.kill(number, stop)
        return self._number("status"), time.perf_counter() - started_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger shop's raw files."""
    folder = tmp_path_factory.mktemp("endings")
    write_shop(folder / "raw", shop_rows(NUM_ROWS))
    return folder


@pytest.fixture(scope="module")
def builder(folder: Path) -> Iterator[Builder]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUILDER, str(folder)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield Builder(child)
        child.stdin.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_no_store_or_a_whole_one(builder: Builder, folder: Path) -> None:
    """At random moments, without an old store and with one; what it leaves is cleared up by the next build."""
    status, wall_s = builder.build("anew")
    assert status == 0 and names(folder) == {"raw", "store"}
    expected, num_killed = hashes(folder / "store"), 0
    for k in range(NUM_KILLS):
        how = "replace" if k % 2 else "anew"
        if how == "anew":
            (folder / "store").rename(folder / "gone")
        after_s = wall_s * (k + random.random()) / NUM_KILLS
        num_killed += builder.build(how, signal.SIGKILL, after_s)[0] == signal.SIGKILL
        assert names(folder) <= {"raw", "store", "gone", ".store.building", ".store.lock"}
        assert how == "anew" or (folder / "store").exists()
        if (folder / "store").exists():
            assert check_store(Store(folder / "store")) == [] and hashes(folder / "store") == expected, after_s
        if (folder / "gone").exists():
            # Times are shares of the newest whole build's: a machine's other work comes and goes.
            status, wall_s = builder.build("replace")
            assert status == 0
            assert names(folder) == {"raw", "store", "gone"} and hashes(folder / "store") == expected
            for path in sorted((folder / "gone").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (folder / "gone").rmdir()
    assert num_killed >= NUM_KILLS // 2
    assert builder.build("replace")[0] == 0
    assert names(folder) == {"raw", "store"} and check_store(Store(folder / "store")) == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_stopped_clears_up(stop: signal.Signals, builder: Builder, folder: Path) -> None:
    assert builder.build("replace")[0] == 0
    expected, codes = hashes(folder / "store"), []
    for share in (0.1, 0.3, 0.5, 0.8):
        # Of a build just before: a machine's other work comes and goes.
        wall_s = builder.build("replace")[1]
        status, _ = builder.build("replace", stop, wall_s * share + random.random() * wall_s / 10)
        assert names(folder) == {"raw", "store"} and hashes(folder / "store") == expected
        codes.append(os.waitstatus_to_exitcode(status))
    assert set(codes) <= {0, 3, -stop} and 3 in codes, codes


def test_two_builds_of_one_store_at_a_time_are_one_too_many(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path)
    with new_store(tmp_path / "store", replace=False) as work:
        with pytest.raises(
            UserError, match="store: another process is building it; wait for it or name another folder"
        ):
            build_store(recipe, raw, tmp_path / "store", QUIET)
        assert work.is_dir(), "the first is not disturbed"
        build_store(recipe, raw, tmp_path / "other", QUIET)
        (work / "store" / "manifest.json").write_text("{}")
    assert names(tmp_path) == {"raw", "store", "other"}


def test_a_store_that_is_finished_while_the_lock_is_waited_for_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, raw = kiosk(tmp_path)

    @contextmanager
    def late(path: Path, **how: Any) -> Iterator[None]:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "manifest.json").touch()
        with FileLock(path, **how):
            yield

    monkeypatch.setattr(publish, "FileLock", late)
    with pytest.raises(UserError, match="store: exists already; use --replace"):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert names(tmp_path) == {"raw", "store"} and names(tmp_path / "store") == {"manifest.json"}


def test_a_lock_that_its_holder_has_removed_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened it before and locks it after must not take it for the lock that others will open."""
    lock, removed = tmp_path / ".store.lock", []
    flock = fcntl.flock

    def slow(file: int, how: int) -> None:
        if not removed:
            removed.append(lock.unlink())
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with new_store(tmp_path / "store", replace=False) as work:
        assert removed and lock.exists()
        with (
            pytest.raises(UserError, match="another process is building it"),
            new_store(tmp_path / "store", replace=False),
        ):
            pass
        (work / "store" / "manifest.json").write_text("{}")
    assert names(tmp_path) == {"store"}


FILL_UP = """
import resource
import signal
import sys
from pathlib import Path
from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.errors import Failure
from shop_data import shop_recipe
folder, quiet = Path(sys.argv[1]), BuildProgress(lambda *_: None, lambda _: None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for size in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        build_store(shop_recipe(), folder / "raw", folder / "full", quiet)
    except Failure as failure:
        print(str(failure).replace(chr(10), " / "), flush=True)
    else:
        print("built", flush=True)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path) -> None:
    """No file may grow beyond a size: whatever is being written then fails, DuckDB's files or the store's."""
    build_store(shop_recipe(), folder / "raw", folder / "whole", QUIET)
    largest = max(path.stat().st_size for path in (folder / "whole").rglob("*.arrow"))
    sizes = [0, 5_000, 20_000, 100_000, largest // 2, largest - 1, 2**30]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FILL_UP, str(folder), *map(str, sizes)]
    before = names(folder)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(sizes)
    assert lines.pop() == "built", "so that the others are the doing of their size"
    for size, line in zip(sizes[:-1], lines, strict=True):
        assert re.fullmatch(r".*the disk is full \(.*\); free some space and run it again", line), (size, line)
    assert names(folder) == before | {"full"} and hashes(folder / "full") == hashes(folder / "whole")


@pytest.mark.parametrize(
    "place",
    ["ingest.staging.ColumnSpool.append", "ingest.build.write_arrow", "ingest.build.hash_files", "publish._sync"],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_noticed_wherever_it_shows(
    place: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    recipe, raw = kiosk(tmp_path)
    monkeypatch.setattr(f"infnet_rec.data.{place}", fail)
    with pytest.raises(Failure, match=r"^building \S+store: the disk is full \((No space|Disk quota).*\); free some"):
        build_store(recipe, raw, tmp_path / "store", QUIET)
    assert names(tmp_path) == {"raw"}
