"""One changed view of every image of a batch: geometry, colour, light, torchvision's policies.

Knows the order in which changes are made. An image's view depends on its own pixels, the settings
and its key, never on its company.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bloodcells.augment.blur import Blur
from bloodcells.augment.colour import Colour, Stain
from bloodcells.augment.geometry import Move
from bloodcells.augment.keys import Draw, Keys, uniform
from bloodcells.augment.light import Noise, Shade, Sharpen
from bloodcells.augment.policies import apply_policies
from bloodcells.augment.settings import Augmentation
from bloodcells.augment.strangers import estrange


def augment(pixels: Tensor, size: int, settings: Augmentation, keys: Keys) -> Tensor:
    """Draw one changed view of every image.

    Takes no number from torch's generators, and leaves them as they were (RandAugment and AugMix
    borrow the CPU's for the time of the call).

    Args:
        pixels: ``uint8 (N, M, M, 3)``, RGB: the nominal field with a margin around it, at the
            nominal field's scale (the margin is what zoom, shift and rotation may uncover; beyond
            it pictures are reflected at their edges).
        size: side of the nominal field and of the result, in px; at most ``M``.
        settings: how far to go.
        keys: ``uint64 (N,)``, of :func:`bloodcells.augment.image_keys`.

    Returns:
        ``uint8 (N, size, size, 3)``, RGB, contiguous, on the device of ``pixels``.

    Raises:
        ValueError: shapes or types are not as they should be.
    """
    num, side = len(pixels), pixels.shape[1]
    if pixels.dtype != torch.uint8 or pixels.shape != (num, side, side, 3):
        raise ValueError(f"pixels must be uint8 (N, M, M, 3), not {pixels.dtype} {pixels.shape}")
    if not 8 <= size <= side:
        raise ValueError(f"size must be 8 to {side} px, the side of the field, not {size}")
    if keys.dtype != np.uint64 or keys.shape != (num,):
        raise ValueError(f"keys must be uint64 ({num},), not {keys.dtype} {keys.shape}")
    views = torch.empty((num, size, size, 3), dtype=torch.uint8, device=pixels.device)
    mild = are_mild(settings, keys)
    for chosen, changes in ((~mild, settings), (mild, settings.milder())):
        if chosen.any():
            rows = torch.from_numpy(np.flatnonzero(chosen)).to(pixels.device)
            views[rows] = _views(pixels[rows], size, changes, keys[chosen])
    return views


def are_mild(settings: Augmentation, keys: Keys) -> npt.NDArray[np.bool_]:
    """Return which images change mildly, ``bool (N,)``: home is to be seen among the others."""
    return uniform(keys, Draw.MILD)[:, 0] < settings.mild


def _views(pixels: Tensor, size: int, settings: Augmentation, keys: Keys) -> Tensor:
    """Return ``uint8 (N, size, size, 3)``, all changed as far as ``settings`` go."""
    # A whole batch at once suits a GPU. On a CPU one image stays in its cache; and as it has the
    # same shape in any company, libraries choose the same arithmetic for it.
    at_once = 1 if pixels.device.type == "cpu" else len(pixels)
    views = _changed(pixels, size, settings, keys, at_once)
    return estrange(apply_policies(views, settings, keys), settings, keys)


def _changed(pixels: Tensor, size: int, settings: Augmentation, keys: Keys, at_once: int) -> Tensor:
    """Return ``uint8 (N, size, size, 3)``: all but torchvision's policies."""
    device = pixels.device
    changes = (
        Move(pixels.shape[1], size, settings, keys, device),
        Stain(settings, keys, device),
        Colour(settings, keys, device),
        Shade(size, settings, keys, device),
        Blur(settings, keys, device),
        Sharpen(settings, keys, device),
        Noise(settings, keys),
    )
    views = torch.empty((len(pixels), size, size, 3), dtype=torch.uint8, device=device)
    for start in range(0, len(pixels), at_once):
        part = slice(start, start + at_once)
        planes = pixels[part].permute(0, 3, 1, 2)
        for change in changes:
            planes = change.apply(planes, part)
        views[part] = planes.clamp(0, 255).round_().permute(0, 2, 3, 1)
    return views
