"""Decisions at a threshold, calibration and bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from anomaly_vlm.metrics.decisions import bootstrap, calibration_error, decide


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30), st.integers(0, 6))
def test_counts_are_those_of_scikit_learn(rows: list[tuple[int, bool]], threshold: int) -> None:
    scores, labels = np.array([s for s, _ in rows], float), np.array([a for _, a in rows], int)
    made = decide(scores, labels, threshold)
    assert sum(made) == len(rows)
    predicted = (scores > threshold).astype(int)
    if labels.any():
        assert made.f1 == pytest.approx(f1_score(labels, predicted, zero_division=0))
        if not labels.all():
            assert made.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    else:
        assert math.isnan(made.f1) and math.isnan(made.recall)


def test_a_threshold_is_a_number() -> None:
    with pytest.raises(ValueError, match="the threshold is NaN"):
        decide([0.1], [0], math.nan)


def test_calibration_by_hand() -> None:
    # Bins of width 1/2: (0.2, 0.4) with one anomalous of two, and (0.9) with none of one.
    assert calibration_error([0.2, 0.4, 0.9], [0, 1, 0], bins=2) == pytest.approx((abs(0.6 - 1) + 0.9) / 3)
    assert calibration_error([0.0, 1.0], [0, 1]) == 0
    assert math.isnan(calibration_error([0.5, 1.5], [0, 1]))


def scored(seed: int = 0, count: int = 120) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    return np.round(rng.normal(labels * 1.0, 1), 1), labels, [f"c{i % 3}" for i in range(count)]


@pytest.mark.parametrize("metric, reference", [("auroc", roc_auc_score), ("ap", average_precision_score)])
def test_the_value_is_the_mean_over_categories(metric: str, reference: object) -> None:
    scores, labels, names = scored()
    found = bootstrap(scores, labels, names, metric=metric, draws=50)  # type: ignore[arg-type]
    rows = [np.array(names) == name for name in sorted(set(names))]
    assert found.value == pytest.approx(np.mean([reference(labels[r], scores[r]) for r in rows]), abs=1e-6)  # type: ignore[operator]
    assert found.low < found.value < found.high


def test_draws_are_those_of_a_plain_bootstrap() -> None:
    scores, labels, _ = scored(count=60)
    found = bootstrap(scores, labels, draws=4000)
    rng = np.random.default_rng(1)
    rows = [np.flatnonzero(labels == label) for label in (0, 1)]
    plain = []
    for _ in range(4000):
        low, high = (scores[rng.choice(r, size=len(r))] for r in rows)
        plain.append((high[:, None] > low).mean() + (high[:, None] == low).mean() / 2)
    np.testing.assert_allclose((found.low, found.high), np.quantile(plain, [0.025, 0.975]), atol=0.015)


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    scores, labels, names = scored()
    better = scores + 0.3 * labels
    paired = bootstrap(better, labels, names, minus=scores)
    alone = bootstrap(better, labels, names)
    assert paired.low > 0 and paired.high - paired.low < alone.high - alone.low
    against_noise = bootstrap(scores, labels, minus=np.random.default_rng(1).normal(size=len(scores)))
    assert 0 < against_noise.low < against_noise.high
    same = bootstrap(scores, labels, names, minus=scores)
    assert same == (0, 0, 0)
    by_category = bootstrap(better, labels, names, minus=scores, over="categories")
    assert by_category.value == pytest.approx(paired.value) and by_category.low <= by_category.value <= by_category.high


def test_undefined_without_both_kinds_of_images() -> None:
    assert all(math.isnan(value) for value in bootstrap([0.1, 0.2], [0, 0]))
    with pytest.raises(ValueError, match="names for"):
        bootstrap([0.1, 0.2], [0, 1], ["a"])
