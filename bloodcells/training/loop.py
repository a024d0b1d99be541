"""What one rank does: train its part of every step, validate its part of the rows, stage by stage.

Gradients are averaged over the ranks by DDP (gloo on CPUs, NCCL on GPUs). A step's loss is the mean
over the images of all ranks, whatever number each has, so that N ranks follow the curve of one. A
GPU trains in bfloat16; every figure that is reported comes from float32 weights. Knows nothing of
Ray Train: a hyper-parameter search runs it as well. What ran on a GPU is in docs/gpu-runbook.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional

from bloodcells.bundle import ModelBundle, shipping_precision
from bloodcells.cells import CLASSES
from bloodcells.models import create_model
from bloodcells.training import checkpoints
from bloodcells.training.feed import Feed
from bloodcells.training.ingest import TrainingData
from bloodcells.training.recipe import Recipe
from bloodcells.training.sampling import EpochPlan, images_per_epoch, plan_epoch
from bloodcells.training.stage_run import StageRun
from bloodcells.training.teaching import Teachers
from bloodcells.training.validation import logits_of

Figures = dict[str, Any]
Announce = Callable[[Figures], None]


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """All that a rank is given.

    Attributes:
        recipe: how to train.
        data: labels, and where pixels are.
        weights: the state to start from.
        folder: URI of the training folder, for checkpoints; ``None`` to keep none.
        checkpoint_minutes: most minutes between two checkpoints.
        feed_cpus, feed_tasks: what a task that makes batches asks of the cluster, and how many a
            rank has at most.
        teachers: bundles whose networks it learns from.
    """

    recipe: Recipe
    data: TrainingData
    weights: Mapping[str, Tensor]
    folder: str | None = None
    checkpoint_minutes: float = 10.0
    feed_cpus: float = 0.0
    feed_tasks: int | None = 1
    teachers: Sequence[ModelBundle] = ()


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What training ends with.

    Attributes:
        weights: the best weights of the last stage, rounded as they are shipped.
        logits: ``float32 (N, 8)`` of all validation images, by these rounded weights.
        history: the figures of every epoch.
    """

    weights: dict[str, Tensor]
    logits: npt.NDArray[np.float32]
    history: list[Figures]


class StagedTraining:
    """One rank's training.

    Args:
        task: what to do; the same on every rank.
        rank, world_size: which of how many.
        device: where to compute.
        announce: called on every rank with the figures of each epoch.
        say: called on the first rank with lines for a person.
    """

    def __init__(
        self,
        task: TrainingTask,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        announce: Announce = lambda figures: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.task, self.recipe, self.data = task, task.recipe, task.data
        self.rank, self.world_size = rank, world_size
        self.device = device or torch.device("cpu")
        self.announce, self._say = announce, say
        self.model = create_model(self.recipe.model, dropout=self.recipe.dropout)
        self.model.load_state_dict(dict(task.weights))
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.history: list[Figures] = []
        self.num_steps = 0
        self.num_epochs = 0
        self._saved_at = self.told_at = time.monotonic()
        self._class_weights = self._weights_of_classes()
        self._teachers = (
            Teachers(task.teachers, self.recipe.teaching, self.device) if task.teachers else None
        )

    def run(self) -> TrainedModel:
        """Train all stages, from the newest checkpoint where there is one."""
        state = self._newest_state()
        for number in range(state["stage"] if state else 0, len(self.recipe.stages)):
            StageRun(self, number, state).run()
            state = None
        weights = shipping_precision(self.model.state_dict())
        final = create_model(self.recipe.model)
        final.load_state_dict(weights)
        logits = logits_of(final.to(self.device), self.data.validation, self.rank, self.world_size)
        return TrainedModel(weights=weights, logits=logits, history=self.history)

    def plan(self) -> EpochPlan:
        """Return the manifest of the present epoch."""
        return plan_epoch(
            self.data.train.labels,
            balance=self.recipe.balance,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            epoch=self.num_epochs,
        )

    def feed(self, plan: EpochPlan, strength: float = 1.0) -> Feed:
        """Return what makes this rank's batches of the present epoch.

        Args:
            plan: the epoch's manifest.
            strength: how far augmentation goes, of the recipe's.
        """
        return Feed(
            images=self.data.train,
            plan=plan,
            preprocess=self.data.preprocess,
            augmentation=self.recipe.augmentation.scaled(strength),
            seed=self.recipe.seed,
            epoch=self.num_epochs,
            rank=self.rank,
            world_size=self.world_size,
        )

    def targets(self, pixels: Tensor, labelled: Tensor) -> Tensor:
        """Return what is to be learned of a batch, ``float32 (n, 8)``.

        Args:
            pixels: as the model sees them when it is scored, ``uint8 (n, S, S, 3)``.
            labelled: targets by the labels, ``float32 (n, 8)``.
        """
        return labelled if self._teachers is None else self._teachers.targets(pixels, labelled)

    def loss(self, logits: Tensor, targets: Tensor, step_size: int) -> Tensor:
        """Return this rank's share of the step's mean loss, times the number of ranks.

        DDP divides by the number of ranks, so what it averages is the mean over all images.
        """
        each = functional.cross_entropy(
            logits,
            targets,
            weight=self._class_weights,
            label_smoothing=self.recipe.label_smoothing,
            reduction="none",
        )
        return each.sum() * (self.world_size / step_size)

    def shared_sum(self, values: list[float]) -> list[float]:
        """Add numbers up over the ranks."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total]

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a checkpoint, on the first rank."""
        self._saved_at = time.monotonic()
        if self.task.folder is None or self.rank != 0:
            return
        own = {
            "history": self.history,
            "num_steps": self.num_steps,
            "num_epochs": self.num_epochs,
            "model": self.model.state_dict(),
        }
        checkpoints.save_checkpoint(self.task.folder, self.num_steps, {**own, **state})

    def tell(self, line: str) -> None:
        """Print a line for a person, on the first rank."""
        self.told_at = time.monotonic()
        if self.rank == 0:
            self._say(line)

    @property
    def is_time_to_save(self) -> bool:
        """Whether the last checkpoint is too old."""
        return time.monotonic() - self._saved_at > 60 * self.task.checkpoint_minutes

    def from_first_rank(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _newest_state(self) -> checkpoints.State | None:
        if self.task.folder is None:
            return None
        found = checkpoints.newest_checkpoint(self.task.folder) if self.rank == 0 else None
        state: checkpoints.State | None = self.from_first_rank(found)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.history = list(state["history"])
            self.num_steps, self.num_epochs = state["num_steps"], state["num_epochs"]
        return state

    def _weights_of_classes(self) -> Tensor | None:
        """Balanced class weights by how often an epoch shows each class; their mean is one."""
        if not self.recipe.class_weights:
            return None
        shown = images_per_epoch(self.data.train.counts(), self.recipe.balance)
        weights = shown.sum() / (len(CLASSES) * np.maximum(shown, 1))
        return torch.from_numpy(weights.astype(np.float32)).to(self.device)
