"""One stage of a training on one rank, from its start or from a checkpoint of it."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import torch
from lion_pytorch import Lion
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, AdamW, Optimizer

from bloodcells.errors import ConfigurationError
from bloodcells.models import Classifier
from bloodcells.training import checkpoints
from bloodcells.training.averaging import (
    SETTLING_STEPS,
    moving_norms,
    names_of_moving,
    settle_batch_norm,
    share_statistics,
    start_average,
)
from bloodcells.training.feed import Batch
from bloodcells.training.recalling import MOST_COST, recall
from bloodcells.training.recipe import Stage
from bloodcells.training.sampling import EpochPlan
from bloodcells.training.schedule import learning_rate
from bloodcells.training.stages import apply_stage, train_mode, trainable
from bloodcells.training.stopping import EarlyStopping
from bloodcells.training.validation import figures_of, logits_of

if TYPE_CHECKING:
    from bloodcells.training.loop import StagedTraining

COARSE_SIDE: Final = 2 / 3
"""Side of the pictures of the coarse epochs, in sides of the model's."""


TELL_EVERY_S: Final = 15.0
"""How often a long epoch says how far it is."""


class StageRun:
    """One stage.

    Args:
        training: the training that it is a stage of.
        number: which stage of the recipe, from 0.
        state: the checkpoint to go on from; ``None`` starts the stage.
    """

    def __init__(
        self, training: StagedTraining, number: int, state: checkpoints.State | None
    ) -> None:
        self.training, self.number = training, number
        self.stage: Stage = training.recipe.stages[number]
        self.folder = training.task.folder if training.rank == 0 else None
        model = training.model
        names = trainable(model, self.stage.unfreeze, train_batch_norm=self.stage.train_batch_norm)
        apply_stage(model, names, train_batch_norm=self.stage.train_batch_norm)
        self.optimizer = optimizer_of(model, self.stage)
        self.average = start_average(model, self.stage.averaging) if self.stage.averaging else None
        self.stopping = EarlyStopping(
            metric=training.recipe.metric,
            patience=self.stage.patience,
            keeps_last=self.stage.keep_last,
        )
        self.epoch, self.num_steps, self.first_step = 0, 0, 0
        self.sums = _no_sums()
        self.losses: list[float] = []
        self.best: dict[str, Tensor] | None = None
        self.has_diverged = False
        if state is None:
            self._note_best(model, self._validate(model))
        else:
            self._take_up(state)
        self.parallel: nn.Module = (
            DistributedDataParallel(model) if training.world_size > 1 else model
        )
        self.recent: deque[Tensor] = deque(maxlen=SETTLING_STEPS)

    def run(self) -> None:
        """Train until the last epoch or until patience ends, then take the best weights.

        What the stage began with counts as well, so that no stage leaves the model worse, unless it
        is to keep its last ones.
        """
        while self.epoch < self.stage.epochs and not self.stopping.is_over:
            self._train_epoch()
            if self.has_diverged:
                break
        self._restore_best()
        if self.stage.recall:
            self._recall()

    def _train_epoch(self) -> None:
        training, plan = self.training, self.training.plan()
        # Batches before a resumed step are made again, for batch norm to be settled over.
        start = max(0, self.first_step - SETTLING_STEPS) if self._settles else self.first_step
        train_mode(training.model)
        self.recent.clear()
        begun, saving = time.monotonic(), 0.0
        task = training.task
        feed = training.feed(plan, self.stage.augment)
        batches = feed.batches(start, task.feed_cpus, task.feed_tasks)
        for step, batch in enumerate(batches, start=start):
            pixels = batch.pixels.to(training.device, non_blocking=True)
            if self._settles:
                self.recent.append(pixels)
            if step < self.first_step:
                continue
            is_time_to_save = self._take_step(batch, pixels, plan, step)
            if self.has_diverged:
                training.tell(f"{self._where(step, plan)}: the loss is no number; the stage ends")
                return
            if time.monotonic() - training.told_at > TELL_EVERY_S:
                training.tell(f"{self._where(step, plan)}: loss {self.losses[-1]:.3f}")
            if is_time_to_save and step + 1 < plan.num_steps:
                before = time.monotonic()
                self._save(step + 1)
                saving += time.monotonic() - before
        if self.sums["images"] != len(plan.rows):
            raise RuntimeError(
                f"an epoch showed {self.sums['images']:.0f} images; {len(plan.rows)} were planned"
            )
        share = 1 - self.first_step / plan.num_steps
        self._end_epoch(plan, time.monotonic() - begun - saving, share * len(plan.rows))

    def _take_step(self, batch: Batch, pixels: Tensor, plan: EpochPlan, step: int) -> bool:
        """Take one optimizer step; returns whether the first rank's last checkpoint is too old."""
        training = self.training
        targets = training.targets(pixels, batch.targets.to(training.device))
        if self.epoch < self.stage.num_coarse:
            pixels = shrink(pixels, coarse_size(pixels.shape[1]))
        rate = learning_rate(self.stage, self.num_steps, self.stage.epochs * plan.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # What dropout drops in a step does not depend on whether training was interrupted before.
        drawn = (training.recipe.seed * 10**9 + training.num_steps) * 1000 + training.rank
        torch.manual_seed(drawn % 2**63)
        is_cuda = training.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16, enabled=is_cuda):
            logits = self.parallel(pixels)
        loss = training.loss(logits, targets, plan.step_size(step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        training.num_steps += 1
        self.num_steps += 1
        if self.average is not None:
            self.average.update(training.model, step=self.num_steps)
        own = [
            float(loss.detach()) * plan.step_size(step) / training.world_size,
            float(len(targets)),
            float((logits.argmax(1) == targets.argmax(1)).sum()),
            float(training.rank == 0 and training.is_time_to_save),
        ]
        loss_sum, num_images, num_right, is_time_to_save = training.shared_sum(own)
        self.has_diverged = not math.isfinite(loss_sum)
        self.losses.append(loss_sum / plan.step_size(step))
        self.sums["loss"] += loss_sum
        self.sums["images"] += num_images
        self.sums["right"] += num_right
        return bool(is_time_to_save)

    def _end_epoch(self, plan: EpochPlan, seconds: float, num_images: float) -> None:
        training = self.training
        model: Classifier = training.model if self.average is None else self.average.module
        if self._settles:
            names = names_of_moving(training.model)
            settle_batch_norm(model, names, self.recent, training.world_size)
        elif training.world_size > 1:
            share_statistics(moving_norms(model), training.world_size)
        figures = self._validate(model)
        self.epoch += 1
        training.num_epochs += 1
        is_best = self._note_best(model, figures)
        training.history.append(
            {
                "stage": self.number,
                "stage_name": self.stage.name,
                "epoch": self.epoch,
                "num_epochs": self.stage.epochs,
                "step": training.num_steps,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "loss": self.sums["loss"] / len(plan.rows),
                "accuracy": self.sums["right"] / len(plan.rows),
                **figures,
                "images": len(plan.rows),
                "images_per_s": num_images / seconds,
                "seconds": seconds,
                "time": time.time(),
                "is_best": is_best,
                "step_losses": self.losses,
            }
        )
        self.first_step, self.sums, self.losses = 0, _no_sums(), []
        self._save(0)
        if self.folder is not None:
            checkpoints.forget_best(self.folder, but=(self.number, self.stopping.best_epoch))
        training.announce(training.history[-1])

    def _validate(self, model: Classifier) -> dict[str, float]:
        training, images = self.training, self.training.data.validation
        logits = logits_of(model, images, training.rank, training.world_size)
        return figures_of(logits, images.labels)

    def _note_best(self, model: nn.Module, figures: dict[str, float]) -> bool:
        is_best = self.stopping.see(self.epoch, figures)
        if is_best:
            self.best = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            if self.folder is not None:
                checkpoints.save_best(self.folder, self.number, self.epoch, self.best)
        return is_best

    def _restore_best(self) -> None:
        training = self.training
        if self.best is None:  # resumed, and no better since
            if self.stopping.best_epoch < 0:
                raise ConfigurationError(
                    f"stage {self.stage.name}: no epoch gave a validation figure that is a number; "
                    "train batch norm in the first stage, lower the learning rate, or start from "
                    "other weights"
                )
            found = None
            if self.folder is not None:
                best_epoch = self.stopping.best_epoch
                found = checkpoints.best_weights(self.folder, self.number, best_epoch)
            self.best = training.from_first_rank(found)
        if self.best is not None:
            training.model.load_state_dict(self.best)

    def _recall(self) -> None:
        """Mix first weights into the best ones, unless that costs too much accuracy at home."""
        training, model = self.training, self.training.model
        best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        before = self._validate(model)["val_accuracy"]
        recall(model, training.task.weights, self.stage.recall)
        feed = training.feed(training.plan(), self.stage.augment)
        steps = range(min(SETTLING_STEPS, feed.plan.num_steps))
        batches = (feed.batch(step).pixels.to(training.device) for step in steps)
        train_mode(model)
        settle_batch_norm(model, names_of_moving(model), batches, training.world_size)
        after = self._validate(model)["val_accuracy"]
        is_kept = after >= before - MOST_COST
        if not is_kept:
            model.load_state_dict(best)
        if training.history:
            training.history[-1]["recalled"] = is_kept
        training.tell(
            f"stage {self.stage.name}: with {self.stage.recall:.0%} of the first weights, "
            f"validation accuracy {before:.4f} becomes {after:.4f}; "
            f"{'kept' if is_kept else 'undone'}"
        )

    def _save(self, first_step: int) -> None:
        """Save all that this stage needs to go on from a step of the present epoch."""
        self.training.save(
            {
                "stage": self.number,
                "epoch": self.epoch,
                "stage_steps": self.num_steps,
                "first_step": first_step,
                "sums": self.sums,
                "losses": self.losses,
                "stopping": self.stopping.to_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.module.state_dict(),
            }
        )

    def _take_up(self, state: checkpoints.State) -> None:
        self.epoch, self.num_steps = state["epoch"], state["stage_steps"]
        self.first_step = state["first_step"]
        self.sums, self.losses = dict(state["sums"]), list(state["losses"])
        self.stopping = EarlyStopping(**state["stopping"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])

    def _where(self, step: int, plan: EpochPlan) -> str:
        return (
            f"stage {self.stage.name}, epoch {self.epoch + 1} of {self.stage.epochs}, "
            f"step {step + 1} of {plan.num_steps}"
        )

    @property
    def _settles(self) -> bool:
        return self.average is not None and self.stage.train_batch_norm


def optimizer_of(model: nn.Module, stage: Stage) -> Optimizer:
    """Return a stage's optimizer over what it trains.

    Only matrices and kernels decay: a decayed bias or scale of batch norm helps nobody.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": stage.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind: Any = {"lion": Lion, "adam": Adam, "adamw": AdamW}[stage.optimizer]
    optimizer: Optimizer = kind([g for g in groups if g["params"]], lr=stage.peak_rate)
    return optimizer


def coarse_size(size: int) -> int:
    """Return the side of the pictures of the coarse epochs, in px."""
    return round(size * COARSE_SIDE)


def shrink(pixels: Tensor, size: int) -> Tensor:
    """Resize ``uint8 (N, S, S, 3)`` to ``uint8 (N, size, size, 3)``, antialiased."""
    planes = pixels.permute(0, 3, 1, 2)
    if planes.is_cuda:  # where torch resizes no integers
        planes = planes.float()
    small = functional.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    if planes.is_cuda:
        small = small.round().clamp(0, 255).to(torch.uint8)
    return small.permute(0, 2, 3, 1)


def _no_sums() -> dict[str, float]:
    return {"loss": 0.0, "images": 0.0, "right": 0.0}
