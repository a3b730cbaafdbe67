"""Names, types and shapes of data that are odd and legitimate: each gives the store that plain ones give."""

from pathlib import Path
from typing import Any

import pytest

from data_fixtures import QUIET
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from kiosk import FILES, Edit, add, hashes, kiosk

# Names that the build uses itself, that SQL reserves, or that need quoting.
ODD_NAMES = [
    'user"id', "user id", "select", "key", "weight", "split", "position", "file_", "bad_", "line_", "item_key", "r",
    "w", "t_price", "user_key", "index", "log", "rows", "users", "value", "count", "place", "ids", "it's", "naïve",
    "a.b", "label_click", "is_click", "context_page", "example_", "csv_line", "column 1", "row", "true", "null",
    "time as text",
]  # fmt: skip


def renamed(log: dict[str, str], sides: dict[str, str]) -> Edit:
    """Renames columns of the log, and of the side files, in files and recipe; features keep their names."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        for name in FILES:
            lines = (raw / name).read_text().splitlines()
            names = log if name.startswith("log") else sides
            cells = [names.get(cell, cell).replace('"', '""') for cell in lines[0].split(",")]
            (raw / name).write_text("\n".join([",".join(f'"{c}"' for c in cells), *lines[1:]]) + "\n")
        for key in ("user", "item", "time"):
            recipe["log"][key] = log.get(recipe["log"][key], recipe["log"][key])
        for side in recipe["sides"].values():
            side[0]["key"] = sides.get(side[0]["key"], side[0]["key"])
        for task in recipe["tasks"]:
            task["label"] = log.get(task["label"], task["label"])
        click, time = (log.get(name, name).replace('"', '""') for name in ("click", "time"))
        recipe["behaviours"][0]["where"] = f'"{click}" = 1 -- only clicks'
        recipe["behaviours"][1]["where"] = f'"{click}" = 1 AND "{time}" < 0'
        features = []
        for feature in recipe["features"]:
            for column in feature["columns"]:
                # A user's or item's own id is a column of the log; the others stand in their side's files.
                names = log if feature["side"] == "context" or column in ("user", "item") else sides
                features.append({**feature, "columns": [names.get(column, column)], "name": column})
        recipe["features"] = features

    return edit


@pytest.mark.parametrize("start", range(0, len(ODD_NAMES), 6))
def test_columns_may_have_any_name(start: int, tmp_path: Path, clean: dict[str, str]) -> None:
    """Six columns of the log at a time, and four of the sides."""
    odd = [ODD_NAMES[(start + k) % len(ODD_NAMES)] for k in range(10)]
    log = dict(zip(("user", "item", "time", "click", "page", "mark"), odd[:6], strict=True))
    sides = dict(zip(("user", "city", "item", "price"), odd[6:], strict=True))
    recipe, raw = kiosk(tmp_path, renamed(log, sides))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


@pytest.mark.slow(smoke=["weight", "key"])
@pytest.mark.parametrize(
    "name", ["key", "weight", "ids", "item", "user", "time", "split", "position", "index", "value"]
)
def test_features_behaviours_and_tasks_may_have_names_that_the_build_uses(name: str, tmp_path: Path) -> None:
    """The same columns under another name: the same ids, labels and events."""

    def edit(raw: Path, recipe: dict[str, Any], name: str = name) -> None:
        features = [f for f in recipe["features"] if f["side"] != "context"]
        features[0]["columns"] = ["city"]
        features[1:] = [{"side": "item", "encoding": "hash", "columns": ["price"], "buckets": 9}]
        features += [{"side": "context", "encoding": "hash", "columns": ["page"], "buckets": 5}]
        features += [{"side": "user", "encoding": "multi", "columns": ["city"], "max_values": 2}]
        features += [{"side": "item", "encoding": "quantile", "columns": ["price"]}]
        chosen = sum(map(ord, name)) % len(features)  # each name meets another kind of feature
        for k, feature in enumerate(features):
            feature["name"] = name if k == chosen else f"plain_{k}"
        recipe["features"] = features
        recipe["sequences"] = {"attributes": [features[1]["name"], features[2]["name"]]}
        recipe["behaviours"][0]["name"] = recipe["tasks"][0]["name"] = name

    recipe, raw = kiosk(tmp_path / "odd", edit)
    build_store(recipe, raw, tmp_path / "odd" / "store", QUIET)
    recipe, raw = kiosk(tmp_path / "plain", lambda raw, recipe: edit(raw, recipe, "unheard_of"))
    build_store(recipe, raw, tmp_path / "plain" / "store", QUIET)
    odd, plain = Store(tmp_path / "odd" / "store"), Store(tmp_path / "plain" / "store")
    assert check_store(odd) == []
    assert (odd.user_ids == plain.user_ids).all() and (odd.item_ids[:, ::-1] == plain.item_ids[:, ::-1]).all()
    assert (odd.events(name).item_E == plain.events("unheard_of").item_E).all()
    assert odd.examples("train").labels[name].tolist() == plain.examples("train").labels["unheard_of"].tolist()


def test_a_behaviour_may_be_called_example(tmp_path: Path) -> None:
    recipe, raw = kiosk(tmp_path, lambda raw, recipe: recipe["behaviours"][0].update(name="example"))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert [store.num_examples(split) for split in ("train", "valid", "test")] == [10, 10, 10]
    assert len(store.events("example").item_E) == 15


WRONG_NAMES: dict[str, tuple[Edit, str]] = {
    "twins": (
        lambda raw, recipe: recipe["features"].append(
            {"side": "item", "encoding": "index", "columns": ["price"], "name": "page"}
        ),
        r"feature 'page' is declared 2 times",
    ),
    "twins but for case": (
        lambda raw, recipe: recipe["features"].append({"side": "item", "encoding": "index", "columns": ["Page"]}),
        r"features 'page' and 'Page' differ by case only",
    ),
    "twin tasks": (lambda raw, recipe: recipe["tasks"].append(recipe["tasks"][0]), r"task 'click' is declared 2 times"),
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_names_that_two_things_would_share_are_refused(name: str, tmp_path: Path) -> None:
    edit, message = WRONG_NAMES[name]
    with pytest.raises(UserError, match=message):
        kiosk(tmp_path, edit)


def test_a_path_is_not_a_pattern_and_tells_nothing(tmp_path: Path, clean: dict[str, str]) -> None:
    """Beside each folder stands one that the pattern would match."""
    for name in ("logs[12]", "log*", "lo?s", "page=7", "user=1", "it's", 'a "b"', "smörgås"):
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs1").mkdir(exist_ok=True)
        recipe, raw = kiosk(tmp_path / name)
        for decoy in ("logs", "logs1"):
            (tmp_path / decoy / "raw").mkdir(exist_ok=True)
            for file in raw.iterdir():
                (tmp_path / decoy / "raw" / file.name).write_bytes(file.read_bytes())
        out = tmp_path / name.replace("?", "!") / "store"
        build_store(recipe, raw, out, QUIET)
        assert hashes(out) == clean, name
    with pytest.raises(UserError, match=r"sto\?re: its path has a '\?'"):
        build_store(recipe, raw, tmp_path / "sto?re", QUIET)


PREDICATES = {
    "CLICK = 1": "in capitals",
    "click=1": "",
    "(click)": "",
    "click = '1'": "",
    "click = 1 --": "",
    "page<>0": "",
}


@pytest.mark.parametrize("predicate", PREDICATES)
def test_a_predicate_may_be_written_in_many_ways(predicate: str, tmp_path: Path, clean: dict[str, str]) -> None:
    """In the kiosk's log the column `page` is a copy of `click`, and a text in the store."""
    recipe, raw = kiosk(tmp_path, lambda raw, recipe: recipe["behaviours"][0].update(where=predicate))
    build_store(recipe, raw, tmp_path / "store", QUIET)
    assert hashes(tmp_path / "store") == clean


