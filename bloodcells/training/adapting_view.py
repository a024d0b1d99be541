"""How a bundle should see a lab's pictures, by labelled cells: the crop that tells them apart best.

The search without labels (``site_search``) needs a hundred pictures; with labels some dozens say
more. Knows nothing of what is fitted afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from scipy.special import log_softmax

from bloodcells.bundle import ModelBundle
from bloodcells.imaging import Preprocess
from bloodcells.imaging.window import LARGEST_CROP
from bloodcells.training.adapting_fit import (
    Cells,
    Encoded,
    Floats,
    IntArray,
    all_decoded,
    class_weights,
    fit_dense,
    only_dense_layer,
    seen_by,
)

CROPS: Final = (0.79, 1.0, 1.26, 1.58, 2.0)
"""Factors of the bundle's crop that are tried."""

_PARTS: Final = 3


class SiteViews:
    """The labelled cells as a bundle sees them with each crop.

    Args:
        bundle: the given one.
        images: N cells.
        labels: index into ``CLASSES``, ``int64 (N,)``.
        hold: as for ``Fitting``.

    Raises:
        ImageError: a cell cannot be decoded.
    """

    def __init__(
        self, bundle: ModelBundle, images: Sequence[Encoded], labels: IntArray, hold: float
    ) -> None:
        self._images, self._labels, self._hold = images, labels, hold
        model = bundle.build().eval()
        self._dense = only_dense_layer(model)
        self._features: dict[Preprocess, Floats] = {}
        for crop in CROPS:
            wanted = min(LARGEST_CROP, bundle.preprocess.crop * crop)
            seen = bundle.preprocess if crop == 1 else replace(bundle.preprocess, crop=wanted)
            if seen not in self._features:
                self._features[seen] = seen_by(model, all_decoded(images, seen))[0]

    def best(self, rows: IntArray) -> Preprocess:
        """Return the view with which some of the cells tell the others' classes best.

        Args:
            rows: the cells that may be looked at; no other has any influence.
        """
        losses = {seen: self._loss(features, rows) for seen, features in self._features.items()}
        return min(losses, key=losses.__getitem__)

    def cells(self, rows: IntArray) -> Cells:
        """Decode some of the cells as it suits them best."""
        images = [self._images[row] for row in rows.tolist()]
        return Cells.decoded(images, self._labels[rows], self.best(rows))

    def _loss(self, features: Floats, rows: IntArray) -> float:
        """Return the log-loss, classes alike, of dense layers on cells they were not fitted to."""
        part = parts_of(self._labels[rows])
        total = 0.0
        weights = class_weights(self._labels[rows])
        for held in range(_PARTS):
            kept, asked = rows[part != held], rows[part == held]
            weight, bias = fit_dense(features[kept], self._labels[kept], self._dense, self._hold)
            logits = features[asked] @ weight.numpy().T + bias.numpy()
            right = log_softmax(logits, axis=1)[np.arange(len(asked)), self._labels[asked]]
            total -= float((weights[part == held] * right).sum())
        return total


def parts_of(labels: IntArray) -> IntArray:
    """Share cells out into ``_PARTS``, every class evenly, in their order; ``int64 (N,)``."""
    parts = np.zeros(len(labels), np.int64)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        parts[rows] = np.arange(len(rows)) % _PARTS
    return parts
