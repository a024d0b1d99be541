"""Gaussian blur, of a width of its own for each image. Knows nothing of colour or place."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bloodcells.augment.keys import Draw, Keys, uniform
from bloodcells.augment.settings import Augmentation

_LEAST_RADIUS: Final = 3
"""Half the width of the kernel in px is this, or twice the widest standard deviation."""

_NARROWEST: Final = 0.2
"""A blur of a standard deviation under this, in px, moves less than a grey level."""


class Blur:
    """The blur of each image of a batch: half of them stay sharp."""

    def __init__(self, settings: Augmentation, keys: Keys, device: torch.device) -> None:
        sigma = (2 * uniform(keys, Draw.BLUR) - 1) * settings.blur
        self.blurred = sigma[:, 0] >= _NARROWEST
        self.radius = max(_LEAST_RADIUS, math.ceil(2 * settings.blur))
        steps = np.arange(-self.radius, self.radius + 1)
        kernels = np.exp(-(steps**2) / (2 * np.maximum(sigma, 0.01) ** 2))
        kernels /= kernels.sum(1, keepdims=True)
        kernels[~self.blurred] = steps == 0
        self.kernels = torch.from_numpy(kernels.astype(np.float32)[..., None, None]).to(device)

    def apply(self, planes: Tensor, part: slice) -> Tensor:
        """Blur ``float32 (n, 3, S, S)``; edges are reflected."""
        if not self.blurred[part].any():
            return planes
        size, radius = planes.shape[-1], self.radius
        # Sums of shifted pictures: conv2d takes four times as long for one kernel an image.
        for axis, edges in ((3, [radius, radius, 0, 0]), (2, [0, 0, radius, radius])):
            wide = functional.pad(planes, edges, mode="reflect")
            planes = torch.zeros_like(planes)
            for step in range(2 * radius + 1):
                planes.addcmul_(wide.narrow(axis, step, size), self.kernels[part, step, None])
        return planes
