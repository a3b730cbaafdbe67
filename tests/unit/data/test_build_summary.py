"""What a build says at its end: rows, joins, span, and one line for each unusual thing; a join with nothing ends it."""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_fixtures import QUIET
from infnet_rec import cli
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.inspect.stats import store_stats
from infnet_rec.data.inspect.stats_text import stats_lines
from infnet_rec.data.inspect.verbs import summary_lines
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from properties import num_examples

START, DAY = 1_714_521_600, 86_400  # 2024-05-01, a midnight
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "licence": "made up",
    "log": {"files": ["log.csv"], "user": "user", "item": "item", "time": "ts", "time_unit": "s"},
    "sides": {"user": [{"files": ["users.csv"], "key": "id"}]},
    "features": [
        {"side": "user", "encoding": "index", "columns": ["user", "country", "flat", "gone"]},
        {"side": "item", "encoding": "index", "columns": ["item"]},
        {"side": "context", "encoding": "index", "columns": ["tab"]},
    ],
    "behaviours": [{"name": "click", "where": "click = 1"}],
    "sequences": {"attributes": ["item"]},
    "tasks": [{"name": "click", "label": "click"}],
    "splits": {"train": "2024-05-02T00:00:00", "valid": "2024-05-07T00:00:00", "test": "2024-05-08T00:00:00"},
}


def made(
    folder: Path, edit: Callable[[list[list[Any]], list[list[Any]], dict[str, Any]], None] = lambda *_: None
) -> Any:
    """A log of ten days, 20 users and 12 items, and a table of users: its recipe."""
    draw = random.Random(2)
    log = [
        [user, draw.randrange(12), START + int(10 * DAY * draw.random()), draw.randrange(2), draw.choice("ab")]
        for user in range(1, 21)
        for _ in range(60)
    ]
    users = [[user, ["IN", "DE", "BR"][user % 3], 1, ""] for user in range(1, 21)]
    recipe = json.loads(json.dumps(RECIPE)) | {"splits": {**RECIPE["splits"], "end": "2024-05-11T00:00:00"}}
    edit(log, users, recipe)
    for name, header, rows in (("log", "user,item,ts,click,tab", log), ("users", "id,country,flat,gone", users)):
        text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    return validate_model(Recipe, recipe, "tiny.toml")


def test_everything_is_counted_and_told(tmp_path: Path) -> None:
    def edit(log: list[list[Any]], users: list[list[Any]], recipe: dict[str, Any]) -> None:
        del users[15:]
        users += [[100 + k, "US", 1, ""] for k in range(3)]
        recipe["splits"]["end"] = "2024-05-10T12:00:00"

    recipe = made(tmp_path, edit)
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    with (tmp_path / "log.csv").open("a") as file:
        file.write(f"3,4,{START},x,a\n")
    manifest = build_store(recipe, tmp_path, tmp_path / "store", QUIET)
    late = sum(int(row[2]) >= START + 9.5 * DAY for row in rows)
    early = sum(int(row[2]) < START + DAY for row in rows)
    log = manifest["log"]
    assert (log["rows_read"], log["bad"], log["after_end"]) == (1201, 1, late) and late > 0
    assert (log["rows"], log["history_only"]) == (1200 - late, early) and log["first"].startswith("2024-05-01 ")
    (join,) = manifest["joins"]
    kept = [row for row in rows if int(row[2]) < START + 9.5 * DAY]
    assert (join["num_log_keys"], join["num_log_keys_matched"]) == (20, 15)
    assert (join["num_table_keys"], join["num_table_keys_matched"]) == (18, 15)
    assert (join["num_log_rows"], join["num_log_rows_matched"]) == (len(kept), sum(int(r[0]) <= 15 for r in kept))
    assert manifest["flat_features"] == {"gone": "null"}
    assert [line for line in manifest["warnings"] if "left out" in line] == [
        f"{late} rows of the log lie after splits.end and were left out"
    ]
    summary = {"store": "store", "bytes": 1, "wall_s": 1.0, **manifest}
    store = Store(tmp_path / "store")
    for text in ("\n".join(summary_lines(summary)), "\n".join(stats_lines(store_stats(store, lambda _: None)))):
        assert "1,201 rows read, 1 bad" in text and "users.csv: 15 of 20 users" in text
        assert "warning: feature gone: always null in training" in text