def test_a_column_of_a_predicate_is_a_number_though_some_rows_are_bad_or_empty(
    tmp_path: Path, clean: dict[str, str]
) -> None:
    """With a bad one among the first, with nothing but empty ones in the first part, and in both."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        for name in ("log_1.csv", "log_2.csv"):
            head, *rows = (raw / name).read_text().splitlines()
            seconds = [f"{row},{60 if row.split(',')[3] == '1' else 5}" for row in rows]
            (raw / name).write_text("\n".join([f"{head},seconds", *seconds]) + "\n")
        recipe["behaviours"][0]["where"] = "seconds >= 30"

    recipe, raw = kiosk(tmp_path / "bad", lambda raw, recipe: (edit(raw, recipe), _bad_first(raw)))
    manifest = build_store(recipe, raw, tmp_path / "bad" / "store", QUIET, max_bad_fraction=0.1)
    assert manifest["bad_rows"] == {"the log": 2} and hashes(tmp_path / "bad" / "store") == clean
    recipe, raw = kiosk(tmp_path / "empty", lambda raw, recipe: (edit(raw, recipe), _no_seconds(raw, "log_1.csv")))
    build_store(recipe, raw, tmp_path / "empty" / "store", QUIET)
    assert len(Store(tmp_path / "empty" / "store").events("click").item_E) == 5
    recipe, raw = kiosk(tmp_path / "none", lambda raw, recipe: (edit(raw, recipe), _no_seconds(raw, "log_*.csv")))
    build_store(recipe, raw, tmp_path / "none" / "store", QUIET)
    assert len(Store(tmp_path / "none" / "store").events("click").item_E) == 0


def _bad_first(raw: Path) -> None:
    head, *rows = (raw / "log_1.csv").read_text().splitlines()
    (raw / "log_1.csv").write_text("\n".join([head, "0,0", "0,0,5,1,1,a,long", *rows]) + "\n")


def _no_seconds(raw: Path, pattern: str) -> None:
    for path in raw.glob(pattern):
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(row.rpartition(",")[0] + "," for row in rows)]) + "\n")


def test_a_label_may_also_be_read_in_sequences(tmp_path: Path) -> None:
    """What came of an impression is known of past ones."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        recipe["features"][3]["columns"].append("click")
        recipe["behaviours"][0]["where"] = "page >= 0 OR click = 1"
        recipe["sequences"]["attributes"].append("click")

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert store.vocabulary("click").column("value").to_pylist() == ["0", "1"]
    assert sorted(store.events("click").context["click"].tolist()) == [2] * 15 + [3] * 15
    train = store.examples("train")
    assert (train.context["click"] - 2).tolist() == train.labels["click"].tolist()


