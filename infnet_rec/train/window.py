"""The AUC of the examples that were trained on lately, at the price of keeping what the steps gave anyway.

Nothing is copied and no device is waited for until somebody asks.

Shapes: B examples of a batch, N of the window, T tasks.
"""

from collections import deque

import numpy as np
import torch

from infnet_rec.model.ranking import Scores
from infnet_rec.train.metrics import auc

WINDOW_EXAMPLES = 8_192


class TrainWindow:
    """The predictions of this rank's last examples, each made just before it was learned from.

    So the AUC is one of examples that the model had not seen in this epoch. It is of this rank's examples only, at most
    `WINDOW_EXAMPLES` of them: a sign of life beside the loss, no metric to choose by. A run that goes on from a
    checkpoint begins with an empty window.
    """

    def __init__(self) -> None:
        self._kept: deque[Scores] = deque()
        self._num_examples = 0

    def keep(self, scores: Scores) -> None:
        """Remembers a step; what lies too far back is let go of."""
        self._kept.append(scores)
        self._num_examples += len(scores.weight_B)
        while self._num_examples - len(self._kept[0].weight_B) >= WINDOW_EXAMPLES:
            self._num_examples -= len(self._kept.popleft().weight_B)

    def take(self) -> list[float]:
        """The AUC of each task (NaN where it has one class, or a prediction was not finite); the window is empty then.

        It waits for the device, so ask where that was waited for already.
        """
        if not self._kept:
            return []
        logits_NT, labels_NT = (
            torch.cat([getattr(scores, name) for scores in self._kept])[-WINDOW_EXAMPLES:].cpu().numpy()
            for name in ("logits_BT", "labels_BT")
        )
        self._kept.clear()
        self._num_examples = 0
        columns = zip(logits_NT.T.astype(np.float64), labels_NT.T.astype(np.float64), strict=True)
        return [auc(logits_N, labels_N) for logits_N, labels_N in columns]
