"""Which examples were in a batch that was not finite, for people to look at."""

from pathlib import Path

import numpy as np

from infnet_rec.data.order import TrainOrder, local_slice
from infnet_rec.data.store import Examples, Store
from infnet_rec.train.guard import Bad
from infnet_rec.train.report import write_json


class BadBatches:
    """Writes `nonfinite-step-N.json` beside the checkpoints; the ids need no batch, the order knows them."""

    def __init__(self, store: Store, order: TrainOrder, world_size: int, folder: Path | None) -> None:
        """Writes nothing yet.

        Args:
            store: whose train split it is.
            order: of the run.
            world_size: ranks that shared a batch.
            folder: where to write; None on all ranks but the first.
        """
        self._store, self._order, self._world_size, self._folder = store, order, world_size, folder

    def __call__(self, bad: Bad) -> str:
        """Writes the ids of the examples that the bad step's ranks had: row in the store, user, item."""
        global_G = self._order.global_batch(bad.step - 1)
        name = f"nonfinite-step-{bad.step}.json"
        if self._folder is not None:
            examples = self._store.examples("train")
            users, items = self._store.user_keys, self._store.item_keys
            found = {
                str(rank): [
                    {"row": row, "user": users[user].as_py(), "item": items[item].as_py()}
                    for row, user, item in _columns(local_slice(global_G, rank, self._world_size), examples)
                ]
                for rank in bad.ranks
            }
            self._folder.mkdir(parents=True, exist_ok=True)
            record = {"step": bad.step, "what": bad.what, "tasks": bad.tasks, "examples_by_rank": found}
            write_json(self._folder / name, record)
        return f"the ids of its examples are in checkpoints/{name}"


def _columns(rows_B: np.ndarray, examples: Examples) -> list[tuple[int, int, int]]:
    return list(zip(rows_B.tolist(), examples.user_N[rows_B].tolist(), examples.item_N[rows_B].tolist(), strict=True))
