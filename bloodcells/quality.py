"""What pictures say about themselves: a few numbers each, and what speaks against training on one.

``measure`` looks at one decoded picture; ``blank``, ``blurred`` and ``alien`` judge all pictures of
a store together, because what is soft or strange depends on the microscope. Knows nothing of files,
labels, duplicates or models.

**Measured** on 1,600 PBC cells of the training and validation splits, decoded to 128 px:

- spread: at least 19.4 (median 41), a constant picture 0, so ``BLANK_BELOW`` is far from both.
- sharpness, in robust deviations of its logarithm from the median: the softest cell -3.6 (the
  hundredth softest of erythroblasts, lymphocytes and platelets, the smooth ones, about -3.2, of
  all others above -1.6). The same cells blurred by a Gaussian of 3 px of 360: -3.9 to -6, of
  4 px: -5.4 and below (median -6.9), of 6 px: -7.1 and below. Motion blur along one axis is not
  found: -2.9.
- distance: median 0.11, robust deviation 0.027; 0.06 % of the cells lie beyond 10 deviations, 0.7 %
  beyond 6. Photographs, text, noise, textures and gradients (185 of them) lie 15 to 30 away,
  corners of a smear without a cell 9.6 to 20. Whole BCCD fields of many cells are like cells to
  these features (median 3.6): they are not found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from bloodcells.imaging import Preprocess

VIEW: Final = Preprocess(size=128)
"""What is looked at: the whole frame."""

FINGERPRINT_SIDE: Final = 16
"""Side of the perceptual hash, so that it has 256 bits."""

BLANK_BELOW: Final = 4.0
"""Spread in grey levels below which a picture is blank."""

BLURRED_BEYOND: Final = 5.0
"""Robust deviations of log sharpness below the store's median from which a picture is blurred."""

ALIEN_BEYOND: Final = 10.0
"""Robust deviations above the store's median distance from which a picture is alien."""

ALIEN_ABOVE: Final = 0.3
"""Distance up to which nothing is alien, in however uniform a store: 99.5 % of PBC's cells are
within 0.25."""

FEWEST_TO_COMPARE: Final = 20
"""Pictures that a store must have before one can be called blurred or alien among them."""

_LEAST_DEVIATION: Final = 0.1
"""Of log sharpness; a store of pictures that are all alike has hardly any (PBC: 0.16)."""

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one picture says.

    Attributes:
        fingerprint: perceptual hash, 32 bytes; alike for pictures that look alike.
        spread: standard deviation of brightness, in grey levels of 0–255.
        sharpness: how fast brightness turns at the sharpest edges, as a ratio without a unit; it
            does not depend on contrast, nor on how much of the frame is empty.
    """

    fingerprint: bytes
    spread: float
    sharpness: float


def measure(pixels: npt.NDArray[np.uint8]) -> Measurement:
    """Measure one picture.

    Args:
        pixels: ``uint8 (S, S, 3)``, RGB, the whole frame as ``VIEW`` decodes it.

    Source:
        Fingerprint: discrete cosine transform hash of the ``imagehash`` library. Sharpness: after
        the Laplacian focus measures in Pertuz et al. 2013, Pattern Recognition 46:1415, divided by
        the gradient, so that a faint cell does not pass for a blurred one.
    """
    image = Image.fromarray(pixels)
    bits = imagehash.phash(image, hash_size=FINGERPRINT_SIDE).hash
    grey = np.asarray(image.convert("L"), np.float32)
    gradient = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 8
    curvature = np.abs(ndimage.laplace(grey))
    steepest = max(float(np.percentile(gradient, 99)), 1.0)
    return Measurement(
        fingerprint=np.packbits(bits.ravel()).tobytes(),
        spread=float(grey.std()),
        sharpness=float(np.percentile(curvature, 99)) / steepest,
    )


def blank(spread: Floats) -> dict[int, str]:
    """Find pictures that show nothing.

    Args:
        spread: of each picture, ``(N,)``; NaN where there is none.

    Returns:
        A sentence for each row that is blank.
    """
    return {
        int(row): f"brightness varies by {spread[row]:.1f} grey levels; below {BLANK_BELOW:g} "
        "counts as blank"
        for row in np.flatnonzero(spread < BLANK_BELOW)
    }


def blurred(sharpness: Floats) -> dict[int, str]:
    """Find pictures that are far less sharp than the others of the store.

    Args:
        sharpness: of each picture, ``(N,)``; NaN where there is none or it is blank.

    Returns:
        A sentence for each row that is blurred; none where there are too few to compare with.
    """
    logs = np.log(np.maximum(sharpness, 1e-6))
    centre, deviation = robust(logs)
    limit = float(np.exp(centre - BLURRED_BEYOND * max(deviation, _LEAST_DEVIATION)))
    if np.count_nonzero(~np.isnan(logs)) < FEWEST_TO_COMPARE:
        return {}
    return {
        int(row): f"sharpness {sharpness[row]:.2f}, the median is {np.exp(centre):.2f}; below "
        f"{limit:.2f} counts as blurred"
        for row in np.flatnonzero(sharpness < limit)
    }


def alien(distance: Floats) -> dict[int, str]:
    """Find pictures that are unlike the others of the store.

    Args:
        distance: to the nearest of a sample of the store, in the features of a pretrained network,
            ``(N,)``, 0–2; NaN where there is none.

    Returns:
        A sentence for each row that is alien; none where there are too few to compare with.
    """
    centre, deviation = robust(distance)
    limit = max(centre + ALIEN_BEYOND * deviation, ALIEN_ABOVE)
    if np.count_nonzero(~np.isnan(distance)) < FEWEST_TO_COMPARE:
        return {}
    return {
        int(row): f"distance {distance[row]:.2f} from the store's pictures, the median is "
        f"{centre:.2f}; above {limit:.2f} counts as alien"
        for row in np.flatnonzero(distance > limit)
    }


def robust(values: Floats) -> tuple[float, float]:
    """Return median and scaled median absolute deviation, which a minority cannot move.

    NaN is left out; without any number both are 0.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 0.0
    centre = float(np.median(known))
    return centre, 1.4826 * float(np.median(np.abs(known - centre)))


def limits() -> Mapping[str, float]:
    """Return the thresholds, for a dataset's record of its settings."""
    return {
        "blank_below": BLANK_BELOW,
        "blurred_beyond": BLURRED_BEYOND,
        "alien_beyond": ALIEN_BEYOND,
        "alien_above": ALIEN_ABOVE,
    }
