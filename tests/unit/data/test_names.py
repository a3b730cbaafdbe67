"""A column may have any name: it works to the end, or the recipe is refused, and nothing else depends on it."""

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from data_fixtures import QUIET
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe, safe_name
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.data.inspect.stats import store_stats
from infnet_rec.data.store import SPLITS, Store
from infnet_rec.errors import UserError
from infnet_rec.schema import NAMES_OF_MODULES, Feature, Schema, Table, Task
from properties import num_examples

DAY_S = 86_400
# Of torch's modules, of the build's own tables, of SQL, of DuckDB, of the store, and such as people give.
ODD = [
    *("type", "keys", "update", "kind", "training", "forward", "values", "to", "half", "T_destination", "__init__"),
    *("time", "split", "position", "user_key", "item_key", "example_", "bad_", "file_", "line_", "is_click", "user"),
    *("label_click", "context_x", "item", "key", "index", "weight", "ids", "starts", "seen_click", "r", "s", "w", "v0"),
    *("select", "order", "group", "null", "true", "from", "join", "user_id:token", "price:float", "a.b", "a b", "a-b"),
    *(
        "-x",
        "_",
        "0",
        "1e5",
        "größe",
        "价格",
        "né\u0301e",
        "it's",
        'say "so"',
        "a,b",
        "50%",
        "$x",
        "{y}",
        "x;--",
        "/etc",
    ),
    *("..", "a/b", "a\\b", "C:", "con", "own", "rows", "log", "x" * 100, "seq_item_id", "column 1", "unnest(1)", "*"),
]
ROLES = ("user", "item", "time", "label", "user feature", "item feature", "context feature", "context feature 2")


