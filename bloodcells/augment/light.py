"""Shade, sharpening and noise: what a microscope's light and a camera add to a picture.

Knows nothing of dyes or of geometry.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bloodcells.augment.keys import Draw, Keys, integers, uniform
from bloodcells.augment.settings import Augmentation

_SHADED: Final = 0.5
_SHARPENED: Final = 0.25
_NOISY: Final = 0.4
"""The share of images that get each; the others stay as they are."""

_HALO_PX: Final = 3
"""Half the width of the square whose mean sharpening takes a picture's difference to."""


class Shade:
    """Light that falls off with the square of the distance from its centre, anywhere in view."""

    def __init__(self, size: int, settings: Augmentation, keys: Keys, device: torch.device) -> None:
        drawn = uniform(keys, Draw.SHADE, 4)
        strength = settings.shade * drawn[:, 0] * (drawn[:, 1] < _SHADED)
        along = np.linspace(-1, 1, size)
        across = (along[None] - (2 * drawn[:, 2:3] - 1)) ** 2
        down = (along[None] - (2 * drawn[:, 3:] - 1)) ** 2
        far = np.minimum(down[:, :, None] + across[:, None], 2)
        light = np.maximum(1 - strength[:, None, None] * far, 0.2)[:, None].astype(np.float32)
        self.shaded = strength > 0
        self.light = torch.from_numpy(light).to(device)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Change ``float32 (n, 3, S, S)``."""
        return planes * self.light[part] if self.shaded[part].any() else planes


class Sharpen:
    """What a camera's sharpening, or a phase ring, makes of edges."""

    def __init__(self, settings: Augmentation, keys: Keys, device: torch.device) -> None:
        drawn = uniform(keys, Draw.SHARPEN, 2)
        amount = settings.sharpen * drawn[:, 0] * (drawn[:, 1] < _SHARPENED)
        self.sharpened = amount > 0
        self.amount = torch.from_numpy(amount.astype(np.float32)[:, None, None, None]).to(device)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Change ``float32 (n, 3, S, S)``; results may lie outside of 0 to 255."""
        if not self.sharpened[part].any():
            return planes
        wide = functional.pad(planes, [_HALO_PX] * 4, mode="reflect")
        around = functional.avg_pool2d(wide, 2 * _HALO_PX + 1, stride=1)
        return torch.addcmul(planes, self.amount[part], planes - around)


class Noise:
    """Independent noise of every pixel and channel."""

    def __init__(self, settings: Augmentation, keys: Keys) -> None:
        drawn = uniform(keys, Draw.NOISE, 2)
        self.deviation = settings.noise * drawn[:, 0] * (drawn[:, 1] < _NOISY)
        self.seeds = integers(keys, Draw.NOISE_SEED, 1)[:, 0] >> np.uint64(1)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Change ``float32 (n, 3, S, S)``; results may lie outside of 0 to 255."""
        if not self.deviation[part].any():
            return planes
        noisy = planes.clone()
        generator = torch.Generator()
        for row, number in enumerate(range(*part.indices(len(self.seeds)))):
            if self.deviation[number]:
                generator.manual_seed(int(self.seeds[number]))
                noise = torch.randn(planes.shape[1:], generator=generator)
                noisy[row] += float(self.deviation[number]) * noise.to(planes.device)
        return noisy
