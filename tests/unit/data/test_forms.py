"""The same rows in other physical forms give the same store, and that is what the slow reference says.

Random small logs with every kind of column; NaN, nulls, infinities, huge numbers and cells that are no numbers among
them.
"""

import copy
import csv
import gzip
import math
import os
import random
import shutil
import tempfile
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from data_fixtures import QUIET
from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.build import build_store
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.store import Store
from kiosk import hashes
from properties import num_examples
from slow_reference import SPLITS, Reference

EXAMPLES = int(os.environ.get("INFNET_REC_RANDOM_EXAMPLES", "6"))
NULLS = ["\\N", "-9"]
DAY_S = 86_400
START = 1_700_000_000
RECIPE: dict[str, Any] = {
    "name": "forms",
    "licence": "made up",
    "log": {"files": ["log.csv"], "user": "user", "item": "item", "time": "at", "time_unit": "s", "null_values": NULLS},
    "sides": {
        "user": [{"files": ["users.csv"], "key": "user", "null_values": NULLS}],
        "item": [{"files": ["items.csv"], "key": "item", "null_values": NULLS}],
    },
    "features": [
        {"side": "user", "encoding": "index", "columns": ["user", "level"]},
        {"side": "user", "encoding": "hash", "columns": ["word"], "buckets": 7},
        {"side": "item", "encoding": "index", "columns": ["item", "level2"], "null_values": ["2.0"]},
        {"side": "item", "encoding": "quantile", "columns": ["price"], "buckets": 3},
        {"side": "item", "encoding": "multi", "columns": ["tags"], "separator": "|", "max_values": 3},
        {"side": "context", "encoding": "index", "columns": ["page", "score"], "min_count": 2},
    ],
    "behaviours": [{"name": "click", "where": "flag = 1"}, {"name": "long", "where": "score >= 29.6"}],
    "sequences": {"attributes": ["item", "level2"]},
    "tasks": [{"name": "click", "label": "flag"}, {"name": "high", "where": "page <> 3 OR score > 1e300 OR flag"}],
    "splits": {"by": "rows_of_each_user", "valid": 0.25, "test": 0.25},
}
PREDICATES = [
    "score >= 29.6", "NOT score < 30", "score = page", "page <> score", "score IS NULL", "word = 'b'", "flag",
    "score > page", "score * 2 - page >= 1", "page IN (1, 2, 10000000000000000)", "score BETWEEN -1 AND 1e18",
    "word <> 'a' AND NOT flag", "page > 9007199254740992", "score / page > 0.5 OR word IS NULL",
]  # fmt: skip
COLUMNS = {
    "log": ("user", "item", "at", "flag", "page", "score", "word"),
    "users": ("user", "level", "word"),
    "items": ("item", "level2", "price", "tags"),
}
WHOLE = ["user", "item", "at", "level", "page", "level2"]
FRACTIONS = ["score", "price"]

_levels = st.sampled_from([None, 0, 1, 2, 3, -9, 10**16, -(2**53), 2**53 + 1, 2**63 - 1])
_numbers = st.sampled_from(
    [None, 0.0, -0.0, 1.0, 29.6, 30.0, 0.1, -2.5, math.nan, math.inf, -math.inf, 1e18, 1e300, 5e-324]
)
_words = st.sampled_from(
    [None, "", "a", "b", "007", "1.0", " a", "nan", "Nan", "it's", 'q"q', "\\N", "1e5", "é", "[x]"]
)
_tags = st.lists(st.sampled_from(["x", "y", "1", "2.0", "", "nan", "a,b"]), max_size=4)
_logs = st.fixed_dictionaries(
    {
        "log": st.lists(
            st.tuples(
                st.integers(1, 3), st.integers(-1, 4), st.integers(0, 9), st.sampled_from([0, 1, 1, 0, None]), _levels,
                _numbers, _words,
            ),
            min_size=30,
            max_size=50,
        ),
        "users": st.tuples(*[st.tuples(_levels, _words)] * 3),
        "items": st.tuples(*[st.tuples(_levels, _numbers, _tags)] * 5),
        "where": st.sampled_from(PREDICATES),
        "seed": st.integers(0, 2**32),
    }
)  # fmt: skip


