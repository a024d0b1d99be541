"""Draws single blood cells of the eight types among red cells, as a stained smear shows them.

Sizes, nuclei and granules follow the description of stained normal and abnormal cells in
Bain, Blood Cells: A Practical Guide, 5th ed. (2015), chapters 2–3; colours are medians measured on
Acevedo et al. 2020, Data in Brief 30:105474. Knows nothing of slides, files or archives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np
from PIL import Image

from bloodcells.cells import CLASSES
from bloodcells.synthetic.optics import (
    FRAME_PX,
    PX_PER_UM,
    WINDOW_PX,
    ByteArray,
    Colour,
    FloatArray,
    Stain,
    absorbance,
    coverage,
    disc,
    melt,
    photograph,
    rod,
    texture,
)
from bloodcells.synthetic.red_cells import scatter_red_cells

CHROMATIN: Final[Colour] = (84, 36, 134)
"""RGB of an ordinary nucleus."""


def draw_cell(
    cell_type: str, seed: int, *, size_px: int = FRAME_PX, stain: Stain | None = None
) -> ByteArray:
    """Draw one cell in the middle of a frame, with its neighbours.

    Args:
        cell_type: one of ``bloodcells.cells.CLASSES``.
        seed: the same type, seed, size and stain give the same pixels.
        size_px: side of the picture; 360 px show 36 µm.
        stain: the slide's stain; without it every cell has its own.

    Returns:
        The picture, uint8 (size_px, size_px, 3), RGB.

    Raises:
        ValueError: ``cell_type`` is no class, or ``size_px`` or ``seed`` is out of range.
    """
    if cell_type not in _PAINTERS:
        raise ValueError(f"cell_type {cell_type!r} is none of {', '.join(CLASSES)}")
    if size_px < 1 or seed < 0:
        raise ValueError(f"size_px must be positive and seed not negative: {size_px}, {seed}")
    rng = np.random.default_rng([seed, CLASSES.index(cell_type)])
    stain = stain or Stain.random(rng)
    cell = Cell(rng)
    _PAINTERS[cell_type](cell, rng)
    red_cells = scatter_red_cells(cell.radius_um, rng)
    middle = (FRAME_PX - WINDOW_PX) // 2
    corner = middle + int(rng.integers(-8, 9)), middle + int(rng.integers(-8, 9))
    picture = photograph(red_cells, cell.layers, cell.opacity, corner, stain, rng)
    if size_px == FRAME_PX:
        return picture
    resized = Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.LANCZOS)
    return np.asarray(resized).copy()


class Cell:
    """One cell in the making, in a window of 20 µm around its centre.

    Attributes:
        x, y: coordinates of every pixel in µm, turned by a random angle, float32 (W, W).
        layers: absorbance so far, float32 (3, W, W).
        opacity: how far the cell hides what lies behind it, float32 (W, W), 0–1.
        radius_um: how far neighbours keep away.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        angle = rng.uniform(0, 2 * math.pi)
        across, down = _grid()
        sine, cosine = np.float32(math.sin(angle)), np.float32(math.cos(angle))
        self.x = across * cosine + down * sine
        self.y = down * cosine - across * sine
        self.layers = np.zeros((3, WINDOW_PX, WINDOW_PX), np.float32)
        self.opacity = np.zeros((WINDOW_PX, WINDOW_PX), np.float32)
        self.radius_um = 0.0

    def body(
        self,
        radius_um: float,
        colour: Colour,
        *,
        stretch: float = 1.05,
        ragged_um: float = 0.15,
        mottle: float = 0.1,
        rim: float = 0.15,
    ) -> FloatArray:
        """Lay down cytoplasm and return its signed distance in µm, float32 (W, W).

        ``ragged_um`` is how uneven its outline is, ``mottle`` how uneven its colour, ``rim`` how
        much darker its border.
        """
        shape = disc(self.x, self.y, radius_um, stretch)
        shape += ragged_um * texture(3.0, self._rng)
        self.radius_um = radius_um * stretch
        self.opacity = coverage(shape)
        strength = 1 + mottle * _cloud(self._rng) + rim * np.exp(-np.square(shape / 0.5))
        self.layers = (self.opacity * strength) * absorbance(colour)[:, None, None]
        return shape

    def nucleus(
        self, shape: FloatArray, *, clumps: float = 0.2, colour: Colour = CHROMATIN
    ) -> FloatArray:
        """Lay chromatin over the cytoplasm inside ``shape``; ``clumps`` is its light and shade."""
        shape = shape + 0.08 * texture(1.5, self._rng)
        mask = coverage(shape, 0.25)
        strength = 1 + clumps * _cloud(self._rng) + 0.25 * np.exp(-np.square(shape / 0.4))
        self.cover(mask, strength, colour)
        return mask

    def granules(
        self, region: FloatArray, colour: Colour, *, size_um: float, amount: float
    ) -> None:
        """Strew granules of one size over ``region`` (0–1); ``amount`` 0 is none, 1 is packed."""
        dots = np.clip((texture(size_um, self._rng) - (2.4 - 2.4 * amount)) * 1.6, 0, 1)
        self.cover(dots * region, 1.0, colour)

    def cover(self, mask: FloatArray, strength: FloatArray | float, colour: Colour) -> None:
        """Replace what is drawn, as far as ``mask`` (0–1) says, by ``strength`` × ``colour``."""
        self.layers *= 1 - mask
        self.layers += (mask * strength) * absorbance(colour)[:, None, None]


