"""Each distinct id of a batch once, without sorting; and each distinct token of an example once.

Shapes: N numbers, X distinct ones, B examples, F sequences, S shared features, V behaviours, E events of a batch, W
item columns read for an event, k most values of an attribute, K unpooled tokens, L of them of sequences, U distinct
ones of an example, Y = B + 1 places between examples, P means of Q rows.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from infnet_rec.data.gather import Events
from infnet_rec.data.store import Store
from infnet_rec.schema import EMPTY_SLOT, Schema

# Attributes of items are copied side by side up to this size: an item's whole row is scattered over many more pages.
COPIED_BYTES = 256 << 20
# Up to so many places for each number, looking at all places is cheaper than finding out which were written.
FEW_PLACES = 1
# numpy sorts 16 bits by counting, several times faster than anything wider.
DIGIT_BITS = 16


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
class TokenIds:
    """`Batch.sequences` in parts (distinct ids of each table), and what `Batch` has under the same names."""

    ids: list[np.ndarray]
    spread_K: np.ndarray
    mean_row_Q: np.ndarray | None = None
    mean_start_P: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class RepeatedRows:
    """`Repeats` under the same names, in arrays of int32."""

    row_U: np.ndarray
    count_U: np.ndarray
    start_Y: np.ndarray
    by_row_L: np.ndarray
    row_start_X: np.ndarray


def count_repeats(row_L: np.ndarray, length_FB: np.ndarray, num_rows: int) -> RepeatedRows:
    """Counts equal tokens within each example, and puts the tokens of the batch in the order of their rows.

    Args:
        row_L: of each sequence token its row among the distinct embeddings, feature-major, int64.
        length_FB: events of each sequence in each example, int64; sums to L.
        num_rows: X, of the distinct embeddings with the means.
    """
    num_sequences, num_examples = length_FB.shape
    example_B = np.arange(num_examples, dtype=_least_dtype(num_examples))
    example_L = np.repeat(np.tile(example_B, num_sequences), length_FB.reshape(-1))
    by_row_L = order_of(row_L, num_rows)
    tokens_of_row_X = np.bincount(row_L, minlength=num_rows)
    sorted_row_L = np.repeat(np.arange(num_rows, dtype=_least_dtype(num_rows)), tokens_of_row_X)
    # Sorting is stable: what comes out is in the order of examples, and within an example in that of rows.
    sorted_row_L = sorted_row_L.take(order_of(example_L.take(by_row_L), num_examples))
    token_start_Y = np.append(0, np.cumsum(length_FB.sum(axis=0)))
    is_first_L = np.empty(len(row_L), np.bool_)
    np.not_equal(sorted_row_L[1:], sorted_row_L[:-1], out=is_first_L[1:])
    is_first_L[token_start_Y[token_start_Y < len(row_L)]] = True
    first_U = np.flatnonzero(is_first_L)
    return RepeatedRows(
        row_U=sorted_row_L.take(first_U).astype(np.int32),
        count_U=np.diff(first_U, append=len(row_L)).astype(np.int32),
        start_Y=np.searchsorted(first_U, token_start_Y).astype(np.int32),
        by_row_L=by_row_L.astype(np.int32),
        row_start_X=(np.cumsum(tokens_of_row_X) - tokens_of_row_X).astype(np.int32),
    )


def _least_dtype(limit: int) -> type[np.integer]:
    """For whole numbers from 0 to `limit` - 1."""
    return np.uint16 if limit <= 1 << DIGIT_BITS else np.int64


def order_of(number_N: np.ndarray, limit: int) -> np.ndarray:
    """What a stable argsort of whole numbers from 0 to `limit` - 1 gives, int64."""
    order_N = np.argsort(number_N.astype(np.uint16, copy=False), kind="stable")
    for shift in range(DIGIT_BITS, max(0, limit - 1).bit_length(), DIGIT_BITS):
        digit_N = (number_N[order_N] >> shift).astype(np.uint16)
        order_N = order_N[np.argsort(digit_N, kind="stable")]
    return order_N


@dataclass(frozen=True, slots=True)
class _Family:
    """Behaviours whose events are read for the same attributes: all of them, where a recipe made the store.

    Attributes:
        behaviours: their numbers in the schema.
        columns: item columns read for each event, int64 [W].
        places: for each attribute of the item, which of them are its own: one, or several of several values.
        tables: for each of these attributes its number among the schema's sequence tables.
        context: attributes that the log itself gives each event, with their tables.
        slots: the attributes in the order of the sequences: a place in `tables`, or a name in `context`.
        item_ids: these columns of all items, int32 [items, A], or None where they are too large to copy.
    """

    behaviours: list[int]
    columns: np.ndarray
    places: tuple[slice, ...]
    tables: tuple[int, ...]
    context: dict[str, int]
    slots: tuple[int | str, ...]
    item_ids: np.ndarray | None


@dataclass(slots=True)
class _Means:
    """Tokens of several ids: each is a row of its own, behind the rows of all distinct ids.

    Attributes:
        first: the number of these; where the next mean stands.
        rows: of each mean, one after the other.
        counts: of rows of each.
    """

    first: int
    rows: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)

    def add(self, row_Q: np.ndarray, count_P: np.ndarray) -> np.ndarray:
        """Takes some means; returns their rows [P]."""
        self.rows.append(row_Q)
        self.counts.append(count_P)
        self.first += len(count_P)
        return np.arange(self.first - len(count_P), self.first)

    def tokens(self, ids: list[np.ndarray], spread_K: np.ndarray, *, averages: bool) -> TokenIds:
        """All that was found."""
        if not averages:
            return TokenIds(ids, spread_K)
        empty = [np.empty(0, np.int64)]  # a batch may have no event
        count_P = np.concatenate(self.counts + empty)
        return TokenIds(ids, spread_K, np.concatenate(self.rows + empty), np.cumsum(count_P) - count_P)


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
        self._shared_is_one = [f.max_values == 1 for f in schema.shared_features]
        self._averages = schema.averages_tokens
        self._families = _families(store, schema)
        self._item_ids, self._item_width = store.item_ids.reshape(-1), store.item_ids.shape[1]
        self._scratch = _Scratch(len(store.item_ids), [t.num_rows for t in schema.sequence_tables])

    def read(self, shared: tuple[np.ndarray, np.ndarray, list[int]], events: Events) -> TokenIds:
        """The tokens of a batch.

        Args:
            shared: ids of the shared features, see `FeatureIds.jagged`.
            events: of all examples.
        """
        cuts = np.cumsum(events.num_V)[:-1]
        parts: list[list[np.ndarray]] = [[] for _ in self._scratch.tables]
        shared_ids, shared_counts, num_of_shared = shared
        for table, ids in zip(self._shared_tables, np.split(shared_ids, np.cumsum(num_of_shared)[:-1]), strict=False):
            parts[table].append(ids)
        items_of, row_of_event, counts_of = np.split(events.item_E, cuts), [], []
        for family in self._families:
            item_X, row_E = self._scratch.items.of(np.concatenate([items_of[v] for v in family.behaviours]))
            if family.item_ids is not None:
                ids_XW = family.item_ids.take(item_X, axis=0)
            else:
                ids_XW = self._item_ids.take((item_X * self._item_width)[:, None] + family.columns)
            counts: dict[int | str, np.ndarray] = {}
            for a, (place, table) in enumerate(zip(family.places, family.tables, strict=True)):
                parts[table].append(_given(ids_XW[:, place], a, counts))
            for name, table in family.context.items():
                given_of = np.split(events.context[name], cuts)
                ids_Ek = np.concatenate([given_of[v] for v in family.behaviours])
                parts[table].append(_given(ids_Ek if ids_Ek.ndim == 2 else ids_Ek[:, None], name, counts))
            row_of_event.append(row_E.astype(np.int64))
            counts_of.append(counts)
        ids, rows = self._rows(parts)
        means = _Means(sum(map(len, ids)))
        spread_K = np.empty(len(shared_counts) + self._num_tokens(events.num_V), np.int64)
        counts_SB = shared_counts.reshape(len(self._shared_tables), events.length_VB.shape[1])
        spread_SB = spread_K[: len(shared_counts)].reshape(counts_SB.shape)
        for s, table in enumerate(self._shared_tables):
            found = rows[table].pop(0)
            spread_SB[s] = found if self._shared_is_one[s] else means.add(found, counts_SB[s])
        rows_of_family: list[dict[int | str, np.ndarray]] = []
        for family, counts in zip(self._families, counts_of, strict=True):
            found_of = {a: rows[table].pop(0) for a, table in (*enumerate(family.tables), *family.context.items())}
            rows_of_family.append(
                {a: means.add(found, counts[a]) if a in counts else found for a, found in found_of.items()}
            )
        self._spread(spread_K[len(shared_counts) :], rows_of_family, row_of_event, events.num_V)
        return means.tokens(ids, spread_K, averages=self._averages)

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


def _given(ids_Nk: np.ndarray, attribute: int | str, counts: dict[int | str, np.ndarray]) -> np.ndarray:
    """The ids that there are; of an attribute of several values, how many each row has is put into `counts`."""
    if ids_Nk.shape[1] == 1:
        return ids_Nk[:, 0]
    given_Nk = ids_Nk != EMPTY_SLOT
    counts[attribute] = given_Nk.sum(axis=1)
    return ids_Nk[given_Nk]


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
    of_items = [name for name, _ in reads if name in columns]
    mine = [[c for c, column in enumerate(columns) if column == name] for name in of_items]
    stops = np.cumsum([len(places) for places in mine]).tolist()
    places = tuple(slice(stop - len(own), stop) for own, stop in zip(mine, stops, strict=True))
    context = {name: table for name, table in reads if name not in columns}
    place = iter(range(len(of_items)))
    slots = tuple(name if name in context else next(place) for name, _ in reads)
    tables = tuple(table for name, table in reads if name in columns)
    read = tuple(column for own in mine for column in own)
    return _Family(behaviours, np.array(read, np.int64), places, tables, context, slots, _copied(store, read))


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
