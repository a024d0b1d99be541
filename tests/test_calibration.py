"""Calibration: the temperature undoes overconfidence, confusion is counted, review is cautious."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from bloodcells.training.calibration import calibrate, fit_temperature, review_threshold


def drawn_logits(num: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``sharpness`` times too sure of labels that are drawn from them."""
    rng = np.random.default_rng(5)
    honest = rng.normal(0, 2, (num, 8))
    labels = np.array([rng.choice(8, p=p) for p in softmax(honest, axis=1)])
    return (honest * sharpness).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(sharpness: float) -> None:
    logits, labels = drawn_logits(5000, sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.06)

    def loss(t: float) -> float:
        return -float(log_softmax(logits / t, axis=1)[np.arange(5000), labels].mean())

    assert loss(temperature) <= min(loss(temperature * 1.02), loss(temperature / 1.02))


def test_calibration_counts_what_was_confused() -> None:
    logits, labels = drawn_logits(2000, 2)
    calibration, evaluation = calibrate(logits, labels, np.arange(1, 9))
    assert calibration.confusion.sum() == 2000
    assert (calibration.confusion.sum(1) == np.bincount(labels, minlength=8)).all()
    assert np.trace(calibration.confusion) == (logits.argmax(1) == labels).sum()
    assert evaluation.reliability.expected_error < 0.03


def test_without_calibration_the_models_own_probabilities_are_judged() -> None:
    logits, labels = drawn_logits(2000, 3)
    before = calibrate(logits, labels, np.ones(8, np.int64), temperature=1.0)[1]
    after = calibrate(logits, labels, np.ones(8, np.int64))[1]
    assert before.accuracy == after.accuracy
    assert before.reliability.expected_error > 2 * after.reliability.expected_error


def test_review_threshold() -> None:
    confidence = np.array([0.99, 0.9, 0.8, 0.7, 0.6])
    right = np.array([True, True, False, True, False])
    assert review_threshold(confidence, right, 0.0) == 0.9
    assert review_threshold(confidence, right, 0.25) == 0.7  # one wrong of four
    assert review_threshold(confidence, right, 1.0) == 0.6
    assert review_threshold(confidence[:1], right[2:3], 0.005) == 1.0
