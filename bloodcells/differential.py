"""Statistics of a differential: from predicted-class counts to true shares, with intervals.

Pure arithmetic on counts: knows nothing of images, models, files or tables.

A classifier that calls 1 % of neutrophils immature granulocytes finds a left shift in every healthy
slide. :func:`differential` takes that out. All it asks of the classifier is its confusion,
``P(predicted | true)``, which does not depend on how common each class is. So a slide whose mix
differs from the training data's needs no correction besides, and the training mix is not asked for.

*Estimates* are the most likely mix behind the counts, found by expectation maximisation.

*Intervals* are Clopper-Pearson intervals that also carry what is unknown of the classifier. For one
class, a slide's cells called white (for erythroblasts and platelets: those and the cells called
that) are ``hits``, called this class, or ``rest``. Where ``x`` is the number of true cells of the
class per true white cell, they are to be expected in the ratio

    hits : rest = x·a + (1-x)·b + c : x·A + (1-x)·B + C

with ``a`` and ``A`` the rates at which the class itself is called hit and rest, ``b`` and ``B``
those of the other white cells, ``c`` and ``C`` those of erythroblasts and platelets per white cell.
(Erythroblasts and platelets take nothing from the white cells: for them ``1-x`` is 1.) Each draw
takes the rates from what validation leaves possible, the ratio from the binomial's confidence
distribution (the lower one for ``low``, the upper one for ``high``: they differ by one count), and
solves for ``x``. As these two distributions are the ones behind Clopper-Pearson, ``low`` is 0
wherever the classifier's errors alone could explain the hits, and ``high`` stays above 0 where
there are none.

Source: Saerens, Latinne & Decaestecker 2002, Neural Computation 14:21 (estimates); Fay, Proschan &
Brittain 2015, Biometrics 71:146 (such "melding" of confidence distributions); Bayer, Fay & Graubard
2023, Statistics in Medicine 42:1822 (melding for one class and an imperfect assay). How well the
intervals hold was measured: see ``benchmarks/differential.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bloodcells.cells import CLASSES, WHITE_CELLS

FloatArray = npt.NDArray[np.float64]

LEVEL: Final = 0.95

NUM_DRAWS: Final = 2000
"""Draws that an interval's two ends are read from: the 51st from below and from above."""

VALIDATION_WEIGHT: Final = 0.5
"""What a validation image counts for in the intervals. The rates in the slides at hand differ from
validation's by the chance in both, and so by twice the variance. With weight 1, intervals of slides
drawn from a test set as small as validation held the truth in only 82 % (worst class and mix)."""

PRIOR_RIGHT: Final = 0.5
PRIOR_WRONG: Final = 0.1
"""Pseudo-counts in each row of the confusion: on the diagonal, and on each of the seven errors.
They say how common an error may be that validation never saw: without them it would be impossible,
and with 0.2 an error the intervals of lymphocytes held only 87 % in slides full of them."""

_SEED: Final = 2002
_NUM_STEPS: Final = 500
_NUM_CLASSES: Final = len(CLASSES)
_WHITE: Final = np.array([name in WHITE_CELLS for name in CLASSES])
_SAME: Final = np.eye(_NUM_CLASSES, dtype=bool)
_PRIOR: Final = np.where(_SAME, PRIOR_RIGHT, PRIOR_WRONG)

_SHARING: Final = ~_SAME & np.outer(_WHITE, _WHITE)
"""``bool (8, 8)``: whether the row's class shrinks as the column's grows, to make 100 % white."""

_BESIDE: Final = ~_SAME & ~_SHARING


