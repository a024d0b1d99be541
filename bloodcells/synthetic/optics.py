"""What the microscope sees: layers of stain on glass, in µm, turned into an RGB picture.

Stains absorb light, so every layer is an absorbance for each colour channel, layers that lie on one
another add up, and the picture is ``plasma · exp(-absorbance)`` (Beer–Lambert). Shapes are signed
distances in µm, negative inside. Knows nothing of which cell types exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
ByteArray: TypeAlias = npt.NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]

FRAME_PX: Final = 360
"""Side of a drawn frame. Source: Acevedo et al. 2020, Data in Brief 30:105474 (360×363 px)."""

PX_PER_UM: Final = 10
"""Scale of a drawn frame: red cells of 7–8 µm are 70–80 px wide in the same data set."""

PLASMA: Final[Colour] = (254, 228, 202)
"""RGB of empty glass: the median background of the same data set."""

WINDOW_PX: Final = 200
"""Side of the window in the middle of the frame that the cell itself is drawn in (20 µm)."""

RED_CELL: Final[Colour] = (206, 166, 160)
"""RGB of a red cell at its thickest."""

LEVELS_PER_CELL: Final = 100
"""Steps of red-cell thickness per red cell; two and more cells may lie on one another."""

LEVEL_OF_GLASS: Final = 16
"""The step that stands for bare glass; grain goes a little below it."""

TEXTURE_PX: Final = 512
"""Period of the random textures that chromatin, granules and noise are cut from."""


@dataclass(frozen=True, kw_only=True)
class Stain:
    """How one slide was stained and photographed.

    Attributes:
        gain: factor on the absorbance of each channel R, G, B; 1 is the reference stain.
        plasma: RGB of empty glass, 0–255.
        blur: soft focus, the share of light that spills to either neighbouring pixel, 0–0.33.
        noise: standard deviation of the grain, in per cent of a red cell's absorbance.
    """

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    plasma: tuple[float, float, float] = PLASMA
    blur: float = 0.15
    noise: float = 2.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Stain:
        """Draw the stain of a slide: strength, tint, glass and focus vary as within one lab."""
        gain = rng.normal(1.0, 0.06) * rng.normal(1.0, 0.03, 3)
        plasma = np.minimum(np.array(PLASMA) + rng.normal(0, 2, 3) + rng.normal(0, 3), 255)
        return cls(
            gain=(float(gain[0]), float(gain[1]), float(gain[2])),
            plasma=(float(plasma[0]), float(plasma[1]), float(plasma[2])),
            blur=float(rng.uniform(0.05, 0.3)),
            noise=float(rng.uniform(1.0, 4.0)),
        )


def absorbance(colour: Colour) -> FloatArray:
    """Return the absorbance, float32 (3,), that makes plasma look like ``colour``."""
    return -np.log(np.array(colour, np.float32) / np.array(PLASMA, np.float32))


def photograph(
    thickness: FloatArray,
    layers: FloatArray,
    opacity: FloatArray,
    corner: tuple[int, int],
    stain: Stain,
    rng: np.random.Generator,
) -> ByteArray:
    """Photograph red cells and, in a window among them, one cell.

    Only the window is worked out channel by channel; elsewhere a pixel's colour follows from the
    thickness of red cells alone and is looked up, which is three times faster.

    Args:
        thickness: red cells, float32 (F, F); 1 is one cell at its thickest.
        layers: absorbance of the cell, float32 (3, W, W).
        opacity: how far the cell hides the red cells behind it, float32 (W, W), 0–1.
        corner: row and column of the window's corner in the frame.
        stain: the slide's stain, focus and noise.
        rng: where the grain comes from.

    Returns:
        The picture, uint8 (F, F, 3), RGB.
    """
    red = absorbance(RED_CELL)
    grain = texture(0.06, rng, len(thickness)) * np.float32(stain.noise)
    levels = np.clip(thickness * LEVELS_PER_CELL + grain + LEVEL_OF_GLASS, 0, 255)
    shades = (np.arange(256, dtype=np.float32) - LEVEL_OF_GLASS) / LEVELS_PER_CELL
    picture: ByteArray = _expose(shades[:, None] * red, stain)[levels.astype(np.uint8)]

    rows = slice(corner[0], corner[0] + opacity.shape[0])
    columns = slice(corner[1], corner[1] + opacity.shape[1])
    behind = thickness[rows, columns] * (1 - opacity)
    scene = _soften(layers + behind * red[:, None, None], stain.blur)
    scene += grain[rows, columns] / LEVELS_PER_CELL * red[:, None, None]
    picture[rows, columns] = _expose(scene.transpose(1, 2, 0), stain)
    return picture


def _expose(layers: FloatArray, stain: Stain) -> ByteArray:
    """Turn absorbance, float32 (…, 3), into grey levels, uint8 of the same shape."""
    light = np.exp(layers * -np.array(stain.gain, np.float32))
    light *= np.array(stain.plasma, np.float32)
    exposed: ByteArray = np.minimum(light, 255).astype(np.uint8)
    return exposed


def _soften(layers: FloatArray, blur: float) -> FloatArray:
    """Blur planes, float32 (3, W, W), by the kernel (blur, 1 - 2 blur, blur) along both axes."""
    share = np.float32(blur)
    rows = layers.copy()
    rows[:, 1:-1] += share * (layers[:, :-2] + layers[:, 2:] - 2 * layers[:, 1:-1])
    both = rows.copy()
    both[:, :, 1:-1] += share * (rows[:, :, :-2] + rows[:, :, 2:] - 2 * rows[:, :, 1:-1])
    return both


@cache
def _tile(scale_um: float) -> FloatArray:
    """Return a random texture with blobs about ``scale_um`` wide: mean 0, deviation 1, periodic.

    Float32 (T + F, T + F) with period T = TEXTURE_PX, so that any frame of F px can be cut from it.
    """
    noise = np.random.default_rng(round(scale_um * 1000)).standard_normal((TEXTURE_PX, TEXTURE_PX))
    frequency = np.fft.fftfreq(TEXTURE_PX, d=1 / PX_PER_UM)  # cycles per µm
    squared = (frequency[:, None] ** 2 + frequency**2) * scale_um**2
    # The difference of two Gaussians passes one band: blobs of one size, and no drift.
    band = np.exp(-2 * squared) - np.exp(-5 * squared)
    tile = np.fft.ifft2(np.fft.fft2(noise) * band).real
    return np.pad(tile / tile.std(), (0, FRAME_PX), mode="wrap").astype(np.float32)


def texture(scale_um: float, rng: np.random.Generator, side_px: int = WINDOW_PX) -> FloatArray:
    """Cut a random texture, float32 (side_px, side_px), mean 0, deviation 1.

    Args:
        scale_um: width of its blobs; every distinct value costs one tile of 3 MB.
        rng: where the cut comes from.
        side_px: side of the cut, at most FRAME_PX.
    """
    top, left, flip = (int(value) for value in rng.integers((TEXTURE_PX, TEXTURE_PX, 4)))
    cut = _tile(scale_um)[top : top + side_px, left : left + side_px]
    return (cut, cut[::-1], cut[:, ::-1], cut.T)[flip]


def disc(x: FloatArray, y: FloatArray, radius: float, stretch: float = 1.0) -> FloatArray:
    """Signed distance to an ellipse around the origin, ``stretch`` times longer along x."""
    distance: FloatArray = np.sqrt(np.square(x / stretch) + np.square(y)) - np.float32(radius)
    return distance


def rod(
    x: FloatArray,
    y: FloatArray,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
) -> FloatArray:
    """Signed distance to a straight rod with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-6)
    along = np.clip(along, 0, 1)
    off_x, off_y = x - start[0] - along * dx, y - start[1] - along * dy
    distance: FloatArray = np.sqrt(np.square(off_x) + np.square(off_y)) - np.float32(radius)
    return distance


def melt(first: FloatArray, second: FloatArray, reach_um: float) -> FloatArray:
    """Join two shapes with a rounded seam. Source: Quilez, polynomial smooth minimum, 2013."""
    overlap = np.maximum(reach_um - np.abs(first - second), 0) / reach_um
    joined: FloatArray = np.minimum(first, second) - np.square(overlap) * np.float32(reach_um / 4)
    return joined


def coverage(distance: FloatArray, edge_um: float = 0.15) -> FloatArray:
    """Return how much of each pixel a shape covers, 0–1, with an edge ``edge_um`` wide."""
    share: FloatArray = np.clip(0.5 - distance / np.float32(edge_um), 0, 1)
    return share
