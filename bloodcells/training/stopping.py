"""Which epoch of a stage is kept, and when to stop waiting for a better one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(kw_only=True)
class EarlyStopping:
    """Watches one validation figure over a stage.

    Attributes:
        metric: ``val_accuracy``, ``val_macro_f1`` or ``val_loss``.
        patience: epochs without a better figure that are waited for; ``None`` for ever.
        keeps_last: every epoch is taken for the best so far, whatever its figure.
        best_epoch: the best epoch so far, from 1; 0 is what the stage began with, -1 is none.
        best: its figure, the higher the better, and its loss with the sign turned.
        waited: epochs since.
    """

    metric: str
    patience: int | None
    keeps_last: bool = False
    best_epoch: int = -1
    best: tuple[float, float] = (float("-inf"), float("-inf"))
    waited: int = 0

    def see(self, epoch: int, figures: dict[str, float]) -> bool:
        """Take in an epoch's figures; returns whether it is the best so far.

        Of epochs with equal figures the one with the lower validation loss is better. A figure that
        is not a number is never the best.
        """
        sign = -1.0 if self.metric == "val_loss" else 1.0
        found = (sign * figures[self.metric], -figures["val_loss"])
        is_best = all(value == value for value in found) and (
            self.keeps_last or found > tuple(self.best)
        )
        if is_best:
            self.best, self.best_epoch, self.waited = found, epoch, 0
        else:
            self.waited += 1
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return self.patience is not None and self.waited >= self.patience

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``EarlyStopping(**values)`` goes on from there."""
        return asdict(self)
