"""`infnet-rec data show` against the raw files, and the exit codes of the data verbs."""

import json
import random
import re
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from data_fixtures import ROOT, Dataset
from infnet_rec import cli
from infnet_rec.data.inspect.show import describe_example
from infnet_rec.errors import UserError
from slow_reference import NULL, SPLITS, UNSEEN, Key, Reference, Row

SHOWN = 4
TOLERANCE = 1e-5  # borders are shown with six digits


@pytest.fixture(scope="module", params=["shop", pytest.param("real", marks=pytest.mark.real)])
def data(request: pytest.FixtureRequest) -> Dataset:
    return request.getfixturevalue(request.param)


def local_time(reference: Reference, instant: int) -> str:
    offset = timedelta(hours=reference.log["utc_offset_hours"])
    return f"{datetime(1970, 1, 1) + timedelta(seconds=instant // reference.ticks) + offset:%Y-%m-%d %H:%M:%S}"


def assert_means(shown: dict[str, Any], reference: Reference, name: str, text: str | float | None) -> None:
    """A shown id and value are those of a raw cell, or of a number."""
    if text is None:
        assert (shown["id"], shown["value"]) == (NULL, "(null)"), name
    elif isinstance(text, str):
        known = text in reference.vocabularies[name]
        assert shown["value"] == (text if known else "(never seen in training)"), name
        assert (shown["id"] == UNSEEN) is not known
    elif text == 0:
        assert shown["value"] == "0"
    else:
        low, high = map(float, re.fullmatch(r"\[(.+), (.+)\)", shown["value"]).groups())
        slack = TOLERANCE * abs(text)
        assert low - slack <= text < high + slack, name


def raw_value(reference: Reference, name: str, key: Key) -> str | float | None:
    """A side feature as the raw file has it: text, number, or None for null."""
    if reference.features[name][0]["encoding"] == "quantile":
        return reference.number(name, key)
    return reference.value(name, reference.cell(name, key))


def raw_row(shown: dict[str, Any], reference: Reference) -> Row:
    """The row of the log that is shown; of near twins the one with the same context."""
    values = {f["feature"]: f["value"] for f in shown["features"]}
    names = reference.texts_of_context
    for row in reference.by_user[shown["user"]]:
        if (row.item, row.time, row.labels) == (shown["item"], shown["time"], tuple(shown["labels"].values())):
            texts = [reference.value(n, text) for n, text in zip(names, row.context, strict=True)]
            if all(
                values[n] in (text or "(null)", "(never seen in training)")
                for n, text in zip(names, texts, strict=True)
            ):
                return row
    raise AssertionError(f"no such row in the log: {shown}")


@pytest.mark.parametrize("split", SPLITS)
def test_an_example_is_shown_as_the_raw_files_have_it(data: Dataset, split: str) -> None:
    store, reference = data.store, data.reference
    last = store.num_examples(split) - 1
    for number in (0, last, *random.Random(split).sample(range(last), 6)):
        shown = describe_example(store, split, number, SHOWN)
        assert json.loads(json.dumps(shown)) == shown
        row = raw_row(shown, reference)
        assert (shown["split"], shown["row"]) == (split, number) and row.split == split
        assert shown["labels"] == dict(zip(reference.tasks, row.labels, strict=True))
        assert shown["local_time"] == local_time(reference, row.time)
        assert [f["feature"] for f in shown["features"]] == [
            name
            for side in ("user", "item", "context")
            for name, (f, _) in reference.features.items()
            if f["side"] == side
        ]
        for feature in shown["features"]:
            name, side = feature["feature"], feature["side"]
            if side != "context":
                assert_means(feature, reference, name, raw_value(reference, name, getattr(row, side)))
            elif name in reference.texts_of_context:
                text = row.context[reference.texts_of_context.index(name)]
                assert_means(feature, reference, name, reference.value(name, text))
            else:
                clock = datetime.fromisoformat(shown["local_time"])
                assert feature["value"] == str(clock.hour if name == "hour" else clock.weekday())
        assert_histories(shown["histories"], reference, row)


def assert_histories(histories: dict[str, Any], reference: Reference, row: Row) -> None:
    assert list(histories) == reference.behaviours
    for behaviour, history in histories.items():
        expected = reference.history(behaviour, row.user, row.time)
        assert history["num_events"] == len(expected)
        assert [(e["time"], e["item"]) for e in history["shown"]] == [(e.time, e.item) for e in expected[-SHOWN:]]
        for event in history["shown"]:
            assert event["local_time"] == local_time(reference, event["time"])
            assert list(event["attributes"]) == reference.recipe["sequences"]["attributes"]
            for name, attribute in event["attributes"].items():
                assert_means(attribute, reference, name, raw_value(reference, name, event["item"]))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in this process: arguments to exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infnet-rec", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (left.value.code or 0, *capsys.readouterr())

    return run


