"""Figures from labelled images: confusion, accuracy, precision, recall, F1, calibration, losses.

Every figure follows from sums that add up over batches, so it costs no memory to stream through
a run of any size. Knows nothing of files, images or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtri

from bloodcells.cells import CLASSES

NUM_BINS: Final = 15
"""Bins of equal width for the expected calibration error.
Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599."""

SMALLEST_PROBABILITY: Final = float(np.finfo(np.float32).tiny)
"""What a probability of 0 counts as in the log-loss: a float32 softmax rounds to 0 what is less
than about 1e-38, and one such image must not make the mean infinite (it then adds 87)."""

_DECADES: Final = 7
_LIMITS: Final = 256 * _DECADES
"""Limits of confidence at which kept images are counted, 256 for each power of ten by which the
doubt (1 - confidence) falls; float32 tells no confidences apart that are closer to 1 than 1e-7."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A figure between 0 and 1 and its 95 % interval; all ``nan`` where nothing was counted."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """How one class fared.

    Attributes:
        name: the class.
        num_labelled: images that carry this label (the support).
        num_predicted: images that were given this class.
        precision: share of the images given this class that carry its label.
        recall: share of the images with this label that were given this class.
        f1: harmonic mean of precision and recall.
    """

    name: str
    num_labelled: int
    num_predicted: int
    precision: Interval
    recall: Interval
    f1: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Confidence against accuracy in ``NUM_BINS`` bins of equal width from 0 to 1.

    Attributes:
        counts: images a bin, ``int64 (NUM_BINS,)``.
        confidence: mean confidence a bin, ``float64 (NUM_BINS,)``, ``nan`` where a bin is empty.
        accuracy: share of right images a bin, one interval a bin.
        expected_error: the expected calibration error: mean over the images of their bin's
            distance between accuracy and confidence.
    """

    counts: IntArray
    confidence: FloatArray
    accuracy: tuple[Interval, ...]
    expected_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the labelled images of a run say about its classifier.

    Attributes:
        confusion: ``int64 (8, 8)``, rows the label, columns the predicted class.
        num_labelled: images that were counted.
        accuracy: share of right images.
        macro_f1: mean F1 of the classes that occur among the labels. A class that occurs in
            predictions alone costs the others their recall and has no F1 of its own.
        balanced_accuracy: mean recall of the classes that occur among the labels.
        log_loss: mean over the images of ``-log p(label)``, natural logarithm, 0 at best; ``None``
            where whole probability vectors were not given. A guess of 1/8 each has 2.08.
        brier: mean over the images of the squared distance between the probability vector and the
            label's, 0-2, 0 at best; ``None`` likewise. Source: Brier 1950, Monthly Weather Review
            78:1.
        classes: one entry a class, in the order of ``CLASSES``.
        reliability: how far confidence can be taken at its word.
    """

    confusion: IntArray
    num_labelled: int
    accuracy: Interval
    macro_f1: float
    balanced_accuracy: float
    log_loss: float | None
    brier: float | None
    classes: tuple[ClassFigures, ...]
    reliability: Reliability

    def most_confused(self, count: int) -> list[tuple[str, str, int, int]]:
        """Return the pairs of classes that are confused most often, most frequent first.

        Returns:
            At most ``count`` of: label, class given, images, and images with that label.
        """
        pairs = [
            (label, given, int(self.confusion[i, j]), int(self.confusion[i].sum()))
            for i, label in enumerate(CLASSES)
            for j, given in enumerate(CLASSES)
            if i != j and self.confusion[i, j] > 0
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:count]

    def __str__(self) -> str:
        value, low, high = self.accuracy
        return (
            f"accuracy {value:.4f} (95 % interval {low:.4f}–{high:.4f}), "
            f"macro-F1 {self.macro_f1:.4f}, "
            f"calibration error {self.reliability.expected_error:.4f}, "
            f"over {self.num_labelled:,} labelled images"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selective:
    """What is right among the cells that no person looks at: where the limit is, and elsewhere.

    Attributes:
        coverage: share of the labelled images that are kept, as the limit of confidence falls,
            ``float64 (P,)``, rising, above 0. Images out of domain are never kept.
        risk: share of wrong ones among those, ``float64 (P,)``.
        num_labelled: labelled images.
        num_kept: of those, the ones that no person is asked to look at.
        num_wrong: of the kept ones, the wrong ones.
        num_alien: labelled images that are out of domain.
    """

    coverage: FloatArray
    risk: FloatArray
    num_labelled: int
    num_kept: int
    num_wrong: int
    num_alien: int

    @property
    def error_at_most(self) -> float:
        """One-sided 95 % upper bound of the error of the kept; see :func:`at_most`."""
        return at_most(self.num_wrong, self.num_kept)


class Tally:
    """Running counts over the labelled images of a run."""

    def __init__(self) -> None:
        self.confusion: IntArray = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        self._counts: IntArray = np.zeros(NUM_BINS, np.int64)
        self._correct: IntArray = np.zeros(NUM_BINS, np.int64)
        self._confidence: FloatArray = np.zeros(NUM_BINS, np.float64)
        self._losses: FloatArray = np.zeros(2, np.float64)
        self._num_whole = 0

    def add(
        self,
        labels: npt.NDArray[np.integer],
        predicted: npt.NDArray[np.integer],
        confidence: npt.NDArray[np.floating],
        probabilities: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Count a batch of labelled images.

        Args:
            labels: index into ``CLASSES``, integer ``(N,)``.
            predicted: index into ``CLASSES``, integer ``(N,)``.
            confidence: probability of the predicted class, float ``(N,)``, 0–1.
            probabilities: of all classes, float ``(N, 8)``, rows of sum 1. Log-loss and Brier score
                are known only where every batch has them.

        Raises:
            ValueError: they differ in length.
        """
        if not len(labels) == len(predicted) == len(confidence):
            raise ValueError(
                "labels, predicted and confidence must have one entry an image each; got "
                f"{len(labels)}, {len(predicted)} and {len(confidence)}"
            )
        np.add.at(self.confusion, (labels, predicted), 1)
        bins = bin_of(confidence, NUM_BINS)
        self._counts += np.bincount(bins, minlength=NUM_BINS)
        self._correct += np.bincount(bins[labels == predicted], minlength=NUM_BINS)
        self._confidence += np.bincount(bins, weights=confidence, minlength=NUM_BINS)
        if probabilities is not None:
            self._losses += np.sum(losses(labels, probabilities), axis=1)
            self._num_whole += len(labels)

    def evaluation(self) -> Evaluation | None:
        """Return the figures so far, or ``None`` where no labelled image was counted."""
        num_labelled = int(self.confusion.sum())
        if num_labelled == 0:
            return None
        classes = tuple(_class_figures(self.confusion, i) for i in range(len(CLASSES)))
        occurring = [c for c in classes if c.num_labelled > 0]
        log_loss, brier = (
            (float(total / num_labelled) for total in self._losses)
            if self._num_whole == num_labelled
            else (None, None)
        )
        return Evaluation(
            confusion=self.confusion.copy(),
            num_labelled=num_labelled,
            accuracy=wilson(int(np.trace(self.confusion)), num_labelled),
            macro_f1=float(np.mean([c.f1.value for c in occurring])),
            balanced_accuracy=float(np.mean([c.recall.value for c in occurring])),
            log_loss=log_loss,
            brier=brier,
            classes=classes,
            reliability=self._reliability(),
        )

    def _reliability(self) -> Reliability:
        filled = self._counts > 0
        confidence = np.full(NUM_BINS, np.nan)
        confidence[filled] = self._confidence[filled] / self._counts[filled]
        gap = np.abs(self._correct - self._confidence)
        return Reliability(
            counts=self._counts.copy(),
            confidence=confidence,
            accuracy=tuple(
                wilson(int(k), int(n)) for k, n in zip(self._correct, self._counts, strict=True)
            ),
            expected_error=float(gap.sum() / self._counts.sum()),
        )


class SelectiveTally:
    """Running counts of kept and wrong images by confidence, in bins that are finest near 1."""

    def __init__(self) -> None:
        self._kept: IntArray = np.zeros(_LIMITS, np.int64)
        self._wrong: IntArray = np.zeros(_LIMITS, np.int64)
        self._totals: IntArray = np.zeros(4, np.int64)

    def add(
        self,
        wrong: npt.NDArray[np.bool_],
        confidence: npt.NDArray[np.floating],
        review: npt.NDArray[np.bool_],
        alien: npt.NDArray[np.bool_],
    ) -> None:
        """Count a batch of labelled images, one entry an image each, ``(N,)``.

        Args:
            wrong: whether the class given is not the label's.
            confidence: of the class given, 0–1.
            review: whether a person is asked to look at it.
            alien: whether it is out of domain.
        """
        doubt = -np.log10(np.maximum(1.0 - confidence.astype(np.float64), 10.0**-_DECADES))
        bins = bin_of(1 - doubt / _DECADES, _LIMITS)
        unseen = ~review & ~alien
        self._kept += np.bincount(bins[~alien], minlength=_LIMITS)
        self._wrong += np.bincount(bins[~alien & wrong], minlength=_LIMITS)
        self._totals += [len(wrong), unseen.sum(), (unseen & wrong).sum(), alien.sum()]

    def selective(self) -> Selective | None:
        """Return the figures so far, or ``None`` where no labelled image was counted."""
        num_labelled, num_kept, num_wrong, num_alien = (int(total) for total in self._totals)
        if num_labelled == 0:
            return None
        steps = self._kept > 0
        kept, wrong = np.cumsum(self._kept)[steps], np.cumsum(self._wrong)[steps]
        return Selective(
            coverage=kept / num_labelled,
            risk=wrong / kept,
            num_labelled=num_labelled,
            num_kept=num_kept,
            num_wrong=num_wrong,
            num_alien=num_alien,
        )


def losses(
    labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """Return each image's log-loss and Brier score (see :class:`Evaluation`).

    Args:
        labels: index into ``CLASSES``, integer ``(N,)``.
        probabilities: of all classes, float ``(N, 8)``.

    Returns:
        ``float64 (N,)`` and ``float64 (N,)``.

    Raises:
        ValueError: ``probabilities`` is not of that shape.
    """
    if probabilities.shape != (len(labels), len(CLASSES)):
        raise ValueError(
            f"probabilities must have shape ({len(labels)}, {len(CLASSES)}), one row an image; "
            f"got {probabilities.shape}"
        )
    wide = probabilities.astype(np.float64)
    right = wide[np.arange(len(labels)), labels]
    log_loss = -np.log(np.maximum(right, SMALLEST_PROBABILITY))
    # |p - onehot|² = |p|² - 2 p(label) + 1
    return log_loss, np.maximum(np.square(wide).sum(axis=1) - 2 * right + 1, 0.0)


def bin_of(values: npt.NDArray[np.floating], num_bins: int) -> npt.NDArray[np.intp]:
    """Return the bin of each value in 0–1, among ``num_bins`` of equal width; 1 is in the last."""
    return np.clip((values * num_bins).astype(np.intp), 0, num_bins - 1)


def wilson(count: int, total: int) -> Interval:
    """Return ``count / total`` with its 95 % Wilson score interval.

    Source: Wilson 1927, JASA 22:209; recommended by Brown, Cai & DasGupta 2001, Stat. Sci. 16:101.
    """
    if total == 0:
        return Interval(np.nan, np.nan, np.nan)
    z = float(ndtri(0.975))
    share, weight = count / total, z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = (weight * (share * (1 - share) + weight / 4)) ** 0.5 / (1 + weight)
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))


def at_most(count: int, total: int) -> float:
    """Return the one-sided 95 % upper bound of ``count / total``; 1 where nothing was counted.

    Source: Clopper & Pearson 1934, Biometrika 26:404.
    """
    if count == total:
        return 1.0
    return float(betaincinv(count + 1, total - count, 0.95))


def error_free(share: float) -> int:
    """Return of how many, none of them wrong, :func:`at_most` is ``share`` or less.

    Args:
        share: above 0, below 1.
    """
    return math.ceil(math.log(0.05) / math.log1p(-share))


def _class_figures(confusion: IntArray, index: int) -> ClassFigures:
    right = int(confusion[index, index])
    num_labelled = int(confusion[index].sum())
    num_predicted = int(confusion[:, index].sum())
    # F1 is a rising function of the share of right images among all that carry the label or were
    # given the class, and that share is a proportion: its Wilson limits give those of F1.
    # Source: Hand, Christen & Kirielle 2021, Machine Learning 110:451 (F* = F1 / (2 - F1)).
    share = wilson(right, num_labelled + num_predicted - right)
    return ClassFigures(
        name=CLASSES[index],
        num_labelled=num_labelled,
        num_predicted=num_predicted,
        precision=wilson(right, num_predicted),
        recall=wilson(right, num_labelled),
        f1=Interval(*(2 * s / (1 + s) for s in share)),
    )