@dataclass(frozen=True, kw_only=True)
class Differential:
    """What slides are made of; each array is ``float64 (S, 8)``, columns in ``CLASSES`` order.

    Per cent of the white cells for the six white classes; number per 100 white cells, which may
    exceed 100, for erythroblast and platelet. A row is NaN where no cell was called white.

    Attributes:
        percent: as counted, not corrected.
        estimate: corrected for the classifier's confusion; the white classes add up to 100.
        low: lower end of the 95 % interval around ``estimate``.
        high: its upper end; finite, as a slide that has a white cell at all has at most all its
            other cells for each of them.
    """

    percent: FloatArray
    estimate: FloatArray
    low: FloatArray
    high: FloatArray


def differential(
    counts: npt.NDArray[np.integer], confusion: npt.NDArray[np.integer]
) -> Differential:
    """Correct slides' counts for the classifier's confusion, and say how sure that is.

    The same counts and confusion always give the same numbers, whatever other slides there are.

    Args:
        counts: cells by predicted class, ``int (S, 8)``, one row a slide.
        confusion: held-out validation images, ``int (8, 8)``, rows true class, columns predicted. A
            class without images is taken as one of which nothing is known.

    Raises:
        ValueError: an array has another shape, or a negative entry.
    """
    counts = np.asarray(counts)
    confusion = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[1] != _NUM_CLASSES or (counts < 0).any():
        raise ValueError(f"counts must be non-negative (S, {_NUM_CLASSES}), not {counts.shape}")
    if confusion.shape != (_NUM_CLASSES, _NUM_CLASSES) or (confusion < 0).any():
        raise ValueError(f"confusion must be non-negative, 8 by 8, not {confusion.shape}")

    whites = counts[:, _WHITE].sum(axis=1)
    cells = np.maximum(counts.sum(axis=1), 1)
    mix = unmix(counts, confusion)
    # At least one cell is taken to be white: else a number per white cell would have no bound.
    per_white = mix / np.maximum(mix[:, _WHITE].sum(axis=1), 1 / cells)[:, np.newaxis]
    estimate = np.minimum(per_white, np.where(_WHITE, 1.0, cells[:, np.newaxis]))
    low, high = estimate.copy(), estimate.copy()
    rates = _Rates.draw(confusion)
    for slide in np.flatnonzero(whites):
        low[slide], high[slide] = rates.interval(counts[slide], estimate[slide])
    results = (
        100 * np.where(whites[:, np.newaxis], array, np.nan) for array in (estimate, low, high)
    )
    estimate, low, high = results
    return Differential(
        percent=per_hundred_white(counts),
        estimate=estimate,
        low=np.minimum(low, estimate),
        high=np.maximum(high, estimate),
    )


def per_hundred_white(counts: npt.NDArray[np.number]) -> FloatArray:
    """Divide ``counts (S, 8)`` by their white cells, times 100; rows without any become NaN."""
    white = counts[:, _WHITE].sum(axis=1, keepdims=True)
    percent = np.full(counts.shape, np.nan)
    np.divide(100.0 * counts, white, out=percent, where=white > 0)
    return percent


def unmix(counts: npt.NDArray[np.integer], confusion: npt.NDArray[np.integer]) -> FloatArray:
    """Find the most likely shares of the true classes, by expectation maximisation.

    Args:
        counts: cells by predicted class, ``int (S, 8)``.
        confusion: validation images, ``int (8, 8)``, rows true class, columns predicted.

    Returns:
        Shares of all cells, ``(S, 8)``, 0-1; a row adds up to 1, or is even where it has no cells.
    """
    weights = confusion + _PRIOR
    rates = weights / weights.sum(axis=1, keepdims=True)
    called = counts + (1e-9 / _NUM_CLASSES)  # keeps rows without cells from dividing by nothing
    called = called / called.sum(axis=1, keepdims=True)
    mix = np.full(counts.shape, 1 / _NUM_CLASSES)
    for _ in range(_NUM_STEPS):
        mix = mix * ((called / (mix @ rates)) @ rates.T)
    return mix


