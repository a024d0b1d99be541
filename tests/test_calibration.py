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
    confidence = np.linspace(0.99, 0.4, 1000)
    right = np.ones(1000, bool)
    assert review_threshold(confidence, right, 0.005) == confidence[-1]
    right[700:] = False
    # With no error, 598 images bound it to 0.5 %, with one it takes 947: binom.cdf(0, 598, 0.005).
    # Thresholds are ten images apart.
    assert 690 <= np.flatnonzero(confidence == review_threshold(confidence, right, 0.005)) < 700
    right[650] = False
    assert 640 <= np.flatnonzero(confidence == review_threshold(confidence, right, 0.005)) < 650
    assert review_threshold(confidence, right, 1.0) == confidence[-1]


def test_the_bound_holds_for_the_threshold_that_is_chosen() -> None:
    """Of many labs drawn alike, at most 5 % keep more errors than was said."""
    rng = np.random.default_rng(0)
    held_out = rng.beta(6, 0.25, (300, 2000))
    errors = rng.random(held_out.shape) < 0.5 * (1 - held_out)
    seen, truly = [], rng.beta(6, 0.25, 200_000)
    for confidence, wrong in zip(held_out, errors, strict=True):
        kept = truly[truly >= review_threshold(confidence, ~wrong, 0.005)]
        seen.append(float((0.5 * (1 - kept)).mean()) if len(kept) else 0.0)
    assert 0 < np.mean(np.array(seen) > 0.005) <= 0.07
    assert np.median(seen) > 0.001


def test_too_few_images_send_every_cell_to_review() -> None:
    assert review_threshold(np.full(597, 0.99), np.ones(597, bool), 0.005) == 1.0
    assert review_threshold(np.full(598, 0.99), np.ones(598, bool), 0.005) == 0.99
    assert review_threshold(np.array([0.9]), np.array([False]), 0.005) == 1.0


def test_images_of_one_confidence_stay_together() -> None:
    confidence = np.repeat([0.9, 0.8], [700, 300])
    right = np.ones(1000, bool)
    right[990:] = False
    assert review_threshold(confidence, right, 0.005) == 0.9
