"""Raw files and stores for the tests of the data room."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from infnet_rec.data.ingest.build import BuildProgress, build_store
from infnet_rec.data.ingest.recipe import load_recipe
from infnet_rec.data.store import Store
from infnet_rec.synthetic.run import generate
from kiosk import hashes, kiosk
from rich_shop import IN_CSV, RICH, write_shop_in_csv
from shop_data import SHOP_RECIPE, shop_recipe, shop_rows, shop_text, write_shop
from slow_reference import Reference

__all__ = ["SHOP_RECIPE", "shop_recipe", "shop_rows", "write_shop"]

ROOT = Path(__file__).parents[2]
GENERATED_RECIPE = ROOT / "configs" / "datasets" / "kuairand_pure.toml"
REAL_RECIPE = ROOT / "configs" / "datasets" / "kuairand_pure_late.toml"
REAL_RAW = ROOT.parent / "shared" / "data" / "kuairand_pure_late"
QUIET = BuildProgress(lambda *_: None, lambda _: None)


@dataclass(frozen=True)
class Dataset:
    """Raw files, what they mean, and the store that was built from them."""

    raw: Path
    recipe: dict[str, Any]
    store: Store

    @cached_property
    def reference(self) -> Reference:
        """What the store must hold; some seconds for the real rows, so worked out once."""
        edges = {
            name: self.store.vocabulary(name).column("low").to_pylist()[2:]
            for name, encoding in self.store.manifest["encodings"].items()
            if encoding == "quantile"
        }
        return Reference(self.recipe, self.raw, edges)


def build_shop(folder: Path, *changes: tuple[str, str]) -> Dataset:
    """The shop's raw files and store in a new folder."""
    write_shop(folder / "raw")
    recipe = shop_recipe(*changes)
    build_store(recipe, folder / "raw", folder / "store", QUIET)
    return Dataset(folder / "raw", shop_text(*changes), Store(folder / "store"))


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shop, for tests that only read it."""
    return build_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def rich_shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shop with every kind of feature."""
    return build_shop(tmp_path_factory.mktemp("shop"), *RICH)


@pytest.fixture(scope="session")
def shop_in_csv(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same rows, written as CSV."""
    folder = tmp_path_factory.mktemp("shop_in_csv")
    write_shop_in_csv(folder / "raw")
    build_store(shop_recipe(*RICH, *IN_CSV), folder / "raw", folder / "store", QUIET)
    return Dataset(folder / "raw", shop_text(*RICH, *IN_CSV), Store(folder / "store"))


def other_splits(text: str) -> tuple[str, str]:
    """A change of the shop's recipe."""
    splits = SHOP_RECIPE[SHOP_RECIPE.index("[splits]") : SHOP_RECIPE.index("[profiles.")]
    return splits, f"[splits]\n{text}\n\n"


@pytest.fixture(scope="session")
def random_shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shop with its rows split by a hash."""
    return build_shop(
        tmp_path_factory.mktemp("shop"), other_splits('by = "random"\nvalid = 0.2\ntest = 0.29\nseed = 7')
    )


@pytest.fixture(scope="session")
def last_rows_shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shop with the last rows of each user for valid and test; ties go either way."""
    splits = other_splits('by = "rows_of_each_user"\nvalid = 0.15\ntest = 0.29')
    return build_shop(tmp_path_factory.mktemp("shop"), *RICH, splits)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the kiosk's store."""
    folder = tmp_path_factory.mktemp("clean")
    recipe, raw = kiosk(folder)
    build_store(recipe, raw, folder / "store", QUIET)
    assert not (folder / "store" / "quarantine.csv").exists()
    return hashes(folder / "store")


@pytest.fixture(scope="session")
def generated(small_raw: Path, small_store: Path) -> Dataset:
    """Generated rows in KuaiRand-Pure's format and their store."""
    return Dataset(small_raw, tomllib.loads(GENERATED_RECIPE.read_text(encoding="utf-8")), Store(small_store))


@pytest.fixture(scope="session")
def kuairand_27k(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Generated rows in KuaiRand-27K's format; some users are in one half of a log, or of the month, only."""
    folder = tmp_path_factory.mktemp("kuairand_27k")
    generate("kuairand-27k", folder / "raw", num_examples=6000, num_users=60, num_items=2000, seed=3)
    for name, gone in (("part1", {3, 4}), ("part2", {5, 6}), ("_4_08_", {7, 8}), ("_4_22_", {9, 10})):
        for path in (folder / "raw" / "data").glob(f"log_standard*{name}*"):
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(line for line in lines if line.split(",")[0] not in map(str, gone)))
    return _built(folder, "kuairand_27k")


@pytest.fixture(scope="session")
def kuairand_1k(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Generated rows in KuaiRand-1K's format."""
    folder = tmp_path_factory.mktemp("kuairand_1k")
    generate("kuairand-1k", folder / "raw", num_examples=2000, num_users=20, num_items=600, seed=3)
    return _built(folder, "kuairand_1k")


@pytest.fixture(scope="session")
def qb_video(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Generated rows in QB-Video's format, which has no time."""
    folder = tmp_path_factory.mktemp("qb_video")
    generate("qb-video", folder / "raw", num_examples=6000, seed=3)
    return _built(folder, "qb_video")


def _built(folder: Path, name: str) -> Dataset:
    """The store of a recipe of the repository."""
    recipe = ROOT / "configs" / "datasets" / f"{name}.toml"
    build_store(load_recipe(recipe), folder / "raw", folder / "store", QUIET, num_threads=1)
    return Dataset(folder / "raw", tomllib.loads(recipe.read_text(encoding="utf-8")), Store(folder / "store"))


@pytest.fixture(scope="session")
def real_raw() -> Path:
    """The real rows of KuaiRand-Pure's last two weeks."""
    if not REAL_RAW.is_dir():
        pytest.skip(f"NOT TESTED ON REAL ROWS: {REAL_RAW.name} does not lie beside the repository in ../shared/data")
    return REAL_RAW


@pytest.fixture(scope="session")
def real(real_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The real rows and their store."""
    out = tmp_path_factory.mktemp("real") / "store"
    build_store(load_recipe(REAL_RECIPE), real_raw, out, QUIET)
    return Dataset(real_raw, tomllib.loads(REAL_RECIPE.read_text(encoding="utf-8")), Store(out))
