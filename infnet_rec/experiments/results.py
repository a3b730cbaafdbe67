"""A line of cells.jsonl: what it must hold for an experiment to go on from it, and for a report to be made of it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import ConfigDict, ValidationError

from infnet_rec.config.experiment import Experiment, key_of
from infnet_rec.config.toml import StrictModel, read_json
from infnet_rec.data.remote import fetched
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.files import named_faults, try_folder, write_json

MAX_SAID = 3

JSON = dict[str, Any]


class _Part(StrictModel):
    """Lines hold more than is read of them."""

    model_config = ConfigDict(extra="ignore")


class _Dataset(_Part):
    name: str
    fingerprint: str
    num_examples: dict[str, int]
    generated: bool = False


class _Scoring(_Part):
    batch_size: int
    ms_per_batch: float


class _Metrics(_Part):
    """A metric that cannot be had is null; one that the report has to have is missed by the report."""

    auc: float | None = None
    gauc: float | None = None
    gauc_unweighted: float | None = None


class _Environment(_Part):
    versions: dict[str, Any]


class _Line(_Part):
    experiment: str
    variant: str
    seed: int
    label: str
    setting: str
    series: str
    at: str
    ours: bool
    key: str
    chosen: JSON
    dataset: _Dataset
    paper: str
    reference: str


class _Failed(_Line):
    status: Literal["failed"]
    reason: str
    log: str


class _Done(_Line):
    status: Literal["done"]
    metrics: dict[str, dict[str, _Metrics]]
    num_dense_parameters: int
    num_sparse_parameters: int
    examples_per_s: float
    scoring: _Scoring | None
    environment: _Environment
    predictions: str


def cell_of(line: bytes, where: str) -> JSON:
    """A line as it stands there, once it is known to be a cell.

    Args:
        line: one line.
        where: its file and number, for the message.

    Raises:
        UserError: it is no cell; in one line, with the first things that are wrong.
    """
    remedy = "take the line away, and 'infnet-rec experiment' makes the cell again"
    try:
        cell = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not JSON: {error}; {remedy}") from error
    if not isinstance(cell, dict):
        raise UserError(f"{where}: holds {json.dumps(cell)[:40]}, not a JSON object; {remedy}")
    kind = _Failed if cell.get("status") == "failed" else _Done
    try:
        kind.model_validate_json(json.dumps(cell))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        said = [_said(fault) for fault in faults[:MAX_SAID]]
        more = f", and {len(faults) - MAX_SAID} more faults" if len(faults) > MAX_SAID else ""
        raise UserError(f"{where}: is no cell: {', '.join(said)}{more}; {remedy}") from error
    return cell


def _said(fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    return f"`{key}` = {json.dumps(fault['input'])[:40]}: {fault['msg'].lower()}"


CELLS, EXPERIMENT = "cells.jsonl", "experiment.json"


@contextmanager
def opened(out: Path, experiment: Experiment) -> Iterator[JSON]:
    """Makes the experiment's folder, or checks that it is this experiment's.

    Variants and seeds may have been added since; nothing that has been made may be of another kind. Several processes
    may open it at once; who makes what is for `shards.held` to say.

    Yields:
        The facts of the dataset.

    Raises:
        UserError: it holds another experiment or something else.
    """
    dataset = dataset_of(experiment)
    # Looked at in this order: another process may be making it, and what it makes first is the experiment's file.
    names = {p.name for p in out.iterdir()} if out.is_dir() else set[str]()
    is_foreign = bool(names - {".lock", f".{EXPERIMENT}.writing"}) or (out.exists() and not out.is_dir())
    if is_foreign and not (out / EXPERIMENT).is_file():
        raise UserError(f"--out {out}: exists, is not empty and holds no experiment; name a new folder")
    with named_faults(f"--out {out}"):
        try_folder("--out", out)
        out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        is_ours = (out / EXPERIMENT).is_file()
        now = experiment_identity(experiment, dataset)
        was = read_json(out / EXPERIMENT) if is_ours else now
        _check_same(was, now, out)
        # In the order of the file as it is now; what has gone from it stays at the end.
        variants = {**now["variants"], **was["variants"]}
        write_json(out / EXPERIMENT, {**now, "variants": variants, "report": shown(experiment)})
    yield dataset


def experiment_identity(experiment: Experiment, dataset: Mapping[str, Any]) -> JSON:
    """What makes it this experiment: name, dataset, search, and what each variant is."""
    search = experiment.config.search
    return {
        "experiment": experiment.name,
        "dataset": dict(dataset),
        "search": None if search is None else search.model_dump(mode="json", exclude={"space"}),
        "variants": {v.name: {"key": key_of(v.config), "space": _as_json(v.space)} for v in experiment.variants},
    }


def shown(experiment: Experiment) -> JSON:
    """What only the report reads: it may change without a cell being made anew, so the file's last word counts."""
    settings = experiment.config
    return {
        "paper": settings.paper,
        "reference": settings.reference,
        "seeds": list(settings.seeds),
        "variants": {v.name: dict(v.facts) for v in experiment.variants},
    }


