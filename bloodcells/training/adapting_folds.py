"""Which labelled cells an adapted bundle is tried on: whole slides, every class in each fold.

Knows nothing of pictures or of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError

IntArray = npt.NDArray[np.int64]

FOLDS: Final = 5

LEAST_CELLS: Final = 4
"""Of a class, to learn from three of them at most times and to be tried on each."""


def require_enough(labels: IntArray) -> None:
    """Refuse labelled cells that nothing can be learned from.

    Raises:
        ConfigurationError: there are fewer than two classes, or too few cells of one.
    """
    counts = np.bincount(labels, minlength=len(CLASSES))
    there = {CLASSES[k]: int(n) for k, n in enumerate(counts) if n}
    if len(there) < 2:
        raise ConfigurationError(
            f"there are labelled cells of {' and '.join(there) or 'no class'} only: label ten to "
            "twenty cells each of at least two classes"
        )
    few = [f"{n} of {name}" for name, n in there.items() if n < LEAST_CELLS]
    if few:
        raise ConfigurationError(
            f"there are too few labelled cells ({', '.join(few)}): label at least {LEAST_CELLS}, "
            "better ten to twenty, of every class that is labelled at all"
        )


def folds_of(
    labels: IntArray, groups: Sequence[str], *, num_folds: int = FOLDS, seed: int = 0
) -> tuple[IntArray, tuple[str, ...]]:
    """Share cells out into folds, whole slides together, every class as evenly as that allows.

    A class that comes from one slide alone could never be learned without that slide, so its cells
    are shared out one by one.

    Args:
        labels: index into ``CLASSES``, ``int64 (N,)``.
        groups: the slide of each, N strings.
        num_folds: most folds.
        seed: of the order among equals.

    Returns:
        The fold of each cell, ``int64 (N,)``; and the classes with cells on slides that are
        divided: those of one slide, and others that have cells there.
    """
    rng = np.random.default_rng(seed)
    slides = np.unique(np.asarray(groups, str), return_inverse=True)[1].reshape(-1)
    classes = np.unique(labels)
    divided = [k for k in classes if len(np.unique(slides[labels == k])) < 2]
    units = slides.copy()
    alone = np.isin(labels, divided)
    units[alone] = slides.max() + 1 + np.arange(alone.sum())
    names, units = np.unique(units, return_inverse=True)
    holds = np.zeros((len(names), len(CLASSES)), np.int64)
    np.add.at(holds, (units.reshape(-1), labels), 1)
    shares = np.zeros((num_folds, len(CLASSES)))
    fold_of = np.zeros(len(names), np.int64)
    wanted = np.maximum(holds.sum(0) / num_folds, 1e-9)
    for unit in np.lexsort((rng.random(len(names)), -holds.sum(1))):
        # Where its classes are scarcest, by shares of what each fold should have.
        with_it = (shares + holds[unit]) / wanted
        cost = ((with_it**2) - (shares / wanted) ** 2).sum(1) + 1e-6 * shares.sum(1)
        fold = int(np.argmin(cost))
        fold_of[unit] = fold
        shares[fold] += holds[unit]
    folds = np.unique(fold_of[units.reshape(-1)], return_inverse=True)[1].reshape(-1)
    shared = np.unique(labels[np.isin(slides, slides[alone])])
    return folds.astype(np.int64), tuple(CLASSES[k] for k in shared)
