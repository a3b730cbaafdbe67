"""The page about one's own data: its files, its recipe, its command and its messages are what it says."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_fixtures import ROOT
from infnet_rec import cli
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.parsing.instants import EARLIEST, LATEST, Clock
from infnet_rec.data.store import Store
from test_times import of_texts

PAGE = ROOT / "docs" / "your_own_data.md"
BLOCK = re.compile(r"<!-- (file|run|fault)(?:: (.*?))? -->\n```\w+\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page."""
    monkeypatch.chdir(tmp_path)
    for kind, name, text in BLOCKS:
        if kind == "file":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """Runs a command line; its exit code and what it prints."""

    def run(command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), "".join(capsys.readouterr())

    return run


def test_the_files_are_built_as_the_page_says(folder: Path, run: Callable[[str], tuple[int, str]]) -> None:
    (command,) = (text for kind, _, text in BLOCKS if kind == "run")
    assert run(command)[0] == 0
    store = Store(folder / "stores" / "ratings")
    assert check_store(store) == []
    assert store.vocabulary("year").column("value").to_pylist() == ["1994", "1996"]
    assert store.vocabulary("genres").column("value").to_pylist()[0] == "Comedy"
    assert sum(store.num_examples(split) for split in ("train", "valid", "test")) == 8


FAULTS = [(what, text) for kind, what, text in BLOCKS if kind == "fault"]


@pytest.mark.parametrize(("what", "text"), FAULTS)
def test_a_wrong_key_gives_the_message_of_the_page(
    what: str, text: str, folder: Path, run: Callable[[str], tuple[int, str]]
) -> None:
    right, wrong = what.split(" -> ")
    recipe = (folder / "ratings.toml").read_text(encoding="utf-8")
    assert right in recipe
    (folder / "wrong.toml").write_text(recipe.replace(right, wrong, 1), encoding="utf-8")
    code, output = run("infnet-rec data build wrong.toml --raw raw --out stores/wrong")
    assert code == 2 and text.strip() in [line.strip() for line in output.splitlines()]
    assert not (folder / "stores" / "wrong").exists()


def test_each_cell_of_the_table_of_times_is_read_as_that_unit() -> None:
    rows = re.findall(r'^\| `"(\w+)"`[^|]*\| (.*?) \| (\w+) \|$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {unit for unit, _, _ in rows} == {"s", "ms", "us", "ns", "decimal_s", "text"}
    for unit, cells, tick in rows:
        texts = re.findall(r"`([^`]+)`", cells)
        found = of_texts(unit, 2, [(text,) for text in texts])
        assert texts and None not in found, (unit, texts, found)
        assert Clock(unit, 2, EARLIEST, LATEST).ticks_per_second == {"second": 1, "millisecond": 1000}[tick]
