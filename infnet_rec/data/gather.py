"""Rows of a store to ids: the features of examples, and their users' histories.

Shapes: B examples, M features, S single-valued ones, W ids a row of a side's table, k most ids of one feature, V
behaviours, E events of a batch.
"""

from dataclasses import dataclass

import numpy as np

from infnet_rec.data.store import Examples, Store
from infnet_rec.schema import EMPTY_SLOT, FIRST_VALUE_ID, Feature, Schema, Side

ROWS_IN_CACHE = 256
COUNTED_ENCODINGS = ("index", "multi")
SIDES: tuple[Side, ...] = ("user", "item", "context")


@dataclass(frozen=True, slots=True)
class SideRows:
    """What a batch reads of each side: a row of ids an example, int32 [B, W]."""

    user_BW: np.ndarray
    item_BW: np.ndarray
    context_BW: np.ndarray

    def of(self, side: Side) -> np.ndarray:
        """The columns of one side."""
        return {"user": self.user_BW, "item": self.item_BW, "context": self.context_BW}[side]


class FeatureIds:
    """A list of features, picked from `SideRows`."""

    def __init__(self, store: Store, features: tuple[Feature, ...], *, with_rarity: bool = False) -> None:
        """Finds the features' columns.

        Args:
            store: the dataset.
            features: which, in the order of the result.
            with_rarity: whether `rarity` will be asked for; it takes four bytes a row of every index table.
        """
        self._places: list[tuple[Side, np.ndarray]] = [(f.side, _columns(store, f)) for f in features]
        single = [m for m, (_, columns) in enumerate(self._places) if len(columns) == 1]
        self._single = {
            side: (
                np.array([s for s, m in enumerate(single) if self._places[m][0] == side], np.intp),
                np.array([self._places[m][1][0] for m in single if self._places[m][0] == side], np.intp),
            )
            for side in SIDES
        }
        self._row_of = {m: s for s, m in enumerate(single)}
        self._rarity = [_rarity(store, feature) for feature in features] if with_rarity else []

    def single(self, rows: SideRows) -> np.ndarray:
        """Ids of the features that have one value, int64 [S, B]."""
        ids_SB = np.empty((len(self._row_of), len(rows.user_BW)), np.int64)
        for side in SIDES:
            places, columns = self._single[side]
            if len(places):
                _fill(ids_SB, places, rows.of(side), columns)
        return ids_SB

    def jagged(self, rows: SideRows) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Ids of all features, feature-major, the number of ids of each feature and example [M * B], and of each [M].

        All are int64.
        """
        ids_SB, num_examples = self.single(rows), len(rows.user_BW)
        if len(self._row_of) == len(self._places):
            return ids_SB.reshape(-1), np.ones(ids_SB.size, np.int64), [num_examples] * len(ids_SB)
        parts, lengths_MB = [], np.ones((len(self._places), num_examples), np.int64)
        for m, (side, columns) in enumerate(self._places):
            if m in self._row_of:
                parts.append(ids_SB[self._row_of[m]])
                continue
            ids_Bk = rows.of(side)[:, columns]
            given_Bk = ids_Bk != EMPTY_SLOT
            parts.append(ids_Bk[given_Bk])
            lengths_MB[m] = given_Bk.sum(axis=1)
        return np.concatenate(parts, dtype=np.int64), lengths_MB.reshape(-1), [len(part) for part in parts]

    def rarity(self, rows: SideRows) -> np.ndarray:
        """`Batch.rarity_BM` of these features; nothing where rarity was not asked for."""
        rarity_BM = np.zeros((len(rows.user_BW), len(self._rarity)), np.float32)
        for m, (rarity, (side, columns)) in enumerate(zip(self._rarity, self._places, strict=False)):
            if rarity is None:
                continue
            ids_Bk = rows.of(side)[:, columns]
            if len(columns) == 1:
                rarity_BM[:, m] = rarity[ids_Bk[:, 0]]
                continue
            given_Bk = ids_Bk != EMPTY_SLOT
            total_B = np.where(given_Bk, rarity[ids_Bk], 0.0).sum(axis=1)
            rarity_BM[:, m] = total_B / np.maximum(given_Bk.sum(axis=1), 1)
        return rarity_BM


class ExampleRows:
    """Reads the `SideRows` of examples."""

    def __init__(self, store: Store, examples: Examples) -> None:
        self._examples = examples
        self._user_ids, self._item_ids = store.user_ids, store.item_ids
        # A multi-valued column is 2-D; its name stands for each of its values.
        self._context = [examples.context[name] for name in dict.fromkeys(store.columns_of("context"))]

    def read(self, rows_B: np.ndarray) -> tuple[SideRows, np.ndarray]:
        """Ids of each side, and the users [B]."""
        user_B = self._examples.user_N[rows_B]
        context = [column[rows_B].reshape(len(rows_B), -1) for column in self._context]
        context_BW = (
            np.concatenate(context, axis=1, dtype=np.int32) if context else np.empty((len(rows_B), 0), np.int32)
        )
        item_BW = self._item_ids.take(self._examples.item_N[rows_B], axis=0)
        return SideRows(self._user_ids.take(user_B, axis=0), item_BW, context_BW), user_B


@dataclass(frozen=True, slots=True)
class Events:
    """The events of all examples of a batch, behaviour-major.

    Attributes:
        item_E: the items, int32.
        context: what the log itself gives each event, ids by name: [E], or [E, k] of a feature of several values.
        length_VB: the events of each example, int64.
        num_V: the events of each behaviour.
    """

    item_E: np.ndarray
    context: dict[str, np.ndarray]
    length_VB: np.ndarray
    num_V: list[int]


class Histories:
    """Reads which items the users of examples met before, newest last."""

    def __init__(self, store: Store, examples: Examples, schema: Schema, sequence_length: int) -> None:
        """Opens the events.

        Args:
            store: the dataset.
            examples: of one split.
            schema: whose behaviours to read.
            sequence_length: newest events kept of each behaviour.
        """
        behaviours = list(store.manifest["behaviours"])
        self._sequence_length = sequence_length
        self._starts = store.starts
        self._columns = [behaviours.index(name) for name in schema.behaviours]
        self._seen = [examples.seen[name] for name in schema.behaviours]
        self._items = [store.events(name).item_E for name in schema.behaviours]
        wanted = {s.attribute for s in schema.sequences} & set(store.columns_of("context"))
        self._context = {c: [store.events(name).context[c] for name in schema.behaviours] for c in sorted(wanted)}

    def read(self, rows_B: np.ndarray, user_B: np.ndarray) -> Events:
        """The events that the examples see."""
        seen_VB = np.stack([seen[rows_B] for seen in self._seen]).astype(np.int64)
        length_VB = np.minimum(seen_VB, self._sequence_length)
        starts_BV = self._starts.take(user_B, axis=0)
        stop_Z = np.cumsum(length_VB.reshape(-1))
        # Events of one history lie side by side in the file as in the result, so one shift a history places them.
        first_VB = starts_BV.T[self._columns] + seen_VB - length_VB
        shift_Z = first_VB.reshape(-1) - stop_Z + length_VB.reshape(-1)
        position_E = np.repeat(shift_Z, length_VB.reshape(-1))
        position_E += np.arange(len(position_E))
        num_V = length_VB.sum(axis=1)
        cuts = np.cumsum(num_V)[:-1]
        item_E = _taken(self._items, np.split(position_E, cuts), np.int32)
        context = {c: _taken(columns, np.split(position_E, cuts), np.int64) for c, columns in self._context.items()}
        return Events(item_E, context, length_VB, num_V.tolist())


def _taken(columns: list[np.ndarray], positions: list[np.ndarray], dtype: type[np.integer]) -> np.ndarray:
    """From each behaviour's column its own positions, end to end."""
    taken = np.empty((sum(map(len, positions)), *columns[0].shape[1:]), dtype)
    start = 0
    for column, position_E in zip(columns, positions, strict=True):
        taken[start : start + len(position_E)] = column.take(position_E, axis=0)
        start += len(position_E)
    return taken


