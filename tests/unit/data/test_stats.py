"""`infnet-rec data stats` against plain loops over the raw files, and its text, JSON and picture."""

import json
import math
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_fixtures import QUIET, Dataset
from infnet_rec import cli
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.inspect import counters, plot
from infnet_rec.data.inspect import stats as stats_module
from infnet_rec.data.inspect import stats_text as command
from infnet_rec.data.inspect.check import check_store
from infnet_rec.data.inspect.counters import Distribution
from infnet_rec.data.inspect.stats import store_stats
from infnet_rec.data.store import Store, as_numpy, hash_files, read_arrow, write_arrow
from kiosk import kiosk
from slow_reference import NULL, SPLITS, UNSEEN, Reference


def report_of(store: Store) -> dict[str, Any]:
    heard = []
    report = store_stats(store, heard.append)
    assert sum(heard) == counters.rows_to_read(store)
    return json.loads(json.dumps(report))


@pytest.fixture(scope="module")
def report(shop: Dataset) -> dict[str, Any]:
    return report_of(shop.store)


def nearest_rank(numbers: list[int], percent: int) -> int:
    """The percentile of textbooks: the smallest number with so many at or below it."""
    return sorted(numbers)[max(1, math.ceil(percent * len(numbers) / 100)) - 1]


def summary(numbers: list[int]) -> dict[str, float]:
    percentiles = {f"p{percent}": nearest_rank(numbers, percent) for percent in (50, 90, 95, 99)}
    return {"mean": pytest.approx(sum(numbers) / len(numbers)), **percentiles, "max": max(numbers)}


def test_splits_and_popularity_are_those_of_the_raw_rows(shop: Dataset, report: dict[str, Any]) -> None:
    reference, keys = shop.reference, ("user", "item")
    rows = {split: list(reference.rows_of(split)) for split in SPLITS}
    in_training = {key: {getattr(row, key) for row in rows["train"]} for key in keys}
    for split in SPLITS:
        facts, mine = report["splits"][split], rows[split]
        assert facts["num_examples"] == len(mine)
        assert facts["positives"] == {
            task: sum(row.labels[k] for row in mine) for k, task in enumerate(reference.tasks)
        }
        for task, number in facts["positives"].items():
            assert facts["label_rates"][task] == pytest.approx(number / len(mine))
        for key in keys:
            assert facts[f"num_{key}s"] == len({getattr(row, key) for row in mine})
            new = sum(getattr(row, key) not in in_training[key] for row in mine)
            assert facts[f"new_{key}_share"] == pytest.approx(new / len(mine))
    assert report["splits"]["test"]["new_user_share"] > report["splits"]["train"]["new_user_share"] == 0
    for key in keys:
        counts = Counter(getattr(row, key) for split in SPLITS for row in rows[split])
        numbers, facts = list(counts.values()), report[f"examples_per_{key}"]
        assert facts.items() >= summary(numbers).items()
        assert (facts["num"], facts["num_without"]) == (len(counts), report[f"num_{key}s"] - len(counts))
        top = sorted(numbers)[-math.ceil(len(numbers) / 10) :]
        assert facts["top_10_percent_share"] == pytest.approx(sum(top) / sum(numbers))
        assert facts["curve_by_rank"][0] == [1, max(numbers)]
        assert facts["curve_by_rank"][-1] == [len(numbers), min(numbers)]


