"""`infnet-rec data sniff`: a first recipe from raw files alone."""

import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infnet_rec.config.toml import validate_model
from infnet_rec.data.ingest.raw_files import connect
from infnet_rec.data.ingest.recipe import Recipe
from infnet_rec.data.inspect.verbs import progress_stages
from infnet_rec.data.remote import is_url
from infnet_rec.data.sniff.recipe_text import render, store_name
from infnet_rec.data.sniff.roles import Guess, guess
from infnet_rec.data.sniff.sniffer import common_folder, read_tables
from infnet_rec.errors import UserError
from infnet_rec.files import try_file, write_text

JSON = dict[str, Any]


def sniff(files: Sequence[str], out: Path, *, memory_gib: float, num_threads: int) -> JSON:
    """Reads every row of the files and writes a recipe that `data build` takes.

    Args:
        files: raw files, or folders of Parquet files.
        out: a new TOML file.
        memory_gib: what DuckDB may use; the rest spills to disk.
        num_threads: of DuckDB.

    Raises:
        UserError: a file cannot be read as a table, or there is no guess for the user, the item or a label.
    """
    try_file("--out", out)
    if out.suffix != ".toml":
        raise UserError(f"--out {out}: a recipe is a TOML file; end its name with .toml")
    if urls := [file for file in files if is_url(file)]:
        raise UserError(
            f"{urls[0]}: files are sniffed on this machine; fetch it first, then build with its URL in --raw"
        )
    paths = [Path(file) for file in files]
    folder = common_folder(paths)
    with (
        tempfile.TemporaryDirectory(prefix="infnet-rec-sniff-") as work,
        progress_stages() as progress,
        connect(Path(work), memory_gib=memory_gib, num_threads=num_threads) as connection,
    ):
        tables = read_tables(connection, paths, folder, progress)
        found = guess(connection, tables, progress)
    text = render(found, folder, store_name(out))
    # What is written is what can be built.
    validate_model(Recipe, tomllib.loads(text), str(out))
    write_text(out, text, f"--out {out}")
    return {"recipe": str(out), "raw": str(folder), **_facts(found)}


def _facts(found: Guess) -> JSON:
    return {
        "log": list(found.log.files),
        "num_rows": found.log.num_rows,
        "user": found.user[0],
        "item": found.item[0],
        "id_type": found.id_type,
        "time": list(found.time.columns) if found.time else [],
        "time_unit": found.time.unit if found.time else None,
        "tasks": {label.name: label.where for label in found.labels},
        "sides": [
            {"side": join.side, "files": list(join.table.files), "key": join.key}
            for join in found.joins
            if not join.of_log
        ],
        "features": [{"column": f.column, "side": f.side, "encoding": f.encoding} for f in found.features],
        "splits": found.splits[0],
        "unused": list(found.unused),
    }


def lines(result: JSON) -> list[str]:
    """The guesses for people; their reasons stand in the file."""
    time = " and ".join(result["time"])
    said = [
        f"{result['recipe']}: a first recipe; look it over, then",
        f"  infnet-rec data build {result['recipe']} --raw {result['raw']} --out STORE",
        f"log    {', '.join(result['log'])}: {result['num_rows']:,} rows; user {result['user']}, "
        f"item {result['item']}, " + (f"time {time} in {result['time_unit']}" if time else "no time"),
        *(f"{side['side']:<6} {', '.join(side['files'])}, by {side['key']}" for side in result["sides"]),
        f"tasks  {'; '.join(f'{name}: {where}' for name, where in result['tasks'].items())}",
        f"{len(result['features'])} features; splits by {result['splits']}",
    ]
    return [*said, *(f"left out: {line}" for line in result["unused"])]
