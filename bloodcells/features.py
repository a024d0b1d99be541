"""What a network pretrained on photographs sees in a picture, and how far pictures lie apart in it.

Knows nothing of files, labels or of which distance is too far.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bloodcells.imaging.window import resize
from bloodcells.models import create_model, for_inference

BACKBONE: Final = "tf_efficientnet_lite0"
"""Its ImageNet weights come in a Python package, so that nothing is downloaded."""

SIZE_PX: Final = 96
"""Side of the pictures that the network sees; 128 px tell no better, at 1.8 times the cost."""

NEIGHBOURS: Final = 0.03
"""Share of the reference that counts as near. A group of strange pictures hides itself where it is
a larger share than that: with 1 %, 18 pages of text among 1,200 PBC cells were not found, with 3 %
they were, and 36 snippets of photographs, too. Of a second laboratory that is 7 % of the store
(Chula beside PBC) most cells stay below the limit at either."""

_BATCH: Final = 32

Features = npt.NDArray[np.float16]


class Extractor:
    """Pixels to features, on the CPU, without a random number in it."""

    def __init__(self) -> None:
        self._model = for_inference(create_model(BACKBONE, pretrained=True))
        backbone: Any = self._model.backbone
        self._backbone = backbone
        self.width: int = backbone.num_features

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Features:
        """Return what the network sees.

        Args:
            pixels: ``uint8 (N, S, S, 3)``, RGB.

        Returns:
            ``float16 (N, D)``, each of length 1: pooled features before the dense layer.
        """
        if not len(pixels):
            return np.empty((0, self.width), np.float16)
        small = torch.from_numpy(resize(np.array(pixels), SIZE_PX))
        with torch.inference_mode():
            # One padded batch after the other: the same picture has the same features in any.
            return np.concatenate([self._batch(part) for part in torch.split(small, _BATCH)])

    def _batch(self, pixels: Tensor) -> Features:
        padded = torch.zeros((_BATCH, *pixels.shape[1:]), dtype=torch.float32)
        padded[: len(pixels)] = pixels
        planes = padded.permute(0, 3, 1, 2) * self._model.scale + self._model.bias
        pooled = self._backbone.global_pool(self._backbone.forward_features(planes)).flatten(1)
        units = torch.nn.functional.normalize(pooled[: len(pixels)])
        return units.numpy().astype(np.float16)


def distances(
    features: Features, keys: list[str], reference: Features, reference_keys: list[str]
) -> npt.NDArray[np.float32]:
    """Return how far pictures lie from the nearest of a reference.

    Args:
        features: of the pictures, ``(N, D)``, each of length 1.
        keys: content hash of each; a picture is not compared with itself.
        reference: of a sample of the store, ``(R, D)``.
        reference_keys: content hash of each of these.

    Returns:
        Mean cosine distance, 0–2, to the nearest ``NEIGHBOURS`` of the reference, ``float32 (N,)``;
        NaN where there is none to compare with.
    """
    place = {key: column for column, key in enumerate(reference_keys)}
    count = max(1, math.ceil(NEIGHBOURS * len(reference)))
    found = np.full(len(features), np.nan, np.float32)
    wide = reference.astype(np.float32).T
    for row, key in enumerate(keys):
        apart = 1 - features[row].astype(np.float32) @ wide
        if key in place:
            apart = np.delete(apart, place[key])
        if len(apart):
            near = min(count, len(apart))
            found[row] = np.partition(apart, near - 1)[:near].mean()
    return found
