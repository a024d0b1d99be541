"""What one Ray Train worker does: train its part of every step, validate its part of the rows.

Gradients are averaged over the workers by DDP (gloo on CPUs, NCCL on GPUs). A GPU trains in
bfloat16; every figure that is reported comes from float32 weights. Written for both, so far run on
CPUs only.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from lion_pytorch import Lion
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from bloodcells.allocator import keep_freed_memory
from bloodcells.augment import augment
from bloodcells.bundle import shipping_precision
from bloodcells.cells import CLASSES
from bloodcells.models import Classifier, create_model, for_inference
from bloodcells.training.ingest import LabelledPixels
from bloodcells.training.recipe import Recipe
from bloodcells.training.sampling import epoch_batches, own_rows

_EVALUATION_BATCH = 128
_SETTLING_STEPS = 20
"""Batches that batch norm's statistics are counted over: 1,280 images where a step has 64."""

_COARSE_SIDE = 2 / 3
"""Side of the pictures of the coarse epochs, in sides of the model's."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """All that a worker is given.

    Attributes:
        recipe: how to train.
        data: labels, and references to pixels.
        weights: reference to the state to start from.
        num_threads: CPU threads of this worker.
    """

    recipe: Recipe
    data: LabelledPixels
    weights: ray.ObjectRef[Mapping[str, Any]]
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What training ends with.

    Attributes:
        weights: the averaged weights, rounded as they are shipped.
        logits: ``float32 (N, 8)`` of all validation images, by these rounded weights.
        labels: their classes, ``int64 (N,)``.
    """

    weights: dict[str, Tensor]
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class PixelTable:
    """Blocks of pixels as one table; rows are copied only when they are taken."""

    def __init__(self, blocks: list[npt.NDArray[np.uint8]]) -> None:
        self._blocks = [block for block in blocks if len(block)]
        self._ends = np.cumsum([len(block) for block in self._blocks])

    def take(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return some rows, ``uint8 (len(rows), M, M, 3)``."""
        taken = np.empty((len(rows), *self._blocks[0].shape[1:]), np.uint8)
        for i, row in enumerate(rows):
            block = int(np.searchsorted(self._ends, row, side="right"))
            taken[i] = self._blocks[block][row - self._ends[block]]
        return torch.from_numpy(taken)


def train_on_rank(config: dict[str, Any]) -> TrainedModel:
    """Train as one of several workers; what rank 0 returns is the result."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces every report there
    task: TrainingTask = config["task"]
    context = ray.train.get_context()
    return _Worker(task, context.get_world_rank(), context.get_world_size()).run()


class _Worker:
    """The state of one rank."""

    def __init__(self, task: TrainingTask, rank: int, world_size: int) -> None:
        torch.set_num_threads(task.num_threads)
        keep_freed_memory()
        self.task = task
        self.recipe = task.recipe
        self.rank, self.world_size = rank, world_size
        self.device = ray.train.torch.get_device()
        self.table = PixelTable(ray.get(list(task.data.blocks)))
        self.validation = PixelTable(ray.get(list(task.data.validation_blocks)))
        self.train_rows = np.flatnonzero(~task.data.is_validation)
        self.validation_labels = task.data.labels[task.data.is_validation]
        model = create_model(self.recipe.model, dropout=self.recipe.dropout)
        model.load_state_dict(ray.get(task.weights))
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(self.model, decay=self.recipe.averaging, use_warmup=True)
        self.num_steps = 0
        # Each rank varies images and drops units in its own way, the same way every time.
        torch.manual_seed(self.recipe.seed * 1000 + rank)
        self.generator = torch.Generator(self.device).manual_seed(self.recipe.seed * 1000 + rank)

    def run(self) -> TrainedModel:
        recipe = self.recipe
        parallel = ray.train.torch.prepare_model(self.model, move_to_device=False)
        optimizer = _optimizer(self.model, recipe)
        steps = self._batches(0).shape[0]
        schedule = OneCycleLR(
            optimizer,
            max_lr=recipe.peak_rate,
            total_steps=steps * recipe.epochs + 1,
            pct_start=recipe.warm_up,
            cycle_momentum=False,
            final_div_factor=1000,
        )
        for epoch in range(recipe.epochs):
            begun = time.monotonic()
            loss, shown = 0.0, 0
            self.model.train()
            for rows in self._batches(epoch):
                loss += self._step(parallel, rows, epoch, optimizer)
                schedule.step()
                shown += len(rows) * self.world_size
            self._report(epoch, loss / steps, shown / (time.monotonic() - begun))
        weights = shipping_precision(self.average.module.state_dict())
        final = create_model(recipe.model)
        final.load_state_dict(weights)
        return TrainedModel(
            weights=weights,
            logits=self._validation_logits(final.to(self.device)),
            labels=self.validation_labels,
        )

    def _batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return this rank's rows of the table, ``int64 (steps, images a rank)``."""
        batches = epoch_batches(
            self.task.data.labels[self.train_rows],
            balance=self.recipe.balance,
            batch_size=self.recipe.batch_size,
            world_size=self.world_size,
            seed=self.recipe.seed,
            epoch=epoch,
        )
        rows: npt.NDArray[np.int64] = self.train_rows[batches[self.rank]]
        return rows

    def _views(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return one varied view of each row, ``uint8 (len(rows), S, S, 3)``."""
        size = self.task.data.preprocess.size
        fields = self.table.take(rows).to(self.device)
        return augment(fields, size, self.recipe.augmentation, self.generator)

    def _step(
        self,
        parallel: nn.Module,
        rows: npt.NDArray[np.int64],
        epoch: int,
        optimizer: Optimizer,
    ) -> float:
        pixels = self._views(rows)
        if epoch < int(self.recipe.coarse * self.recipe.epochs):
            pixels = _shrink(pixels, round(pixels.shape[1] * _COARSE_SIDE))
        labels = torch.from_numpy(self.task.data.labels[rows]).to(self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = parallel(pixels)
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.num_steps += 1
        self.average.update(self.model, step=self.num_steps)
        return float(loss.detach())

    def _report(self, epoch: int, loss: float, images_per_s: float) -> None:
        self._settle_batch_norm(epoch)
        logits = self._validation_logits(self.average.module)
        right = logits.argmax(1) == self.validation_labels
        figures = {
            "epoch": epoch + 1,
            "loss": loss,
            "val_accuracy": float(right.mean()),
            "images_per_s": images_per_s,
        }
        if self.rank == 0:
            # Not print, which Ray Train replaces by a logger that says everything twice.
            sys.stdout.write(
                f"epoch {epoch + 1} of {self.recipe.epochs}: loss {loss:.3f}, "
                f"validation accuracy {right.mean():.4f}, {images_per_s:,.0f} images/s\n"
            )
            sys.stdout.flush()
        ray.train.report(figures)

    def _settle_batch_norm(self, epoch: int) -> None:
        """Count batch norm's statistics anew, for the averaged weights, on all ranks alike.

        The statistics gathered on the way belong to weights that are gone, and lag behind in a
        short training. Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.2.
        """
        model = self.average.module.eval()
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        with torch.no_grad():
            for rows in self._batches(epoch)[:_SETTLING_STEPS]:
                model(self._views(rows))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            for statistic in (norm.running_mean, norm.running_var):
                if self.world_size > 1 and statistic is not None:
                    torch.distributed.all_reduce(statistic)
                    statistic /= self.world_size

    def _validation_logits(self, model: Classifier) -> npt.NDArray[np.float32]:
        """Classify all validation rows, each on one rank; every rank gets all logits."""
        fast = for_inference(model)
        own = own_rows(len(self.validation_labels), self.rank, self.world_size)
        logits = np.zeros((len(self.validation_labels), len(CLASSES)), np.float32)
        with torch.inference_mode():
            for start in range(0, len(own), _EVALUATION_BATCH):
                rows = own[start : start + _EVALUATION_BATCH]
                logits[rows] = fast(self.validation.take(rows).to(self.device)).cpu().numpy()
        if self.world_size > 1:
            shared = torch.from_numpy(logits).to(self.device)
            torch.distributed.all_reduce(shared)  # every row is zero on all ranks but one
            logits = shared.cpu().numpy()
        return logits


def _optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Decay matrices and kernels only: a decayed bias or scale of batch norm helps nobody."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = Lion if recipe.optimizer == "lion" else AdamW
    return kind(groups, lr=recipe.peak_rate)


def _shrink(pixels: Tensor, size: int) -> Tensor:
    """Resize ``uint8 (N, S, S, 3)`` to ``uint8 (N, size, size, 3)``, antialiased."""
    planes = pixels.permute(0, 3, 1, 2)
    small = functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1)
