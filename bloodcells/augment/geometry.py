"""Flips, rotation, zoom and shift, in one resampling. Knows nothing of colour."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bloodcells.augment.keys import Draw, Keys, uniform
from bloodcells.augment.settings import Augmentation


def move(planes: Tensor, size: int, settings: Augmentation, keys: Keys) -> Tensor:
    """Flip, turn, zoom and shift ``uint8 (N, 3, M, M)`` into ``float32 (N, 3, size, size)``.

    Bilinear; where nothing is to move, the square in the middle as it is.
    """
    side = planes.shape[-1]
    if not (settings.flips or settings.mirror or settings.rotation or settings.shift) and (
        settings.zoom == 1
    ):
        edge = (side - size) // 2
        return planes[..., edge : edge + size, edge : edge + size].float()
    rows = torch.from_numpy(_maps(size / side, settings, keys)).to(planes.device)
    grid = functional.affine_grid(rows, [len(planes), 3, size, size], align_corners=False)
    return functional.grid_sample(
        planes.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _maps(scale: float, settings: Augmentation, keys: Keys) -> np.ndarray:
    """Return ``float32 (N, 2, 3)``: from places in the view to places in the field.

    grid_sample counts in half sides: 1 is the edge, of the view and of the field.
    """
    chance = settings.flips or settings.mirror
    mirror = np.where(uniform(keys, Draw.MIRROR)[:, 0] < chance, -1.0, 1.0)
    upend = np.where(uniform(keys, Draw.UPEND)[:, 0] < settings.flips, -1.0, 1.0)
    turn = (2 * uniform(keys, Draw.ROTATION)[:, 0] - 1) * math.radians(settings.rotation)
    zoom = settings.zoom ** (2 * uniform(keys, Draw.ZOOM)[:, 0] - 1) * scale
    shift = (2 * uniform(keys, Draw.SHIFT, 2) - 1) * 2 * settings.shift
    cos, sin = np.cos(turn) * zoom, np.sin(turn) * zoom
    rows = [cos * mirror, -sin * upend, shift[:, 0] * zoom]
    rows += [sin * mirror, cos * upend, shift[:, 1] * zoom]
    return np.stack(rows, axis=1).reshape(-1, 2, 3).astype(np.float32)
