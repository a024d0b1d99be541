"""The differential of slides that a person has reviewed in part: arithmetic on counts alone.

What a person called a cell is taken as known; what nobody looked at is corrected for the
classifier's confusion, as in ``bloodcells.differential``. Knows nothing of who reviewed what.

*Estimates* are of the cells counted: the reviewed ones as they were called, and of the others their
number times their most likely mix. Where all are reviewed they are the percentages themselves.

*Intervals.* Where every counted cell is reviewed they are the exact binomial's (Clopper-Pearson).
Where some are, each reaches from the least to the most of three intervals:

1. the machine's own of the whole slide, which looks at no review;
2. of the reviewed cells and the corrected others: the low end of the others' interval is added to
   the reviewed cells and the Clopper-Pearson low end taken of the sum, and so for the high end;
3. Clopper-Pearson of the cells as they are counted now, as if no unreviewed call were wrong.

Which cells a person reviews is no chance: the queue brings those that the machine is least sure of,
so that it errs less often in the others than its confusion says (then 2 corrects too much and 3 is
nearer), or a person picks easy ones (then 3 corrects too little, and 1 holds). A union of intervals
holds wherever one of them does.

*Not claimed:* that reviewers are right; a coverage that was measured (each part is at least as wide
as its own assumption asks for, so the union errs to the wide side); and that the estimate is the
best one: after the machine's least sure cells are reviewed, it still corrects the rest by the
confusion of all. It moves to the counts as more is reviewed.

Source: Clopper & Pearson 1934, Biometrika 26:404.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.differential import (
    LEVEL,
    Differential,
    FloatArray,
    differential,
    per_hundred_white,
    unmix,
)

IntArray = npt.NDArray[np.int64]

_WHITE: Final = np.array([name in WHITE_CELLS for name in CLASSES])
_TAIL: Final = (1 - LEVEL) / 2


def corrected_differential(
    machine: IntArray, unreviewed: IntArray, reviewed: IntArray, confusion: IntArray
) -> Differential:
    """Say what slides are made of, given what a person called some of their cells.

    Args:
        machine: all counted cells by the machine's class, ``int (S, 8)``, as if none was reviewed.
        unreviewed: those of them that nobody reviewed, ``int (S, 8)``.
        reviewed: reviewed cells by the person's class, ``int (S, 8)``; what is no cell is left out.
        confusion: held-out validation images, ``int (8, 8)``, rows true class, columns predicted.

    Returns:
        As of :func:`~bloodcells.differential.differential`, NaN where no cell counts as white. A
        slide without a reviewed cell has exactly the machine's numbers.

    Raises:
        ValueError: an array has another shape or a negative entry, or more cells are unreviewed
            than there are.
    """
    machine, unreviewed, reviewed = (
        np.asarray(counts, np.int64) for counts in (machine, unreviewed, reviewed)
    )
    if not machine.shape == unreviewed.shape == reviewed.shape or (reviewed < 0).any():
        raise ValueError(f"counts must be non-negative and alike in shape, not {reviewed.shape}")
    if (unreviewed > machine).any():
        raise ValueError("more cells are unreviewed than the machine counted")
    whole, others = differential(machine, confusion), differential(unreviewed, confusion)

    counts = unreviewed + reviewed
    percent = per_hundred_white(counts)
    num_others = unreviewed.sum(axis=1, keepdims=True)
    likely = num_others * unmix(unreviewed, confusion)
    white = np.maximum(_num_white(likely + reviewed), 1.0)
    estimate = np.where(num_others == 0, percent, 100 * (likely + reviewed) / white)

    fewest, most = _cells_among(others, likely, num_others)
    combined = _clopper_pearson(reviewed + fewest, reviewed + most, white)
    counted = _clopper_pearson(counts, counts, np.maximum(_num_white(counts), 1))
    ends = (
        np.where(num_others == 0, exact, choose(choose(own, mixed), exact))
        for choose, own, mixed, exact in zip(
            (np.fmin, np.fmax), (whole.low, whole.high), combined, counted, strict=True
        )
    )
    low, high = ends

    has_white = _num_white(counts) > 0
    untouched = ((unreviewed == machine) & (reviewed == 0)).all(axis=1, keepdims=True)

    def choose_row(own: FloatArray, new: FloatArray) -> FloatArray:
        return np.where(untouched, own, np.where(has_white, new, np.nan))

    return Differential(
        percent=choose_row(whole.percent, percent),
        estimate=choose_row(whole.estimate, estimate),
        low=choose_row(whole.low, np.minimum(low, estimate)),
        high=choose_row(whole.high, np.maximum(high, estimate)),
    )


def _num_white(counts: npt.NDArray[np.number]) -> npt.NDArray[np.number]:
    total: npt.NDArray[np.number] = counts[:, _WHITE].sum(axis=1, keepdims=True)
    return total


def _cells_among(
    others: Differential, likely: FloatArray, num_others: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return how many of a slide's unreviewed cells are of each class, at least and at most.

    Nothing is known of unreviewed cells of which the machine calls none white.
    """
    white = _num_white(likely) / 100
    fewest = np.nan_to_num(others.low * white, nan=0.0)
    most = np.where(np.isnan(others.high), num_others, others.high * white)
    return fewest, np.minimum(most, num_others)


def _clopper_pearson(
    fewest: npt.NDArray[np.number], most: npt.NDArray[np.number], white: npt.NDArray[np.number]
) -> tuple[FloatArray, FloatArray]:
    """Return the low end for ``fewest (S, 8)`` and the high end for ``most`` per 100 ``white``.

    Erythroblasts and platelets are no part of the white cells: their number is taken among
    themselves and the white cells, and the share turned into a number per white cell.
    """
    fewest, most = (
        np.minimum(k, np.where(_WHITE, white, np.inf)).astype(float) for k in (fewest, most)
    )
    rest_low, rest_high = (np.where(_WHITE, white - k, white) for k in (fewest, most))
    low = np.where(
        fewest > 0, special.betaincinv(np.maximum(fewest, 1e-12), rest_low + 1, _TAIL), 0.0
    )
    high = np.where(
        rest_high > 0, special.betaincinv(most + 1, np.maximum(rest_high, 1e-12), 1 - _TAIL), 1.0
    )
    return _per_hundred(low), _per_hundred(high)


def _per_hundred(share: FloatArray) -> FloatArray:
    ratio = np.divide(share, 1 - share, out=np.ones_like(share), where=~_WHITE & (share < 1))
    return 100 * np.where(_WHITE, share, ratio)