def _neutrophil(cell: Cell, rng: np.random.Generator) -> None:
    body = cell.body(rng.uniform(6.0, 7.0), (226, 190, 188), mottle=0.14)
    cell.granules(coverage(body), (192, 118, 164), size_um=0.22, amount=0.5)
    # Arneth count of normal blood: mostly three lobes. Source: Bain 2015, chapter 2.
    lobes = int(rng.choice([2, 3, 4, 5], p=[0.22, 0.42, 0.28, 0.08]))
    cell.nucleus(_lobes(cell, lobes, 2.55 - 0.2 * lobes, 2.9, 0.5 + 0.85 * lobes, rng))


def _eosinophil(cell: Cell, rng: np.random.Generator) -> None:
    body = cell.body(rng.uniform(6.3, 7.2), (208, 144, 138))
    cell.granules(coverage(body + 0.2), (184, 84, 80), size_um=0.42, amount=0.8)
    lobes = 2 if rng.random() < 0.85 else 3
    cell.nucleus(_lobes(cell, lobes, 2.6 - 0.3 * (lobes - 2), 3.1, 0.9 + 0.6 * lobes, rng))


def _basophil(cell: Cell, rng: np.random.Generator) -> None:
    body = cell.body(rng.uniform(5.2, 6.3), (176, 122, 168), ragged_um=0.2)
    cell.nucleus(_lobes(cell, 3, 2.3, 2.2, 3.6, rng), clumps=0.15, colour=(104, 58, 146))
    cell.granules(coverage(body - 0.15), (58, 16, 100), size_um=0.55, amount=0.85)


def _lymphocyte(cell: Cell, rng: np.random.Generator) -> None:
    radius = rng.uniform(4.6, 5.6)
    cell.body(radius, (146, 138, 188), ragged_um=0.2, rim=0.3)
    off = rng.uniform(0.2, 0.6)
    shape = disc(cell.x - off, cell.y, radius - off - rng.uniform(0.0, 0.25), 1.05)
    cell.nucleus(shape, clumps=0.22, colour=(80, 34, 132))


def _monocyte(cell: Cell, rng: np.random.Generator) -> None:
    radius = rng.uniform(7.2, 8.4)
    body = cell.body(radius, (170, 154, 186), ragged_um=0.4, mottle=0.16)
    cell.granules(coverage(body), (150, 100, 160), size_um=0.22, amount=0.25)
    # A kidney: a thick bow around a dent at the origin's right.
    bow = _bow(cell, 3.3, rng.uniform(3.2, 4.4), radius * 0.32, rng)
    cell.nucleus(bow, clumps=0.25, colour=(112, 60, 150))
    for _ in range(int(rng.integers(3, 9))):
        turn, out = rng.uniform(0, 2 * math.pi), radius * rng.uniform(0.35, 0.85)
        bubble = disc(
            cell.x - np.float32(out * math.cos(turn)),
            cell.y - np.float32(out * math.sin(turn)),
            rng.uniform(0.3, 0.7),
        )
        cell.cover(coverage(bubble, 0.3), 0.25, (170, 154, 186))