UNLIKE: dict[str, tuple[Callable[[int], str], str]] = {
    "zeros in front": (
        lambda user: f"{user:05d}",
        r"id is '0+1' in the table, user is '1' in the log \(zeros in front\)",
    ),
    "blanks": (lambda user: f" {user}", r"id is ' 1\d?' in the table, user is '1\d?' in the log \(blanks around it\)"),
    "a point": (lambda user: f"{user}.50", r"id is '\d+.5\d?' in the table"),
    "other keys": (lambda user: f"{user + 1000}", r"id is '1001' in the table, user is '1' in the log;"),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_table_that_has_no_key_of_the_log_ends_the_build_with_a_key_of_each(kind: str, tmp_path: Path) -> None:
    write, message = UNLIKE[kind]

    def edit(log: list[list[Any]], users: list[list[Any]], recipe: dict[str, Any]) -> None:
        recipe["log"]["id_type"] = "string"
        for row in users:
            row[0] = write(row[0])

    with pytest.raises(
        UserError, match=rf"users\.csv \(user side\): none of its 20 keys is among the log's 20: {message}"
    ):
        build_store(made(tmp_path, edit), tmp_path, tmp_path / "store", QUIET)
    assert not (tmp_path / "store").exists()


def test_a_table_without_rows_is_said_to_have_none(tmp_path: Path) -> None:
    recipe = made(tmp_path, lambda log, users, recipe: users.clear())
    with pytest.raises(UserError, match=r"users\.csv \(user side\): has no usable row"):
        build_store(recipe, tmp_path, tmp_path / "store", QUIET)


@settings(max_examples=num_examples(12), deadline=None)
@given(st.sets(st.integers(1, 30), min_size=1), st.booleans())
def test_joins_are_those_of_the_sets_of_keys(tmp_path_factory: Any, keys: set[int], is_text: bool) -> None:
    folder = tmp_path_factory.mktemp("joins")

    def edit(log: list[list[Any]], users: list[list[Any]], recipe: dict[str, Any]) -> None:
        users[:] = [[key, "IN", 1, 2] for key in sorted(keys, reverse=True)]
        recipe["log"]["id_type"] = "string" if is_text else "int64"

    recipe, both = made(folder, edit), keys & set(range(1, 21))
    if not both:
        with pytest.raises(UserError, match="none of its"):
            build_store(recipe, folder, folder / "store", QUIET)
        return
    (join,) = build_store(recipe, folder, folder / "store", QUIET)["joins"]
    assert (join["num_table_keys"], join["num_log_keys_matched"]) == (len(keys), len(both))
    assert join["num_log_rows_matched"] == 60 * len(both)


UNUSUAL: dict[str, tuple[Callable[[list[list[Any]], list[list[Any]], dict[str, Any]], None], str]] = {
    "midnights": (
        lambda log, users, recipe: [row.__setitem__(2, row[2] // DAY * DAY) for row in log],
        "every time of the log is a midnight",
    ),
    "one label": (
        lambda log, users, recipe: [row.__setitem__(3, 0) for row in log if row[2] >= START + 7 * DAY],
        "task click: every label of test is 0; it cannot be judged there",
    ),
    "few users known": (
        lambda log, users, recipe: users.__delitem__(slice(5, None)),
        r"users.csv \(user side\) lacks 15 of the log's 20 users; its features are null for them",
    ),
    "never": (
        lambda log, users, recipe: recipe["behaviours"][0].update(where="click = 7"),
        "behaviour click never happens",
    ),
    "always": (
        lambda log, users, recipe: recipe["behaviours"][0].update(where="click IN (0, 1)"),
        "behaviour click happens in every row of the log",
    ),
    "constant": (lambda log, users, recipe: [row.__setitem__(4, "a") for row in log], "feature.*tab.*: constant in"),
    "rare": (
        lambda log, users, recipe: recipe["features"][2].update(min_count=10_000),
        "feature tab: never a known value in training",
    ),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_each_unusual_thing_is_one_line(kind: str, tmp_path: Path) -> None:
    edit, message = UNUSUAL[kind]
    usual = build_store(made(tmp_path), tmp_path, tmp_path / "usual", QUIET)["warnings"]
    found = build_store(made(tmp_path, edit), tmp_path, tmp_path / "store", QUIET)["warnings"]
    new = [line for line in found if line not in usual]
    assert any(re.search(message, line) for line in new), (new, usual)
    assert usual == ["feature gone: always null in training", "feature flat: constant in training"]


def test_an_older_store_is_shown_without_what_it_does_not_know(tmp_path: Path) -> None:
    build_store(made(tmp_path), tmp_path, tmp_path / "store", QUIET)
    path = tmp_path / "store" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("log", "joins", "flat_features", "warnings"):
        del manifest[key]
    path.write_text(json.dumps(manifest))
    text = "\n".join(stats_lines(store_stats(Store(tmp_path / "store"), lambda _: None)))
    assert "rows read" not in text and "warning" not in text


def test_json_has_all_of_it(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    made(tmp_path)
    recipe = {**RECIPE, "splits": {"by": "rows_of_each_user", "valid": 0.2, "test": 0.2}}
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in recipe.items())
    (tmp_path / "r.toml").write_text(text)
    words = ["data", "build", f"{tmp_path}/r.toml", f"--raw={tmp_path}", f"--out={tmp_path}/store", "--json"]
    monkeypatch.setattr(sys, "argv", ["infnet-rec", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    result = json.loads(capsys.readouterr().out)
    assert not left.value.code and result["log"]["rows_read"] == 1200 and result["warnings"] and result["joins"]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
