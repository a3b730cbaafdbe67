"""Single examples: which are worth a picture, and what each attended to.

Shapes: B examples of a batch, T tasks, Q queries, M fields, F sequences, S positions (the newest last).
"""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch

from infnet_rec.analysis.sums import Names, as_arrays, rounded
from infnet_rec.data.store import Store
from infnet_rec.models.infnet.recorder import Recorded
from infnet_rec.models.ranking_model import Scores

LONG = 0.9  # of all examples have shorter histories

JSON = dict[str, Any]


@dataclass(slots=True)
class Candidates:
    """What is known of the examples that two are chosen from."""

    row: list[np.ndarray] = field(default_factory=list)
    user: list[np.ndarray] = field(default_factory=list)
    num_events: list[np.ndarray] = field(default_factory=list)
    num_positive: list[np.ndarray] = field(default_factory=list)

    def add(self, recorded: Recorded, scores: Scores, rows_B: np.ndarray) -> None:
        """The examples of a batch, without its padding."""
        num_examples = len(rows_B)
        self.row.append(rows_B)
        self.user.append(scores.user_B[:num_examples].cpu().numpy())
        self.num_events.append(recorded.lengths_FB[:, :num_examples].sum(dim=0).cpu().numpy())
        self.num_positive.append(scores.labels_BT[:num_examples].sum(dim=1).cpu().numpy())


def chosen(candidates: Candidates) -> list[int]:
    """Rows of two examples with long histories: one that is positive for most tasks, and another user's for fewest."""
    row_N, user_N, num_events_N, num_positive_N = (
        np.concatenate(parts)
        for parts in (candidates.row, candidates.user, candidates.num_events, candidates.num_positive)
    )
    is_long_N = num_events_N >= np.quantile(num_events_N, LONG)
    # The last key counts first; of examples that are alike the earliest is taken.
    first = int(np.lexsort((row_N, -num_events_N, -num_positive_N, ~is_long_N))[0])
    second = int(np.lexsort((row_N, -num_events_N, num_positive_N, ~is_long_N, user_N == user_N[first]))[0])
    return [int(row_N[first]), int(row_N[second])] if second != first else [int(row_N[first])]


def example_identity(store: Store, split: str, row: int) -> JSON:
    """Whose example it is, in the dataset's own words."""
    examples = store.examples(split)
    user, item = int(examples.user_N[row]), int(examples.item_N[row])
    return {"row": row, "user": store.user_keys[user].as_py(), "item": store.item_keys[item].as_py()}


def one_example(recorded: Recorded, scores: Scores, place: int, names: Names) -> JSON:
    """Labels, predictions and attention of one example of a batch."""
    field_BQM, event_BQFS, lengths_BF = as_arrays(recorded, place + 1)
    field_QM, event_QFS, length_F = field_BQM[place], event_BQFS[place], lengths_BF[place]
    tasks = names.queries[: names.num_tasks]
    predicted_T = torch.sigmoid(scores.logits_BT[place].double()).tolist()
    by_behaviour = groupby(zip(names.sequences, length_F, strict=True), key=lambda pair: pair[0][0])
    return {
        "labels": dict(zip(tasks, scores.labels_BT[place].int().tolist(), strict=True)),
        "predicted": dict(zip(tasks, map(rounded, predicted_T), strict=True)),
        # All sequences of a behaviour list the same events.
        "events": {behaviour: int(next(pairs)[1]) for behaviour, pairs in by_behaviour},
        "num_tokens": int(length_F.sum()),
        "fields": {query: [rounded(float(share)) for share in field_QM[q]] for q, query in enumerate(names.queries)},
        # From each sequence's oldest event to its newest.
        "positions": {
            query: [
                [rounded(float(share)) for share in event_QFS[q, f][event_QFS.shape[-1] - length :]]
                for f, length in enumerate(length_F)
            ]
            for q, query in enumerate(names.queries)
        },
    }
