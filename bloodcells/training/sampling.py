"""The manifest of an epoch: which image goes to which step and rank, agreed beforehand.

Every rank draws the same order from the same seed and takes its own part, so all ranks take the
same number of steps and none waits for another. The images of a step do not depend on how many
ranks share them. Knows nothing of pixels, models or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """One epoch's images in the order they are shown.

    Attributes:
        rows: index of each shown image, ``int64 (M,)``.
        occurrence: how often the image was shown before in this epoch, ``int64 (M,)``.
        num_steps: steps that share the M images; their sizes differ by at most one.
    """

    rows: IntArray
    occurrence: IntArray
    num_steps: int

    def step_size(self, step: int) -> int:
        """Return how many images a step has over all ranks."""
        low, high = self._bounds(step)
        return high - low

    def of_rank(self, step: int, rank: int, world_size: int) -> IntArray:
        """Return one rank's part of a step: positions in ``rows``, in order, ``int64 (n,)``."""
        low, high = self._bounds(step)
        size = high - low
        return np.arange(low + size * rank // world_size, low + size * (rank + 1) // world_size)

    def _bounds(self, step: int) -> tuple[int, int]:
        total = len(self.rows)
        return total * step // self.num_steps, total * (step + 1) // self.num_steps


def images_per_epoch(counts: IntArray, balance: float) -> IntArray:
    """Return how many images of each class an epoch shows, ``int64 (C,)``.

    Args:
        counts: training images a class, ``int64 (C,)``.
        balance: see ``Recipe``; no class is shown less often than it has images.
    """
    wanted: npt.NDArray[np.float64] = counts ** (1 - balance) * counts.max() ** balance
    return np.ceil(wanted - 1e-6).astype(np.int64)


def plan_epoch(
    labels: IntArray, *, balance: float, batch_size: int, seed: int, epoch: int
) -> EpochPlan:
    """Draw the images of one epoch.

    Within a class each image is shown equally often, give or take one.

    Args:
        labels: class of each training image, ``int64 (N,)``.
        balance: see ``Recipe``.
        batch_size: images in a step over all ranks; steps get as near to it as they can while all
            are of one size, give or take one.
        seed: of the training.
        epoch: counted from 0 over all stages.
    """
    rng = np.random.default_rng([seed, epoch])
    counts = np.bincount(labels)
    shown = images_per_epoch(counts, balance)
    rows, occurrence = [], []
    for label in np.flatnonzero(counts):
        own = np.flatnonzero(labels == label)
        num_rounds = -(-shown[label] // len(own))
        rows.append(
            np.concatenate([rng.permutation(own) for _ in range(num_rounds)])[: shown[label]]
        )
        occurrence.append(np.arange(shown[label]) // len(own))
    order = rng.permutation(int(shown[counts > 0].sum()))
    return EpochPlan(
        rows=np.concatenate(rows)[order],
        occurrence=np.concatenate(occurrence)[order],
        num_steps=max(1, round(len(order) / batch_size)),
    )


def own_rows(num_rows: int, rank: int, world_size: int) -> IntArray:
    """Return the validation rows of one rank: every row belongs to exactly one."""
    return np.arange(rank, num_rows, world_size)
