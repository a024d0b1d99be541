"""Random numbers that follow from an image and the time it is shown, and from nothing else.

A generator that is drawn from in turn gives an image other numbers in another batch, on another
worker or after a restart. Here every image of every epoch has a key, and every number is a function
of the key and of what it is for. Knows nothing of pixels.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MASK: Final = 2**64 - 1


class Draw(IntEnum):
    """What numbers are drawn for; a value is the first counter of its purpose.

    Each purpose has counters of its own, so that switching one augmentation on or off leaves the
    others as they were.
    """

    MIRROR = 0
    UPEND = 1
    ROTATION = 2
    ZOOM = 3
    SHIFT = 4  # two
    LAMP = 8  # three normals, two counters each
    STAIN = 16  # nine normals
    COLOUR = 40  # four
    BLUR = 48
    MIX_KIND = 56
    MIX_SHARE = 57
    MIX_PLACE = 58  # two
    RANDAUGMENT = 60
    AUGMIX = 61
    MAGNITUDE = 64  # a normal for each of RandAugment's operations, two counters each
    DENSITY = 100  # a normal
    SHADE = 104  # four
    SHARPEN = 108  # two
    NOISE = 110  # two
    NOISE_SEED = 112
    STRANGER = 114  # two
    STRANGER_SEED = 116
    BESIDE = 118  # three
    MILD = 122
    POWER = 124  # a normal


def image_keys(
    seed: int, epoch: int, image_ids: Keys, occurrence: npt.NDArray[np.integer[Any]]
) -> Keys:
    """Return one key for each showing of an image.

    Args:
        seed: the training's.
        epoch: counted from 0.
        image_ids: ``uint64 (N,)``, from the images' contents (the first 8 bytes of a sha256).
        occurrence: ``int (N,)``, which showing of the same image within the epoch this is, from 0.

    Returns:
        ``uint64 (N,)``: the same for the same four numbers, unrelated where any of them differs.
    """
    key = _scramble(np.array([seed & _MASK], np.uint64))
    for part in (np.array([epoch & _MASK], np.uint64), image_ids, occurrence):
        # Scrambled before the next part comes in: sums of parts would meet (1 + 2 and 2 + 1).
        key = _scramble(key ^ np.asarray(part).astype(np.uint64))
    return np.broadcast_to(key, np.broadcast_shapes(key.shape, image_ids.shape)).copy()


def integers(keys: Keys, draw: int, count: int) -> Keys:
    """Return ``uint64 (N, count)``: the numbers from counter ``draw`` on of each key's sequence."""
    counters = np.arange(draw, draw + count, dtype=np.uint64)
    return _scramble(keys[:, None] + counters * _GAMMA)


def uniform(keys: Keys, draw: int, count: int = 1) -> Floats:
    """Return ``float64 (N, count)``, uniform in [0, 1), in steps of ``2 ** -53``."""
    return (integers(keys, draw, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: Keys, draw: int, count: int = 1) -> Floats:
    """Return ``float64 (N, count)``, standard normal; takes two counters each.

    Source: Box & Muller 1958, Ann. Math. Statist. 29:610-611.
    """
    pairs = uniform(keys, draw, 2 * count).reshape(len(keys), count, 2)
    # 1 - u is never 0.
    radius: Floats = np.sqrt(-2 * np.log1p(-pairs[..., 0]))
    angle: Floats = 2 * np.pi * pairs[..., 1]
    return radius * np.cos(angle)


def _scramble(state: Keys) -> Keys:
    """Return SplitMix64's next output for each state.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA,
    doi:10.1145/2714064.2660195; constants of
    its C version, prng.di.unimi.it/splitmix64.c.
    """
    z = state + _GAMMA  # arrays of uint64 wrap around, as is meant
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
