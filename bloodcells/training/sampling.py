"""Which images each worker sees in which step: agreed beforehand, the same on every rank.

Every rank draws the same order from the same seed and takes its own part, so all ranks take the
same number of steps and none waits for another. Knows nothing of pixels, models or Ray.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def images_per_epoch(counts: IntArray, balance: float) -> IntArray:
    """Return how many images of each class an epoch shows, ``int64 (C,)``.

    Args:
        counts: training images a class, ``int64 (C,)``.
        balance: see ``Recipe``; no class is shown less often than it has images.
    """
    wanted: npt.NDArray[np.float64] = counts ** (1 - balance) * counts.max() ** balance
    return np.ceil(wanted - 1e-6).astype(np.int64)


def epoch_batches(
    labels: IntArray, *, balance: float, batch_size: int, world_size: int, seed: int, epoch: int
) -> IntArray:
    """Draw the images of one epoch for all ranks.

    Args:
        labels: class of each training image, ``int64 (N,)``.
        balance: see ``Recipe``.
        batch_size: images in a step over all ranks; what ``world_size`` does not divide is cut.
        world_size: number of ranks.
        seed: of the training.
        epoch: counted from 0.

    Returns:
        Indices into ``labels``, ``int64 (world_size, steps, images a rank)``. Within a class each
        image occurs equally often, give or take one.
    """
    rng = np.random.default_rng([seed, epoch])
    counts = np.bincount(labels)
    shown = images_per_epoch(counts, balance)
    parts = []
    for label in np.flatnonzero(counts):
        own = np.flatnonzero(labels == label)
        rounds = [rng.permutation(own) for _ in range(-(-shown[label] // len(own)))]
        parts.append(np.concatenate(rounds)[: shown[label]])
    order = rng.permutation(np.concatenate(parts))
    per_rank = max(1, batch_size // world_size)
    in_step = per_rank * world_size
    if len(order) < in_step:
        order = np.resize(order, in_step)
    steps = len(order) // in_step
    return order[: steps * in_step].reshape(steps, world_size, per_rank).transpose(1, 0, 2)


def own_rows(num_rows: int, rank: int, world_size: int) -> IntArray:
    """Return the validation rows of one rank: every row belongs to exactly one."""
    return np.arange(rank, num_rows, world_size)
