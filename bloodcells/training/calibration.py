"""From logits of held-out images to a :class:`Calibration`. Knows nothing of images or models."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import betaincinv, log_softmax, softmax

from bloodcells.bundle import Calibration
from bloodcells.evaluation import Evaluation, Tally

REVIEW_ERROR: Final = 0.005
"""Share of wrong cells that is accepted among those no person is asked to look at."""

CONFIDENCE: Final = 0.95
"""That the share is no larger than that, one-sided."""

_TEMPERATURES: Final = (0.05, 20.0)

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]


def calibrate(
    logits: FloatArray,
    labels: IntArray,
    train_counts: IntArray,
    *,
    temperature: float | None = None,
) -> tuple[Calibration, Evaluation]:
    """Calibrate a classifier on images that it was not trained on.

    Args:
        logits: ``float (N, 8)``.
        labels: true classes, ``int64 (N,)``, N of 1 or more.
        train_counts: training images a class, ``int64 (8,)``.
        temperature: by default the one that fits best; 1 leaves probabilities as the model has
            them.

    Returns:
        The calibration, and the figures on the same images with it.
    """
    temperature = temperature or fit_temperature(logits, labels)
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    tally = Tally()
    tally.add(labels, predicted, confidence, probabilities)
    evaluation = tally.evaluation()
    if evaluation is None:
        raise ValueError("calibration needs at least one held-out image")
    calibration = Calibration(
        temperature=temperature,
        confusion=evaluation.confusion,
        train_counts=train_counts,
        review_below=review_threshold(confidence, predicted == labels),
    )
    return calibration, evaluation


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """Return the temperature at which the held-out images are most likely.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    Args:
        logits: ``float (N, 8)``.
        labels: true classes, ``int64 (N,)``.
    """
    wide = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(wide / math.exp(log_temperature), axis=1)[rows, labels].mean())

    bounds = tuple(math.log(t) for t in _TEMPERATURES)
    return round(math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x), 6)


def review_threshold(
    confidence: FloatArray, right: npt.NDArray[np.bool_], accepted: float = REVIEW_ERROR
) -> float:
    """Return the confidence below which a person should look.

    Thresholds are tried from the one that keeps half of the held-out images downwards, a hundredth
    of the images at a time, as long as so few of the kept ones are wrong that their true share is
    at most ``accepted`` with 95 % confidence (one-sided, Clopper & Pearson 1934, Biometrika
    26:404-413); the last is taken, and 1 where the first fails. To stop at the first that fails
    keeps the 95 % true of the one that is chosen. Source: Angelopoulos et al. 2021, "Learn then
    Test", arXiv:2110.01052, section 2.3 (fixed sequence testing). With no error at all 598 kept
    images are enough, so fewer than that send every cell to review.

    Args:
        confidence: calibrated, of the predicted class, ``float (N,)``.
        right: whether the prediction is right, ``bool (N,)``.
        accepted: share of wrong cells, 0-1.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    kept = np.arange(1, len(order) + 1)
    upper = betaincinv(wrong + 1, np.maximum(kept - wrong, 1), CONFIDENCE)
    upper[wrong == kept] = 1
    are_enough = betaincinv(1, kept, CONFIDENCE) <= accepted
    tried = np.flatnonzero(are_enough & (kept >= len(order) / 2))
    tried = np.union1d(tried[:: max(1, len(order) // 100)], tried[-1:])
    # Images of one confidence are kept together or not at all.
    last_of_equals = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    tried = last_of_equals[np.searchsorted(last_of_equals, tried)]
    passed = tried[np.logical_and.accumulate(upper[tried] <= accepted)]
    return float(confidence[order][passed[-1]]) if len(passed) else 1.0
