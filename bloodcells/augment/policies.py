"""RandAugment and AugMix, as torchvision has them, with parameters of its own for every image.

torchvision draws one set of parameters a call, from torch's global generator: here it is called for
one image at a time, the generator seeded with the image's key and put back afterwards. Runs on the
CPU wherever the pixels lie, so that a GPU's generator is not touched and results are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import AugMix, InterpolationMode, RandAugment

from bloodcells.augment.keys import Draw, Keys, integers, normal
from bloodcells.augment.settings import Augmentation

_BINS: Final = 31
"""torchvision's RandAugment has magnitudes 0 to 30, of which 30 is each operation's maximum, and
ours of 0 to 10 go to the nearest. The published 0.3 of the range is our 3 and its 9, which is also
torchvision's default."""

_alone = threading.Lock()
"""The global generator can serve one caller at a time."""


def apply_policies(pixels: Tensor, settings: Augmentation, keys: Keys) -> Tensor:
    """Apply RandAugment, then AugMix, to ``uint8 (N, S, S, 3)``; returns the same shape.

    What shears, turns and shifts uncover is filled with the mean colour of the picture's rim;
    torchvision leaves a dark line of about a pixel along that seam.
    """
    if not (settings.randaugment or settings.augmix):
        return pixels
    bins = _magnitude_bins(settings, keys)
    seeds = np.hstack([integers(keys, draw, 1) for draw in (Draw.RANDAUGMENT, Draw.AUGMIX)])
    planes = pixels.cpu().permute(0, 3, 1, 2).contiguous()
    changed = torch.empty_like(planes)
    with _borrowed_generator() as generator:
        for row, picture in enumerate(planes):
            fill = _rim_colour(picture)
            generator.manual_seed(int(seeds[row, 0]))
            for magnitude in bins[row]:
                picture = RandAugment(
                    num_ops=1,
                    magnitude=int(magnitude),
                    num_magnitude_bins=_BINS,
                    interpolation=InterpolationMode.BILINEAR,
                    fill=fill,
                )(picture)
            if settings.augmix:
                generator.manual_seed(int(seeds[row, 1]))
                picture = AugMix(severity=settings.augmix, fill=fill)(picture)
            changed[row] = picture
    return changed.permute(0, 2, 3, 1).contiguous().to(pixels.device)


def _magnitude_bins(settings: Augmentation, keys: Keys) -> npt.NDArray[np.int64]:
    """Return ``int64 (N, operations)``, one bin drawn for each operation on each image."""
    spread = settings.magnitude_spread * normal(keys, Draw.MAGNITUDE, settings.randaugment)
    magnitudes = np.clip(settings.magnitude + spread, 0, 10)
    return np.rint(magnitudes / 10 * (_BINS - 1)).astype(np.int64)


def _rim_colour(picture: Tensor) -> list[float]:
    """Return the mean red, green and blue, 0-255, of the outermost pixels of ``(3, S, S)``."""
    rim = torch.cat([picture[:, [0, -1]].flatten(1), picture[:, 1:-1, [0, -1]].flatten(1)], dim=1)
    colour: list[float] = rim.double().mean(1).tolist()
    return colour


@contextmanager
def _borrowed_generator() -> Iterator[torch.Generator]:
    """Lend torch's global CPU generator, and put it back as it was."""
    with _alone, torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the generators of all GPUs too.
        yield torch.default_generator