def test_show_prints_json(shop: Dataset, run: Any) -> None:
    code, out, err = run("data", "show", shop.store.path, "--split=test", "--row=7", "--sequence-length=2", "--json")
    assert (code, err) == (0, "") and out.count("\n") == 1
    assert json.loads(out) == describe_example(shop.store, "test", 7, 2)


def test_show_prints_all_of_it_for_people(shop: Dataset, run: Any) -> None:
    """Some row with a history: every value and id stands in the text."""
    examples = shop.store.examples("valid")
    number = int(examples.seen["look"].argmax())
    code, out, err = run("data", "show", shop.store.path, "--split", "valid", "--row", number)
    example, lines = describe_example(shop.store, "valid", number, 10), out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith(
        f"valid row {number}: user {example['user']} was shown item {example['item']} at 2023-11-2"
    )
    assert lines[1] == "labels: " + "  ".join(f"{task} {label}" for task, label in example["labels"].items())
    for feature in example["features"]:
        assert [feature["feature"], str(feature["id"]), *feature["value"].split()] in map(str.split, lines)
    look = example["histories"]["look"]
    start = lines.index(f"look: {look['num_events']} events before, the last 10 shown, newest last") + 1
    assert look["num_events"] > 10
    for line, event in zip(lines[start : start + 10], look["shown"], strict=True):
        assert line.startswith(f"  {event['local_time']}  item {event['item']}: sku=")
        assert all(f"{name}={a['value']} ({a['id']})" in line for name, a in event["attributes"].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=valid", "--row=1000"], r"fault: --row 1000: split valid of .*store has rows 0 to \d+\n"),
        (["--row=-1"], r"fault: --row -1: split train of .*store has rows 0 to \d+\n"),
        (["--row=one"], r"Invalid value for '--row': .*integer"),
        (["--sequence-length=0"], r"Invalid value for '--sequence-length': .*1"),
        (["--split=vlid"], r"fault: split 'vlid': is one of train, valid, test \(did you mean 'valid'\?\)\n"),
    ],
)
def test_what_cannot_be_shown_is_said_with_code_2(shop: Dataset, run: Any, options: list[str], message: str) -> None:
    code, out, err = run("data", "show", shop.store.path, *options)
    assert (code, out) == (2, "") and re.search(message, err), err


def test_an_unknown_profile_is_said_with_code_2(shop: Dataset, run: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"profile 'no_contxt' .*\(it has all, no_context\) \(did you mean 'no_context'\?\)"
    ):
        shop.store.profile_schema("no_contxt")
    settings = [f"--set=data.store={shop.store.path}", "--set=data.profile=no_contxt", f"--run-dir={tmp_path / 'run'}"]
    code, out, err = run("train", ROOT / "configs" / "quickstart.toml", *settings)
    assert (code, out) == (2, "") and "fault: profile 'no_contxt' is not in store" in err
    assert not (tmp_path / "run").exists()
    names = [f.name for f in shop.store.profile_schema("no_context").features]
    assert names == [f.name for f in shop.store.schema.features if f.side != "context"]


def test_build_check_and_show_agree_on_exit_codes(run: Any, tmp_path: Path) -> None:
    (raw := tmp_path / "raw").mkdir()
    recipe, store = ROOT / "configs" / "datasets" / "kuairand_pure.toml", tmp_path / "store"
    code, out, err = run("data", "build", recipe, "--raw", raw, "--out", store)
    assert (code, out) == (2, "") and err.count("no such file") == 6 and not store.exists()
    code, _, err = run("data", "check", store)
    assert code == 2 and "store: holds no manifest.json; make a store with 'infnet-rec data build'" in err
    code, _, err = run("data", "show", store)
    assert code == 2 and "holds no manifest.json" in err


def test_check_says_no_with_code_3(shop: Dataset, run: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(shop.store.path, store)
    code, out, _ = run("data", "check", store, "--json")
    assert code == 0 and json.loads(out) == {"store": str(store), "files": 17, "ok": True, "faults": []}
    items = store / "items.arrow"
    items.write_bytes(items.read_bytes()[::-1])
    code, out, _ = run("data", "check", store)
    assert code == 3 and re.search(r"is not what its manifest says\n  items\.arrow: sha256", out)
    code, out, _ = run("data", "check", store, "--json")
    assert code == 3 and json.loads(out)["ok"] is False and "items.arrow" in json.loads(out)["faults"][0]
