"""Whether two models' metrics on the same examples differ by more than chance, and how two orders agree.

Shapes: N examples, P of them positive and Q negative, S seeds, U users, K things in order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infnet_rec.metrics import auc_by_user, bootstrap_gauc

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of one model minus that of another, mean over seeds.

    Attributes:
        value: the difference.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: two-sided, of no difference; None where only the interval is known.
    """

    value: float
    low: float
    high: float
    p_value: float | None

    @property
    def is_significant(self) -> bool:
        """Whether no difference lies outside the interval."""
        return self.low > 0 or self.high < 0


def placements(scores_N: Array, labels_N: Array) -> tuple[Array, Array]:
    """For each positive the share of negatives below it, for each negative that of positives above it; ties count half.

    Returns:
        [P] and [Q]; the mean of either is the AUC.
    """
    positive_N = labels_N > 0.5
    rank_N = mid_ranks(scores_N)
    num_positives, num_negatives = int(positive_N.sum()), int((~positive_N).sum())
    below_P = rank_N[positive_N] - mid_ranks(scores_N[positive_N])
    below_Q = rank_N[~positive_N] - mid_ranks(scores_N[~positive_N])
    return below_P / num_negatives, 1.0 - below_Q / num_positives


def compare_aucs(ours_SN: Sequence[Array], others_SN: Sequence[Array], labels_N: Array) -> Difference:
    """DeLong's test of the difference of two AUCs, each a mean over seeds.

    The variance is that of the seeds' mean placements, example by example, so that what the models have in common
    cancels; the spread of the difference over the seeds, which are paired by number, is added to it. With one seed
    there is none to add, and the interval and p are of two trained models, not of two ways to train.

    Reference: DeLong, DeLong, Clarke-Pearson (1988), by mid-ranks as in Sun and Xu (2014).
    """
    ours = [placements(scores_N, labels_N) for scores_N in ours_SN]
    others = [placements(scores_N, labels_N) for scores_N in others_SN]
    apart_P, apart_Q = (
        np.mean([x[side] for x in ours], axis=0) - np.mean([x[side] for x in others], axis=0) for side in (0, 1)
    )
    variance = float(apart_P.var(ddof=1) / len(apart_P) + apart_Q.var(ddof=1) / len(apart_Q))
    by_seed = [float(a[0].mean() - b[0].mean()) for a, b in zip(ours, others, strict=True)]
    if len(by_seed) > 1:
        variance += float(np.var(by_seed, ddof=1)) / len(by_seed)
    value, error = float(apart_P.mean()), math.sqrt(variance)
    if error == 0.0:
        return Difference(value, value, value, 1.0 if value == 0.0 else 0.0)
    return Difference(value, value - 1.96 * error, value + 1.96 * error, math.erfc(abs(value) / error / math.sqrt(2)))


def compare_gaucs(
    ours_SN: Sequence[Array], others_SN: Sequence[Array], labels_N: Array, user_N: NDArray[np.int64], *, weighted: bool
) -> Difference:
    """The difference of two gAUCs, each a mean over seeds, with an interval from resampled users.

    Each user's AUCs are averaged over seeds first, so the interval says nothing of other seeds.
    """
    ours = [auc_by_user(scores_N, labels_N, user_N) for scores_N in ours_SN]
    others = [auc_by_user(scores_N, labels_N, user_N) for scores_N in others_SN]
    apart_U = np.mean([x.auc_U for x in ours], axis=0) - np.mean([x.auc_U for x in others], axis=0)
    weight_U = ours[0].weight_U if weighted else np.ones_like(apart_U)
    low, high = bootstrap_gauc(apart_U, weight_U)
    return Difference(float(apart_U @ weight_U / weight_U.sum()), low, high, None)


def mid_ranks(values_K: Array) -> Array:
    """Ranks from 1; all members of a tie have the mean of theirs."""
    order_K = np.argsort(values_K, kind="stable")
    sorted_K = values_K[order_K]
    starts = np.flatnonzero(np.concatenate(([True], sorted_K[1:] != sorted_K[:-1])))
    lengths = np.diff(starts, append=len(values_K))
    rank_K = np.empty(len(values_K))
    rank_K[order_K] = np.repeat(starts + (lengths + 1) / 2, lengths)
    return rank_K


def spearman(a_K: Array, b_K: Array) -> float:
    """Spearman's correlation of two orders; NaN where one of them is all ties."""
    a_K, b_K = (mid_ranks(x) - (len(x) + 1) / 2 for x in (a_K, b_K))
    scale = math.sqrt(float(a_K @ a_K) * float(b_K @ b_K))
    return float(a_K @ b_K) / scale if scale else math.nan


def kendall(a_K: Array, b_K: Array) -> float:
    """Kendall's tau-b of two orders; NaN where one of them is all ties."""
    a_KK, b_KK = (np.sign(np.subtract.outer(x, x)) for x in (a_K, b_K))
    scale = math.sqrt(float((a_KK**2).sum()) * float((b_KK**2).sum()))
    return float((a_KK * b_KK).sum()) / scale if scale else math.nan
