"""Fields that tests augment: drawn cells, discs, and keys that go with them."""

from __future__ import annotations

import functools

import numpy as np
import torch

from bloodcells.augment import image_keys
from bloodcells.synthetic import draw_cell

SIZE, FIELD = 32, 50


def keys(num: int, seed: int = 0) -> np.ndarray:
    ids = np.arange(num, dtype=np.uint64) * np.uint64(0x1234567890ABCDEF)
    return image_keys(seed, 0, ids, np.zeros(num, np.int64))


def discs(num: int) -> torch.Tensor:
    """The same picture over and over: a dark disc in the middle of a light field."""
    along = torch.arange(FIELD) - (FIELD - 1) / 2
    inside = along[:, None] ** 2 + along[None, :] ** 2 < 10**2
    picture = torch.where(inside[:, :, None], torch.tensor([90, 40, 130]), torch.tensor(230))
    return picture.to(torch.uint8).expand(num, FIELD, FIELD, 3)


@functools.cache
def cells(num: int) -> torch.Tensor:
    drawn = [draw_cell("neutrophil", seed, size_px=FIELD) for seed in range(num)]
    return torch.from_numpy(np.stack(drawn))
