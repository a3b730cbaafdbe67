"""A made-up shop's log, under other names than KuaiRand's and with text for ids, in Parquet or CSV.

It is small enough to be built in each test, and holds what goes wrong in logs: ties, twins, late and early rows, users
and items that are unknown, gaps, histories from before the log.
"""

import random
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.recipe import Recipe

CLOCK_START = 1_699_999_200  # 2023-11-14 22:00 UTC
BOUNDARY_HOURS = (29, 125, 161, 197)  # from there to the boundaries of the shop's splits

TAGS = ["red|1.0", "", None, "blue", "1 | red|?|red|blue|x", "||", "red|green", "rare"]

SHOP_RECIPE = """
name = "shop"
licence = "made up"

[log]
files = ["log/a.parquet", "log/b.parquet"]
user = "customer"
item = "sku"
time = "at"
time_unit = "s"
utc_offset_hours = -3
id_type = "string"

[[sides.user]]
files = ["customers.parquet"]
key = "id"

[[sides.item]]
files = ["products_1.parquet", "products_2.parquet"]
key = "code"

[[sides.item]]
files = ["prices.parquet"]
key = "sku"

[[features]]
side = "user"
encoding = "index"
columns = ["customer", "country"]
null_values = ["?"]

[[features]]
side = "user"
encoding = "quantile"
columns = ["age"]
buckets = 4

[[features]]
side = "item"
encoding = "index"
columns = ["sku", "shelf", "brand"]
null_values = ["-1.0"]

[[features]]
side = "item"
encoding = "quantile"
columns = ["price"]
buckets = 8

[[features]]
side = "context"
encoding = "index"
columns = ["device"]

[[features]]
side = "context"
encoding = "hour_of_day"
columns = ["at"]
name = "hour"

[[features]]
side = "context"
encoding = "day_of_week"
columns = ["at"]
name = "day"

[[behaviours]]
name = "buy"
where = "bought = 1"

[[behaviours]]
name = "look"
where = "seconds >= 30"

[[history]]
file = "before.parquet"
user = "who"
time = "until"
behaviour = "buy"
items = "what"

[sequences]
attributes = ["sku", "shelf", "price"]
share_tables = false

[[tasks]]
name = "buy"
label = "bought"

[[tasks]]
name = "save"
label = "saved"

[splits]
train = 2023-11-16
valid = 2023-11-20
test = 2023-11-21T12:00:00
end = 2023-11-23

[profiles.no_context]
drop = ["device", "hour", "day"]
"""


def shop_text(*changes: tuple[str, str]) -> dict[str, Any]:
    """The shop's recipe as TOML gives it, with some of its text replaced."""
    text = SHOP_RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return tomllib.loads(text)


def shop_recipe(*changes: tuple[str, str]) -> Recipe:
    """The shop's recipe with some of its text replaced."""
    return validate_model(Recipe, shop_text(*changes), "shop.toml")


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any] | pa.Array]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path)


def shop_rows(num_rows: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the log, in no order: nine days, few distinct instants (many ties), some rows twice or nearly so."""
    draw = random.Random(seed)
    rows = []
    for k in range(num_rows):
        rows.append(
            {
                "customer": f"c{int(draw.triangular(0, 12, 0))}",
                # Two of the products are sold after the training window only.
                "sku": f"s{draw.randrange(20)}",
                "at": CLOCK_START + 3600 * (draw.randrange(9 * 24) if k % 10 else BOUNDARY_HOURS[k // 10 % 4]),
                "bought": int(draw.random() < 0.3),
                "saved": int(draw.random() < 0.2),
                "seconds": draw.choice([None, 5, 29, 30, 31, 300]),
                "device": draw.choice(["phone", "phone", "desk", "", None]),
            }
        )
    for row in rows:
        late = row["at"] > CLOCK_START + 6 * 86_400
        if row["sku"] in ("s18", "s19") and not late:
            row["sku"] = "s0"
        if late and draw.random() < 0.2:
            row["customer"], row["device"] = "c_late", "watch"
    twins = draw.sample(rows, num_rows // 20)
    nearly = [{**row, "device": device} for row in twins for device in ("phone", "desk", "tv")]
    rows += [*twins, *nearly]
    draw.shuffle(rows)
    return rows


def write_shop(raw: Path, rows: list[dict[str, Any]] | None = None) -> None:
    """Writes the shop's raw files; the log is cut in two parts without regard to time."""
    rows = shop_rows() if rows is None else rows
    cut = len(rows) // 3
    kinds = {"seconds": pa.int32(), "device": pa.string()}
    for name, part in (("a", rows[:cut]), ("b", rows[cut:])):
        names = ("customer", "sku", "at", "bought", "saved", "seconds", "device")
        write_parquet(
            raw / "log" / f"{name}.parquet", {n: pa.array([row[n] for row in part], kinds.get(n)) for n in names}
        )
    customers = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c_late", "c_never"]
    write_parquet(
        raw / "customers.parquet",
        {
            "id": customers,
            "country": ["fr", "de", "?", "fr", None, "", "pt", "nz", "nz"],
            "age": [31.0, 0.0, None, float("nan"), 44.5, 19.0, 31.0, 70.0, 99.0],
            "hobbies": [
                ["chess", "go, or baduk"],
                [],
                None,
                ["none", "go, or baduk", None, "", "chess"],
                ["rowing"],
                ["none"],
                ["chess", "chess", "rowing"],
                ["opera", "chess"],
                ["opera"],
            ],
        },
    )
    products = [f"s{k}" for k in range(21) if k != 7]
    for part, codes in (("1", products[:10]), ("2", products[10:])):
        numbers = [int(code[1:]) for code in codes]
        write_parquet(
            raw / f"products_{part}.parquet",
            {
                "code": codes,
                "shelf": [None if k % 6 == 5 else -1.0 if k == 3 else float(k % 4) for k in numbers],
                "brand": [f"b{min(k, 15) % 9}, Ltd" if k < 18 else "new" for k in numbers],
                "tags": [TAGS[k % len(TAGS)] if k < 18 else "late|red" for k in numbers],
            },
        )
    write_parquet(
        raw / "prices.parquet", {"sku": [f"s{k}" for k in range(15)], "price": [k * k / 4 - 2 for k in range(15)]}
    )
    write_parquet(
        raw / "before.parquet",
        {
            "who": ["c0", "c1", "c2", "c_ghost", "c3"],
            "until": [CLOCK_START - 5, CLOCK_START + 3600 * 50, CLOCK_START + 7200, CLOCK_START, CLOCK_START],
            "what": [["s3", "s1", "s3"], ["s2", None, "s_gone"], [], ["s4"], None],
        },
    )
    # What training must not count: these come after it.
    late = {"who": ["c4"], "until": [CLOCK_START + 3600 * 130], "what": [["s5", "s_last", "s5"]]}
    write_parquet(raw / "late.parquet", late)