def tables_of(drawn: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """The rows of each table; each user has enough good rows for three splits."""
    log = [[*row[:2], START + row[2] * DAY_S, *row[3:]] for row in drawn["log"]]
    log += [[user, user, START + k * DAY_S, k % 2, 1, 1.0, "a"] for user in (1, 2, 3) for k in range(4)]
    users = [[k, *row] for k, row in enumerate(drawn["users"], start=1)]
    items = [[k, *row] for k, row in enumerate(drawn["items"], start=-1)]
    return {"log": log, "users": users, "items": items}


def as_text(column: str, cell: Any, draw: random.Random) -> str:
    """A cell as one of the texts that mean the same."""
    if cell is None:
        return draw.choice(["", "\\N"])
    if column == "flag":
        return draw.choice(
            ["0", "0.0", "false", "FALSE", "0e5"] if cell == 0 else ["1", "1.0", "true", "True", "10e-1"]
        )
    if column == "tags":
        return "|".join(cell)
    if isinstance(cell, float):
        if math.isnan(cell):
            return draw.choice(["nan", "NaN", ""])
        return repr(cell)
    if isinstance(cell, int) and column in WHOLE:
        written = [str(cell), f"{cell}.0"]
        if column in ("user", "item", "at"):
            written += [f"{cell}e0", f" {cell}", f"{cell}0e-1"]
        return draw.choice(written)
    return str(cell)


def as_array(column: str, cells: list[Any], draw: random.Random) -> pa.Array:
    """Cells as one of the Parquet columns that mean the same."""
    if column == "flag":
        kinds: list[tuple[pa.DataType, type]] = [(pa.bool_(), bool), (pa.int8(), int), (pa.uint32(), int)]
        kind, cast = draw.choice([*kinds, (pa.float32(), float), (pa.decimal128(5, 2), Decimal)])
        return pa.array([None if c is None else cast(c) for c in cells], kind)
    if column == "tags":
        size = {len(c) for c in cells}
        lists = [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_view(pa.string())]
        lists += [pa.list_(pa.string(), *size)] if len(size) == 1 and size != {0} else []
        return pa.array(cells, draw.choice(lists))
    if column in FRACTIONS:
        texts = [None if c is None or math.isnan(c) else repr(c) for c in cells]
        nulls = [None if c is None or (math.isnan(c) and draw.random() < 0.5) else c for c in cells]
        return draw.choice([pa.array(nulls, pa.float64()), pa.array(texts, pa.string())])
    if column in WHOLE:
        small = column in ("user", "item", "at")  # in all parts of a table alike
        whole = pa.array(cells, pa.int64())
        texts = pa.array([None if c is None else str(c) for c in cells], pa.string())
        decimals = pa.array([None if c is None else Decimal(c) for c in cells], pa.decimal128(21, 2))
        choices = [whole, texts, decimals, texts.dictionary_encode(), whole.dictionary_encode()]
        return draw.choice([*choices, pa.array([None if c is None else float(c) for c in cells])] if small else choices)
    texts = pa.array(cells, draw.choice([pa.string(), pa.large_string()]))
    return draw.choice([texts, texts.dictionary_encode(), pa.array([None if c is None else c.encode() for c in cells])])


def write(folder: Path, form: str, tables: dict[str, list[list[Any]]], draw: random.Random) -> dict[str, Any]:
    """Writes the tables in a form and returns their recipe."""
    folder.mkdir()
    recipe = copy.deepcopy(RECIPE)
    places = {"log": recipe["log"], "users": recipe["sides"]["user"][0], "items": recipe["sides"]["item"][0]}
    for name, rows in tables.items():
        rows = list(rows)
        if form != "csv":
            draw.shuffle(rows)
        cuts = sorted(draw.randrange(1, len(rows)) for _ in range(draw.randrange(3))) if form != "csv" else []
        parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True) if a < b]
        files = [_write_part(folder, form, f"{name}_{k}", COLUMNS[name], part, draw) for k, part in enumerate(parts)]
        draw.shuffle(files)
        places[name]["files"] = files
        if form == "tsv":
            places[name]["delimiter"] = "\t"
    return recipe


