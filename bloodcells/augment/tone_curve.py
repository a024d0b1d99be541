"""Views given the tone that scoring gives them, and then a tone curve of their own.

A thick stain, stray light and a camera's curve bring what is pale and what is dark closer together
or further apart: optical densities are raised to a power. Unlike stain and lamp it is drawn for
pictures whose background is even already, as the power of a density depends on where zero is. Knows
nothing of geometry.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from bloodcells.augment.keys import Draw, Keys, normal
from bloodcells.augment.settings import Augmentation
from bloodcells.augment.views import are_mild
from bloodcells.imaging import Tone

_PIVOT: Final = 0.8
"""The optical density (natural logarithm) that stays what it is, about that of a nucleus' edge."""

_MOST: Final = 3.0
"""The greatest power, and one by the least."""

_LEVELS: Final = np.arange(256, dtype=np.float64)


def toned(pixels: Tensor, tone: Tone | None, settings: Augmentation, keys: Keys) -> Tensor:
    """Even out the tone of each view, as scoring does, and bend what is even then.

    Args:
        pixels: views after other lamps and stains were drawn, ``uint8 (N, S, S, 3)``, on the CPU.
        tone: of the model's pictures; ``None`` leaves backgrounds as they are.
        settings: ``power`` counts, and ``mild``.
        keys: ``uint64 (N,)``, of the images.

    Returns:
        The same shape and type.
    """
    if tone is None:
        return bend(pixels, 255.0, settings, keys)
    even = np.stack([tone.apply(view) for view in pixels.numpy()])
    return bend(torch.from_numpy(even), tone.white, settings, keys)


def bend(pixels: Tensor, white: float, settings: Augmentation, keys: Keys) -> Tensor:
    """Raise the optical densities of each image to a power of its own.

    A density ``d`` becomes ``0.8 * (d / 0.8) ** power``. What is as bright as ``white``, or
    brighter, stays.

    Args:
        pixels: views, ``uint8 (N, S, S, 3)``.
        white: the grey level of an empty field.
        settings: ``power`` counts, and ``mild``.
        keys: ``uint64 (N,)``, of the images.

    Returns:
        The same shape, type and device.
    """
    if not settings.power:
        return pixels
    spread = np.where(are_mild(settings, keys), settings.milder().power, settings.power)
    powers = np.exp(spread * normal(keys, Draw.POWER)[:, 0]).clip(1 / _MOST, _MOST)
    densities = np.maximum(-np.log(np.maximum(_LEVELS, 1) / white), 0)
    bent = white * np.exp(-_PIVOT * (densities / _PIVOT) ** powers[:, None])
    tables = np.where(white <= _LEVELS, _LEVELS, np.rint(bent)).astype(np.uint8)
    table = torch.from_numpy(tables).to(pixels.device)
    return table.gather(1, pixels.flatten(1).long()).view(pixels.shape)
