"""Flips, rotation, zoom and shift, in one resampling; and the field that they take place in.

Knows nothing of colour.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bloodcells.augment.keys import Draw, Floats, Keys, uniform
from bloodcells.augment.settings import Augmentation
from bloodcells.augment.strangers import lie_beside
from bloodcells.imaging import Preprocess

MARGIN: Final = 1.55
"""Side of the field that is decoded for training, in crops: what a turned, shifted and zoomed crop
may uncover around itself. A square turned by 45 degrees has corners 1.41 half sides away."""


def with_margin(preprocess: Preprocess) -> Preprocess:
    """Return the field that is decoded for training: more of the image, at the same scale."""
    crop = min(1.0, preprocess.crop * MARGIN)
    return Preprocess(size=round(preprocess.size * crop / preprocess.crop), crop=crop)


class Move:
    """The movements of each image of a batch, drawn once for all of it."""

    def __init__(
        self, side: int, size: int, settings: Augmentation, keys: Keys, device: torch.device
    ) -> None:
        """Draw movements from fields of ``side`` px to views of ``size`` px."""
        self.side, self.size = side, size
        self.still = settings.zoom == 1 and not (
            settings.flips
            or settings.mirror
            or settings.rotation
            or settings.shift
            or settings.strangers
        )
        chance = settings.flips or settings.mirror
        mirror = np.where(uniform(keys, Draw.MIRROR) < chance, -1.0, 1.0)
        upend = np.where(uniform(keys, Draw.UPEND) < settings.flips, -1.0, 1.0)
        turn = (2 * uniform(keys, Draw.ROTATION) - 1) * math.radians(settings.rotation)
        # grid_sample counts in half sides, of the field in what it reads: 1 is the edge.
        scale = settings.zoom ** (2 * uniform(keys, Draw.ZOOM) - 1) * (size / side)
        shift = (2 * uniform(keys, Draw.SHIFT, 2) - 1) * 2 * settings.shift * scale
        if settings.strangers:
            away, beside = _beside(keys), lie_beside(settings, keys)[:, None]
            scale = np.where(beside, away[:, :1], scale)
            shift = np.where(beside, away[:, 1:], shift)
        # A place (x, y) in the view shows the field's place across * x + down * y + shift.
        across = np.hstack([np.cos(turn), np.sin(turn)]) * scale * mirror
        down = np.hstack([-np.sin(turn), np.cos(turn)]) * scale * upend
        maps = np.stack([across, down, shift], axis=1)[..., None, None].astype(np.float32)
        self.maps = torch.from_numpy(maps).to(device)
        self.along = (torch.arange(size, device=device, dtype=torch.float32) * 2 + 1) / size - 1

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Move ``uint8 (n, 3, side, side)`` into ``float32 (n, 3, size, size)``.

        Bilinear; where nothing is to move, it is the square in the middle as it is.
        """
        if self.still:
            edge = (self.side - self.size) // 2
            return planes[..., edge : edge + self.size, edge : edge + self.size].float()
        across, down, shift = self.maps[part].unbind(1)
        # One plane of x and one of y: the layout that grid_sample reads fastest, and affine_grid
        # does not make (90 us an image against 10).
        places = (down * self.along[:, None] + shift) + across * self.along
        return functional.grid_sample(
            planes.float(),
            places.permute(0, 2, 3, 1),
            mode="bilinear",
            padding_mode="reflection",
            align_corners=False,
        )


def _beside(keys: Keys) -> Floats:
    """Return half the side of a view, and its centre, in half sides of the field: ``(N, 3)``.

    The view lies near a corner or an edge, so that it misses what is in the middle.
    """
    drawn = uniform(keys, Draw.BESIDE, 3)
    half = 0.15 + 0.2 * drawn[:, :1]
    angle = 2 * math.pi * drawn[:, 1:2]
    direction = np.hstack([np.cos(angle), np.sin(angle)])
    # Onto the square's rim, then as far inside as the view is wide.
    direction /= np.abs(direction).max(1, keepdims=True)
    return np.hstack([half, direction * (1 - half * (1 + 0.3 * drawn[:, 2:]))])
