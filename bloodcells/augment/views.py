"""One changed view of every image of a batch: geometry, colour, blur, then torchvision's policies.

Knows the order in which changes are made. An image's view depends on its own pixels, the settings
and its key, never on its company.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bloodcells.augment.blur import blur
from bloodcells.augment.colour import jitter, restain
from bloodcells.augment.geometry import move
from bloodcells.augment.policies import apply_policies
from bloodcells.augment.settings import Augmentation


def augment(
    pixels: Tensor, size: int, settings: Augmentation, keys: npt.NDArray[np.uint64]
) -> Tensor:
    """Draw one changed view of every image.

    Args:
        pixels: ``uint8 (N, M, M, 3)``, RGB: the nominal field with a margin around it, at the
            nominal field's scale (the margin is what zoom, shift and rotation may uncover; beyond
            it pictures are reflected at their edges).
        size: side of the nominal field and of the result, in px; at most ``M``.
        settings: how far to go.
        keys: ``uint64 (N,)``, of :func:`image_keys`.

    Returns:
        ``uint8 (N, size, size, 3)``, RGB, on the device of ``pixels``, contiguous.
    """
    views = torch.empty((len(pixels), size, size, 3), dtype=torch.uint8, device=pixels.device)
    # A whole batch at once suits a GPU; on a CPU one image stays in its cache, and has the same
    # shapes, hence the same arithmetic, whatever batch it came in.
    step = 1 if pixels.device.type == "cpu" else max(1, len(pixels))
    for start in range(0, len(pixels), step):
        part = slice(start, start + step)
        planes = pixels[part].permute(0, 3, 1, 2)
        planes = move(planes, size, settings, keys[part])
        planes = restain(planes, settings, keys[part])
        planes = jitter(planes, settings, keys[part])
        planes = blur(planes, settings, keys[part])
        views[part] = planes.clamp(0, 255).round_().permute(0, 2, 3, 1)
    return apply_policies(views, settings, keys)
