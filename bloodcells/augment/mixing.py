"""CutMix and MixUp: images of a batch that become one, with targets to match.

torchvision's transforms draw one share and one place a call, for the whole batch. These draw them
for each image, and do with them what torchvision does. Knows nothing of single images' changes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor

from bloodcells.augment.keys import Draw, Floats, Keys, integers, uniform
from bloodcells.augment.settings import Augmentation


def mix(pixels: Tensor, targets: Tensor, settings: Augmentation, key: int) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with the one before it (the first with the last).

    Which images meet follows from the order of the batch; how they mix follows from ``key`` and
    their place in it.

    Args:
        pixels: ``uint8 (N, S, S, 3)``, RGB.
        targets: ``float32 (N, C)``, rows that add up to 1.
        settings: ``cutmix`` and ``mixup`` count; with neither, the batch comes back as it is.
        key: of this batch, 0 to ``2 ** 64 - 1``.

    Returns:
        Pixels and targets of the same shapes and types. The target of an image has the share of
        its pixels that are still its own, and the rest from its partner.
    """
    if not (settings.cutmix or settings.mixup):
        return pixels, targets
    keys = integers(np.array([key], np.uint64), 0, len(pixels))[0]
    cuts = uniform(keys, Draw.MIX_KIND)[:, 0] < _chance_of_cut(settings)
    shares = _shares(np.where(cuts, settings.cutmix, settings.mixup), keys)
    boxes, areas = _boxes(shares, pixels.shape[1], keys)
    kept = _tensor(np.where(cuts, 1 - areas, shares), pixels).view(-1, 1)
    # In float, a kept share of 0.7 leaves 0.7 of the grey levels, and rounding is to the nearest.
    own, other = pixels.float(), pixels.roll(1, 0).float()
    blended = torch.lerp(other, own, kept.view(-1, 1, 1, 1)).round_().to(torch.uint8)
    inside = torch.from_numpy(boxes).to(pixels.device)[..., None]
    pasted = torch.where(inside, pixels.roll(1, 0), pixels)
    is_cut = torch.from_numpy(cuts).to(pixels.device).view(-1, 1, 1, 1)
    mixed = torch.where(is_cut, pasted, blended)
    return mixed, torch.lerp(targets.roll(1, 0), targets, kept.to(targets.dtype))


def _chance_of_cut(settings: Augmentation) -> float:
    if settings.cutmix and settings.mixup:
        return 0.5
    return 1.0 if settings.cutmix else 0.0


def _shares(alphas: Floats, keys: Keys) -> Floats:
    """Return ``float64 (N,)``, 0 to 1: the share of itself that each image keeps, Beta(a, a)."""
    shares: Floats = special.betaincinv(alphas, alphas, uniform(keys, Draw.MIX_SHARE)[:, 0])
    return shares


def _boxes(shares: Floats, side: int, keys: Keys) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Return where CutMix pastes, ``bool (N, side, side)``, and the share of the area that it is.

    As torchvision's: a square of ``1 - share`` of the area around any pixel, cut at the edges.
    """
    half = (0.5 * np.sqrt(1 - shares) * side).astype(np.int64)[:, None]
    centre = (uniform(keys, Draw.MIX_PLACE, 2) * side).astype(np.int64)
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half, side)
    along = np.arange(side)
    within = (low[..., None] <= along) & (along < high[..., None])
    return within[:, 0, :, None] & within[:, 1, None, :], (high - low).prod(1) / side**2


def _tensor(values: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device)