def _immature_granulocyte(cell: Cell, rng: np.random.Generator) -> None:
    radius = rng.uniform(7.0, 8.2)
    body = cell.body(radius, (184, 162, 192), mottle=0.14)
    off = radius * rng.uniform(0.18, 0.28)
    shape = disc(cell.x - off, cell.y, radius * rng.uniform(0.6, 0.7), 0.85)
    cell.nucleus(shape, clumps=0.28, colour=(98, 46, 142))
    amount = rng.uniform(0.45, 0.65)
    cell.granules(coverage(body + 0.3), (112, 24, 118), size_um=0.36, amount=amount)


def _erythroblast(cell: Cell, rng: np.random.Generator) -> None:
    radius = rng.uniform(4.3, 5.2)
    cell.body(radius, (164, 132, 164), mottle=0.06, rim=0.2)
    off = rng.uniform(0.0, 0.7)
    shape = disc(cell.x - off, cell.y, radius * rng.uniform(0.5, 0.6), 1.03)
    cell.nucleus(shape, clumps=0.04, colour=(58, 22, 112))


def _platelet(cell: Cell, rng: np.random.Generator) -> None:
    body = cell.body(rng.uniform(1.5, 2.6), (170, 128, 180), stretch=1.15, ragged_um=0.3)
    cell.granules(coverage(body + 0.2), (124, 56, 148), size_um=0.3, amount=0.85)


_PAINTERS: Final[dict[str, Callable[[Cell, np.random.Generator], None]]] = {
    "basophil": _basophil,
    "eosinophil": _eosinophil,
    "erythroblast": _erythroblast,
    "immature_granulocyte": _immature_granulocyte,
    "lymphocyte": _lymphocyte,
    "monocyte": _monocyte,
    "neutrophil": _neutrophil,
    "platelet": _platelet,
}


def _lobes(
    cell: Cell,
    count: int,
    radius_um: float,
    orbit_um: float,
    sweep: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Return a nucleus of lobes along an arc of ``sweep`` rad, joined by thin threads."""
    centres = []
    for step in np.linspace(-sweep / 2, sweep / 2, count):
        turn, out = step + rng.normal(0, 0.12), orbit_um * rng.uniform(0.85, 1.15)
        centres.append((out * math.cos(turn), out * math.sin(turn)))
    shape = _chain(cell, centres, 0.3)
    for cx, cy in centres:
        lobe = disc(
            cell.x - np.float32(cx), cell.y - np.float32(cy), radius_um * rng.uniform(0.88, 1.12)
        )
        shape = melt(shape, lobe, 0.5)
    return shape


def _bow(
    cell: Cell, orbit_um: float, sweep: float, radius_um: float, rng: np.random.Generator
) -> FloatArray:
    """Return a bent sausage: an arc of ``sweep`` rad with half-width ``radius_um``."""
    turns = np.linspace(-sweep / 2, sweep / 2, 4) + rng.normal(0, 0.08, 4)
    return _chain(
        cell, [(orbit_um * math.cos(t) - 0.8, orbit_um * math.sin(t)) for t in turns], radius_um
    )


def _chain(cell: Cell, points: Sequence[tuple[float, float]], radius_um: float) -> FloatArray:
    """Return rods from point to point, melted into one shape."""
    shape = rod(cell.x, cell.y, points[0], points[1], radius_um)
    for start, end in pairwise(points[1:]):
        shape = melt(shape, rod(cell.x, cell.y, start, end, radius_um), 0.4)
    return shape


def _cloud(rng: np.random.Generator) -> FloatArray:
    """Return light and shade of several sizes, float32 (W, W), mean 0, deviation about 1."""
    return 0.8 * texture(0.5, rng) + 0.6 * texture(0.22, rng)


@cache
def _grid() -> tuple[FloatArray, FloatArray]:
    """Return x (1, W) and y (W, 1) of the cell's window in µm, 0 in its middle."""
    axis = (np.arange(WINDOW_PX, dtype=np.float32) - (WINDOW_PX - 1) / 2) / PX_PER_UM
    return axis[None, :], axis[:, None]
