"""Tells pictures that are none of the eight cell types, from what the classifier sees of them.

It costs about a hundredth of the classifier: the features before the dense layer are there anyway,
and are compared with those of some home pictures. Knows nothing of files, of how a classifier was
trained or of what is done with strangers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from bloodcells.cells import CLASSES
from bloodcells.models import Classifier
from bloodcells.models.classifier import dense_layers

FALSE_ALARMS: Final = 0.01
"""Share of home pictures, held out from training, that are taken for strangers."""

PICTURES_A_CLASS: Final = 140
"""Home pictures of each class that others are compared with: 3 MB for a backbone 1,280 wide."""

NEIGHBOUR: Final = 3
"""The distance is that to the third nearest: to the nearest, one odd home picture is a hole. From
the first to the fortieth there was next to no difference (docs/other-labs.md)."""

PREFIX: Final = "detector."
"""Of the detector's tensors among a bundle's weights."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Detector:
    """How far features lie from those of home pictures.

    Source: Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors",
    arXiv:2204.06507.

    Attributes:
        bank: features of home pictures, each of length 1, ``float16 (R, D)``.
    """

    bank: Tensor

    def strangeness(self, features: Tensor) -> Tensor:
        """Return the cosine distance to the third nearest home picture, 0 to 2.

        Args:
            features: what the dense layer is given, ``float (N, D)``.

        Returns:
            ``float32 (N,)``.
        """
        # Among neighbours likeness is close to 1, where bfloat16 knows nothing between 0.996 and 1.
        with torch.autocast(features.device.type, enabled=False):
            units = functional.normalize(features.float())
            likeness = units @ self.bank.float().T
        return 1 - likeness.topk(min(NEIGHBOUR, likeness.shape[1]), dim=1).values[:, -1]

    @classmethod
    def of(cls, features: Floats, labels: npt.NDArray[np.int64]) -> Self:
        """Return a detector that knows some pictures.

        Args:
            features: of home pictures, ``float32 (N, D)``; the first of each class are kept.
            labels: their classes, ``int64 (N,)``.
        """
        rows = np.concatenate(
            [np.flatnonzero(labels == k)[:PICTURES_A_CLASS] for k in range(len(CLASSES))]
        )
        return cls(bank=functional.normalize(torch.from_numpy(features[np.sort(rows)])).half())

    @classmethod
    def fit(
        cls, features: Floats, labels: npt.NDArray[np.int64], held_out: Floats
    ) -> tuple[Self, float, float]:
        """Learn what home features look like.

        Args:
            features: of training pictures, ``float32 (N, D)``; the first of each class are kept.
            labels: their classes, ``int64 (N,)``.
            held_out: of pictures that the classifier was not trained on, ``float32 (M, D)``;
                ``FALSE_ALARMS`` of them are above the limit.

        Returns:
            The detector, the typical strangeness at home, and the limit above which it is strange.
        """
        detector = cls.of(features, labels)
        return detector, *limits_of(detector.strangeness(torch.from_numpy(held_out)))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, to be saved with the weights."""
        return {f"{PREFIX}{name}": tensor for name, tensor in vars(self).items()}

    @classmethod
    def among(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """Take the detector out of a bundle's tensors; ``None`` where there is none.

        Raises:
            TypeError: some of its tensors are missing, or there are others.
        """
        own = {
            name.removeprefix(PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(PREFIX)
        }
        return cls(**own) if own else None


def limits_of(strangeness: Tensor) -> tuple[float, float]:
    """Return what is typical at home, and what ``FALSE_ALARMS`` of home pictures are above.

    Args:
        strangeness: of home pictures that the detector does not know, ``float (M,)``.
    """
    wide = strangeness.double()
    limit = torch.quantile(wide, 1 - FALSE_ALARMS)
    return round(float(wide.median()), 6), round(float(limit), 6)


class InspectingClassifier(nn.Module):
    """A classifier that also says how strange each picture is.

    Args:
        model: pixels to logits.
        detector: judges the features before its dense layer; ``None`` finds nothing strange.
    """

    bank: Tensor | None

    def __init__(self, model: Classifier, detector: Detector | None) -> None:
        super().__init__()
        self.model = model
        self._features = FeatureTap(model)
        self.register_buffer("bank", detector.bank.float() if detector else None)

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify ``uint8 (N, S, S, 3)``; returns ``float32 (N, 9)``, the last one strangeness."""
        logits = self.model(pixels)
        if self.bank is None:
            return torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1)
        strange = Detector(bank=self.bank).strangeness(self._features.last)
        return torch.cat([logits, strange[:, None]], dim=1)


class FeatureTap:
    """Keeps what a classifier's dense layer was last given, ``float32 (N, D)``."""

    def __init__(self, model: Classifier) -> None:
        self.last = torch.empty(0)

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.last = inputs[0]

        dense_layers(model.backbone)[0].register_forward_pre_hook(keep)
