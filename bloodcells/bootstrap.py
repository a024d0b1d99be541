"""95 % intervals of figures against labels, by drawing whole slides anew with replacement.

Images of one slide share its stain, its focus and its patient, so a thousand images of ten slides
say less than a thousand of a thousand. Where slides are known they are what is drawn; else images.

Every figure follows from sums that add up over images, so a slide is kept as one row of 81 sums,
and a resample is a weighted sum of rows: memory is bounded, whatever the number of images. Of more
than ``MOST_GROUPS`` slides or images, several share a row, put together by chance: as independent
of each other as they were, such rows vary as they did.

An interval is the smallest that holds three: the percentiles of the resamples, spread out as far
as few groups need it (Hesterberg 2015, The American Statistician 69:371); the resamples' standard
error times Student's t; and, for shares of images, what Wilson's interval says of as many
independent images (for means over classes by MOVER: Zou & Donner 2008, Stat. Med. 27:1693). The
second is there for few slides, the third where no image is wrong, of which resamples know nothing.

Measured coverage, 200 simulated runs each of 3 to 60 slides that differ strongly, or of 200 and
1,000 single images: accuracy, balanced accuracy, macro-F1 and log-loss 90-100 % (plain percentiles
71-93 %; BCa no better); Brier score 88-97 %, least where one image in a thousand is wrong; ECE,
whose estimate is biased upwards, 87-98 %.

With fewer than ``FEW_SLIDES`` slides an interval says little: nobody can know from five slides how
the sixth will be. Knows nothing of files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

from bloodcells.cells import CLASSES
from bloodcells.evaluation import (
    NUM_BINS,
    ClassFigures,
    Evaluation,
    FloatArray,
    IntArray,
    Interval,
    Tally,
    bin_of,
    losses,
)

Unit = Literal["slide", "image"]

NUM_RESAMPLES: Final = 2000
MOST_GROUPS: Final = 16_384
"""Rows that are drawn from, at most: a standard error from that many is known to 0.6 %."""
FEW_SLIDES: Final = 10
SEED: Final = 0

_NUM: Final = len(CLASSES)
_GAPS: Final = slice(_NUM * _NUM, _NUM * _NUM + NUM_BINS)
_LOG_LOSS: Final = _GAPS.stop
_BRIER: Final = _LOG_LOSS + 1
_WIDTH: Final = _BRIER + 1
"""Sums of a row: the confusion table, a bin's right images minus its confidence, the two losses."""

_WEIGHTS_AT_ONCE: Final = 2_000_000

FIGURES: Final[Mapping[str, float]] = {
    "accuracy": 1.0,
    "balanced_accuracy": 1.0,
    "macro_f1": 1.0,
    "log_loss": np.inf,
    "brier": 2.0,
    "ece": 1.0,
}
"""The figures of a whole run that get an interval, and the most each can be; the least is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Figures with their 95 % intervals.

    Attributes:
        figures: by name, in the order of ``FIGURES``.
        classes: precision, recall and F1 a class, in the order of ``CLASSES``.
        unit: what was drawn: slides, or images.
        num_groups: how many there were to draw from, at most ``MOST_GROUPS``.
        warning: what to keep in mind about the intervals; empty where there is nothing.
    """

    figures: Mapping[str, Interval]
    classes: tuple[ClassFigures, ...]
    unit: Unit
    num_groups: int
    warning: str