def _write_part(
    folder: Path, form: str, name: str, columns: tuple[str, ...], rows: list[list[Any]], draw: random.Random
) -> str:
    if form == "parquet":
        # One type a column over all the parts but for widths: parts that differ have tests of their own.
        arrays = [as_array(c, [row[k] for row in rows], random.Random(f"{folder}{c}")) for k, c in enumerate(columns)]
        table = pa.table(dict(zip(columns, arrays, strict=True)))
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=draw.randrange(1, 20))
        return f"{name}.parquet"
    file = f"{name}.{form}"
    opened = gzip.open if form.endswith("gz") else open
    with opened(folder / file, "wt", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter="\t" if form == "tsv" else ",", lineterminator=draw.choice(["\n", "\r\n"]))
        writer.writerow(columns)
        writer.writerows([as_text(c, cell, draw) for c, cell in zip(columns, row, strict=True)] for row in rows)
    return file


def built(folder: Path, recipe: dict[str, Any], where: str, num_threads: int) -> Store:
    recipe["behaviours"][1]["where"] = where
    build_store(
        validate_model(Recipe, recipe, "forms.toml"),
        folder,
        folder / "store",
        QUIET,
        max_bad_fraction=1.0,
        num_threads=num_threads,
    )
    return Store(folder / "store")


def facts(store: Store) -> dict[str, Any]:
    """The manifest without sources and times."""
    manifest = {k: v for k, v in store.manifest.items() if k not in ("made_at", "recipe", "joins", "summary")}
    return manifest | {"bad_rows": sorted(manifest["bad_rows"].values())}


@pytest.mark.slow
@settings(
    max_examples=num_examples(EXAMPLES),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(_logs)
def test_a_store_depends_on_what_the_rows_say_only(drawn: dict[str, Any]) -> None:
    tables, draw = tables_of(drawn), random.Random(drawn["seed"])
    work = Path(tempfile.mkdtemp())
    try:
        recipe = write(work / "csv", "csv", tables, draw)
        first = built(work / "csv", recipe, drawn["where"], 1)
        _compare(first, Reference(recipe, work / "csv"))
        for form in ("tsv", "csv.gz", "parquet"):
            other = built(work / form, write(work / form, form, tables, draw), drawn["where"], 2)
            assert hashes(work / form / "store") == hashes(work / "csv" / "store"), form
            assert facts(other) == facts(first), form
    finally:
        shutil.rmtree(work)


def _compare(store: Store, reference: Reference) -> None:
    """Ids, events and labels of every example."""
    edges = {"price": store.vocabulary("price").column("low").to_pylist()[2:]}
    for side, keys, ids in (("user", store.user_keys, store.user_ids), ("item", store.item_keys, store.item_ids)):
        columns = store.columns_of(side)
        for key, row in zip(keys.to_pylist(), ids.tolist(), strict=True):
            for name in dict.fromkeys(columns):
                found = [id_ for column, id_ in zip(columns, row, strict=True) if column == name and id_ >= 0]
                assert found == reference.side_ids(name, key, edges), (name, key, reference.cell(name, key))
    for behaviour in reference.behaviours:
        events = store.events(behaviour)
        found = sorted(zip(events.time_E.tolist(), store.item_keys.take(events.item_E).to_pylist(), strict=True))
        mine = [(e.time, e.item) for of_user in reference.events[behaviour].values() for e in of_user]
        assert found == sorted(mine), behaviour
    for split in SPLITS:
        examples, context = store.examples(split), store.columns_of("context")
        columns = [store.user_keys.take(examples.user_N).to_pylist(), store.item_keys.take(examples.item_N).to_pylist()]
        columns += [examples.time_N.tolist(), *(examples.labels[task].tolist() for task in reference.tasks)]
        columns += [examples.context[name].tolist() for name in context]
        expected = Counter(
            (r.user, r.item, r.time, *r.labels, *(reference.context_id(n, r.time, r.context) for n in context))
            for r in reference.rows_of(split)
        )
        assert Counter(zip(*columns, strict=True)) == expected, split