@dataclass(frozen=True, kw_only=True)
class _Rates:
    """Draws of the classifier's rates that validation leaves possible.

    Attributes:
        hit: ``(D, 8, 8)``, rate at which cells of the row's class are called the column's.
        rest: ``(D, 8, 8)``, rate at which they are called a white class other than the column's.
    """

    hit: FloatArray
    rest: FloatArray

    @classmethod
    def draw(cls, confusion: npt.NDArray[np.integer]) -> _Rates:
        """Draw each row from its Dirichlet posterior, ``confusion (8, 8)`` given."""
        gammas = np.random.default_rng(_SEED).standard_gamma(
            VALIDATION_WEIGHT * confusion + _PRIOR, size=(NUM_DRAWS, *confusion.shape)
        )
        hit = gammas / gammas.sum(axis=2, keepdims=True)
        white = hit[:, :, _WHITE].sum(axis=2, keepdims=True)
        return cls(hit=hit, rest=white - np.where(_WHITE, hit, 0))

    def interval(
        self, counts: npt.NDArray[np.integer], per_white: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return the ends of one slide's intervals, each ``(8,)``, per white cell.

        Args:
            counts: the slide's cells by predicted class, ``(8,)``, some of them white.
            per_white: the estimates, ``(8,)``, for the share that the other classes have in a
                class's hits and rest.
        """
        num_white = counts[_WHITE].sum()
        # A sixth of a cell each, so that there are others even where all cells are of one class.
        white = np.where(_WHITE, per_white * num_white + 1 / _WHITE.sum(), 0)
        mix = np.where(_WHITE, white / white.sum(), per_white)[:, np.newaxis]
        sharing = np.where(_SHARING, mix, 0)
        sharing /= np.where(_WHITE, sharing.sum(axis=0), 1)
        beside = np.where(_BESIDE, mix, 0)

        own_hit, own_rest = (np.diagonal(rate, axis1=1, axis2=2) for rate in (self.hit, self.rest))
        sharing_hit, sharing_rest = _called(self.hit, sharing), _called(self.rest, sharing)
        base_hit = sharing_hit + _called(self.hit, beside)
        base_rest = sharing_rest + _called(self.rest, beside)
        tells = own_hit * base_rest > own_rest * base_hit
        most = np.where(_WHITE, 1.0, counts.sum())

        def solve(hits: FloatArray, rest: FloatArray, untold: FloatArray) -> FloatArray:
            """Return ``x (D, 8)``; ``untold (8,)`` where hits do not speak for the class at all."""
            excess = hits * base_rest - rest * base_hit
            slope = rest * (own_hit - sharing_hit) - hits * (own_rest - sharing_rest)
            # More hits than any number of cells explains: as many cells as there can be.
            x = np.where(excess > 0, np.inf, 0.0)
            np.divide(excess, slope, out=x, where=(excess > 0) & (slope > 0))
            return np.where(tells, np.minimum(x, most), untold)

        # Numbers in a binomial's two confidence distributions, Beta(k, n-k+1) and Beta(k+1, n-k),
        # are ratios of the same three gamma variables.
        rng = np.random.default_rng([_SEED, *counts.tolist()])
        shape = (NUM_DRAWS, _NUM_CLASSES)
        hits = rng.standard_gamma(counts, shape)
        one = rng.standard_exponential(shape)
        rest = rng.standard_gamma(num_white - np.where(_WHITE, counts, 0), shape)
        tail = round(NUM_DRAWS * (1 - LEVEL) / 2)
        low = np.partition(solve(hits, one + rest, np.zeros(_NUM_CLASSES)), tail, axis=0)[tail]
        high = np.partition(solve(hits + one, rest, most), -tail - 1, axis=0)[-tail - 1]
        return low, high


def _called(rates: FloatArray, mix: FloatArray) -> FloatArray:
    """Add up the ``rates (D, 8, 8)`` of the cells in each class's, or column's, ``mix (8, 8)``."""
    called: FloatArray = np.einsum("dtc,tc->dc", rates, mix)
    return called
