"""Fixtures of all tests."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Triton reads it when it is imported first, and TorchRec does that: without a GPU the tests interpret its kernels.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from data_fixtures import (
    clean,
    generated,
    kuairand_1k,
    kuairand_27k,
    last_rows_shop,
    qb_video,
    random_shop,
    real,
    real_raw,
    rich_shop,
    shop,
    shop_in_csv,
)
from rank_pair import RankPair

__all__ = [
    "clean",
    "generated",
    "kuairand_1k",
    "kuairand_27k",
    "last_rows_shop",
    "qb_video",
    "random_shop",
    "ranks",
    "real",
    "real_raw",
    "rich_shop",
    "shop",
    "shop_in_csv",
    "small_raw",
    "small_store",
]


TESTS = Path(__file__).parent
# Markers that every test of a folder has.
FOLDERS = {"unit", "ranks", "subprocess", "slow", "engines"}

# The first lane tries a tenth of the examples that a test asks for, always the same; `--hypothesis-profile=full` all.
settings.register_profile("first", max_examples=10, derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("full", max_examples=100, database=None, deadline=None, print_blob=True)
settings.load_profile("first")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives each test the markers of its folders, and `rest` to those that the first lane leaves out."""
    named: dict[str, set[str]] = {}
    for item in items:
        for folder in FOLDERS.intersection(item.path.relative_to(TESTS).parts[:-1]):
            # A test's own mark may name a smoke.
            if item.get_closest_marker(folder) is None:
                item.add_marker(folder)
        if item.get_closest_marker("real") or any(_is_slow(item, mark) for mark in item.iter_markers("slow")):
            item.add_marker("rest")
            # Beside other work, a minute becomes some.
            item.add_marker(pytest.mark.timeout(1200))
        for mark in item.iter_markers("slow"):
            cases = {case for names in mark.kwargs.values() for case in names}
            named.setdefault(item.nodeid.partition("[")[0], cases).discard(_case(item))
    # A name that no case has any more would move a test to another lane unnoticed; a lane collects all cases.
    lost = {test: cases for test, cases in named.items() if cases}
    if lost and "rest" in config.option.markexpr:
        raise pytest.UsageError(f"slow() names cases that there are not: {lost}")


def _case(item: pytest.Item) -> str | None:
    """The id of a test's case, as in its brackets."""
    found = getattr(item, "callspec", None)
    return None if found is None else found.id


def _is_slow(item: pytest.Item, mark: pytest.Mark) -> bool:
    """Whether a mark means this case: all of them, all but the `smoke`, or `only` those that are named."""
    if not mark.kwargs:
        return True
    known = {"smoke", "only"}
    assert len(mark.kwargs) == 1 and known.issuperset(mark.kwargs), f"{item.nodeid}: slow() takes one of {known}"
    return _case(item) not in mark.kwargs["smoke"] if "smoke" in mark.kwargs else _case(item) in mark.kwargs["only"]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two workers never start ranks at the same time: two cores are enough for two ranks. A file stays together."""
    from xdist.scheduler import LoadScopeScheduling

    class OneWorkerForRanks(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return "ranks" if {"ranks", "engines"}.intersection(file.parts) else str(file)

    return OneWorkerForRanks(config, log)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """The command line, run inside the test's process, hears signals that end it; the next test's are not for it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPair]:
    """Two gloo ranks for the whole session: `ranks(function, *args)` gives the results of both; see `RankPair`."""
    pair = RankPair()
    yield pair
    pair.close()


@pytest.fixture(scope="session")
def small_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 generated impressions in KuaiRand-Pure's format."""
    from infnet_rec.synthetic.run import generate

    out = tmp_path_factory.mktemp("small") / "raw"
    generate("kuairand-pure", out, num_examples=4000, seed=1)
    return out


@pytest.fixture(scope="session")
def small_store(small_raw: Path) -> Path:
    """The store of `small_raw`."""
    from infnet_rec.data.ingest.build import BuildProgress, build_store
    from infnet_rec.data.ingest.recipe import load_recipe

    recipe = load_recipe(Path(__file__).parents[1] / "configs" / "datasets" / "kuairand_pure.toml")
    silent = BuildProgress(lambda *_: None, lambda _: None)
    out = small_raw.parent / "store"
    build_store(recipe, small_raw, out, silent, num_threads=1)
    return out
