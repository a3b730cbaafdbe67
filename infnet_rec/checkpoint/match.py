"""Which saved tensor is which tensor of the model that is there now.

Weights have one name however they are sharded. A table's optimizer state has not: TorchRec's fused optimizer calls it
`sparse.<parameter>.<table>.momentum1`, the ordinary one of a table that every rank holds whole
`copied.<parameter>.sum`, with a count of steps beside it; and the row-wise state of a table that is split by columns
has a value for each row and split. What can be translated is, all else is refused: nothing ever starts from fresh
state without a word.

Shapes: R rows of a table, C columns.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from infnet_rec.errors import UserError

Sizes = dict[str, tuple[int, ...]]

FUSED = re.compile(r"optim\.sparse\.(?P<parameter>.+\.(?P<table>[^.]+)\.weight)\.(?P=table)\.(?P<name>\w+)")
COPIED = re.compile(r"optim\.copied\.(?P<parameter>.+\.(?P<table>[^.]+)\.weight)\.(?P<name>\w+)")
COPIED_NAME = {"momentum1": "sum"}
FUSED_NAME = {copied: fused for fused, copied in COPIED_NAME.items()}


@dataclass(frozen=True, slots=True)
class TensorMatch:
    """How to load what is wanted.

    Attributes:
        as_is: names that are the same and have the same size.
        translated: wanted name to saved name, of the same values in another shape.
        counted: wanted counts of steps that were not saved, as fused optimizers keep none.
    """

    as_is: list[str]
    translated: dict[str, str]
    counted: list[str]


def match_tensors(wanted: Sizes, saved: Sizes, *, was: Mapping[str, str], now: Mapping[str, str]) -> TensorMatch:
    """Finds a saved tensor for each wanted one, and leaves none over.

    Args:
        wanted: sizes by name, over all ranks.
        saved: sizes by name, of the same sections.
        was: how each table was sharded when it was saved.
        now: how each is.

    Raises:
        UserError: a tensor without a counterpart; all are listed, each table with both shardings.
    """
    as_is = [name for name in sorted(wanted) if saved.get(name) == wanted[name]]
    translated: dict[str, str] = {}
    counted: list[str] = []
    for name in sorted(wanted.keys() - set(as_is)):
        other = counterpart(name)
        if other in saved and _num_values(saved[other]) == _num_values(wanted[name]):
            translated[name] = other
        elif name not in saved and (found := COPIED.fullmatch(name)) and found["name"] == "step":
            counted.append(name)
    missing = wanted.keys() - {*as_is, *translated, *counted}
    used = {*as_is, *translated.values()}
    counts = {name for name in saved if (found := COPIED.fullmatch(name)) and found["name"] == "step"}
    left_over = saved.keys() - used - counts
    if missing or left_over:
        lines = sorted({_line(name, wanted, saved, was, now) for name in missing | left_over})
        raise UserError("\n".join(["does not fit the model as it is now; nothing was loaded", *lines]))
    return TensorMatch(as_is, translated, counted)


def counterpart(name: str) -> str:
    """What the same state of a table is called under the other kind of optimizer; "" if there is no other name."""
    if (found := FUSED.fullmatch(name)) and found["name"] in COPIED_NAME:
        return f"optim.copied.{found['parameter']}.{COPIED_NAME[found['name']]}"
    if (found := COPIED.fullmatch(name)) and found["name"] in FUSED_NAME:
        return f"optim.sparse.{found['parameter']}.{found['table']}.{FUSED_NAME[found['name']]}"
    return ""


def _num_values(size: tuple[int, ...]) -> int:
    # Not the shape: row-wise state is [R] when fused and [R, 1] when not.
    count = 1
    for length in size:
        count *= length
    return count


def _line(name: str, wanted: Sizes, saved: Sizes, was: Mapping[str, str], now: Mapping[str, str]) -> str:
    found = FUSED.fullmatch(name) or COPIED.fullmatch(name)
    if found is None:
        return f"  {name}: {_size_text(wanted.get(name))} here, {_size_text(saved.get(name))} in the checkpoint"
    table = found["table"]
    here = wanted.get(name) or wanted.get(counterpart(name))
    there = saved.get(name) or saved.get(counterpart(name))
    return (
        f"  table {table!r}: its optimizer state {found['name']} was saved {was.get(table, '?')} "
        f"({_size_text(there)}) and is {now.get(table, '?')} here ({_size_text(here)}), which has no translation; "
        "shard it as it was, or start a new run from the weights with --from"
    )


def _size_text(size: tuple[int, ...] | None) -> str:
    return "absent" if size is None else " x ".join(map(str, size)) or "one value"
