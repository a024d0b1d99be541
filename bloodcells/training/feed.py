"""The batches of one rank in one epoch, augmented by Ray Data tasks wherever there is a free CPU.

A *row* of the pipeline is one step's batch of this rank: rows are never cut, and order is kept, so
a rank gets exactly the batches that the epoch's plan gives it, in their order. Knows nothing of
models.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from ray.data import TaskPoolStrategy
from ray.exceptions import RayTaskError
from torch import Tensor

from bloodcells.augment import Augmentation, are_strangers, augment, image_keys, mix, toned
from bloodcells.cells import CLASSES
from bloodcells.errors import BloodcellsError
from bloodcells.imaging import Preprocess
from bloodcells.training.ingest import ImageSet
from bloodcells.training.sampling import EpochPlan

STEPS_A_TASK: Final = 8
"""Steps whose batches one task makes: what Ray takes to start a task and to hand on its result is
then shared by them. With a task a step, small batches (35 pictures of 64 px) came at 1 a second on
a busy machine, however little the tasks had to do."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a step.

    Attributes:
        pixels: ``uint8 (n, S, S, 3)``, augmented.
        targets: ``float32 (n, 8)``, each row a distribution over the classes.
    """

    pixels: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What the batches of an epoch are made of, for one rank.

    Attributes:
        images: the training images.
        plan: the epoch's manifest.
        preprocess: the pictures' side and, after they are varied, their tone.
        augmentation: how they are varied.
        seed: of the training.
        epoch: counted from 0 over all stages.
        rank, world_size: whose batches.
    """

    images: ImageSet
    plan: EpochPlan
    preprocess: Preprocess
    augmentation: Augmentation
    seed: int
    epoch: int
    rank: int
    world_size: int

    def batch(self, step: int) -> Batch:
        """Make the batch of a step; the same whenever and wherever it is made."""
        positions = self.plan.of_rank(step, self.rank, self.world_size)
        rows = self.plan.rows[positions]
        keys = image_keys(
            self.seed, self.epoch, self.images.image_ids[rows], self.plan.occurrence[positions]
        )
        fields = torch.from_numpy(self.images.pixels.take(rows))
        views = augment(fields, self.preprocess.size, self.augmentation, keys)
        pixels = toned(views, self.preprocess.tone, self.augmentation, keys)
        targets = torch.zeros(len(rows), len(CLASSES))
        targets[torch.arange(len(rows)), torch.from_numpy(self.images.labels[rows])] = 1
        targets[torch.from_numpy(are_strangers(self.augmentation, keys))] = 1 / len(CLASSES)
        pixels, targets = mix(pixels, targets, self.augmentation, int(keys[0]))
        return Batch(pixels=pixels, targets=targets)

    def batches(self, start: int, num_cpus: float, num_tasks: int | None) -> Iterator[Batch]:
        """Yield the batches of all steps from ``start`` on.

        Args:
            start: the first step.
            num_cpus: what a task of the pipeline asks of the cluster.
            num_tasks: most tasks at once; ``None`` for as many as have room.
        """
        steps = [{"step": step} for step in range(start, self.plan.num_steps)]
        if not steps:
            return
        num_blocks = math.ceil(len(steps) / STEPS_A_TASK)
        dataset = ray.data.from_items(steps, override_num_blocks=num_blocks)
        dataset.context.execution_options.preserve_order = True
        dataset.context.raise_original_map_exception = True
        made = dataset.map_batches(
            _make,  # type: ignore[arg-type]  # an Arrow table is a batch
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"feed": ray.put(self)},
            num_cpus=num_cpus,
            compute=TaskPoolStrategy(size=num_tasks),
        )
        rows: Iterator[pa.Table] = iter(
            made.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)
        )
        for expected in range(start, self.plan.num_steps):
            try:
                row = next(rows)
            except RayTaskError as error:
                raise (
                    error.cause if isinstance(error.cause, BloodcellsError) else error
                ) from error
            if row["step"][0].as_py() != expected:
                raise RuntimeError(f"step {row['step'][0]} came where step {expected} was due")
            yield _batch_from(row)


@functools.lru_cache(maxsize=2)
def _resolved(feed: ray.ObjectRef[Feed]) -> Feed:
    """Return what a reference stands for; a process makes many steps of one feed."""
    found: Feed = ray.get(feed)
    return found


def _make(row: pa.Table, feed: Any) -> pa.Table:
    """Make one step's batch in a task."""
    torch.set_num_threads(1)
    batch = _resolved(feed).batch(row["step"][0].as_py())
    return pa.table(
        {
            "step": row["step"],
            "side": [batch.pixels.shape[1]],
            "pixels": pa.array([batch.pixels.numpy().tobytes()], pa.large_binary()),
            "targets": pa.array([batch.targets.numpy().tobytes()], pa.binary()),
        }
    )


def _batch_from(row: pa.Table) -> Batch:
    side = row["side"][0].as_py()
    pixels: npt.NDArray[np.uint8] = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8)
    targets = np.frombuffer(row["targets"][0].as_buffer(), np.float32)
    return Batch(  # copies: what lies in the object store cannot be written to
        pixels=torch.from_numpy(pixels.reshape(-1, side, side, 3).copy()),
        targets=torch.from_numpy(targets.reshape(-1, len(CLASSES)).copy()),
    )