def _columns(store: Store, feature: Feature) -> np.ndarray:
    """Where a feature's ids stand in the row of its side."""
    columns = np.flatnonzero(np.array(store.columns_of(feature.side)) == feature.name)
    assert len(columns) == feature.max_values, (feature, columns)
    return columns


def _fill(ids_SB: np.ndarray, places: np.ndarray, rows_BW: np.ndarray, columns: np.ndarray) -> None:
    """Turns rows of an example into rows of a feature, a piece at a time that stays in the cache."""
    place, column, num = int(places[0]), int(columns[0]), len(columns)
    steps = np.arange(num)
    # Features of one side mostly stand in the order of its columns, and slices are twice as fast as lists.
    in_step = np.array_equal(columns, column + steps) and np.array_equal(places, place + steps)
    for start in range(0, len(rows_BW), ROWS_IN_CACHE):
        piece = slice(start, start + ROWS_IN_CACHE)
        if in_step:
            ids_SB[place : place + num, piece] = rows_BW[piece, column : column + num].T
        else:
            ids_SB[places, piece] = rows_BW[piece].T[columns]


def _rarity(store: Store, feature: Feature) -> np.ndarray | None:
    """One over the number of training look-ups of each id of a feature, float32; None where no id is ever rare."""
    if store.manifest["encodings"][feature.name] not in COUNTED_ENCODINGS:
        return None
    rarity = np.zeros({t.name: t.num_rows for t in store.schema.tables}[feature.table], np.float32)
    rarity[FIRST_VALUE_ID:] = 1.0 / store.vocabulary(feature.name).column("count").to_numpy()
    return rarity