def test_what_means_missing_for_a_number_is_missing_there_only(tmp_path: Path) -> None:
    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        (raw / "items.csv").write_text(
            "item,price,stock,shelf\n-1,-1,-1.0,-1\n0,5,-1,2\n1,-1.0,3,-1\n2,,none,7\n3,5,3,7\n"
        )
        recipe["features"][2]["null_values"] = ["-1"]
        recipe["features"].append(
            {"side": "item", "encoding": "quantile", "columns": ["stock"], "null_values": ["none"]}
        )
        recipe["features"].append({"side": "item", "encoding": "index", "columns": ["shelf"]})

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    store = Store(tmp_path / "store")
    assert store.item_keys.to_pylist() == [-1, 0, 1, 2, 3]
    ids = dict(zip(store.columns_of("item"), store.item_ids.T.tolist(), strict=True))
    assert [id_ == 1 for id_ in ids["price"]] == [True, False, True, True, False]
    assert [id_ == 1 for id_ in ids["stock"]] == [False, False, False, True, False]
    assert 1 not in ids["shelf"] and "-1" in store.vocabulary("shelf").column("value").to_pylist()
    recipe, raw = kiosk(
        tmp_path / "bad", lambda raw, recipe: (edit(raw, recipe), add("items.csv", "9,dear,3,1")(raw, recipe))
    )
    with pytest.raises(UserError, match=r"items\.csv, line 7: price is not a number"):
        build_store(recipe, raw, tmp_path / "bad" / "store", QUIET)
