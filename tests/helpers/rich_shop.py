"""The shop with every kind of feature, and the same shop in CSV."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shop_data import write_shop

# Every kind of feature: changes of the recipe.
RICH = (
    ('"shelf", "brand"]\nnull_values = ["-1.0"]\n', '"shelf"]\nnull_values = ["-1.0"]\n'),
    (
        '[[behaviours]]\nname = "buy"',
        """[[features]]
side = "item"
encoding = "index"
columns = ["brand"]
min_count = 30

[[features]]
side = "user"
encoding = "hash"
columns = ["country"]
name = "country_bucket"
buckets = 5
null_values = ["?"]

[[features]]
side = "user"
encoding = "multi"
columns = ["hobbies"]
max_values = 2
null_values = ["none"]

[[features]]
side = "item"
encoding = "multi"
columns = ["tags"]
separator = "|"
max_values = 3
min_count = 25

[[features]]
side = "context"
encoding = "hash"
columns = ["device"]
name = "device_bucket"
buckets = 3

[[features]]
side = "context"
encoding = "multi"
columns = ["device"]
name = "device_parts"
separator = "e"
max_values = 3

[[features]]
side = "context"
encoding = "quantile"
columns = ["seconds"]
buckets = 3
null_values = ["29"]

[[behaviours]]
name = "buy"\
""",
    ),
    (
        "[sequences]",
        """[[history]]
file = "late.parquet"
user = "who"
time = "until"
behaviour = "look"
items = "what"

[sequences]""",
    ),
    ('"price"]\nshare_tables', '"price", "device", "device_bucket", "tags", "device_parts", "seconds"]\nshare_tables'),
)

# The same shop with its log and sides in CSV: lists become texts.
IN_CSV = (
    ('files = ["log/a.parquet", "log/b.parquet"]', 'files = ["log/a.csv", "log/b.csv.gz"]'),
    ("customers.parquet", "customers.csv"),
    ("products_1.parquet", "products_1.csv"),
    ("products_2.parquet", "products_2.csv"),
    ("prices.parquet", "prices.csv"),
    ('columns = ["hobbies"]', 'columns = ["hobbies"]\nseparator = ";"'),
)


def write_shop_in_csv(raw: Path, rows: list[dict[str, Any]] | None = None) -> None:
    """What `write_shop` writes; the histories stay in Parquet."""
    write_shop(raw, rows)
    for path in raw.rglob("*.parquet"):
        if path.name in ("before.parquet", "late.parquet"):
            continue
        table = pq.read_table(path).to_pydict()
        target = path.with_suffix(".csv.gz" if path.name == "b.parquet" else ".csv")
        with gzip.open(target, "wt", newline="") if target.suffix == ".gz" else target.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table)
            writer.writerows(map(_in_csv, row) for row in zip(*table.values(), strict=True))
        path.unlink()


def _in_csv(cell: Any) -> Any:
    return ";".join(value or "" for value in cell) if isinstance(cell, list) else cell
