"""The moving average of weights, and statistics of batch norm that belong to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
import torch.distributed
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from bloodcells.models import Classifier

SETTLING_STEPS: Final = 20
"""Batches that batch norm's statistics are counted over: 1,280 images where a step has 64."""


def start_average(model: Classifier, decay: float) -> ModelEmaV3:
    """Return a moving average that starts at the weights of ``model``."""
    return ModelEmaV3(model, decay=decay, use_warmup=True)


def moving_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch norms that gather statistics: those in training mode."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]


def names_of_moving(model: nn.Module) -> list[str]:
    """Return their names, by which those of a copy can be found."""
    moving = moving_norms(model)
    return [name for name, module in model.named_modules() if module in moving]


def share_statistics(norms: Iterable[nn.BatchNorm2d], world_size: int) -> None:
    """Give every rank the mean of all ranks' statistics; each must call this."""
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                torch.distributed.all_reduce(statistic)
                statistic /= world_size


def settle_batch_norm(
    model: Classifier, names: Iterable[str], batches: Iterable[Tensor], world_size: int
) -> None:
    """Count batch norm's statistics anew, for averaged weights, on all ranks alike.

    The statistics gathered on the way belong to weights that are gone, and lag behind in a short
    training. Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.2.

    Args:
        model: left in evaluation mode.
        names: of the batch norms to settle; frozen ones stand still.
        batches: of this rank, each ``uint8 (n, S, S, 3)``.
        world_size: number of ranks; each must call this.
    """
    model.eval()
    wanted = set(names)
    named = model.named_modules()
    norms = [m for name, m in named if name in wanted and isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for pixels in batches if norms else ():
            model(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    if world_size > 1:
        share_statistics(norms, world_size)
