"""A line of cells.jsonl: what it must hold for an experiment to go on from it, and for a report to be made of it."""

import json
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from infnet_rec.faults import Fault
from infnet_rec.strict import StrictModel

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
        Fault: it is no cell; in one line, with the first things that are wrong.
    """
    remedy = "take the line away, and 'infnet-rec experiment' makes the cell again"
    try:
        cell = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Fault(f"{where}: not JSON: {error}; {remedy}") from error
    if not isinstance(cell, dict):
        raise Fault(f"{where}: holds {json.dumps(cell)[:40]}, not a JSON object; {remedy}")
    kind = _Failed if cell.get("status") == "failed" else _Done
    try:
        kind.model_validate_json(json.dumps(cell))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        said = [_said(fault) for fault in faults[:MAX_SAID]]
        more = f", and {len(faults) - MAX_SAID} more faults" if len(faults) > MAX_SAID else ""
        raise Fault(f"{where}: is no cell: {', '.join(said)}{more}; {remedy}") from error
    return cell


def _said(fault: Any) -> str:
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    return f"`{key}` = {json.dumps(fault['input'])[:40]}: {fault['msg'].lower()}"
