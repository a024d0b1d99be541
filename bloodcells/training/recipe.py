"""How a classifier is trained: one frozen dataclass, kept in the bundle's facts. No code of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from bloodcells.augment import Augmentation
from bloodcells.errors import ConfigurationError
from bloodcells.models import DEFAULT_MODEL

OPTIMIZERS: Final[dict[str, tuple[float, float]]] = {"lion": (3e-4, 0.05), "adamw": (1e-3, 0.02)}
"""Peak learning rate and weight decay of each optimizer, by default.

Lion takes steps of one size, so its rate is 3 to 10 times lower and its decay as much higher than
AdamW's. Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms",
arXiv:2302.06675, section 5.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        model: the architecture, as timm calls it; starts from ImageNet weights where there are any.
        optimizer: a key of ``OPTIMIZERS``.
        epochs: passes over the training images, the smaller classes upsampled.
        batch_size: images in a step, over all workers.
        learning_rate, weight_decay: the peak of the one-cycle schedule, and the decay; by default
            the optimizer's.
        warm_up: share of all steps in which the rate rises.
        coarse: share of the epochs, from the first, that see pictures of two thirds the side: they
            cost half as much (measured: 90 instead of 45 images/s a core).
            Source: Tan & Le 2021, EfficientNetV2, arXiv:2104.00298, section 4.
        balance: 0 shows every image once an epoch; 1 shows all classes equally often; between,
            classes count in proportion to ``images ** (1 - balance)``.
        label_smoothing: share of the target spread over all classes.
        dropout: probability before the dense layer.
        averaging: decay a step of the moving average of weights that is kept in the end.
        augmentation: how images are varied.
        seed: of everything that is drawn.
    """

    model: str = DEFAULT_MODEL
    optimizer: Literal["lion", "adamw"] = "lion"
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float | None = None
    warm_up: float = 0.15
    coarse: float = 0.6
    balance: float = 0.5
    label_smoothing: float = 0.05
    dropout: float = 0.2
    averaging: float = 0.995
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.optimizer not in OPTIMIZERS:
            raise ConfigurationError(
                f"--optimizer {self.optimizer}: choose one of {', '.join(OPTIMIZERS)}"
            )
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigurationError("--epochs must be 1 or more, and the batch size 2 or more")
        for name in ("warm_up", "coarse", "balance", "label_smoothing", "dropout", "averaging"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} {getattr(self, name)}: give 0 to 1")

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the schedule."""
        return self.learning_rate or OPTIMIZERS[self.optimizer][0]

    @property
    def decay(self) -> float:
        """The weight decay."""
        given = self.weight_decay
        return OPTIMIZERS[self.optimizer][1] if given is None else given

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with every default filled in."""
        return asdict(self) | {"learning_rate": self.peak_rate, "weight_decay": self.decay}