def test_histories_and_tokens_are_those_of_the_raw_rows(shop: Dataset, report: dict[str, Any]) -> None:
    reference, attributes = shop.reference, shop.recipe["sequences"]["attributes"]
    tokens, copied = dict.fromkeys(("20", "50", "100", "200"), 0.0), dict.fromkeys(("20", "50", "100", "200"), 0.0)
    for name in reference.behaviours:
        facts = report["histories"][name]
        assert facts["num_events"] == sum(map(len, reference.events[name].values()))
        assert facts["attributes"] == attributes
        for split in SPLITS:
            lengths = [len(reference.history(name, row.user, row.time)) for row in reference.rows_of(split)]
            assert facts[split].items() >= summary(lengths).items()
            assert facts[split]["empty_share"] == pytest.approx(lengths.count(0) / len(lengths))
            for value, share in facts[split]["curve_at_least"]:
                assert share == pytest.approx(sum(length >= value for length in lengths) / len(lengths))
            for limit in tokens:
                cut = sum(min(length, int(limit)) for length in lengths) * len(attributes)
                copied[limit] += 4 * cut / report["num_examples"]
                tokens[limit] += cut / len(lengths) if split == "train" else 0
    assert report["tokens_per_example"] == pytest.approx(tokens)
    assert report["disk"]["copied_history_bytes_per_example"] == pytest.approx(copied)


def is_null_and_unseen(reference: Reference, name: str, row: Any) -> tuple[bool, bool]:
    feature = reference.features[name][0]
    if feature["encoding"] in ("hour_of_day", "day_of_week"):
        return False, False
    if feature["encoding"] == "quantile":
        return reference.number(name, getattr(row, feature["side"])) is None, False
    if feature["side"] == "context":
        text = row.context[reference.texts_of_context.index(name)]
    else:
        text = reference.cell(name, getattr(row, feature["side"]))
    id_ = reference.text_id(name, text)
    return id_ == NULL, id_ == UNSEEN


def test_null_and_never_seen_shares_are_those_of_the_raw_rows(shop: Dataset, report: dict[str, Any]) -> None:
    reference, some = shop.reference, Counter()
    assert [f["feature"] for f in report["features"]] == list(reference.features)
    for facts in report["features"]:
        name = facts["feature"]
        for split in SPLITS:
            answers = [is_null_and_unseen(reference, name, row) for row in reference.rows_of(split)]
            for key, answer in zip(("null_share", "unseen_share"), zip(*answers, strict=True), strict=True):
                assert facts[key][split] == pytest.approx(sum(answer) / len(answer)), (name, split, key)
                some[key] += 0 < sum(answer) < len(answer)
    assert min(some.values()) > 5


def test_tables_memory_and_disk_add_up(shop: Dataset, report: dict[str, Any]) -> None:
    rows = {name: 2 + len(vocabulary) for name, vocabulary in shop.reference.vocabularies.items()}
    tables = {table["table"]: table for table in report["tables"]}
    for name, number in rows.items():
        assert tables[name]["num_rows"] == number
    assert {name for name, t in tables.items() if t["looked_up_by_sequences"]} == {"seq_sku", "seq_shelf", "seq_price"}
    assert tables["seq_sku"]["num_sequences"] == 2 and tables["sku"]["features"] == ["sku"]
    total = sum(table["num_rows"] for table in report["tables"])
    assert report["memory"]["num_rows"] == total
    for width, facts in report["memory"]["by_width"].items():
        assert facts["total_gib"] * 2**30 == pytest.approx(total * (4 * int(width) + 4))
    files = list(shop.store.path.rglob("*.arrow"))
    assert report["disk"]["bytes"] == sum(file.stat().st_size for file in files)
    events = sum(file.stat().st_size for file in files if file.parent.name == "events")
    assert report["disk"]["bytes_by_part"]["events"] == events
    # Two behaviours: an example keeps four bytes for each.
    assert report["disk"]["history_bytes_per_example"] == pytest.approx(events / report["num_examples"] + 8)


def test_days_are_local_and_hold_every_example(shop: Dataset, report: dict[str, Any]) -> None:
    log, periods = shop.recipe["log"], report["periods"]
    for split in SPLITS:
        days = Counter(
            str(np.datetime64(row.time + log["utc_offset_hours"] * 3600, "s"))[:10]
            for row in shop.reference.rows_of(split)
        )
        found = zip(periods["starts"], periods["splits"][split]["num_examples"], strict=True)
        assert {day: number for day, number in found if number} == dict(days)
        assert report["splits"][split]["first"].startswith(min(days))
        positives = periods["splits"][split]["positives"]
        assert {task: sum(numbers) for task, numbers in positives.items()} == report["splits"][split]["positives"]


