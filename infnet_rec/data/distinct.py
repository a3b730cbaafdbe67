"""Each distinct id of a batch once, without sorting.

Shapes: N numbers, X distinct ones, B examples, S shared features, V behaviours, E events of a batch, A attributes of an
event, K unpooled tokens.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from infnet_rec.data.gather import Events
from infnet_rec.data.store import Store
from infnet_rec.schema import Schema

# Attributes of items are copied side by side up to this size: an item's whole row is scattered over many more pages.
COPIED_BYTES = 256 << 20
# Up to so many places for each number, looking at all places is cheaper than finding out which were written.
FEW_PLACES = 1


class Distinct:
    """Finds the distinct numbers of lists whose numbers all lie below one limit.

    The scratch is four bytes for each number that ever occurred (the operating system gives no memory to pages that
    were never written) and need not be cleared: only places that the same call wrote are read. So a call costs time by
    the length of the list alone. Two threads must not share one.
    """

    def __init__(self, limit: int) -> None:
        """Reserves the scratch; numbers are from 0 to `limit` - 1."""
        self._place = np.empty(limit, np.int32)
        self._count = np.empty(0, np.int32)

    def of(self, numbers_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct numbers in an order that the list decides (int64 [X]), each number's row among them (int32 [N])."""
        numbers_N = numbers_N.astype(np.int64, copy=False)
        if len(self._place) <= FEW_PLACES * len(numbers_N):
            self._place[:] = 0
            self._place[numbers_N] = 1
            number_X = np.flatnonzero(self._place)
            self._place[number_X] = np.arange(len(number_X), dtype=np.int32)
            return number_X, self._place.take(numbers_N)
        if len(self._count) < len(numbers_N):
            self._count = np.arange(len(numbers_N) * 5 // 4, dtype=np.int32)
        count_N = self._count[: len(numbers_N)]
        # Of equal numbers the last one wins; any winner would do, as long as there is one.
        self._place[numbers_N] = count_N
        winner_N = self._place.take(numbers_N)
        wins_N = winner_N == count_N
        row_N = np.cumsum(wins_N, dtype=np.int32)
        row_N -= 1
        return numbers_N[wins_N], row_N.take(winner_N)


@dataclass(frozen=True, slots=True)
class Tokens:
    """`Batch.sequences` and `Batch.spread_K` in parts: distinct ids of each table, and rows among all of them."""

    ids: list[np.ndarray]
    spread_K: np.ndarray


@dataclass(frozen=True, slots=True)
class _Family:
    """Behaviours whose events are read for the same attributes: all of them, where a recipe made the store.

    Attributes:
        behaviours: their numbers in the schema.
        columns: item columns read for each event, int64 [A].
        tables: for each of them its number among the schema's sequence tables.
        context: attributes that the log itself gives each event, with their tables.
        slots: the attributes in the order of the sequences: a place in `tables`, or a name in `context`.
        item_ids: these columns of all items, int32 [items, A], or None where they are too large to copy.
    """

    behaviours: list[int]
    columns: np.ndarray
    tables: tuple[int, ...]
    context: dict[str, int]
    slots: tuple[int | str, ...]
    item_ids: np.ndarray | None


class _Scratch(threading.local):
    """One for each thread that reads."""

    def __init__(self, num_items: int, num_rows: list[int]) -> None:
        self.items = Distinct(num_items)
        self.tables = [Distinct(rows) for rows in num_rows]


class UnpooledTokens:
    """Makes the tokens of the EmbeddingCollection; threads may share it.

    A batch repeats most items, and an item's attributes repeat with it: distinct items are found first, and only their
    attributes are read and made distinct in turn.
    """

    def __init__(self, store: Store, schema: Schema) -> None:
        tables = [t.name for t in schema.sequence_tables]
        self._shared_tables = [tables.index(f.table) for f in schema.shared_features]
        self._families = _families(store, schema)
        self._item_ids, self._item_width = store.item_ids.reshape(-1), store.item_ids.shape[1]
        self._scratch = _Scratch(len(store.item_ids), [t.num_rows for t in schema.sequence_tables])

    def read(self, shared_SB: np.ndarray, events: Events) -> Tokens:
        """The tokens of a batch.

        Args:
            shared_SB: ids of the shared features.
            events: of all examples.
        """
        cuts = np.cumsum(events.num_V)[:-1]
        parts: list[list[np.ndarray]] = [[] for _ in self._scratch.tables]
        for table, ids_B in zip(self._shared_tables, shared_SB, strict=True):
            parts[table].append(ids_B)
        items_of, row_of_event = np.split(events.item_E, cuts), []
        for family in self._families:
            item_X, row_E = self._scratch.items.of(np.concatenate([items_of[v] for v in family.behaviours]))
            if family.item_ids is not None:
                ids_XA = family.item_ids.take(item_X, axis=0)
            else:
                ids_XA = self._item_ids.take((item_X * self._item_width)[:, None] + family.columns)
            for a, table in enumerate(family.tables):
                parts[table].append(ids_XA[:, a])
            for name, table in family.context.items():
                given_of = np.split(events.context[name], cuts)
                parts[table].append(np.concatenate([given_of[v] for v in family.behaviours]))
            row_of_event.append(row_E.astype(np.int64))
        ids, rows = self._rows(parts)
        spread_K = np.empty(shared_SB.size + self._num_tokens(events.num_V), np.int64)
        for s, table in enumerate(self._shared_tables):
            spread_K[s * shared_SB.shape[1] : (s + 1) * shared_SB.shape[1]] = rows[table].pop(0)
        rows_of_family: list[dict[int | str, np.ndarray]] = []
        for family in self._families:
            found: dict[int | str, np.ndarray] = {a: rows[table].pop(0) for a, table in enumerate(family.tables)}
            rows_of_family.append(found | {name: rows[table].pop(0) for name, table in family.context.items()})
        self._spread(spread_K[shared_SB.size :], rows_of_family, row_of_event, events.num_V)
        return Tokens(ids, spread_K)

    def _rows(self, parts: list[list[np.ndarray]]) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        """Distinct ids of each table, and for each part of its ids their rows among those of all tables, int64."""
        ids, rows, start = [], [], 0
        for distinct, mine in zip(self._scratch.tables, parts, strict=True):
            id_X, row_N = distinct.of(np.concatenate(mine))
            rows.append(np.split(row_N.astype(np.int64) + start, np.cumsum([len(part) for part in mine])[:-1]))
            ids.append(id_X)
            start += len(id_X)
        return ids, rows

    def _num_tokens(self, num_V: Sequence[int]) -> int:
        return sum(num_V[v] * len(family.slots) for family in self._families for v in family.behaviours)

    def _spread(
        self,
        spread_L: np.ndarray,
        rows_of_family: list[dict[int | str, np.ndarray]],
        row_of_event: list[np.ndarray],
        num_V: Sequence[int],
    ) -> None:
        """Fills in the rows of the sequences: event to distinct item to distinct id."""
        sources = {}
        for family, rows, row_E in zip(self._families, rows_of_family, row_of_event, strict=True):
            first = 0
            for v in family.behaviours:
                sources[v] = (family, rows, row_E, slice(first, first + num_V[v]))
                first += num_V[v]
        start = 0
        for v in range(len(num_V)):
            family, rows, row_E, mine = sources[v]
            for slot in family.slots:
                stop = start + num_V[v]
                if isinstance(slot, str):
                    spread_L[start:stop] = rows[slot][mine]
                else:
                    # Rows are in range by construction; "clip" spares numpy a copy of the result.
                    np.take(rows[slot], row_E[mine], out=spread_L[start:stop], mode="clip")
                start = stop


def _families(store: Store, schema: Schema) -> list[_Family]:
    """Behaviours by what is read for their events."""
    tables = [t.name for t in schema.sequence_tables]
    behaviours_of: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for v, behaviour in enumerate(schema.behaviours):
        reads = tuple((s.attribute, tables.index(s.table)) for s in schema.sequences if s.behaviour == behaviour)
        behaviours_of.setdefault(reads, []).append(v)
    by_behaviour = [s.name for name in schema.behaviours for s in schema.sequences if s.behaviour == name]
    assert by_behaviour == [s.name for s in schema.sequences], "sequences must be grouped by behaviour"
    return [_family(store, behaviours, reads) for reads, behaviours in behaviours_of.items()]


def _family(store: Store, behaviours: list[int], reads: tuple[tuple[str, int], ...]) -> _Family:
    columns = store.columns_of("item")
    of_items = [(columns.index(name), table) for name, table in reads if name in columns]
    context = {name: table for name, table in reads if name not in columns}
    place = iter(range(len(of_items)))
    slots = tuple(name if name in context else next(place) for name, _ in reads)
    places, tables = tuple(column for column, _ in of_items), tuple(table for _, table in of_items)
    return _Family(behaviours, np.array(places, np.int64), tables, context, slots, _copied(store, places))


# The splits of a store share one copy.
_copies: WeakKeyDictionary[Store, dict[tuple[int, ...], np.ndarray]] = WeakKeyDictionary()


def _copied(store: Store, columns: tuple[int, ...]) -> np.ndarray | None:
    """Some columns of all items side by side, where that is not too large."""
    if len(store.item_ids) * len(columns) * store.item_ids.itemsize > COPIED_BYTES:
        return None
    copies = _copies.setdefault(store, {})
    if columns not in copies:
        copies[columns] = store.item_ids.take(columns, axis=1)
    return copies[columns]
