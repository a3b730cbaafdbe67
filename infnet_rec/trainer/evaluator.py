"""A split's metrics from a sharded model.

Shapes: B examples of a batch, N of the whole split on this rank, T tasks.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from infnet_rec.console import batches_bar
from infnet_rec.data.loader import Loader
from infnet_rec.files import whole_file
from infnet_rec.metrics import (
    Predictions,
    TaskMetrics,
    auc_by_user,
    bootstrap_gauc,
    evaluate_over_ranks,
    evaluate_scores,
    gather_predictions,
    mean_over_ranks,
)


class Evaluation:
    """One split and how to score it; the padding of its last batch has weight 0 and is dropped."""

    def __init__(self, loader: Loader, num_steps: int, task_names: Sequence[str], title: str | None = None) -> None:
        """Reads nothing yet.

        Args:
            loader: of this rank's batches.
            num_steps: batches.
            task_names: T names.
            title: of a progress bar on a terminal; None draws none, as all ranks but one.
        """
        self._loader, self._num_steps, self._task_names, self._title = loader, num_steps, task_names, title

    def metrics(self, model: nn.Module, pipeline: TrainPipelineSparseDist) -> dict[str, TaskMetrics]:
        """Metrics of every task over all ranks' examples; the pipeline must be drained, and is drained afterwards."""
        return evaluate_over_ranks(*self._score(model, pipeline), self._task_names)

    def predictions(self, model: nn.Module, pipeline: TrainPipelineSparseDist) -> Predictions | None:
        """Every example's logits, labels and user on rank 0, one rank after the other."""
        return gather_predictions(*self._score(model, pipeline))

    def _score(self, model: nn.Module, pipeline: TrainPipelineSparseDist) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        was_training = model.training
        agree_on_statistics(model)
        model.eval()
        logits, labels, users, weights = [], [], [], []
        batches = self._loader.batches(0, self._num_steps)
        with torch.no_grad():
            for _ in batches_bar(self._num_steps, self._title):
                scores = pipeline.progress(batches)
                logits.append(scores.logits_BT)
                labels.append(scores.labels_BT)
                users.append(scores.user_B)
                weights.append(scores.weight_B)
        model.train(was_training)
        return torch.cat(logits), torch.cat(labels), torch.cat(users), torch.cat(weights)


def agree_on_statistics(model: nn.Module) -> None:
    """Gives every rank the mean of what batch normalisation has seen on each; all ranks call it.

    In training each rank normalises by its own examples. In evaluation they must agree, or an example's logits would
    depend on the rank that it comes to, and saved weights on the rank that saves them.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    if found:
        means = mean_over_ranks(torch.cat(found)).to(found[0].device).split([len(value) for value in found])
        for value, mean in zip(found, means, strict=True):
            value.copy_(mean)


def final_metrics(predictions: Predictions, task_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Metrics of every task for `result.json`, with a 95 % interval of gAUC from resampled users.

    A task with few positives has few users with both classes, and its gAUC means little without the interval.
    """
    metrics = evaluate_scores(predictions.logits_NT, predictions.labels_NT, predictions.user_N, task_names)
    result = {}
    for t, (name, task) in enumerate(metrics.items()):
        logits_N, labels_N = (x[:, t].astype(np.float64) for x in (predictions.logits_NT, predictions.labels_NT))
        users = auc_by_user(logits_N, labels_N, predictions.user_N)
        interval = bootstrap_gauc(users.auc_U, users.weight_U)
        result[name] = {**task.to_json(), "gauc_interval": [None if math.isnan(x) else x for x in interval]}
    return result


def keep_predictions(predictions: Predictions, task_names: Sequence[str], path: Path) -> None:
    """Writes every example's logits [N, T], labels [N, T] and user [N] to an .npz file, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            logits=predictions.logits_NT,
            labels=predictions.labels_NT,
            users=predictions.user_N,
            tasks=np.array(task_names),
        )
