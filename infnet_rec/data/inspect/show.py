"""One example of a store in people's words.

The store keeps ids: a number that was cut into ranges is shown as its range.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from infnet_rec.data.parsing.instants import ticks_per_second
from infnet_rec.data.store import Store
from infnet_rec.errors import UserError
from infnet_rec.schema import EMPTY_SLOT, FIRST_VALUE_ID, NULL_ID, UNSEEN_ID


class Meanings:
    """What ids mean; vocabularies are read when first asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._vocabularies: dict[str, dict[str, Any]] = {}

    def of(self, feature: str, id_: int) -> str:
        """The raw value behind an id, or the range of values."""
        if id_ == UNSEEN_ID:
            return "(never seen in training)"
        if id_ == NULL_ID:
            return "(null)"
        if feature not in self._vocabularies:
            self._vocabularies[feature] = self._store.vocabulary(feature).to_pydict()
        columns, place = self._vocabularies[feature], id_ - FIRST_VALUE_ID
        if self._store.manifest["encodings"][feature] == "hash":
            return f"(bucket {place})"
        if "value" in columns:
            return columns["value"][place]
        low, high = columns["low"][place], columns["high"][place]
        return f"{low:g}" if low == high else f"[{low:g}, {high:g})"


def describe_example(store: Store, split: str, row: int, sequence_length: int) -> dict[str, Any]:
    """Everything about one example, ready for JSON.

    Args:
        store: the dataset.
        split: train, valid or test.
        row: the example's number within the split.
        sequence_length: newest events shown of each behaviour.

    Raises:
        UserError: there is no such row.
    """
    examples = store.examples(split)
    if not 0 <= row < len(examples):
        raise UserError(f"--row {row}: split {split} of {store.path} has rows 0 to {len(examples) - 1}")
    meanings = Meanings(store)
    user, item = int(examples.user_N[row]), int(examples.item_N[row])
    ids = {
        "user": store.user_ids[user],
        "item": store.item_ids[item],
        "context": np.concatenate(
            [np.atleast_1d(examples.context[name][row]) for name in dict.fromkeys(store.columns_of("context"))]
            or [np.empty(0, np.int32)]
        ),
    }
    features = [
        {"feature": name, "side": side, "id": int(id_), "value": meanings.of(name, int(id_))}
        for side, values in ids.items()
        for name, id_ in zip(store.columns_of(side), values, strict=True)
        if id_ != EMPTY_SLOT
    ]
    return {
        "split": split,
        "row": row,
        "user": store.user_keys[user].as_py(),
        "item": store.item_keys[item].as_py(),
        "time": int(examples.time_N[row]),
        "local_time": local_time(store, int(examples.time_N[row])),
        "labels": {name: int(column[row]) for name, column in examples.labels.items()},
        "features": features,
        "histories": {
            behaviour: _history(store, meanings, behaviour, user, int(examples.seen[behaviour][row]), sequence_length)
            for behaviour in store.schema.behaviours
        },
    }


def _history(
    store: Store, meanings: Meanings, behaviour: str, user: int, seen: int, sequence_length: int
) -> dict[str, Any]:
    """The newest events, oldest first, with the attributes that sequences read."""
    columns_E = store.events(behaviour)
    start = int(store.starts[user, list(store.manifest["behaviours"]).index(behaviour)])
    columns = store.columns_of("item")
    attributes = [s.attribute for s in store.schema.sequences if s.behaviour == behaviour]
    events = []
    for position in range(start + max(0, seen - sequence_length), start + seen):
        item, time = int(columns_E.item_E[position]), int(columns_E.time_E[position])
        shown = {}
        for name in attributes:
            places = [c for c, column in enumerate(columns) if column == name]
            given = store.item_ids[item, places] if places else np.atleast_1d(columns_E.context[name][position])
            ids = [int(id_) for id_ in given if id_ != EMPTY_SLOT]
            values = ", ".join(meanings.of(name, id_) for id_ in ids)
            shown[name] = {"id": ids[0] if len(given) == 1 else ids, "value": values}
        events.append(
            {
                "time": time,
                "local_time": local_time(store, time),
                "item": store.item_keys[item].as_py(),
                "attributes": shown,
            }
        )
    return {"num_events": seen, "shown": events}


def local_time(store: Store, instant: int) -> str:
    """An instant on the recipe's clock; the row's number where the log has no time, or one that no calendar has."""
    if store.manifest["order"] == "file":
        return f"row {instant}"
    log = store.manifest["recipe"]["log"]
    seconds = instant // ticks_per_second(log["time_unit"])
    try:
        local = datetime.fromtimestamp(seconds, UTC) + timedelta(hours=log["utc_offset_hours"])
    except (ValueError, OverflowError, OSError):
        return f"instant {instant}"
    return local.replace(tzinfo=None).isoformat(" ")  # four digits of the year, which strftime does not give
