"""Tells a cell type that training had none of, from what the classifier sees early on.

Behind its last block a classifier has sorted what it knows, and a type that it does not know falls
in with one that it does. Its early blocks still see texture, granules and colour: there each class
of home is taken for a normal distribution, all with one covariance, and what lies far from every
class, but not from all pictures together, is new. They also see stain and scale, so this holds at
home only. What it gave: docs/other-labs.md.

Source: Ren et al. 2021, "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
arXiv:2106.09022 (the difference of distances, the whole one there); Lee et al. 2018, "A Simple
Unified Framework for Detecting Out-of-Distribution Samples", arXiv:1807.03888 (early layers).
Knows nothing of files or of how a classifier was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SHRINKAGE: Final = 0.1
"""Of the covariances towards a sphere; 0.03 to 0.3 gave the same within 0.02 of AUC."""

DISCOUNT: Final = 0.95
"""Of the distance from all pictures together. With the whole of it, a type that lies far from all
others, as platelets do, passes for known (AUC 0.67 instead of 0.81); 0.94 to 0.98 gave the same
mean over the eight types within 0.002."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownTypes:
    """Where the classes lie in what a classifier sees early on.

    Attributes:
        centres: of each class that there is, ``float32 (K, M)``.
        within: makes the covariance within classes a unit sphere, ``float32 (M, M)``.
        centre: of all pictures, ``float32 (M,)``.
        overall: makes the covariance of all pictures a unit sphere, ``float32 (M, M)``.
    """

    centres: Tensor
    within: Tensor
    centre: Tensor
    overall: Tensor

    def novelty(self, early: Tensor) -> Tensor:
        """Return how much further pictures lie from the nearest class than from all together.

        Args:
            early: what its early blocks see, ``float (N, M)``; see ``pooled``.

        Returns:
            ``float32 (N,)``, a difference of squared distances; mostly negative at home.
        """
        # Squared distances are differences of large numbers, of which bfloat16 would leave nothing.
        with torch.autocast(early.device.type, enabled=False):
            wide = early.float()
            placed, known = wide @ self.within, self.centres @ self.within
            from_classes = (placed[:, None] - known[None]).square().sum(dim=2).min(dim=1).values
            from_all = ((wide - self.centre) @ self.overall).square().sum(dim=1)
        return from_classes - DISCOUNT * from_all

    @classmethod
    def fit(cls, early: Floats, labels: npt.NDArray[np.int64]) -> Self:
        """Learn where the classes lie.

        Args:
            early: of training pictures, ``float32 (N, M)``.
            labels: their classes, ``int64 (N,)``.
        """
        wide = early.astype(np.float64)
        classes = np.unique(labels)
        centres = np.stack([wide[labels == k].mean(axis=0) for k in classes])
        around = wide - centres[np.searchsorted(classes, labels)]
        return cls(
            centres=torch.from_numpy(centres).float(),
            within=_sphering(around),
            centre=torch.from_numpy(wide.mean(axis=0)).float(),
            overall=_sphering(wide - wide.mean(axis=0)),
        )


def pooled(block: Tensor) -> Tensor:
    """Return mean and spread of each channel over a picture, ``float32 (N, 2 * C)``.

    Args:
        block: what a block returns, ``float (N, C, H, W)``, or of a transformer ``(N, T, C)``.
    """
    wide = block.float()
    places = (2, 3) if wide.dim() == 4 else (1,)
    spread, mean = torch.std_mean(wide, dim=places, correction=0)
    return torch.cat([mean, spread], dim=1)


def _sphering(around: Doubles) -> Tensor:
    """Return a matrix that makes centred points' shrunken covariance a unit sphere."""
    covariance = around.T @ around / len(around)
    size = len(covariance)
    sphere = max(float(np.trace(covariance)) / size, 1e-12) * np.eye(size)
    shrunken = (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
    return torch.from_numpy(np.linalg.cholesky(np.linalg.inv(shrunken))).float()
