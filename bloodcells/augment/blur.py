"""Gaussian blur, of a width of its own for each image."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bloodcells.augment.keys import Draw, Keys, uniform
from bloodcells.augment.settings import Augmentation

_RADIUS: Final = 3
"""Half the width of the kernel in px: twice the widest sigma that is drawn."""


def blur(planes: Tensor, settings: Augmentation, keys: Keys) -> Tensor:
    """Blur about half of ``float32 (N, 3, S, S)``."""
    sigma = (2 * uniform(keys, Draw.BLUR)[:, 0] - 1) * settings.blur
    chosen = np.flatnonzero(sigma > 0.05)
    if not len(chosen):
        return planes
    planes = planes.contiguous()
    steps = np.arange(-_RADIUS, _RADIUS + 1)
    kernels = np.exp(-(steps**2) / (2 * sigma[chosen, None] ** 2))
    kernels /= kernels.sum(1, keepdims=True)
    kernel = torch.from_numpy(kernels.astype(np.float32)).to(planes.device)
    kernel = kernel.repeat_interleave(planes.shape[1], 0)
    part = planes[torch.from_numpy(chosen).to(planes.device)]
    flat = part.reshape(1, -1, *planes.shape[2:])
    groups = flat.shape[1]
    flat = functional.pad(flat, [_RADIUS] * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel[:, None, :, None], groups=groups)
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=groups)
    planes[torch.from_numpy(chosen).to(planes.device)] = flat.view_as(part)
    return planes
