"""The learning rate of a step. A pure function, so that a resumed run needs no state of it."""

from __future__ import annotations

import math

from bloodcells.training.recipe import Stage

FINAL: float = 1e-4
"""Rate of the last step of a falling schedule, as a share of the peak."""

_FIRST: float = 0.04
"""Rate of the first step of ``one_cycle``, as a share of the peak.
Source: Smith & Topin 2018, arXiv:1708.07120, as ``torch.optim.lr_scheduler.OneCycleLR`` has it."""


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    """Return the rate of step ``step``, counted from 0, of the stage's ``num_steps``."""
    if stage.schedule == "constant":
        return stage.peak_rate
    rising = stage.warm_up * num_steps if stage.schedule == "one_cycle" else 0.0
    if step < rising:
        return stage.peak_rate * _between(_FIRST, 1.0, step / rising)
    return stage.peak_rate * _between(1.0, FINAL, (step - rising) / max(num_steps - rising, 1.0))


def _between(start: float, end: float, share: float) -> float:
    """Go from ``start`` to ``end`` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
