"""Pictures that are none of the eight cell types, made from pictures that are.

A classifier that never saw one is sure of everything. Shown strangers that belong to all classes
alike, it learns to be unsure of what it does not know. Source: Hendrycks, Mazeika & Dietterich
2019, "Deep Anomaly Detection with Outlier Exposure", arXiv:1812.04606 (section 3: for a classifier,
cross-entropy to the uniform distribution).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bloodcells.augment.keys import Draw, Keys, integers, uniform
from bloodcells.augment.settings import Augmentation

_BESIDE: Final = 0.55
"""Share of the strangers that show what lies beside a cell: red cells, platelets, empty field."""

_TILES: Final = 4
"""Tiles along a side of a picture whose parts are shuffled."""


def are_strangers(settings: Augmentation, keys: Keys) -> npt.NDArray[np.bool_]:
    """Return which images become strangers, ``bool (N,)``; their targets are to be uniform."""
    return uniform(keys, Draw.STRANGER)[:, 0] < settings.strangers


def lie_beside(settings: Augmentation, keys: Keys) -> npt.NDArray[np.bool_]:
    """Return which images show what lies beside their cell, ``bool (N,)``."""
    return are_strangers(settings, keys) & (uniform(keys, Draw.STRANGER + 1)[:, 0] < _BESIDE)


def estrange(pixels: Tensor, settings: Augmentation, keys: Keys) -> Tensor:
    """Turn the strangers that do not lie beside a cell into shuffled tiles, texture or noise.

    Args:
        pixels: views, ``uint8 (N, S, S, 3)``.
        settings: ``strangers`` counts.
        keys: ``uint64 (N,)``, of the images.

    Returns:
        The same shape and type; the other images are as they were.
    """
    chosen = np.flatnonzero(are_strangers(settings, keys) & ~lie_beside(settings, keys))
    if not len(chosen):
        return pixels
    changed = pixels.clone()
    seeds = integers(keys, Draw.STRANGER_SEED, 1)[:, 0]
    for row in chosen:
        rng = np.random.default_rng(int(seeds[row]))
        make = (_shuffled, _texture, _blobs)[rng.integers(3)]
        made = np.clip(np.rint(make(pixels[row].cpu().numpy(), rng)), 0, 255).astype(np.uint8)
        changed[row] = torch.from_numpy(made).to(pixels.device)
    return changed


def _shuffled(picture: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the picture with its tiles in another order."""
    size = len(picture)
    side = size // _TILES
    tiles = picture[: side * _TILES, : side * _TILES].reshape(_TILES, side, _TILES, side, 3)
    tiles = tiles.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)
    mixed = tiles[rng.permutation(len(tiles))].reshape(_TILES, _TILES, side, side, 3)
    shuffled = picture.copy()
    shuffled[: side * _TILES, : side * _TILES] = mixed.transpose(0, 2, 1, 3, 4).reshape(
        side * _TILES, side * _TILES, 3
    )
    return shuffled


def _texture(picture: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a texture with the picture's spectrum and colours, but other phases."""
    spectrum = np.fft.rfft2(picture.astype(np.float64), axes=(0, 1))
    phases = np.angle(np.fft.rfft2(rng.normal(size=picture.shape[:2])))[..., None]
    phases[0, 0] = 0  # the mean stays
    return np.fft.irfft2(np.abs(spectrum) * np.exp(1j * phases), s=picture.shape[:2], axes=(0, 1))


def _blobs(picture: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return noise as coarse as chance has it, in colours around a random one."""
    size = len(picture)
    cells = int(rng.choice([2, 4, 8, 16, 32, size]))
    coarse = rng.normal(size=(cells, cells, 3))
    coarse = rng.uniform(0, 1) * coarse + rng.normal(size=(cells, cells, 1))
    noise = torch.from_numpy(coarse).permute(2, 0, 1)[None]
    mode = "nearest" if rng.random() < 0.3 else "bilinear"
    fine = torch.nn.functional.interpolate(noise, size=(size, size), mode=mode)
    return rng.uniform(60, 250, 3) + rng.uniform(5, 60) * fine[0].permute(1, 2, 0).numpy()
