"""Destinations that cannot be written: one line, the right exit code, nothing left and nothing overwritten."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from destinations import COMMANDS, NOT_WRITTEN
from infnet_rec.cli import app
from infnet_rec.errors import Failure, UserError
from infnet_rec.files import named_faults, parents_of, try_file, try_folder, whole_file

HERE = Path(__file__).parents[1]


def options_that_take_a_path(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Of typer's own tree of commands."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_that_take_a_path(inner, (*words, name))
    for parameter in command.params:
        option = parameter.opts[0]
        if option.startswith("-") and parameter.type_descriptor.annotation is Path:
            yield " ".join((*words, option))


def test_every_option_that_takes_a_path_is_tried_here_or_is_known_to_be_no_destination() -> None:
    found = set(options_that_take_a_path(typer.main.get_command(app)))
    assert found == set(COMMANDS) | NOT_WRITTEN and len(found) > 10


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, int, str, list[str]]]:
    """What came of every verb and every wrong place: option, what is wrong, exit code, what was said, what changed."""
    folder = tmp_path_factory.mktemp("destinations") / "work"
    folder.mkdir()
    mountable = shutil.which("unshare") is not None and mounts()
    command = [
        sys.executable,
        str(HERE / "helpers" / "destinations.py"),
        str(folder),
        *(["mounts"] if mountable else []),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE / 'helpers'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*(["unshare", "-m"] if mountable else []), *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def mounts() -> bool:
    """Whether this process may mount file systems in a name space of its own."""
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_said_before_the_work_and_left_as_it_is(
    tried: list[tuple[str, str, int, str, list[str]]],
) -> None:
    assert {option for option, *_ in tried} == set(COMMANDS) and len(tried) >= 4 * len(COMMANDS)
    for option, wrong, code, said, changed in tried:
        what = f"{option}, {wrong}: {code}, {said[-500:]}"
        assert code == (1 if wrong.startswith("full") else 2), what
        assert "Traceback" not in said and len(said.splitlines()) == 1, what
        assert said.startswith("infnet-rec: failed: " if code == 1 else "infnet-rec: fault: "), what
        assert not changed, what


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("first", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("second", encoding="utf-8")
        raise ZeroDivisionError
    with pytest.raises(Failure, match=r"a\.txt: the disk is full"), whole_file(path) as temporary:
        temporary.write_text("third", encoding="utf-8")
        raise OSError(errno.ENOSPC, "no space left on device")
    assert path.read_text(encoding="utf-8") == "first" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, Failure),
        (errno.EDQUOT, Failure),
        (errno.EIO, Failure),
        (errno.EROFS, UserError),
        (errno.EACCES, UserError),
        (errno.ENAMETOOLONG, UserError),
    ],
)
def test_what_a_person_can_mend_is_a_fault_and_what_the_machine_lacks_a_failure(number: int, kind: type) -> None:
    with pytest.raises(kind, match=r"^--out x: "), named_faults("--out x"):
        raise OSError(number, os.strerror(number))


def test_a_dangling_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        try_file("--out", tmp_path / "link")
    with pytest.raises(UserError, match="not a folder"):
        try_folder("--out", tmp_path / "link" / "x")
    assert (tmp_path / "link").is_symlink()


def test_parents_that_were_made_go_with_what_failed_and_stay_with_what_came_about(tmp_path: Path) -> None:
    with pytest.raises(UserError), parents_of(tmp_path / "a" / "b" / "c"):
        raise UserError("no")
    assert not any(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError), parents_of(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "b" / "mine").touch()
        raise UserError("no")
    assert (tmp_path / "a" / "b" / "mine").is_file()


def test_output_that_nobody_can_take_ends_in_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "infnet_rec.cli", "--help"], stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "infnet-rec: failed: the disk is full; free some space and run it again\n"
