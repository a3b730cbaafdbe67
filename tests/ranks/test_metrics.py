"""Metrics against scikit-learn and plain loops.

Shapes: N examples, T tasks, U users with both classes.
"""

import json
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from infnet_rec.metrics import (
    TaskMetrics,
    auc,
    auc_by_user,
    bootstrap_gauc,
    calibration,
    evaluate_over_ranks,
    evaluate_scores,
    gather_predictions,
    log_loss,
    mean_over_ranks,
    normalised_entropy,
)
from rank_pair import RankPair

TOLERANCE = 1e-9
TASKS = ("is_click", "like")


def _random(num_examples: int, seed: int, num_users: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    # Rounding makes ties, within users and across them.
    logits_NT = np.round(generator.normal(size=(num_examples, 2)), 1)
    labels_NT = (generator.random((num_examples, 2)) < 1 / (1 + np.exp(-logits_NT))).astype(np.float64)
    return logits_NT, labels_NT, generator.integers(num_users, size=num_examples)


def _auc_by_pairs(scores_N: np.ndarray, labels_N: np.ndarray) -> float:
    positives, negatives = scores_N[labels_N == 1], scores_N[labels_N == 0]
    points = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    return sum(points) / len(points) if points else math.nan


def _gauc_by_loop(scores_N: np.ndarray, labels_N: np.ndarray, user_N: np.ndarray) -> tuple[float, float, int]:
    aucs, weights = [], []
    for user in sorted(set(user_N.tolist())):
        mine = user_N == user
        value = _auc_by_pairs(scores_N[mine], labels_N[mine])
        if not math.isnan(value):
            aucs.append(value)
            weights.append(mine.sum())
    if not aucs:
        return math.nan, math.nan, 0
    weighted = sum(a * w for a, w in zip(aucs, weights, strict=True)) / sum(weights)
    return weighted, sum(aucs) / len(aucs), len(aucs)


@pytest.mark.parametrize("seed", range(5))
def test_all_metrics_agree_with_scikit_learn_and_plain_loops(seed: int) -> None:
    logits_NT, labels_NT, user_N = _random(500, seed)
    result = evaluate_scores(logits_NT, labels_NT, user_N, TASKS)
    assert tuple(result) == TASKS
    for t, name in enumerate(TASKS):
        x_N, y_N, got = logits_NT[:, t], labels_NT[:, t], result[name]
        p_N = 1 / (1 + np.exp(-x_N))
        entropy = sklearn_log_loss(y_N, np.full_like(y_N, y_N.mean()))
        weighted, unweighted, num_users = _gauc_by_loop(x_N, y_N, user_N)
        expected = TaskMetrics(
            num_examples=500,
            num_positives=int(y_N.sum()),
            auc=float(roc_auc_score(y_N, x_N)),
            gauc=weighted,
            gauc_unweighted=unweighted,
            num_users=num_users,
            log_loss=float(sklearn_log_loss(y_N, p_N)),
            ne=float(sklearn_log_loss(y_N, p_N) / entropy),
            calibration=float(p_N.mean() / y_N.mean()),
        )
        assert got.to_json() == pytest.approx(expected.to_json(), abs=TOLERANCE)


def test_users_of_one_class_are_left_out_and_not_counted() -> None:
    scores_N = np.array([0.1, 0.9, 0.5, 0.6, 0.2, 0.2, 0.3])
    labels_N = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    user_N = np.array([7, 7, 3, 3, 9, 9, 9])
    got = auc_by_user(scores_N, labels_N, user_N)
    assert got.user_U.tolist() == [7, 9]
    assert got.auc_U.tolist() == [1.0, 0.25]
    assert got.weight_U.tolist() == [2.0, 3.0]
    assert got.gauc == pytest.approx((2 * 1.0 + 3 * 0.25) / 5)
    assert got.gauc_unweighted == pytest.approx(0.625)


def test_one_user_has_its_auc_as_gauc() -> None:
    logits_NT, labels_NT, _ = _random(200, seed=1)
    result = evaluate_scores(logits_NT, labels_NT, np.full(200, 5), TASKS)["like"]
    assert result.gauc == result.gauc_unweighted == result.auc
    assert result.num_users == 1


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_gives_nan_and_json_null(label: float) -> None:
    logits_NT = np.array([[0.5], [1.0], [-1.0]])
    result = evaluate_scores(logits_NT, np.full((3, 1), label), np.array([0, 0, 1]), ["click"])["click"]
    assert all(math.isnan(x) for x in (result.auc, result.gauc, result.gauc_unweighted, result.ne))
    assert result.num_users == 0
    assert math.isfinite(result.log_loss)
    assert math.isnan(result.calibration) == (label == 0.0)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["auc"] is None


def test_no_examples_give_nan() -> None:
    result = evaluate_scores(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, np.int64), TASKS)["like"]
    assert (result.num_examples, result.num_positives, result.num_users) == (0, 0, 0)
    assert {k for k, v in result.to_json().items() if v is None} == {
        "auc", "gauc", "gauc_unweighted", "log_loss", "ne", "calibration",
    }  # fmt: skip


