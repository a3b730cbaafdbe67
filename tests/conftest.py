"""Fixtures of all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two workers never start ranks at the same time: two cores are enough for two ranks. A file stays together."""
    from xdist.scheduler import LoadScopeScheduling

    class OneWorkerForRanks(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return "ranks" if {"ranks", "engines"} & set(file.parts) else str(file)

    return OneWorkerForRanks(config, log)


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