def test_chunks_do_not_show(shop: Dataset, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "CHUNK_EXAMPLES", 7)
    monkeypatch.setattr(stats_module, "CHUNK_EXAMPLES", 4)
    monkeypatch.setattr(counters, "CHUNK_SIDE_ROWS", 3)
    assert report_of(shop.store) == report


def with_tags(shop: Dataset, folder: Path, tags: dict[int, list[int]]) -> Store:
    """The shop with an item feature of up to three values, in a log without time."""
    path = folder / "store"
    shutil.copytree(shop.store.path, path)
    items = read_arrow(path / "items.arrow")
    ids = as_numpy(items, "ids").copy()
    tag_ids = [[*tags.get(k, [2]), -1, -1, -1][:3] for k in range(len(ids))]
    ids = np.concatenate([ids, np.array(tag_ids, np.int32)], axis=1)
    columns = {"key": items.column("key"), "ids": ids}
    (path / "items.arrow").unlink()
    write_arrow(path / "items.arrow", columns)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["columns"]["item"] += ["tags"] * 3
    manifest["encodings"]["tags"], manifest["order"] = "index", "file"
    manifest["schema"]["tables"].append({"name": "tags", "num_rows": 9})
    manifest["schema"]["features"].append({"name": "tags", "table": "tags", "side": "item", "max_values": 3})
    manifest["log"] |= {"first": None, "last": None}
    manifest["files"] |= hash_files(path, ["items.arrow"])
    (path / "manifest.json").write_text(json.dumps(manifest))
    return Store(path)


