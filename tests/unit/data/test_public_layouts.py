"""The recipes of public data sets build and train on made-up rows in the public layout."""

from pathlib import Path

import pytest

from data_fixtures import QUIET, ROOT
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import load_recipe
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.data.store import SPLITS, Store
from infnet_rec.trainer.train import train
from public_layouts import LAYOUTS, NUM_ITEMS, NUM_USERS

RUN = """
data = { store = "STORE", sequence_length = 5 }
model = { width = 8, num_blocks = 2 }
[train]
global_batch_size = 128
num_epochs = 1
"""
# The literal of each layout: users, items, rows, tasks.
SIZES = {
    "movielens_100k": (NUM_USERS, NUM_ITEMS, 22 * NUM_USERS, ["liked", "loved"]),
    "movielens_1m": (NUM_USERS, NUM_ITEMS, 22 * NUM_USERS, ["liked", "loved"]),
    "recbole": (NUM_USERS, NUM_ITEMS, 22 * NUM_USERS, ["liked"]),
    "criteo": (12, 12, 900, ["click"]),
    "taobao_userbehavior": (24, 30, 960, ["cart", "fav", "buy"]),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Store]:
    """A layout's name, its raw files and its store."""
    folder = tmp_path_factory.mktemp(request.param)
    LAYOUTS[request.param](folder / "raw")
    recipe = load_recipe(ROOT / "configs" / "datasets" / f"{request.param}.toml")
    build_store(recipe, folder / "raw", folder / "store", QUIET, num_threads=1)
    return request.param, folder / "raw", Store(folder / "store")


def test_a_store_holds_every_row(made: tuple[str, Path, Store]) -> None:
    name, _, store = made
    num_users, num_items, num_rows, tasks = SIZES[name]
    manifest = store.manifest
    assert (manifest["num_users"], manifest["num_items"]) == (num_users, num_items)
    assert sum(store.num_examples(split) for split in SPLITS) == num_rows == manifest["log"]["rows_read"]
    assert [task.name for task in store.schema.tasks] == tasks and not manifest["bad_rows"]
    for facts in manifest["splits"].values():
        assert all(0 < rate < 1 for rate in facts["label_rates"].values())
    for join in manifest["joins"]:
        assert join["num_log_keys_matched"] == join["num_log_keys"], join
    assert not check_store(store) and not [line for line in manifest["warnings"] if line.startswith("feature")]


def test_an_example_says_what_its_row_says(made: tuple[str, Path, Store]) -> None:
    """The first example of the first user, against its row in the file."""
    name, raw, store = made
    if name == "criteo":
        pytest.skip("rows of no time and of no user have no first one")
    log = next(path for path in sorted(raw.iterdir()) if path.name in LOGS)
    rows = [line.split(DELIMITERS[name]) for line in log.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if not row[0].startswith("user")]
    user = min((row[0] for row in rows), key=lambda u: u if name == "recbole" else int(u))
    first = min((row for row in rows if row[0] == user), key=lambda row: float(row[-1]))
    found = describe_example(store, "train", 0, 5)
    assert (str(found["user"]), str(found["item"])) == (user, first[1])
    label = {"liked": float(first[2]) >= 4} if name != "taobao_userbehavior" else {"buy": first[3] == "buy"}
    assert {key: bool(found["labels"][key]) for key in label} == label


LOGS = {"u.data", "ratings.dat", "ml-100k.inter", "UserBehavior.csv"}
DELIMITERS = {"movielens_100k": "\t", "movielens_1m": "::", "recbole": "\t", "taobao_userbehavior": ","}


@pytest.mark.slow
def test_a_model_trains_on_it(made: tuple[str, Path, Store], tmp_path: Path) -> None:
    name, _, store = made
    run = tmp_path / "run.toml"
    run.write_text(RUN.replace("STORE", str(store.path)), encoding="utf-8")
    result = train(run, [], tmp_path / "run")
    assert result is not None and result["steps_done"] > 0 and list(result["metrics"]["test"]) == SIZES[name][3]
