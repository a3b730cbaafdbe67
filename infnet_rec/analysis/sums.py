"""Attention and gates of many examples, summed up batch by batch.

Two numbers say how much attention something gets. Its share is what the softmax gave it: the shares of all fields sum
to 1, and so do those of all events. How many times its even share that is can be compared between fields and events,
and between long histories and short ones: 1 is what it would get if the query told nothing apart.

Shapes: B examples of a batch, Q queries, M fields, F sequences, S positions (the newest last), K members of a grouping
of the sequences, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infnet_rec.models.infnet.recorder import Recorded
from infnet_rec.schema import Schema

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GATE_BINS = 1000
DIGITS = 6  # significant ones, of numbers that are written

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Names:
    """What stands along the axes.

    Attributes:
        queries: task tokens by their task, then shared task tokens.
        num_tasks: how many of them are task tokens.
        fields: the categorical tokens, in the model's order.
        sides: of the fields: user, item or context.
        sequences: behaviour and attribute of each sequence.
        num_positions: S.
    """

    queries: tuple[str, ...]
    num_tasks: int
    fields: tuple[str, ...]
    sides: tuple[str, ...]
    sequences: tuple[tuple[str, str], ...]
    num_positions: int

    @classmethod
    def of(cls, schema: Schema, num_shared_tokens: int, num_positions: int) -> "Names":
        """The axes of a model of this schema."""
        tasks = [task.name for task in schema.tasks]
        fields = (*schema.bag_features, *schema.shared_features)
        return cls(
            queries=(*tasks, *(f"shared {number + 1}" for number in range(num_shared_tokens))),
            num_tasks=len(tasks),
            fields=tuple(f.name for f in fields),
            sides=tuple(f.side for f in fields),
            sequences=tuple((s.behaviour, s.attribute) for s in schema.sequences),
            num_positions=num_positions,
        )

    def groupings(self) -> dict[str, dict[str, np.ndarray]]:
        """Ways to add sequences up, and for each of their members which sequences it is made of, bool [F]."""
        keys = {
            "sequences": [f"{behaviour}: {attribute}" for behaviour, attribute in self.sequences],
            "behaviours": [behaviour for behaviour, _ in self.sequences],
            "attributes": [attribute for _, attribute in self.sequences],
        }
        return {way: {key: np.array(keys_F) == key for key in dict.fromkeys(keys_F)} for way, keys_F in keys.items()}


@dataclass(slots=True)
class Moments:
    """Mean and deviation of what comes in batches, over the first axis."""

    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, values_BX: np.ndarray) -> None:
        """Adds the values of some more examples."""
        self.count += len(values_BX)
        self.total = self.total + values_BX.sum(axis=0)
        self.squares = self.squares + np.square(values_BX).sum(axis=0)

    @property
    def mean(self) -> Any:
        """Of all so far; 0 of none."""
        return self.total / max(self.count, 1)

    @property
    def std(self) -> Any:
        """The standard deviation of the population, not of a sample."""
        return np.sqrt(np.maximum(self.squares / max(self.count, 1) - np.square(self.mean), 0.0))


@dataclass(slots=True)
class GateSums:
    """All gates of one kind of token in one block: B x D values between 0 and 1."""

    by_dimension: Moments = field(default_factory=Moments)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(GATE_BINS, np.int64))

    def add(self, gate_BD: np.ndarray) -> None:
        """Adds the gates of some more examples."""
        self.by_dimension.add(gate_BD)
        self.histogram += np.histogram(gate_BD, bins=GATE_BINS, range=(0.0, 1.0))[0]

    def to_json(self) -> JSON:
        """Quantiles are right to one part in `GATE_BINS`."""
        mean_D, count = self.by_dimension.mean, self.histogram.sum()
        mean = float(np.mean(mean_D))
        variance = np.mean(np.square(self.by_dimension.std) + np.square(mean_D)) - mean**2
        reached = np.searchsorted(np.cumsum(self.histogram), np.array(QUANTILES) * count) + 0.5
        return {
            "mean": rounded(mean),
            "std": rounded(float(np.sqrt(max(variance, 0.0)))),
            "std_between_examples": rounded(float(np.sqrt(np.mean(np.square(self.by_dimension.std))))),
            "quantiles": {str(q): float(at / GATE_BINS) for q, at in zip(QUANTILES, reached, strict=True)},
            "histogram": self.histogram.reshape(-1, GATE_BINS // 50).sum(axis=1).tolist(),
        }


class Sums:
    """What the examples so far attended to."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._fields = Moments()
        self._groups = {way: np.stack(list(parts.values()), axis=1) for way, parts in names.groupings().items()}
        self._shares = {way: Moments() for way in self._groups}
        self._even = {way: Moments() for way in self._groups}
        self._having: dict[str, Any] = dict.fromkeys(self._groups, 0)
        # Of those examples that have an event there, so each position is counted for itself.
        shape = (len(names.queries), len(names.sequences), names.num_positions)
        self._share_QFS, self._times_QFS = np.zeros(shape), np.zeros(shape)
        self._having_FS = np.zeros(shape[1:], np.int64)
        self._spread = {"fields": Moments(), "events": Moments()}
        self._events = Moments()
        self._gates: dict[tuple[int, str], GateSums] = {}

    def add(self, recorded: Recorded, num_examples: int) -> None:
        """Takes the first examples of a batch; those after them are padding."""
        field_BQM, event_BQFS, lengths_BF = as_arrays(recorded, num_examples)
        self._fields.add(field_BQM)
        self._spread["fields"].add(effective_number(field_BQM))
        for place, gate_BD in recorded.gates_BD.items():
            self._gates.setdefault(place, GateSums()).add(gate_BD[:num_examples].double().cpu().numpy())
        has_B = lengths_BF.sum(axis=1) > 0
        lengths_BF, event_BQFS = lengths_BF[has_B], event_BQFS[has_B]
        if not len(lengths_BF):
            return
        num_events_B = lengths_BF.sum(axis=1)
        self._events.add(num_events_B.astype(np.float64))
        self._spread["events"].add(effective_number(event_BQFS.reshape(*event_BQFS.shape[:2], -1)))
        for way, is_part_FK in self._groups.items():
            self._shares[way].add(event_BQFS.sum(axis=-1) @ is_part_FK)
            self._even[way].add(lengths_BF @ is_part_FK / num_events_B[:, None])
            self._having[way] = self._having[way] + (lengths_BF @ is_part_FK > 0).sum(axis=0)
        num_slots = event_BQFS.shape[-1]
        present_BFS = np.arange(num_slots)[::-1] < lengths_BF[..., None]
        self._having_FS[:, -num_slots:] += present_BFS.sum(axis=0)
        self._share_QFS[..., -num_slots:] += event_BQFS.sum(axis=0)
        self._times_QFS[..., -num_slots:] += np.einsum("bqfs,b->qfs", event_BQFS, num_events_B)

    def to_json(self) -> JSON:
        """All of it; null where no example has such an event."""
        names, even = self._names, 1 / len(self._names.fields)
        fields = [
            {"name": name, "side": side, "even": rounded(even), "num_examples": self._fields.count}
            | {"attention": self._by_query(self._fields, m, even)}
            for m, (name, side) in enumerate(zip(names.fields, names.sides, strict=True))
        ]
        parts = {
            way: [
                {"name": name, "even": rounded(float(self._even[way].mean[k])), "num_examples": int(having)}
                | {"attention": self._by_query(self._shares[way], k, float(self._even[way].mean[k]))}
                for k, (name, having) in enumerate(zip(members, self._having[way], strict=True))
            ]
            for way, members in names.groupings().items()
            if self._events.count
        }
        return {
            "num_examples": self._fields.count,
            "num_examples_with_events": self._events.count,
            "events_per_example": rounded(float(self._events.mean)),
            "effective_number": {
                of: dict(zip(names.queries, map(rounded, np.broadcast_to(m.mean, len(names.queries))), strict=True))
                for of, m in self._spread.items()
            },
            "fields": fields,
            **parts,
            "positions": self._positions(),
            "gates": [
                {"block": block + 1, "tokens": kind, **sums.to_json()} for (block, kind), sums in self._gates.items()
            ],
        }

    def _by_query(self, shares: Moments, part: int, even: float) -> JSON:
        """Of one field or part of the history."""
        return {
            query: {
                "share": rounded(float(shares.mean[q, part])),
                "std": rounded(float(shares.std[q, part])),
                "times_even": rounded(float(shares.mean[q, part]) / even) if even else None,
            }
            for q, query in enumerate(self._names.queries)
        }

    def _positions(self) -> list[JSON]:
        having_FS = np.where(self._having_FS > 0, self._having_FS, np.nan)
        return [
            {
                "name": f"{behaviour}: {attribute}",
                "num_examples": self._having_FS[f].tolist(),
                "share": _series(self._names.queries, self._share_QFS[:, f] / having_FS[f]),
                "times_even": _series(self._names.queries, self._times_QFS[:, f] / having_FS[f]),
            }
            for f, (behaviour, attribute) in enumerate(self._names.sequences)
        ]


def as_arrays(recorded: Recorded, num_examples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attention to fields [B, Q, M] and to events [B, Q, F, S], and lengths [B, F], of the first examples."""
    field_BQM, event_BQFS = (
        attention[:num_examples].double().cpu().numpy() for attention in (recorded.field_BQM, recorded.event_BQFS)
    )
    return field_BQM, event_BQFS, recorded.lengths_FB[:, :num_examples].cpu().numpy().T


def effective_number(share_BQX: np.ndarray) -> np.ndarray:
    """The number e to the power of the entropy: X where all get the same, 1 where one gets everything. [B, Q]."""
    positive_BQX = np.where(share_BQX > 0, share_BQX, 1.0)
    return np.exp(-(share_BQX * np.log(positive_BQX)).sum(axis=-1))


def rounded(value: float) -> float:
    """With as many digits as mean something."""
    return float(f"{value:.{DIGITS}g}")


def _series(queries: Sequence[str], values_QS: np.ndarray) -> Mapping[str, list[float | None]]:
    return {
        query: [None if np.isnan(value) else rounded(float(value)) for value in values_S]
        for query, values_S in zip(queries, values_QS, strict=True)
    }