def test_a_feature_of_several_values_and_a_log_without_time(shop: Dataset, tmp_path: Path) -> None:
    tags = {0: [1], 1: [0], 2: [0, 0], 3: [0, 5], 4: [2, 0, 3], 5: [8, 7, 6], 6: [1]}
    store = with_tags(shop, tmp_path, tags)
    report = report_of(store)
    facts = next(f for f in report["features"] if f["feature"] == "tags")
    for split in SPLITS:
        items = read_arrow(store.path / "examples" / f"{split}.arrow").column("item").to_pylist()
        assert facts["null_share"][split] == pytest.approx(sum(i in (0, 6) for i in items) / len(items)) != 0
        assert facts["unseen_share"][split] == pytest.approx(sum(i in (1, 2) for i in items) / len(items)) != 0
        mean = sum(len(tags.get(i, [2])) for i in items) / len(items)
        assert facts["values_per_example"][split] == pytest.approx(mean)
    assert report["order"] == report["periods"]["unit"].replace("rows", "file") == "file"
    times = [store.examples(split).time_N for split in SPLITS]
    assert report["splits"]["train"]["first"] == min(times[0]) and report["splits"]["test"]["last"] == max(times[2])
    periods = report["periods"]
    assert len(periods["starts"]) <= 100 and periods["starts"][0] == min(times[0])
    for split, time_N in zip(SPLITS, times, strict=True):
        counts = Counter((int(t) - periods["starts"][0]) // periods["length"] for t in time_N)
        assert periods["splits"][split]["num_examples"] == [counts[k] for k in range(len(periods["starts"]))]
    text = "\n".join(command.stats_lines(report))
    assert "2023" not in text and "in the order of their files" in text and "rows of the log: median" in text
    assert f"tags: {facts['values_per_example']['train']:.2f} values an example" in text
    plot.draw_stats(report, tmp_path / "file.png")
    assert (tmp_path / "file.png").stat().st_size > 10_000
    assert check_store(store) == []


def test_an_id_below_an_empty_place_is_outside_its_table(shop: Dataset, tmp_path: Path) -> None:
    faults = check_store(with_tags(shop, tmp_path, {5: [3, -2]}))
    assert faults == ["items.arrow: tags: has ids -1 to 3, but table 'tags' has rows 0 to 8"]


@pytest.mark.slow(smoke=["nothing"])
@pytest.mark.parametrize("left_out", ["nothing", "no behaviours", "no user features", "no item features"])
def test_a_store_may_lack_a_kind_of_column(left_out: str, tmp_path: Path) -> None:
    """The kiosk has a behaviour that never happens, too."""

    def edit(raw: Path, recipe: dict[str, Any]) -> None:
        if left_out in ("no behaviours", "no item features"):
            del recipe["behaviours"], recipe["sequences"]
        side = left_out.removeprefix("no ").removesuffix(" features")
        recipe["features"] = [f for f in recipe["features"] if f["side"] != side]

    recipe, raw = kiosk(tmp_path, edit)
    build_store(recipe, raw, tmp_path / "store", QUIET)
    report = report_of(Store(tmp_path / "store"))
    text = "\n".join(command.stats_lines(report))
    if "no behaviours" in text:
        assert report["histories"] == {} and report["disk"]["history_bytes_per_example"] == 0
    else:
        assert report["histories"]["never"]["train"]["empty_share"] == 1
    assert ("no behaviours" in text) is (left_out in ("no behaviours", "no item features"))
    plot.draw_stats(report, tmp_path / "kiosk.png")
    assert (tmp_path / "kiosk.png").stat().st_size > 10_000


@pytest.mark.parametrize("seed", range(20))
def test_distributions_are_those_of_the_sorted_numbers(seed: int) -> None:
    draw = random.Random(seed)
    numbers = [int(draw.paretovariate(0.6)) - draw.randrange(2) for _ in range(draw.choice([1, 2, 7, 100, 1000]))]
    found = Distribution.of(np.array_split(np.array(numbers), 3 if len(numbers) > 2 else 1))
    assert (found.num, found.sum, found.num_zero) == (len(numbers), sum(numbers), numbers.count(0))
    assert found.summary() == summary(numbers)
    for percent in (1, 10, 50, 100):
        top = sorted(numbers)[-math.ceil(percent * len(numbers) / 100) :]
        assert found.top_share(percent) == pytest.approx(sum(top) / max(1, sum(numbers)))
    assert found.truncated_mean(3) == pytest.approx(sum(min(n, 3) for n in numbers) / len(numbers))
    tail, ranked = found.tail(15), found.by_rank(15)
    assert len(tail) <= 15 and [tail[0][0], tail[-1][0]] == [min(numbers), max(numbers)]
    assert all(share == pytest.approx(sum(n >= value for n in numbers) / len(numbers)) for value, share in tail)
    assert len(ranked) <= 15 and all(sorted(numbers)[-rank] == number for rank, number in ranked)
    assert ranked[-1][0] == len(numbers)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infnet-rec", "data", "stats", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (left.value.code or 0, *capsys.readouterr())

    return run


def test_text_holds_the_numbers_on_one_screen(shop: Dataset, run: Any) -> None:
    code, out, err = run(shop.store.path)
    lines, report = out.splitlines(), report_of(shop.store)
    assert (code, err) == (0, "") and 30 < len(lines) <= 70 and max(map(len, lines)) <= 130
    rows = [line.split() for line in lines]
    for split, facts in report["splits"].items():
        row = next(row for row in rows if row[:1] == [split])
        assert f"{facts['num_examples']:,}" in row
        assert row[-2:] == [f"{rate:.4f}" for rate in facts["label_rates"].values()]
    look = report["histories"]["look"]
    row = next(row for row in rows if row[:1] == ["look"])
    numbers = [look["num_events"], *(look["train"][key] for key in ("p50", "p90", "p95", "p99", "max"))]
    assert [row[1], *row[3:8]] == list(map(str, numbers)) and row[2] == f"{look['train']['mean']:.2f}"
    customer = next(row for row in rows if row[:2] == ["customer", "user"])
    unseen = next(f for f in report["features"] if f["feature"] == "customer")["unseen_share"]
    assert customer[4:8] == [f"{100 * unseen['valid']:.1f}", "%", f"{100 * unseen['test']:.1f}", "%"]
    assert any("the largest table: hour" in line for line in lines)
