"""A file of made-up rows in the format of Tenrec's QB-Video, `QB-video.csv`.

A row is a function of its user and of its number among the user's rows, so any part of the file is made alone.

The rates and counts that it is made to meet are published: Yuan et al., "Tenrec: A Large-scale Multipurpose Benchmark
Dataset for Recommender Systems", NeurIPS 2022, and what readers of the file have reported. No row of Tenrec is in it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from infnet_rec.synthetic.draws import Draws, Ints
from infnet_rec.synthetic.qb.items import CATEGORIES, Items
from infnet_rec.synthetic.qb.labels import QbIntercepts, calibrate, label, leanings
from infnet_rec.synthetic.qb.layout import QbLayout, rows_of_users
from infnet_rec.synthetic.qb.state import Seen

FILE = "QB-video.csv"
HEADER = "user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age"
REAL_EXAMPLES, REAL_USERS, REAL_ITEMS = 2_442_299, 34_240, 130_637
# Fewer items for a smaller file, so that an item keeps some rows.
ITEM_GROWTH, MIN_ITEMS, MAX_ITEMS = 0.8, 50, 100_000_000
ROWS_A_CHUNK = 16_384
CALIBRATION_ROWS = 262_144

PROVENANCE = "statistics published for Tenrec QB-video (Yuan et al., NeurIPS 2022)"
LICENCE = "no row of Tenrec, which is under CC BY-NC 4.0, is contained: all rows are made up"

SETTINGS = ("item", "click", "like", "follow", "share", "watching_times")
WANTED: tuple[dict[str, int], ...] = (
    {"click": 0, "like": 1},
    {"click": 1, "follow": 1},
    {"click": 1, "share": 1},
    {"click": 1, "watching_times": 0},
    {"click": 0, "follow": 1},
    {"click": 0, "share": 1},
    {"click": 1, "like": 1},
)


@dataclass(frozen=True, slots=True)
class QbQuirks:
    """Rows of the file, ascending, and their settings; -1 leaves what is drawn, as does the last place."""

    row: Ints
    settings: dict[str, Ints]

    @classmethod
    def of(cls, layout: QbLayout, items: Items, num_examples: int) -> Self:
        """Evenly spread over the file; the longest block has the same item twice, with a click and without."""

        def is_free(row: int) -> bool:
            return row not in found and not items.debuts(np.array([row]), num_examples)[0][0]

        found: dict[int, dict[str, int]] = {}
        for turn, quirk in enumerate(WANTED):
            row = (2 * turn + 1) * num_examples // (2 * len(WANTED))
            while row < num_examples and not is_free(row):
                row += 1
            found[row] = quirk
        ends = np.append(layout.first_row_B, num_examples)
        longest = int(np.argmax(np.diff(ends)))
        free = [row for row in range(int(ends[longest]), int(ends[longest + 1]))[:64] if is_free(row)]
        if len(free) >= 2:
            found |= {row: {"item": items.most_popular, "click": i} for i, row in enumerate(free[:2])}
        rows = sorted(found)
        settings = {name: np.array([*(found[row].get(name, -1) for row in rows), -1]) for name in SETTINGS}
        return cls(np.array(rows), settings)

    def asked(self, row_N: Ints) -> dict[str, Ints]:
        """The settings of rows of the file, by name."""
        place = np.minimum(np.searchsorted(self.row, row_N), len(self.row) - 1)
        place = np.where(self.row[place] == row_N, place, -1)
        return {name: values[place] for name, values in self.settings.items()}


@dataclass(frozen=True, slots=True)
class QbPlan:
    """The sizes of one file and the number of rows of each user, by first appearance in the file."""

    seed: int
    num_examples: int
    num_users: int
    num_items: int
    rows_U: Ints
    name: str = "qb-video"


@dataclass(frozen=True, slots=True)
class QbWorld:
    """All that rows are made from; the same in every process. Memory grows with the users and the items alone."""

    plan: QbPlan
    layout: QbLayout
    items: Items
    user_id_U: Ints
    quirks: QbQuirks
    intercepts: QbIntercepts


def make_qb_plan(num_examples: int, num_users: int | None, num_items: int | None, seed: int) -> QbPlan:
    """Fills in the sizes that were left open; for the real number of examples they are the real ones."""
    scale = num_examples / REAL_EXAMPLES
    if num_users is None:
        num_users = max(2, round(REAL_USERS * scale))
    if num_items is None:
        num_items = min(MAX_ITEMS, max(MIN_ITEMS, round(REAL_ITEMS * scale**ITEM_GROWTH)))
    return QbPlan(seed, num_examples, num_users, num_items, rows_of_users(seed, num_examples, num_users))


def file_headers(plan: QbPlan) -> dict[str, str]:
    """Path of each CSV file -> its header line."""
    return {FILE: HEADER}


def chunks(plan: QbPlan) -> list[tuple[int, int]]:
    """Ranges of rows of the file, in order."""
    return list(pairwise([*range(0, plan.num_examples, ROWS_A_CHUNK), plan.num_examples]))


def make_world(plan: QbPlan) -> QbWorld:
    layout, items = QbLayout.of(plan.seed, plan.rows_U), Items.of(plan.seed, plan.num_items)
    quirks = QbQuirks.of(layout, items, plan.num_examples)
    seen, item_N = shown(plan, layout, items, _sample(plan))
    user_id = 1 + np.argsort(Draws.at(plan.seed, "qb user", np.arange(plan.num_users)).bits("id"))
    return QbWorld(plan, layout, items, user_id, quirks, calibrate(leanings(seen, items, item_N)))


def _sample(plan: QbPlan) -> Ints:
    """Rows that stand for the file: one drawn from each stretch, as items' debuts come at a fixed distance."""
    stretch = -(-plan.num_examples // CALIBRATION_ROWS)
    starts = np.arange(0, plan.num_examples - stretch + 1, stretch)
    return starts + (Draws.at(plan.seed, "qb sample", starts).uniform("row") * stretch).astype(np.int64)


def shown(plan: QbPlan, layout: QbLayout, items: Items, row_N: Ints) -> tuple[Seen, Ints]:
    """The states of the users at rows of the file, and the items they are shown there."""
    user_N, index_N = layout.at(row_N)
    seen = Seen.of(plan.seed, user_N, index_N, plan.num_users)
    is_debut, debut_N = items.debuts(row_N, plan.num_examples)
    return seen, np.where(is_debut, debut_N, items.shown(seen))


def columns(world: QbWorld, low: int, high: int) -> dict[str, Ints]:
    """Rows low..high-1 of the file, without the header, by name; `video_category` counts in CATEGORIES."""
    plan, items, row_N = world.plan, world.items, np.arange(low, high)
    seen, item_N = shown(plan, world.layout, items, row_N)
    asked = world.quirks.asked(row_N)
    item_N = np.where(asked["item"] >= 0, asked["item"], item_N)
    found = label(seen, leanings(seen, items, item_N), world.intercepts, asked)
    found |= {
        "user_id": world.user_id_U[seen.number_N],
        "item_id": 1 + item_N,
        "video_category": items.category_I[item_N],
        "gender": seen.users.gender_U[seen.user_N],
        "age": seen.users.age_U[seen.user_N],
    }
    return {name: found[name] for name in HEADER.split(",")}


def make_chunk(world: QbWorld, chunk: tuple[int, int]) -> tuple[dict[str, bytes], int]:
    """The lines that a chunk adds to each file, and the number of its examples."""
    low, high = chunk
    table = {name: pa.array(column) for name, column in columns(world, low, high).items()}
    table["video_category"] = pa.array(CATEGORIES).take(table["video_category"])
    sink = pa.BufferOutputStream()
    arrow_csv.write_csv(pa.table(table), sink, arrow_csv.WriteOptions(include_header=False, quoting_style="none"))
    return {FILE: sink.getvalue().to_pybytes()}, high - low


def notes(plan: QbPlan) -> dict[str, Any]:
    """What it takes to make the same file again, and where its rates are from."""
    return {
        "generated": True,
        "dataset": plan.name,
        "seed": plan.seed,
        "num_examples": plan.num_examples,
        "num_users": plan.num_users,
        "num_items": plan.num_items,
        "statistics_from": PROVENANCE,
        "licence": LICENCE,
    }
