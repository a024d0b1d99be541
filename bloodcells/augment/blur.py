"""Gaussian blur, of a width of its own for each image. Knows nothing of colour or place."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bloodcells.augment.keys import Draw, Keys, uniform
from bloodcells.augment.settings import BLUR_LIMIT, Augmentation

_RADIUS: Final = round(2 * BLUR_LIMIT)
"""Half the width of the kernel in px: twice the widest standard deviation that is drawn."""

_NARROWEST: Final = 0.2
"""A blur of a standard deviation under this, in px, moves less than a grey level."""


class Blur:
    """The blur of each image of a batch: half of them stay sharp."""

    def __init__(self, settings: Augmentation, keys: Keys, device: torch.device) -> None:
        sigma = (2 * uniform(keys, Draw.BLUR) - 1) * settings.blur
        self.blurred = sigma[:, 0] >= _NARROWEST
        steps = np.arange(-_RADIUS, _RADIUS + 1)
        kernels = np.exp(-(steps**2) / (2 * np.maximum(sigma, 0.01) ** 2))
        kernels /= kernels.sum(1, keepdims=True)
        kernels[~self.blurred] = steps == 0
        self.kernels = torch.from_numpy(kernels.astype(np.float32)[..., None, None]).to(device)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Blur ``float32 (n, 3, S, S)``; edges are reflected."""
        if not self.blurred[part].any():
            return planes
        size = planes.shape[-1]
        # Sums of shifted pictures: conv2d takes four times as long for one kernel an image.
        for axis, edges in ((3, [_RADIUS, _RADIUS, 0, 0]), (2, [0, 0, _RADIUS, _RADIUS])):
            wide = functional.pad(planes, edges, mode="reflect")
            planes = torch.zeros_like(planes)
            for step in range(2 * _RADIUS + 1):
                planes.addcmul_(wide.narrow(axis, step, size), self.kernels[part, step, None])
        return planes