def test_padding_is_dropped_before_anything() -> None:
    logits_NT, labels_NT, user_N = _random(300, seed=2)
    weight_N = np.ones(300)
    weight_N[::7] = 0.0
    keep_N = weight_N > 0
    logits_NT[~keep_N] = np.nan
    padded = evaluate_scores(logits_NT, labels_NT, user_N, TASKS, weight_N)
    assert padded == evaluate_scores(logits_NT[keep_N], labels_NT[keep_N], user_N[keep_N], TASKS)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_predictions_do_not_look_like_a_ranking() -> None:
    logits_NT, labels_NT, user_N = _random(300, seed=3)
    logits_NT[10, 0] = np.nan
    result = evaluate_scores(logits_NT, labels_NT, user_N, TASKS)
    bad = result["is_click"]
    assert all(math.isnan(x) for x in (bad.auc, bad.gauc, bad.gauc_unweighted, bad.log_loss, bad.ne, bad.calibration))
    assert math.isfinite(result["like"].gauc)


def test_confident_mistakes_stay_finite() -> None:
    logits_N, labels_N = np.array([1000.0, -1000.0]), np.array([0.0, 0.0])
    assert log_loss(logits_N, labels_N) == 500.0
    assert calibration(logits_N, np.array([1.0, 0.0])) == 1.0


def test_predicting_the_base_rate_has_normalised_entropy_one_and_calibration_one() -> None:
    labels_N = np.array([1.0, 0.0, 0.0, 0.0])
    logits_N = np.full(4, math.log(0.25 / 0.75))
    assert normalised_entropy(logits_N, labels_N) == pytest.approx(1.0, abs=TOLERANCE)
    assert calibration(logits_N, labels_N) == pytest.approx(1.0, abs=TOLERANCE)


def test_a_million_rows_take_less_than_two_seconds() -> None:
    logits_NT, labels_NT, user_N = _random(1_000_000, seed=4, num_users=50_000)
    started_s = time.process_time()
    auc_by_user(logits_NT[:, 0], labels_NT[:, 0], user_N)
    assert time.process_time() - started_s < 2.0


def test_bootstrap_interval_is_seeded_and_as_wide_as_theory_says() -> None:
    generator = np.random.default_rng(0)
    auc_U, ones_U = generator.normal(0.7, 0.1, size=2000), np.ones(2000)
    low, high = bootstrap_gauc(auc_U, ones_U, num_resamples=3000, seed=1)
    assert (low, high) == bootstrap_gauc(auc_U, ones_U, num_resamples=3000, seed=1)
    assert (low, high) != bootstrap_gauc(auc_U, ones_U, num_resamples=3000, seed=2)
    assert low < auc_U.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * auc_U.std() / math.sqrt(2000), rel=0.1)


def test_bootstrap_weighs_users_by_their_examples() -> None:
    auc_U, weight_U = np.array([0.9] * 50 + [0.5] * 50), np.array([9.0] * 50 + [1.0] * 50)
    low, high = bootstrap_gauc(auc_U, weight_U)
    assert low < 0.86 < high
    assert low > 0.8
    assert all(math.isnan(x) for x in bootstrap_gauc(np.zeros(0), np.zeros(0)))