def dataset_of(experiment: Experiment) -> JSON:
    """Name, fingerprint and size of the store that all cells read.

    Raises:
        UserError: no such store.
    """
    store = Store(fetched(experiment.variants[0].config.data.store))
    sizes = {split: store.num_examples(split) for split in ("train", "valid", "test")}
    facts = {"name": store.manifest["name"], "fingerprint": store.fingerprint, "num_examples": sizes}
    return {**facts, "generated": True} if store.manifest.get("generated") else facts


def _check_same(was: JSON, now: JSON, out: Path) -> None:
    # A store of the same bytes may have been built before stores said that their rows are generated.
    was, now = ({**x, "dataset": {**x["dataset"], "generated": False}} for x in (was, now))
    for what in ("experiment", "dataset", "search"):
        if was[what] != now[what]:
            raise UserError(
                f"--out {out}: belongs to another experiment: its {what} is {json.dumps(was[what])}, this one's "
                f"{json.dumps(now[what])}; name a new folder"
            )
    for name, variant in now["variants"].items():
        if was["variants"].get(name, variant) != variant:
            raise UserError(
                f"--out {out}: belongs to another experiment: its variant {name!r} has other settings; name a new "
                "folder, or the variant otherwise"
            )


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read_cells(path: Path) -> list[JSON]:
    """All lines, oldest first; a last line that a kill has cut off is none.

    Raises:
        UserError: no such file, or another line is no cell.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {str(error.strerror).lower()}") from error
    cells = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        cells.append(cell_of(line, f"{path}:{number}"))
    return cells


def cells_files(out: Path) -> list[Path]:
    """Those that there are: of the whole, and of each part."""
    return [path for path in (out / CELLS, *sorted(out.glob("cells-*-of-*.jsonl"))) if path.is_file()]


def all_cells(out: Path) -> list[JSON]:
    """All lines of all files.

    Raises:
        UserError: see `read_cells`.
    """
    return [line for path in cells_files(out) or [out / CELLS] for line in read_cells(path)]


def newest_of_each(cells: list[JSON]) -> dict[tuple[str, int], JSON]:
    """One line for each variant and seed: of one that is done that line, in whatever file, else its last."""
    found: dict[tuple[str, int], JSON] = {}
    for cell in cells:
        key = cell["variant"], cell["seed"]
        if key not in found or found[key]["status"] != "done" or cell["status"] == "done":
            found[key] = cell
    return found


def append_cell(path: Path, cell: Mapping[str, Any]) -> None:
    """Adds a line in one write, and waits until it is on disk; takes away one that a kill has cut off."""
    line = (json.dumps(cell) + "\n").encode()
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        if end and not (text := file.read()).endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
