"""Draws the red cells of a smear as they lie around one cell. Knows nothing of other types."""

from __future__ import annotations

import math

import numpy as np

from bloodcells.synthetic.optics import FRAME_PX, PX_PER_UM, FloatArray


def scatter_red_cells(clear_um: float, rng: np.random.Generator) -> FloatArray:
    """Return the thickness of red cells, float32 (F, F), outside ``clear_um`` round the middle."""
    thickness = np.zeros((FRAME_PX, FRAME_PX), np.float32)
    pallor = rng.uniform(0.5, 1.0)
    half = FRAME_PX / PX_PER_UM / 2
    placed: list[tuple[float, float, float]] = []
    for x, y, radius, stretch in zip(
        *rng.uniform(-half - 3, half + 3, (2, 48)).tolist(),
        rng.normal(3.7, 0.22, 48).tolist(),
        rng.uniform(0.9, 1.1, 48).tolist(),
        strict=True,
    ):
        if math.hypot(x, y) < clear_um + radius:
            continue
        if any(math.hypot(x - u, y - v) < 0.85 * (radius + r) for u, v, r in placed):
            continue
        placed.append((x, y, radius))
        _add_red_cell(thickness, (x + half, y + half), radius, stretch, pallor)
    return thickness


def _add_red_cell(
    thickness: FloatArray,
    centre_um: tuple[float, float],
    radius_um: float,
    stretch: float,
    pallor: float,
) -> None:
    """Add one biconcave disc, 1 at its thickest, to ``thickness``, float32 (F, F).

    Source: Evans & Fung 1972, Microvascular Research 4:335 (profile of the red cell at rest);
    ``pallor`` 1 is that profile, less is the shallower dimple of a dried cell.
    """
    reach = radius_um * 1.15
    left, top = (max(math.floor((c - reach) * PX_PER_UM), 0) for c in centre_um)
    right, bottom = (min(math.ceil((c + reach) * PX_PER_UM), FRAME_PX) for c in centre_um)
    if left >= right or top >= bottom:
        return
    x = np.arange(left, right, dtype=np.float32) / PX_PER_UM - centre_um[0]
    y = np.arange(top, bottom, dtype=np.float32)[:, None] / PX_PER_UM - centre_um[1]
    squared = np.square(x / np.float32(radius_um * stretch)) + np.square(
        y * np.float32(stretch / radius_um)
    )
    inside = np.clip(1 - squared, 0, 1)
    dimple = 1 - pallor * np.square(np.clip(1 - squared * 1.25, 0, 1))
    thickness[top:bottom, left:right] += dimple * np.minimum(1, inside * 5)
