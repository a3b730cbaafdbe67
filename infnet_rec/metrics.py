"""How good predictions are: exact AUC and gAUC, log loss, normalised entropy, calibration.

Everything is counted over all examples at once, in float64 and with ties at half a point: streaming or windowed
approximations of AUC disagree between runs by more than the differences between models that papers report.

Shapes: N examples (of this rank before a gather, of all after it), T tasks, U users with both classes, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """Metrics of one task; what the examples cannot answer (AUC of one class, anything of no examples) is NaN.

    Attributes:
        num_examples: examples with weight above 0.
        num_positives: those of them with label 1.
        auc: area under the ROC curve over all examples.
        gauc: mean of the users' AUCs, weighted by their numbers of examples; users of one class are left out.
        gauc_unweighted: plain mean of the same AUCs.
        num_users: users with both classes, over which the two means are taken.
        log_loss: mean negative log likelihood, in nats.
        ne: normalised entropy, `log_loss` over that of always predicting the base rate; below 1 is better than that.
        calibration: mean prediction over mean label.
    """

    num_examples: int
    num_positives: int
    auc: float
    gauc: float
    gauc_unweighted: float
    num_users: int
    log_loss: float
    ne: float
    calibration: float

    @property
    def has_both_classes(self) -> bool:
        """Whether the labels can tell a good order of the examples from a bad one."""
        return 0 < self.num_positives < self.num_examples

    def to_json(self) -> dict[str, float | None]:
        """A JSON object; NaN and infinity, which JSON has no word for, are null."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def mean_over_tasks(metrics: Mapping[str, TaskMetrics], metric: str) -> float:
    """The mean of one metric, such as "auc", over the tasks whose labels can answer it.

    A task is left out where its labels have one class only, or for gAUC no user has both. These are the same tasks at
    every evaluation of a split, so means of different weights compare. A task that could be answered and is NaN all the
    same (predictions that are not finite) makes the mean NaN; so does having no task left.
    """
    values = [
        getattr(m, metric)
        for m in metrics.values()
        if m.has_both_classes and (not metric.startswith("gauc") or m.num_users > 0)
    ]
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True, slots=True)
class UserAUCs:
    """The AUC of every user that has both classes.

    Attributes:
        user_U: ascending user indices.
        auc_U: each user's AUC.
        weight_U: each user's number of examples.
    """

    user_U: NDArray[np.int64]
    auc_U: Array
    weight_U: Array

    @property
    def gauc(self) -> float:
        """Mean AUC weighted by examples; NaN without users."""
        return _ratio(float(self.auc_U @ self.weight_U), float(self.weight_U.sum()))

    @property
    def gauc_unweighted(self) -> float:
        """Plain mean AUC; NaN without users."""
        return _ratio(float(self.auc_U.sum()), len(self.auc_U))


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of all ranks, without padding, in rank order."""

    logits_NT: NDArray[np.float32]
    labels_NT: NDArray[np.float32]
    user_N: NDArray[np.int64]


def auc(scores_N: Array, labels_N: Array) -> float:
    """Area under the ROC curve; a tie between a positive and a negative counts one half.

    Any increasing function of the scores gives the same value. NaN when only one class is there or a score is NaN.
    """
    one_user_N = np.zeros(len(scores_N), dtype=np.int64)
    return auc_by_user(scores_N, labels_N, one_user_N).gauc


def auc_by_user(scores_N: Array, labels_N: Array, user_N: NDArray[np.int64]) -> UserAUCs:
    """The AUC of each user's own examples, for the users that have both classes.

    A NaN score makes its user's AUC NaN: a model that diverged must not look like one that ranks.
    """
    if len(scores_N) == 0:
        return UserAUCs(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    order_N = np.lexsort((scores_N, user_N))
    scores_N, user_N = scores_N[order_N], user_N[order_N]
    positive_N = labels_N[order_N] > 0.5

    new_user_N = np.concatenate(([True], user_N[1:] != user_N[:-1]))
    start_U = np.flatnonzero(new_user_N)
    length_U = np.diff(start_U, append=len(user_N))

    # All members of a tie share the mean of the ranks they span, counted from 1 at the user's lowest score.
    start_of_tie = np.flatnonzero(new_user_N | np.concatenate(([True], scores_N[1:] != scores_N[:-1])))
    length_of_tie = np.diff(start_of_tie, append=len(user_N))
    rank_N = np.repeat(start_of_tie + (length_of_tie + 1) / 2, length_of_tie) - np.repeat(start_U, length_U)

    positives_U = np.add.reduceat(positive_N, start_U, dtype=np.float64)
    negatives_U = length_U - positives_U
    rank_sum_U = np.add.reduceat(rank_N * positive_N, start_U)
    both_U = (positives_U > 0) & (negatives_U > 0)
    positives_U, negatives_U, rank_sum_U = positives_U[both_U], negatives_U[both_U], rank_sum_U[both_U]
    auc_U = (rank_sum_U - positives_U * (positives_U + 1) / 2) / (positives_U * negatives_U)
    auc_U[np.logical_or.reduceat(np.isnan(scores_N), start_U)[both_U]] = math.nan
    return UserAUCs(user_N[start_U[both_U]], auc_U, length_U[both_U].astype(np.float64))


def bootstrap_gauc(
    auc_U: Array, weight_U: Array, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval (lower, upper end; NaN without users) of the weighted gAUC, by the percentile bootstrap.

    Users are drawn, not examples: a user's examples share a history and a taste, so they are not independent. Give
    ones as `weight_U` for the interval of the unweighted mean, and a difference of two models' AUCs of the same users
    as `auc_U` for the interval of their paired difference.
    """
    num_users = len(auc_U)
    if num_users == 0:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    weighted_U = auc_U * weight_U
    at_once = max(1, _DRAWS_AT_ONCE // num_users)
    gauc_of_chunk: list[Array] = []
    for first in range(0, num_resamples, at_once):
        draw_RU = generator.integers(num_users, size=(min(at_once, num_resamples - first), num_users))
        gauc_of_chunk.append(weighted_U[draw_RU].sum(axis=1) / weight_U[draw_RU].sum(axis=1))
    low, high = np.quantile(np.concatenate(gauc_of_chunk), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def log_loss(logits_N: Array, labels_N: Array) -> float:
    """Mean negative log likelihood in nats, from logits so that sure mistakes stay finite; NaN without examples."""
    return _ratio(float((np.logaddexp(0.0, logits_N) - labels_N * logits_N).sum()), len(logits_N))


def normalised_entropy(logits_N: Array, labels_N: Array) -> float:
    """Log loss over the entropy of the base rate; NaN when one class is missing.

    Reference: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (2014), eq. (3).
    """
    rate = _ratio(float(labels_N.sum()), len(labels_N))
    if not 0 < rate < 1:
        return math.nan
    return log_loss(logits_N, labels_N) / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def calibration(logits_N: Array, labels_N: Array) -> float:
    """Mean predicted probability over mean label; NaN without positives."""
    # exp(-logaddexp(0, -x)) is the sigmoid without an overflow at either end.
    return _ratio(float(np.exp(-np.logaddexp(0.0, -logits_N)).sum()), float(labels_N.sum()))


def evaluate_scores(
    logits_NT: np.ndarray,
    labels_NT: np.ndarray,
    user_N: np.ndarray,
    task_names: Sequence[str],
    weight_N: np.ndarray | None = None,
) -> dict[str, TaskMetrics]:
    """All metrics of all tasks.

    Args:
        logits_NT: logits, not probabilities, of any float type.
        labels_NT: 0 or 1.
        user_N: the user of each example.
        task_names: T names.
        weight_N: rows of weight 0 are padding and are dropped first; all others count as one example.
    """
    shape = (len(user_N), len(task_names))
    assert logits_NT.shape == labels_NT.shape == shape, f"{logits_NT.shape}, {labels_NT.shape} are not {shape}"
    if weight_N is not None:
        keep_N = weight_N > 0
        logits_NT, labels_NT, user_N = logits_NT[keep_N], labels_NT[keep_N], user_N[keep_N]
    return {
        name: _evaluate_task(logits_NT[:, t].astype(np.float64), labels_NT[:, t].astype(np.float64), user_N)
        for t, name in enumerate(task_names)
    }


def _evaluate_task(logits_N: Array, labels_N: Array, user_N: NDArray[np.int64]) -> TaskMetrics:
    by_user = auc_by_user(logits_N, labels_N, user_N)
    return TaskMetrics(
        num_examples=len(logits_N),
        num_positives=int(labels_N.sum()),
        auc=auc(logits_N, labels_N),
        gauc=by_user.gauc,
        gauc_unweighted=by_user.gauc_unweighted,
        num_users=len(by_user.auc_U),
        log_loss=log_loss(logits_N, labels_N),
        ne=normalised_entropy(logits_N, labels_N),
        calibration=calibration(logits_N, labels_N),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def gather_predictions(logits_NT: Tensor, labels_NT: Tensor, user_N: Tensor, weight_N: Tensor) -> Predictions | None:
    """Every rank's predictions on rank 0, None on the others; all ranks must call it.

    Ranks may bring different numbers of rows, or none (then tensors of shape (0, T) and (0,)). Rows of weight 0 are
    dropped before they travel. Without a process group this rank is the only one.
    """
    keep_N = weight_N > 0
    logits_NT, labels_NT, user_N = logits_NT.detach()[keep_N].float(), labels_NT[keep_N].float(), user_N[keep_N].long()
    if dist.is_initialized() and dist.get_world_size() > 1:
        device = _collective_device()
        count = torch.tensor([len(user_N)], device=device)
        count_of_rank = [torch.empty_like(count) for _ in range(dist.get_world_size())]
        # Collective: a gather needs equal shapes, so every rank must know the longest one to pad to. Reading the counts
        # waits for the device.
        dist.all_gather(count_of_rank, count)
        counts = torch.cat(count_of_rank).tolist()
        rows = [_gather_rows(x.to(device), counts) for x in (logits_NT, labels_NT, user_N)]
        if dist.get_rank() != 0:
            return None
        logits_NT, labels_NT, user_N = rows
    return Predictions(logits_NT.cpu().numpy(), labels_NT.cpu().numpy(), user_N.cpu().numpy())


def evaluate_over_ranks(
    logits_NT: Tensor, labels_NT: Tensor, user_N: Tensor, weight_N: Tensor, task_names: Sequence[str]
) -> dict[str, TaskMetrics]:
    """Metrics over the examples of all ranks, the same on every rank; all ranks must call it.

    Rank 0 alone sorts and counts, so the others need no memory for rows that are not theirs.
    """
    gathered = gather_predictions(logits_NT, labels_NT, user_N, weight_N)
    metrics: dict[str, TaskMetrics] = {}
    if gathered is not None:
        metrics = evaluate_scores(gathered.logits_NT, gathered.labels_NT, gathered.user_N, task_names)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return metrics
    rows = [list(asdict(m).values()) for m in metrics.values()] or [[0.0] * len(fields(TaskMetrics))] * len(task_names)
    values = torch.tensor(rows, dtype=torch.float64, device=_collective_device())
    # Collective: only rank 0 knows the result, and every rank decides by it (best checkpoint, early stop).
    dist.broadcast(values, src=0)
    return {name: _from_row(row) for name, row in zip(task_names, values.tolist(), strict=True)}


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, the same on each; all ranks must call it."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.to(_collective_device(), copy=True)
        # Collective: a reported loss is that of the global batch.
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _from_row(row: list[float]) -> TaskMetrics:
    values: dict[str, Any] = {f.name: value for f, value in zip(fields(TaskMetrics), row, strict=True)}
    counts = {name: int(values[name]) for name in ("num_examples", "num_positives", "num_users")}
    return TaskMetrics(**values | counts)


def _gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows of all ranks in rank order on rank 0; what other ranks get is meaningless."""
    if max(counts) == 0:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts] if dist.get_rank() == 0 else None
    # Collective: exact AUC sorts all examples in one place.
    dist.gather(padded, received, dst=0)
    if received is None:
        return rows
    return torch.cat([x[:count] for x, count in zip(received, counts, strict=True)])


def _collective_device() -> torch.device:
    """Where tensors must lie for the default process group: nccl takes nothing from the host."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
