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
    IntArray,
    Pixels,
    all_decoded,
    class_weights,
    fit_dense,
    only_dense_layer,
    seen_by,
    settled,
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
        BundleError: the bundle's model cannot be adapted.
    """

    def __init__(
        self, bundle: ModelBundle, images: Sequence[Encoded], labels: IntArray, hold: float
    ) -> None:
        self.bundle = bundle
        self._images, self._labels, self._hold = images, labels, hold
        self._dense = only_dense_layer(bundle.build())
        self._pixels: dict[Preprocess, Pixels] = {}
        for crop in CROPS:
            wanted = min(LARGEST_CROP, bundle.preprocess.crop * crop)
            seen = bundle.preprocess if crop == 1 else replace(bundle.preprocess, crop=wanted)
            if seen not in self._pixels:
                self._pixels[seen] = all_decoded(images, seen)

    def best(self, rows: IntArray) -> Preprocess:
        """Return the view with which some of the cells tell the others' classes best.

        Args:
            rows: the cells that may be looked at; no other has any influence.
        """
        losses = {seen: self._loss(pixels[rows], rows) for seen, pixels in self._pixels.items()}
        return min(losses, key=losses.__getitem__)

    def cells(self, rows: IntArray) -> Cells:
        """Decode some of the cells as it suits them best."""
        images = [self._images[row] for row in rows.tolist()]
        return Cells.decoded(images, self._labels[rows], self.best(rows))

    def _loss(self, pixels: Pixels, rows: IntArray) -> float:
        """Return the log-loss, classes alike, of dense layers on cells they were not fitted to.

        The network is settled among these cells.
        """
        labels = self._labels[rows]
        features, _ = seen_by(settled(self.bundle, pixels), pixels)
        part, weights = parts_of(labels), class_weights(labels)
        total = 0.0
        for held in range(_PARTS):
            kept, asked = part != held, part == held
            weight, bias = fit_dense(features[kept], labels[kept], self._dense, self._hold)
            logits = features[asked] @ weight.numpy().T + bias.numpy()
            right = log_softmax(logits, axis=1)[np.arange(len(logits)), labels[asked]]
            total -= float((weights[asked] * right).sum())
        return total


def parts_of(labels: IntArray) -> IntArray:
    """Share cells out into ``_PARTS``, every class evenly, in their order; ``int64 (N,)``."""
    parts = np.zeros(len(labels), np.int64)
    for k in np.unique(labels):
        rows = np.flatnonzero(labels == k)
        parts[rows] = np.arange(len(rows)) % _PARTS
    return parts
