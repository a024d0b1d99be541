"""What a network takes for the usual in its early layers, and how that is moved to another lab's.

Batch norm measures every channel against the mean and variance that it had in training. Early
layers see stain, light and focus, which differ between labs; late ones see what kind of cell there
is, which must not be evened out. So only the early ones are moved. Knows nothing of sites.
"""

from __future__ import annotations

import base64
import copy
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bloodcells.models.classifier import Classifier

_EARLY: Final = 3
"""One in so many layers of batch norm is early, from the first on."""


def statistics_at(model: Classifier, pixels: Tensor, share: float) -> Tensor:
    """Return the early statistics of a model, moved towards those of some pictures.

    Each layer is measured on what it gets where the ones before it are moved all the way. Source:
    Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift
    adaptation", arXiv:2006.16971, for the mixture of both statistics.

    Args:
        model: the classifier, which stays as it is.
        pixels: ``uint8 (N, S, S, 3)``, of one lab.
        share: how far, 0 to 1.

    Returns:
        ``float32 (2 M,)``: the means, then the variances, of the M channels of all early layers;
        empty where the model has none.
    """
    before = statistics_of(model)
    moved = copy.deepcopy(model).eval()
    for layer in _early(moved):
        layer.train()
        layer.momentum = 1.0
    with torch.no_grad():
        moved(pixels)
    return before.lerp(statistics_of(moved), share)


def statistics_of(model: Classifier) -> Tensor:
    """Return the early statistics as they are, ``float32 (2 M,)``: means, then variances."""
    layers = _early(model)
    found = [layer.running_mean for layer in layers] + [layer.running_var for layer in layers]
    kept = [each for each in found if each is not None]
    return torch.cat(kept).float() if kept else torch.empty(0)


def set_statistics(model: Classifier, statistics: Tensor) -> None:
    """Give a model's early layers other statistics.

    Raises:
        ValueError: there are more or fewer than the model has.
    """
    layers = _early(model)
    sizes = [layer.num_features for layer in layers] * 2
    if sum(sizes) != len(statistics):
        raise ValueError(f"{len(statistics)} statistics where the model has {sum(sizes)}")
    parts = torch.split(statistics, sizes)
    for number, layer in enumerate(layers):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(parts[number])
        layer.running_var.copy_(parts[number + len(layers)])


def to_text(statistics: Tensor) -> str:
    """Return statistics as text: base64 of little-endian ``float32``."""
    return base64.b64encode(statistics.numpy().astype("<f4").tobytes()).decode()


def from_text(text: str) -> Tensor:
    """Return the statistics that :func:`to_text` wrote.

    Raises:
        ValueError: it is no such text, or holds what is no number, or a negative variance.
    """
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    if len(values) % 2 or not np.isfinite(values).all() or (values[len(values) // 2 :] < 0).any():
        raise ValueError("these are no means and variances")
    return torch.from_numpy(values)


def _early(model: Classifier) -> list[_BatchNorm]:
    """Return a model's early layers of batch norm, in the order in which they are listed."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    return layers[: len(layers) // _EARLY]
