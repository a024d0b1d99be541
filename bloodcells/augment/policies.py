"""RandAugment and AugMix."""

from __future__ import annotations

from torch import Tensor

from bloodcells.augment.keys import Keys
from bloodcells.augment.settings import Augmentation


def apply_policies(pixels: Tensor, settings: Augmentation, keys: Keys) -> Tensor:
    """Apply torchvision's policies to ``uint8 (N, S, S, 3)``, one image at a time."""
    return pixels
