"""Stain, lamp and colour: what changes the values of pixels where they are.

All of them are one 3 x 3 matrix and an offset an image, of optical densities or of intensities.
Knows nothing of geometry.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bloodcells.augment.keys import Draw, Floats, Keys, normal, uniform
from bloodcells.augment.settings import Augmentation

_LUMA: Final = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in a grey. Source: ITU-R BT.601; torchvision's greys use
0.2989, 0.587 and 0.114."""

_TO_YIQ: Final = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""RGB to luma and two axes of chroma, in which a change of hue is a rotation. Source: FCC 1953
(NTSC), as in Python's colorsys before rounding."""

_FROM_YIQ: Final = np.linalg.inv(_TO_YIQ)

_HUE_SHARE: Final = 0.1
"""How much of the colour circle hues turn by for a ``colour`` of 1."""


class Stain:
    """Mixed optical densities and another lamp, drawn for each image of a batch."""

    def __init__(self, settings: Augmentation, keys: Keys, device: torch.device) -> None:
        self.idle = not (settings.stain or settings.lamp or settings.density)
        darker = np.exp(settings.density * normal(keys, Draw.DENSITY))[..., None]
        mix = darker * np.eye(3) + settings.stain * normal(keys, Draw.STAIN, 9).reshape(-1, 3, 3)
        lamp = settings.lamp * normal(keys, Draw.LAMP, 3)[..., None]
        # With L = log(pixel + 1), the density is log 256 - L, and what comes out of it is
        # 256 exp(-(mix density + lamp)) - 1 = exp(mix L + offset) - 1.
        offset = math.log(256) * (1 - mix.sum(2, keepdims=True)) - lamp
        self.mix, self.offset = _tensor(mix, device), _tensor(offset, device)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Change ``float32 (n, 3, S, S)``, 0-255; results may lie outside of that."""
        if self.idle:
            return planes
        logs = (planes + 1).log_().flatten(2)
        logs = torch.baddbmm(self.offset[part], self.mix[part], logs)
        return logs.exp_().sub_(1).view(planes.shape)


class Colour:
    """Brightness, contrast, saturation and hue, drawn for each image of a batch.

    As torchvision's ``ColorJitter`` has them, in this order; its functions take one factor a call,
    and hues here turn at constant luma (in YIQ, not HSV), which makes all four one matrix.
    """

    def __init__(self, settings: Augmentation, keys: Keys, device: torch.device) -> None:
        self.idle = not settings.colour
        draws = 2 * uniform(keys, Draw.COLOUR, 4)[..., None, None] - 1  # (N, 4, 1, 1)
        brightness, contrast, saturation = (1 + settings.colour * draws[:, i] for i in range(3))
        hue = _hue(settings.colour * _HUE_SHARE * draws[:, 3, 0, 0])
        grey = np.broadcast_to(_LUMA, (3, 3))
        matrix = _FROM_YIQ @ hue @ _TO_YIQ @ (saturation * np.eye(3) + (1 - saturation) * grey)
        self.matrix = _tensor(brightness * contrast * matrix, device)
        # Contrast is about the mean grey of the picture, which neither saturation nor hue moves.
        self.about = _tensor((1 - contrast) * brightness * _LUMA, device)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Change ``float32 (n, 3, S, S)``, 0-255; results may lie outside of that."""
        if self.idle:
            return planes
        flat = planes.clamp(0, 255).flatten(2)
        # In float64, so that the number of threads that add up does not show.
        mean = flat.mean(2, keepdim=True, dtype=torch.float64).float()
        offset = self.about[part] @ mean
        return torch.baddbmm(offset, self.matrix[part], flat).view(planes.shape)


def _hue(turns: Floats) -> Floats:
    """Return ``float64 (N, 3, 3)``, rotations of chroma by ``float64 (N,)`` turns."""
    angle = 2 * math.pi * turns
    rotation = np.tile(np.eye(3), (len(angle), 1, 1))
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 2, 1] = np.sin(angle)
    rotation[:, 1, 2] = -rotation[:, 2, 1]
    return rotation


def _tensor(values: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)