def world(names: Sequence[str], seed: int = 0) -> dict[str, list[list[str]]]:
    """A log and its sides, whose columns have these names in the order of `ROLES`; the cells do not depend on them."""
    user, item, time, label, of_user, of_item, context, second = names
    draw = random.Random(seed)
    log = [[user, item, time, label, context, second]]
    for k in range(48):
        row = [k % 5, draw.randrange(6), k * DAY_S // 12, draw.randrange(2), f"c{draw.randrange(3)}", draw.randrange(9)]
        log.append([*map(str, row)])
    users = [[user, of_user], *([str(k), f"u{k % 3}"] for k in range(5))]
    items = [[item, of_item], *([str(k), f"i{k % 4}"] for k in range(6))]
    return {"log.csv": log, "users.csv": users, "items.csv": items}


def recipe_of(names: Sequence[str], given_names: Sequence[str | None] = (None,) * 4) -> dict[str, Any]:
    user, item, time, label, *columns = names
    features = [("user", "index"), ("item", "index"), ("context", "index"), ("context", "hash")]
    return {
        "name": "named",
        "licence": "made up",
        "log": {
            "files": ["log.csv"],
            "user": user,
            "item": item,
            "time": time,
            "time_unit": "s",
            "earliest": "1970-01-01T00:00:00",
        },
        "sides": {
            "user": [{"files": ["users.csv"], "key": user}],
            "item": [{"files": ["items.csv"], "key": item}],
        },
        "features": [
            {"side": side, "encoding": encoding, "columns": [column], "buckets": 4 if encoding == "hash" else None}
            | ({} if name is None else {"name": name})
            for (side, encoding), column, name in zip(features, columns, given_names, strict=True)
        ],
        "behaviours": [{"name": "click", "where": '"' + label.replace('"', '""') + '" = 1'}],
        "sequences": {"attributes": [given_names[1] or safe_name(columns[1])]},
        "tasks": [{"name": "click", "label": label}],
        "splits": {name: f"1970-01-0{1 + k}T00:00:00" for k, name in enumerate(("train", "valid", "test", "end"))},
    }


def built(names: Sequence[str], folder: Path) -> Store:
    """Raises a Fault where the recipe or the build refuses the names."""
    recipe = validate_model(Recipe, recipe_of(names), "named.toml")
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for name, rows in world(names).items():
        with (raw / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    build_store(recipe, raw, folder / "store", QUIET)
    return Store(folder / "store")


def contents(store: Store) -> list[np.ndarray]:
    """All that the store holds, without a name."""
    arrays = [store.user_ids, store.item_ids, store.starts, store.events("click").item_E, store.events("click").time_E]
    for split in SPLITS:
        examples = store.examples(split)
        arrays += [examples.user_N, examples.item_N, examples.time_N, *examples.context.values()]
        arrays += [*examples.labels.values(), *examples.seen.values()]
    return arrays


PLAIN = ("uid", "iid", "at", "clicked", "city", "shelf", "page", "mark")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return contents(built(PLAIN, tmp_path_factory.mktemp("plain")))


any_name = st.one_of(
    st.sampled_from(ODD), st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=12)
)


@settings(
    max_examples=num_examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(any_name, min_size=8, max_size=8, unique_by=str.strip))
@example(["user_id:token", "item_id:token", "timestamp:float", "label:float", "age", "type", "keys", "update"])
@example(["time", "position", "split", "bad_", "user_key", "item_key", "example_", "line_"])
@example(["click", "r", "s", "is_click", "label_click", "w", "context_mark", "file_"])
def test_what_a_column_is_called_changes_nothing_else(plain: list[np.ndarray], names: list[str]) -> None:
    """The store is the same, or the names are refused with a Fault."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = built(names, Path(folder))
        except UserError as fault:
            refused = str(fault)
            assert any(why in refused for why in WHY_REFUSED), (names, refused)
            return
        for a, b in zip(contents(store), plain, strict=True):
            assert np.array_equal(a, b)
        assert check_store(store) == []
        features = [f.name for f in store.schema.features]
        assert features == [safe_name(n) for n in names[4:]]
        shown = describe_example(store, "test", 0, 5)
        assert sorted(f["feature"] for f in shown["features"]) == sorted(features)
        assert json.dumps(store_stats(store, lambda _: None))


WHY_REFUSED = (
    "differ by case only",
    "is declared",
    "would both be feature",
    "uses for its own",
    "empty name",
    "rename one",
    "blank",
)


def test_no_odd_name_is_refused(tmp_path: Path, plain: list[np.ndarray]) -> None:
    """The test above would pass if all were; here four at a time are features, and no two of them meet."""
    different = list({safe_name(name).lower(): name for name in ODD}.values())
    num_groups = -(-len(different) // 4)
    for k in range(num_groups):
        group = different[k::num_groups]
        store = built([*PLAIN[:4], *group, *PLAIN[4 + len(group) :]], tmp_path / str(k))
        assert all(np.array_equal(a, b) for a, b in zip(contents(store), plain, strict=True)), group


REFUSED = {
    "two that meet": ({"context": ["a b", "a.b"]}, "'a b' and 'a.b' would both be feature 'a_b'"),
    "two that meet across": ({"user": ["a b"], "item": ["a:b"]}, "feature 'a_b' is declared 2 times"),
    "both sides": ({"user": ["id"], "item": ["id"]}, "feature 'id' is declared 2 times"),
    "case": ({"user": ["Age"], "context": ["age"]}, "features 'Age' and 'age' differ by case only|'age' and 'Age'"),
    "length": ({"user": ["x" * 101]}, "feature 'x{40}': its name has 101 characters"),
    "nothing": ({"user": [""]}, "empty name"),
    "a sequence": ({"user": ["seq_click_shelf"]}, "would be 'seq_click_shelf', as a feature is"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_meet_are_refused_by_the_recipe(case: str) -> None:
    extra, said = REFUSED[case]
    recipe = recipe_of(PLAIN)
    recipe["features"] += [{"side": side, "encoding": "index", "columns": c} for side, c in extra.items()]
    with pytest.raises(UserError, match=said):
        validate_model(Recipe, recipe, "named.toml")


def test_sequences_of_one_name_are_refused_by_the_recipe() -> None:
    """`a` and `b_shelf`, `a_b` and `shelf`; and a table of their own that a feature is called after."""
    recipe = recipe_of(PLAIN)
    recipe["behaviours"] = [{"name": name, "where": "clicked = 1"} for name in ("a", "a_b")]
    recipe["features"] += [{"side": "item", "encoding": "index", "columns": ["iid"], "name": "b_shelf"}]
    recipe["sequences"]["attributes"] = ["shelf", "b_shelf"]
    with pytest.raises(UserError, match=r"'b_shelf' of behaviour 'a'|'shelf' of behaviour 'a_b'"):
        validate_model(Recipe, recipe, "named.toml")
    recipe = recipe_of(PLAIN)
    recipe["features"] += [{"side": "user", "encoding": "index", "columns": ["uid"], "name": "seq_shelf"}]
    validate_model(Recipe, recipe, "named.toml")
    recipe["sequences"]["share_tables"] = False
    with pytest.raises(UserError, match="feature 'seq_shelf' has the name of the table of sequence attribute 'shelf'"):
        validate_model(Recipe, recipe, "named.toml")


def test_no_table_is_called_like_a_part_of_a_module() -> None:
    """Whatever the installed torch has; features keep their names, and a store of an earlier version is read so too."""
    own = [name for name in dir(nn.ModuleDict()) if not name.startswith("__")]
    assert set(own) <= NAMES_OF_MODULES
    names = [*dir(nn.ModuleDict()), "type_table", "plain"]
    schema = Schema(
        tuple(Table(name, 9) for name in names),
        tuple(Feature(name, name, "user") for name in names),
        (),
        (Task("click", "click"),),
    )
    read = Schema.from_json(schema.to_json())
    assert read == schema.with_free_table_names() == read.with_free_table_names()
    assert [f.name for f in read.features] == names
    modules = nn.ModuleDict()
    for table in read.tables:
        modules[table.name] = nn.Identity()
    assert len(modules) == len(names)
    assert [t.name for t in read.tables if t.name in ("type_table", "plain")] == ["type_table", "plain"]
    assert {f.name: f.table for f in read.features}["type"] == "type_table_table"


COMMANDS: dict[str, list[str]] = {
    "check": ["data", "check", "{store}"],
    "show": ["data", "show", "{store}"],
    "stats": ["data", "stats", "{store}"],
    "model": ["model", "{run}"],
    "plan": ["plan", "{run}", "-j", "1x2", "--hardware", "h100"],
    "train": ["train", "{run}", "--run-dir", "{dir}/run"],
    "resume": ["train", "{run}", "--run-dir", "{dir}/run", "--set=train.num_epochs=2"],
    "eval": ["eval", "{dir}/run"],
    "attention": ["attention", "{run}", "--checkpoint", "{dir}/run", "--out", "{dir}/attention"],
    "experiment": ["experiment", "{experiment}", "--out", "{dir}/experiment"],
}


@pytest.mark.slow
def test_every_command_takes_every_name(tmp_path: Path) -> None:
    """All odd names as features of one store, on all three sides, with a managed table among them."""
    names = list({safe_name(name).lower(): name for name in ODD}.values())
    raw, recipe = tmp_path / "raw", recipe_of(PLAIN)
    raw.mkdir()
    tables = world(PLAIN)
    sides = {"log.csv": names[::3], "users.csv": names[1::3], "items.csv": names[2::3]}
    for file, extra in sides.items():
        rows = tables[file]
        rows[0] += extra
        for k, row in enumerate(rows[1:]):
            row += [str((k * 7 + place) % 3) for place in range(len(extra))]
        with (raw / file).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows)
    for side, file in (("user", "users.csv"), ("item", "items.csv"), ("context", "log.csv")):
        recipe["features"].append({"side": side, "encoding": "index", "columns": sides[file]})
    recipe["features"].append(
        {"side": "user", "encoding": "hash", "columns": ["uid"], "name": "zero_grad", "buckets": 8}
    )
    recipe["sequences"]["attributes"] += [safe_name(name) for name in (*sides["items.csv"][:6], *sides["log.csv"][:6])]
    store = tmp_path / "store"
    build_store(validate_model(Recipe, recipe, "named.toml"), raw, store, QUIET)
    run, experiment = tmp_path / "run.toml", tmp_path / "experiment.toml"
    run.write_text(
        f'[data]\nstore = "{store}"\nsequence_length = 3\n[model]\nwidth = 4\n[train]\nglobal_batch_size = 4\n'
        '[model.tables.zero_grad_table]\nkind = "managed"\nrows = 4\ninterval_steps = 1\n'
    )
    experiment.write_text(
        f'base = "{run}"\nseeds = [1]\n[[variants]]\nname = "din"\nset = [\'model={{name="din", width=4}}\']\n'
    )
    for name, words in COMMANDS.items():
        words = [w.format(store=store, run=run, dir=tmp_path, experiment=experiment) for w in words]
        done = subprocess.run(
            [sys.executable, "-m", "infnet_rec.cli", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (name, done.stderr[-3000:])
