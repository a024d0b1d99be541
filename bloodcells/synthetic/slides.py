"""Slides of synthetic cells: a mix of types, one stain for all of them, encoded as a camera would.

Knows nothing of archives and of damage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import simplejpeg

from bloodcells.cells import CLASSES
from bloodcells.synthetic.cells import draw_cell
from bloodcells.synthetic.optics import FRAME_PX, ByteArray, Stain

NORMAL: Final[Mapping[str, float]] = {
    "neutrophil": 60.0,
    "lymphocyte": 29.0,
    "monocyte": 7.0,
    "eosinophil": 3.0,
    "basophil": 1.0,
    "platelet": 8.0,
}
"""A healthy adult. Source: within the reference intervals of Bain, Bates & Laffan, Dacie and Lewis
Practical Haematology, 12th ed. (2017), chapter 2. Like the mixes below it gives the white cells per
100 white cells, and erythroblasts and platelets besides: as many as a cell finder would cut out by
mistake, not as many as there are."""

LEFT_SHIFT: Final[Mapping[str, float]] = {
    "neutrophil": 72.0,
    "immature_granulocyte": 12.0,
    "lymphocyte": 9.0,
    "monocyte": 5.5,
    "eosinophil": 1.0,
    "basophil": 0.5,
    "erythroblast": 2.0,
    "platelet": 8.0,
}
"""A severe bacterial infection: many neutrophils and their precursors, a few erythroblasts.
Source: illustrative, after Bain, Blood Cells, 5th ed. (2015), chapters 3 and 6."""

LYMPHOCYTIC: Final[Mapping[str, float]] = {
    "lymphocyte": 75.0,
    "neutrophil": 19.0,
    "monocyte": 4.0,
    "eosinophil": 1.5,
    "basophil": 0.5,
    "platelet": 8.0,
}
"""A lymphocytosis, as in chronic lymphocytic leukaemia or whooping cough.
Source: illustrative, after Bain, Blood Cells, 5th ed. (2015), chapters 6 and 9."""

EOSINOPHILIC: Final[Mapping[str, float]] = {
    "eosinophil": 35.0,
    "neutrophil": 40.0,
    "lymphocyte": 19.0,
    "monocyte": 5.0,
    "basophil": 1.0,
    "platelet": 8.0,
}
"""An eosinophilia, as in parasitic infection or drug allergy.
Source: illustrative, after Bain, Blood Cells, 5th ed. (2015), chapter 6."""

BALANCED: Final[Mapping[str, float]] = dict.fromkeys(CLASSES, 12.5)
"""As many cells of every type: no patient's blood, but what a model is well trained on."""

DIFFERENTIALS: Final[Mapping[str, Mapping[str, float]]] = {
    "normal": NORMAL,
    "left_shift": LEFT_SHIFT,
    "lymphocytic": LYMPHOCYTIC,
    "eosinophilic": EOSINOPHILIC,
}
"""The four patients that :func:`bloodcells.synthetic.write_smears` draws in turn, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """One encoded image on its way into an archive.

    Attributes:
        name: file name with its extension.
        label: the class it shows, which becomes its folder or label; ``None`` where unknown.
        data: encoded bytes.
    """

    name: str
    label: str | None
    data: bytes


def encode_jpeg(pixels: ByteArray, quality: int = 90) -> bytes:
    """Encode ``uint8 (H, W, 3)`` RGB as a baseline 4:2:0 JPEG of ``quality`` 1–100."""
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    return encoded


def draw_slide(
    differential: Mapping[str, float], num_cells: int, seed: int, *, size_px: int = FRAME_PX
) -> list[ImageFile]:
    """Draw the single-cell images of one slide, all in one stain, in random order.

    Args:
        differential: relative frequency of each cell type; it need not add up to 100.
        num_cells: how many cells to draw; types are drawn at random, so shares vary as in a count.
        seed: the same arguments give the same bytes.
        size_px: side of every picture.

    Raises:
        ValueError: a type is unknown, a frequency is negative, or all are zero.
    """
    weights = _weights(differential)
    rng = np.random.default_rng(seed)
    stain = Stain.random(rng)
    types = rng.choice(CLASSES, size=num_cells, p=weights)
    seeds = rng.integers(2**62, size=num_cells)
    return [
        ImageFile(
            name=f"cell-{number:05d}.jpg",
            label=str(cell_type),
            data=encode_jpeg(draw_cell(str(cell_type), int(own), size_px=size_px, stain=stain)),
        )
        for number, (cell_type, own) in enumerate(zip(types, seeds, strict=True), start=1)
    ]


def _weights(differential: Mapping[str, float]) -> list[float]:
    """Return the probability of each class, in the order of ``CLASSES``."""
    unknown = set(differential) - set(CLASSES)
    if unknown:
        raise ValueError(f"differential: {sorted(unknown)} are none of {', '.join(CLASSES)}")
    shares = [differential.get(name, 0.0) for name in CLASSES]
    total = sum(shares)
    if min(shares) < 0 or not (math.isfinite(total) and total > 0):
        raise ValueError(f"differential: frequencies must be ≥ 0, and one > 0: {differential}")
    return [share / total for share in shares]
