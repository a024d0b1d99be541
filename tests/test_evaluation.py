"""Figures against labels agree with scikit-learn and with what they are defined to be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
)

from bloodcells.cells import CLASSES
from bloodcells.evaluation import NUM_BINS, Tally, at_most, error_free, losses, wilson


@pytest.mark.parametrize("share", [0.001, 0.005, 0.3])
def test_so_many_without_an_error_bound_a_share(share: float) -> None:
    number = error_free(share)
    assert at_most(0, number) <= share < at_most(0, number - 1)


def _draw(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), num)
    wrong = rng.random(num) < 0.2
    predicted = np.where(wrong, rng.integers(0, len(CLASSES), num), labels)
    return labels, predicted, rng.uniform(0.2, 1.0, num)


def test_figures_agree_with_scikit_learn() -> None:
    labels, predicted, confidence = _draw(2000)
    tally = Tally()
    for part in np.array_split(np.arange(2000), 7):
        tally.add(labels[part], predicted[part], confidence[part])
    evaluation = tally.evaluation()
    assert evaluation is not None
    assert evaluation.num_labelled == 2000
    assert evaluation.accuracy.value == pytest.approx(accuracy_score(labels, predicted))
    assert evaluation.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert evaluation.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    precision = precision_score(labels, predicted, average=None)
    recall = recall_score(labels, predicted, average=None)
    f1 = f1_score(labels, predicted, average=None)
    for i, figures in enumerate(evaluation.classes):
        assert figures.name == CLASSES[i]
        assert figures.precision.value == pytest.approx(precision[i])
        assert figures.recall.value == pytest.approx(recall[i])
        assert figures.f1.value == pytest.approx(f1[i])
        assert figures.f1.low < figures.f1.value < figures.f1.high
    assert "accuracy 0." in str(evaluation)


def test_losses_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, len(CLASSES), 300)
    probabilities = rng.dirichlet(np.full(len(CLASSES), 0.4), 300)
    tally = Tally()
    for part in (slice(0, 100), slice(100, 300)):
        p = probabilities[part]
        tally.add(labels[part], p.argmax(1), p.max(1), p)
    evaluation = tally.evaluation()
    assert evaluation is not None
    assert evaluation.log_loss == pytest.approx(log_loss(labels, probabilities))
    assert evaluation.brier == pytest.approx(
        brier_score_loss(labels, probabilities, scale_by_half=False)
    )


def test_losses_need_every_image_s_probabilities() -> None:
    tally = Tally()
    p = np.full((1, 8), 0.125)
    tally.add(np.array([0]), np.array([0]), np.array([0.125]), p)
    tally.add(np.array([0]), np.array([0]), np.array([0.125]))
    evaluation = tally.evaluation()
    assert evaluation is not None
    assert evaluation.log_loss is None
    assert evaluation.brier is None


def test_a_probability_that_was_rounded_to_zero_is_a_large_loss_not_an_infinite_one() -> None:
    sure = np.eye(8, dtype=np.float32)[:1]
    log_loss_of_wrong, brier_of_wrong = losses(np.array([3]), sure)
    assert log_loss_of_wrong == pytest.approx(87.3, abs=0.1)
    assert brier_of_wrong == pytest.approx(2)
    assert [float(x[0]) for x in losses(np.array([0]), sure)] == [0, 0]
    with pytest.raises(ValueError, match="one row an image"):
        losses(np.array([0, 1]), sure)


def test_expected_calibration_error_by_definition() -> None:
    labels, predicted, confidence = _draw(500)
    tally = Tally()
    tally.add(labels, predicted, confidence)
    evaluation = tally.evaluation()
    assert evaluation is not None
    edges = np.linspace(0, 1, NUM_BINS + 1)
    expected = 0.0
    for low, high in pairwise(edges):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            right = (labels == predicted)[inside].mean()
            expected += inside.mean() * abs(right - confidence[inside].mean())
    assert evaluation.reliability.expected_error == pytest.approx(expected)
    assert evaluation.reliability.counts.sum() == 500


def test_classes_that_were_never_labelled_stay_out_of_the_macro_mean() -> None:
    tally = Tally()
    tally.add(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 7]), np.full(4, 1.0))
    evaluation = tally.evaluation()
    assert evaluation is not None
    assert evaluation.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(evaluation.classes[7].recall.value)
    assert evaluation.classes[7].precision.value == 0


def test_nothing_labelled_gives_no_figures() -> None:
    assert Tally().evaluation() is None


def test_batches_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one entry an image"):
        Tally().add(np.array([0]), np.array([0, 1]), np.array([0.5, 0.5]))


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_its_value(counts: tuple[int, int]) -> None:
    count, total = counts
    value, low, high = wilson(count, total)
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    if total <= 500:  # scipy's takes its time, as it computes a test beside the interval
        known = binomtest(count, total).proportion_ci(0.95, method="wilson")
        assert (low, high) == pytest.approx(known, abs=1e-12)
