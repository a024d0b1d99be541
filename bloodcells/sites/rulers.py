"""Rulers of a picture that do not follow the kind of cell in its middle.

They look at the light (the background), at what surrounds the cell (mostly red cells), and at how
fine its detail is. Knows nothing of labs or of models.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from bloodcells.imaging.tone import background

RULERS: Final = (
    "background_red",
    "background_green",
    "background_blue",
    "surround_red",
    "surround_green",
    "surround_blue",
    "detail",
)
"""Logarithms of the background's grey levels; mean optical densities of the picture's rim,
relative to the background; the logarithm of the mean difference between neighbouring pixels."""

SIDE_PX: Final = 96
"""Side of the pictures that are measured: whole, in their own colours."""

_MIDDLE: Final = 0.65
"""Side of the square in the middle that is no rim, in sides of the picture."""

Measures = npt.NDArray[np.float64]


def measure(pixels: npt.NDArray[np.uint8]) -> Measures:
    """Measure a picture.

    Args:
        pixels: ``uint8 (S, S, 3)``, RGB, of ``SIDE_PX``.

    Returns:
        ``float64 (7,)``, in the order of ``RULERS``.
    """
    levels = pixels.astype(np.float64)
    light = background(pixels)
    rim = levels[_rim(len(pixels))]
    densities = np.log(light) - np.log(np.maximum(rim, 1.0))
    grey = levels.mean(2)
    detail = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return np.concatenate([np.log(light), densities.mean(0), [np.log(detail + 1)]])


def _rim(side: int) -> npt.NDArray[np.bool_]:
    edge = round(side * (1 - _MIDDLE) / 2)
    rim = np.ones((side, side), bool)
    rim[edge : side - edge, edge : side - edge] = False
    return rim