scored = st.lists(st.tuples(st.integers(-5, 5), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40)


def _columns(rows: list[tuple[int, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels, users = zip(*rows, strict=True)
    return np.array(scores, np.float64), np.array(labels, np.float64), np.array(users, np.int64)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))


@given(scored)
@settings(deadline=None)
def test_auc_and_gauc_equal_the_pairwise_definition(rows: list[tuple[int, bool, int]]) -> None:
    scores_N, labels_N, user_N = _columns(rows)
    weighted, unweighted, num_users = _gauc_by_loop(scores_N, labels_N, user_N)
    got = auc_by_user(scores_N, labels_N, user_N)
    assert _same(auc(scores_N, labels_N), _auc_by_pairs(scores_N, labels_N))
    assert _same(got.gauc, weighted)
    assert _same(got.gauc_unweighted, unweighted)
    assert len(got.auc_U) == num_users


@given(scored)
@settings(deadline=None)
def test_an_increasing_function_of_the_scores_changes_nothing(rows: list[tuple[int, bool, int]]) -> None:
    scores_N, labels_N, user_N = _columns(rows)
    moved_N = np.exp(scores_N) * 3 - 7
    assert _same(auc(scores_N, labels_N), auc(moved_N, labels_N))
    assert _same(auc_by_user(scores_N, labels_N, user_N).gauc, auc_by_user(moved_N, labels_N, user_N).gauc)


@given(scored)
@settings(deadline=None)
def test_flipped_labels_give_one_minus_auc(rows: list[tuple[int, bool, int]]) -> None:
    scores_N, labels_N, user_N = _columns(rows)
    assert _same(auc(scores_N, 1 - labels_N), 1 - auc(scores_N, labels_N))
    flipped = auc_by_user(scores_N, 1 - labels_N, user_N)
    assert _same(flipped.gauc_unweighted, 1 - auc_by_user(scores_N, labels_N, user_N).gauc_unweighted)


@given(scored, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_examples_does_not_matter(rows: list[tuple[int, bool, int]], random: object) -> None:
    moved = list(rows)
    random.shuffle(moved)
    for metric in (auc, log_loss, normalised_entropy, calibration):
        assert _same(metric(*_columns(rows)[:2]), metric(*_columns(moved)[:2]))
    assert _same(auc_by_user(*_columns(rows)).gauc, auc_by_user(*_columns(moved)).gauc)


def _slice(rank: int, cut: int, num_rows: int) -> slice:
    return slice(0, cut) if rank == 0 else slice(cut, num_rows)


def _evaluate_slice(rank: int, world_size: int, cut: int, num_rows: int) -> dict[str, TaskMetrics]:
    logits_NT, labels_NT, user_N = _random(num_rows, seed=6)
    mine = _slice(rank, cut, num_rows)
    # A NaN row of weight 0 a rank: padding must not travel.
    pad = [(0, 0), (0, 1)]
    return evaluate_over_ranks(
        torch.tensor(np.pad(logits_NT[mine].T, pad, constant_values=np.nan).T, dtype=torch.float32),
        torch.tensor(np.pad(labels_NT[mine].T, pad).T),
        torch.tensor(np.pad(user_N[mine], (0, 1))),
        torch.tensor(np.pad(np.ones(len(user_N[mine])), (0, 1))),
        TASKS,
    )


def _gathered_users(rank: int, world_size: int) -> list[int] | None:
    num_rows = 3 if rank == 0 else 1
    zeros_NT = torch.zeros(num_rows, 1, dtype=torch.bfloat16, requires_grad=True)
    users_N = torch.arange(num_rows) + 10 * rank + 2**40
    got = gather_predictions(zeros_NT, zeros_NT.detach(), users_N, torch.ones(num_rows))
    return None if got is None else (got.user_N - 2**40).tolist()


def _mean_of_ranks(rank: int, world_size: int) -> tuple[float, float]:
    mine = torch.tensor(3.0 + rank)
    return mean_over_ranks(mine).item(), mine.item()


def test_a_mean_over_ranks_is_the_same_on_each_and_leaves_what_it_was_given(ranks: RankPair) -> None:
    assert ranks(_mean_of_ranks) == [(3.5, 3.0), (3.5, 4.0)]
    assert mean_over_ranks(torch.tensor(3.0)).item() == 3.0


@pytest.mark.parametrize("cut", [150, 37, 300, 0])
def test_ranks_of_unequal_size_agree_with_one_process(ranks: RankPair, cut: int) -> None:
    logits_NT, labels_NT, user_N = _random(300, seed=6)
    expected = evaluate_scores(logits_NT.astype(np.float32), labels_NT, user_N, TASKS)
    assert ranks(_evaluate_slice, cut, 300) == [expected, expected]


def test_all_ranks_empty(ranks: RankPair) -> None:
    for result in ranks(_evaluate_slice, 0, 0):
        assert result["like"].num_examples == 0
        assert math.isnan(result["like"].auc)


def test_rows_arrive_in_rank_order_on_rank_zero_with_exact_user_indices(ranks: RankPair) -> None:
    assert ranks(_gathered_users) == [[0, 1, 2, 10], None]


def test_without_a_process_group_this_rank_is_the_only_one() -> None:
    logits_NT, labels_NT, user_N = _random(300, seed=6)
    arguments = [torch.tensor(x) for x in (logits_NT.astype(np.float32), labels_NT, user_N, np.ones(300))]
    expected = evaluate_scores(logits_NT.astype(np.float32), labels_NT, user_N, TASKS)
    assert evaluate_over_ranks(*arguments, TASKS) == expected
