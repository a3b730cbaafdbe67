"""An experiment's folder as a report reads it: its cells, what its file says of them now, and what is missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from infnet_rec.commands.cells import CELLS, EXPERIMENT, all_cells, newest_of_each
from infnet_rec.faults import Fault
from infnet_rec.strict import StrictModel, check, read_json

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Results:
    """What there is of an experiment.

    Attributes:
        cells: the newest line of every cell, in the order of the experiment, not of the clock.
        missing: `variant`, `label` and `setting` of those that the experiment names and that have no cell.
        missing_seeds: those that the experiment names and that no cell has.
        generated: whether a note says that the dataset's rows are generated ones.
    """

    cells: list[JSON]
    missing: list[JSON]
    missing_seeds: list[int]
    generated: bool


class _Dataset(StrictModel):
    model_config = ConfigDict(extra="ignore")

    generated: bool = False


class _Facts(StrictModel):
    label: str
    setting: str
    series: str
    at: str
    ours: bool


class _Shown(StrictModel):
    """See `shown` in `cells`."""

    paper: str
    reference: str
    seeds: tuple[int, ...]
    variants: dict[str, _Facts]


class _Folder(StrictModel):
    """Of experiment.json what is read here; folders of earlier versions have no `report`."""

    model_config = ConfigDict(extra="ignore")

    experiment: str
    dataset: _Dataset
    variants: JSON
    report: _Shown | None = None


def read_results(folder: Path) -> Results:
    """Reads the cells; without an experiment.json nothing is known to be missing.

    What is only shown (labels, settings, series, the paper's dataset, the reference) is what the experiment's file said
    when `experiment` was last started, not what it said when the cell was made.

    Raises:
        Fault: see `all_cells`; or experiment.json is none, or of another experiment.
    """
    found = newest_of_each(all_cells(folder))
    names = list(dict.fromkeys(name for name, _ in found))
    known = None
    if (folder / EXPERIMENT).is_file():
        known = check(_Folder, read_json(folder / EXPERIMENT), str(folder / EXPERIMENT))
        names = list(dict.fromkeys([*known.variants, *names]))
    cells = [found[key] for key in sorted(found, key=lambda key: (names.index(key[0]), key[1]))]
    generated = any(cell["dataset"].get("generated", False) for cell in cells)
    if known is None:
        return Results(cells, [], [], generated)
    others = sorted({cell["experiment"] for cell in cells} - {known.experiment})
    if others:
        raise Fault(
            f"{folder / CELLS}: has cells of {', '.join(map(repr, others))}, but {EXPERIMENT} beside it is of "
            f"{known.experiment!r}; give every experiment a folder of its own"
        )
    generated |= known.dataset.generated
    made = {name for name, _ in found}
    if known.report is None:
        absent = [{"variant": name, "label": name, "setting": ""} for name in known.variants if name not in made]
        return Results(cells, absent, [], generated)
    # A variant that has gone from the file is not missing, and its cells say what it was.
    facts = {name: variant.model_dump() for name, variant in known.report.variants.items()}
    shared = {"paper": known.report.paper, "reference": known.report.reference}
    return Results(
        [{**cell, **shared, **facts.get(cell["variant"], {})} for cell in cells],
        [{"variant": name, **facts[name]} for name in facts if name not in made],
        sorted(set(known.report.seeds) - {seed for _, seed in found}),
        generated,
    )