class GroupedTally:
    """Running sums over labelled images: all that figures and their intervals follow from."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._slides = _SlideRows()
        self._images = _ImageRows()

    def add(
        self,
        labels: IntArray,
        probabilities: npt.NDArray[np.floating],
        predicted: IntArray,
        confidence: npt.NDArray[np.floating],
        slide_ids: Sequence[str],
    ) -> None:
        """Count a batch of labelled images.

        Args:
            labels: index into ``CLASSES``, ``int64 (N,)``.
            probabilities: of all classes, float ``(N, 8)``, rows of sum 1.
            predicted: index into ``CLASSES``, ``int64 (N,)``.
            confidence: probability of the predicted class, float ``(N,)``, 0–1.
            slide_ids: the slide of each image, N strings.
        """
        self._tally.add(labels, predicted, confidence, probabilities)
        log_loss, brier = losses(labels, probabilities)
        gap = (labels == predicted) - confidence.astype(np.float64)
        for group in (self._slides.of(slide_ids), self._images.of(len(labels))):
            for column, values in (
                (labels * _NUM + predicted, 1.0),
                (_GAPS.start + bin_of(confidence, NUM_BINS), gap),
                (_LOG_LOSS, log_loss),
                (_BRIER, brier),
            ):
                np.add.at(group.table, (group.rows, np.asarray(column)), values)

    def evaluation(self) -> Evaluation | None:
        """Return the figures so far, or ``None`` where no labelled image was counted."""
        return self._tally.evaluation()

    def intervals(self, by: Unit = "slide", num_resamples: int = NUM_RESAMPLES) -> Intervals | None:
        """Return the figures with their intervals; the same images always give the same.

        Args:
            by: ``image`` draws images even where slides are known; ``slide`` draws slides where
                there is more than one and not every image is its own.
            num_resamples: how often all groups are drawn anew.
        """
        evaluation = self.evaluation()
        if evaluation is None:
            return None
        num_slides = self._slides.count
        is_by_slide = by == "slide" and 1 < num_slides < evaluation.num_labelled
        table = (self._slides if is_by_slide else self._images).filled()
        drawn = np.concatenate([_figures(sums) for sums in _resample(table, num_resamples)])
        values, limits = _values(evaluation), [*FIGURES.values(), *[1.0] * 3 * _NUM]
        shares = [*_shares(evaluation), None, None, None, *_class_shares(evaluation)]
        found = [
            _widest(value, column, len(table), limit, share)
            for value, column, limit, share in zip(values, drawn.T, limits, shares, strict=True)
        ]
        whole, classes = found[: len(FIGURES)], found[len(FIGURES) :]
        return Intervals(
            figures=dict(zip(FIGURES, whole, strict=True)),
            classes=tuple(
                replace(c, precision=precision, recall=recall, f1=f1)
                for c, precision, recall, f1 in zip(
                    evaluation.classes, classes[::3], classes[1::3], classes[2::3], strict=True
                )
            ),
            unit="slide" if is_by_slide else "image",
            num_groups=len(table),
            warning=_warning(is_by_slide, num_slides, evaluation.num_labelled),
        )


@dataclass(slots=True)
class _Rows:
    """Where the images of a batch are added: rows of a table, one an image."""

    table: FloatArray
    rows: npt.NDArray[np.int64]


class _SlideRows:
    """A row a slide; of too many slides, those that a hash puts together."""

    def __init__(self) -> None:
        self.table: FloatArray = np.zeros((MOST_GROUPS, _WIDTH))
        self._row_of: dict[str, int] = {}
        self._is_shared = False

    @property
    def count(self) -> int:
        """Slides seen; groups of them, where there were too many."""
        return len(self.filled())

    def of(self, slide_ids: Sequence[str]) -> _Rows:
        if not self._is_shared and len({*self._row_of, *slide_ids}) > MOST_GROUPS:
            self._share()
        rows = [
            _hashed(name) if self._is_shared else self._row_of.setdefault(name, len(self._row_of))
            for name in slide_ids
        ]
        return _Rows(self.table, np.array(rows, np.int64))

    def filled(self) -> FloatArray:
        return _filled(self.table) if self._is_shared else self.table[: len(self._row_of)]

    def _share(self) -> None:
        before, self.table = self.table, np.zeros_like(self.table)
        for name, row in self._row_of.items():
            self.table[_hashed(name)] += before[row]
        self._row_of, self._is_shared = {}, True


class _ImageRows:
    """A row an image; of too many images, those that chance puts together."""

    def __init__(self) -> None:
        self.table: FloatArray = np.zeros((MOST_GROUPS, _WIDTH))
        self._count = 0
        self._random = np.random.default_rng(SEED)

    def of(self, num_images: int) -> _Rows:
        before, self._count = self._count, self._count + num_images
        if self._count <= MOST_GROUPS:
            return _Rows(self.table, np.arange(before, self._count))
        if before <= MOST_GROUPS:
            alone, self.table = self.table[:before], np.zeros_like(self.table)
            np.add.at(self.table, self._draw(before), alone)
        return _Rows(self.table, self._draw(num_images))

    def filled(self) -> FloatArray:
        is_shared = self._count > MOST_GROUPS
        return _filled(self.table) if is_shared else self.table[: self._count]

    def _draw(self, num_images: int) -> npt.NDArray[np.int64]:
        return self._random.integers(0, MOST_GROUPS, num_images)


def _filled(table: FloatArray) -> FloatArray:
    return table[table[:, : _GAPS.start].any(axis=1)]


def _hashed(slide_id: str) -> int:
    return zlib.crc32(slide_id.encode("utf-8", "surrogatepass")) % MOST_GROUPS


def _resample(table: FloatArray, num_resamples: int) -> Iterator[FloatArray]:
    """Yield the sums of resamples, some ``(k, 81)`` at a time."""
    random = np.random.default_rng(SEED)
    size = len(table)
    for begin in range(0, num_resamples, step := max(1, _WEIGHTS_AT_ONCE // size)):
        num = min(step, num_resamples - begin)
        drawn = random.integers(0, size, (num, size))
        drawn += np.arange(num)[:, np.newaxis] * size
        weights = np.bincount(drawn.ravel(), minlength=num * size).reshape(num, size)
        yield weights.astype(np.float64) @ table


def _figures(sums: FloatArray) -> FloatArray:
    """Return the figures of each resample, ``(k, 6 + 3 × 8)``; ``nan`` where undefined."""
    confusion = sums[:, : _GAPS.start].reshape(-1, _NUM, _NUM)
    right = np.diagonal(confusion, axis1=1, axis2=2)
    labelled, predicted = confusion.sum(2), confusion.sum(1)
    total = labelled.sum(1)
    precision = _ratio(right, predicted)
    recall = _ratio(right, labelled)
    f1 = np.where(labelled > 0, _ratio(2 * right, labelled + predicted), np.nan)
    return np.column_stack(
        [
            right.sum(1) / total,
            np.nanmean(recall, axis=1),
            np.nanmean(f1, axis=1),
            sums[:, _LOG_LOSS] / total,
            sums[:, _BRIER] / total,
            np.abs(sums[:, _GAPS]).sum(1) / total,
            np.stack([precision, recall, f1], axis=2).reshape(-1, 3 * _NUM),
        ]
    )


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _values(evaluation: Evaluation) -> list[float]:
    """Return the figures themselves, in the order of the columns of ``_figures``."""
    assert evaluation.log_loss is not None
    assert evaluation.brier is not None
    return [
        evaluation.accuracy.value,
        evaluation.balanced_accuracy,
        evaluation.macro_f1,
        evaluation.log_loss,
        evaluation.brier,
        evaluation.reliability.expected_error,
        *(i.value for c in evaluation.classes for i in (c.precision, c.recall, c.f1)),
    ]


def _shares(evaluation: Evaluation) -> list[Interval]:
    """Return the intervals that independent images would give, of the first three figures."""
    occurring = [c for c in evaluation.classes if c.num_labelled > 0]
    return [
        evaluation.accuracy,
        _mean_of([c.recall for c in occurring]),
        _mean_of([c.f1 for c in occurring]),
    ]


def _class_shares(evaluation: Evaluation) -> list[Interval]:
    return [i for c in evaluation.classes for i in (c.precision, c.recall, c.f1)]


def _mean_of(shares: Sequence[Interval]) -> Interval:
    """Return the mean of independent shares with its interval (MOVER)."""
    value, low, high = np.array(shares).T
    mean = float(value.mean())
    below = float(np.linalg.norm(value - low)) / len(shares)
    above = float(np.linalg.norm(high - value)) / len(shares)
    return Interval(mean, mean - below, mean + above)


def _widest(
    value: float, drawn: FloatArray, num_groups: int, limit: float, share: Interval | None
) -> Interval:
    """Return a figure with the smallest interval that holds all those known for it.

    Args:
        value: the figure.
        drawn: the resamples', ``float64 (num_resamples,)``, ``nan`` where undefined.
        num_groups: what was drawn from.
        limit: the most that the figure can be.
        share: its interval for independent images, where it has one.
    """
    lows, highs = [value], [value]
    if share is not None:
        lows.append(share.low)
        highs.append(share.high)
    drawn = drawn[np.isfinite(drawn)]
    if num_groups > 1 and len(drawn) > 1:
        spread = float(stdtrit(num_groups - 1, 0.975)) * np.sqrt(num_groups / (num_groups - 1))
        error = spread * float(drawn.std())
        tail = float(ndtr(-spread))
        low, high = np.quantile(drawn, [tail, 1 - tail])
        lows += [value - error, float(low)]
        highs += [value + error, float(high)]
    return Interval(value, max(float(min(lows)), 0.0), min(float(max(highs)), limit))


def _warning(is_by_slide: bool, num_slides: int, num_images: int) -> str:
    if is_by_slide and num_slides < FEW_SLIDES:
        return (
            f"Only {num_slides} slides: too few to know how much slides differ; the next slide may "
            "well lie outside these intervals."
        )
    if is_by_slide or num_slides == num_images > 1:
        return ""
    if num_slides == 1:
        return (
            "All images are of one slide, as far as the run knows: the intervals hold for more "
            "images of that slide, not for other slides."
        )
    return (
        f"Images were drawn, though they are of {num_slides:,} slides: images of one slide "
        "resemble each other, so the true intervals are wider."
    )
