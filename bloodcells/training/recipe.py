"""How a classifier is trained: a recipe is data, a list of stages and what they share.

Frozen dataclasses that read and write JSON and are kept in the bundle's facts. No code of training
is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from bloodcells.augment import Augmentation
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess, Tone

OPTIMIZERS: Final[dict[str, tuple[float, float]]] = {
    "lion": (3e-4, 0.05),
    "adam": (1e-3, 0.0),
    "adamw": (1e-3, 0.02),
}
"""Peak learning rate and weight decay of each optimizer, by default.

Lion takes steps of one size, so its rate is 3 to 10 times lower and its decay as much higher than
AdamW's. Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms",
arXiv:2302.06675, section 5. Adam's decay is an L2 penalty on the loss, so it starts at none.
"""

AUTO: Final = "auto"
"""The model of a recipe that names none: what suits the cluster is chosen when training starts."""

SCHEDULES: Final = ("constant", "cosine", "one_cycle")
METRICS: Final = ("val_accuracy", "val_macro_f1", "val_loss")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of fine-tuning.

    Attributes:
        name: for people.
        unfreeze: what is trained: ``head``, ``blocks:N`` (the head and the last N blocks),
            ``keras:N`` (the published method's count of layers), ``all``; see ``stages``.
        epochs: most passes over the training images.
        patience: epochs without a better validation figure after which the stage ends; ``None``
            for never.
        optimizer: a key of ``OPTIMIZERS``.
        learning_rate, weight_decay: the peak of the schedule, and the decay; by default the
            optimizer's.
        schedule: ``constant``; ``cosine``, falling from the peak; ``one_cycle``, rising first.
        warm_up: share of the stage's steps in which the rate of ``one_cycle`` rises.
        train_batch_norm: whether batch norm learns and gathers statistics; frozen otherwise.
        averaging: decay a step of the moving average of weights that is validated and kept; 0 for
            none.
        coarse: share of the epochs, from the first, that see pictures of two thirds the side: they
            cost half as much (measured: 90 instead of 45 images/s a core).
            Source: Tan & Le 2021, EfficientNetV2, arXiv:2104.00298, section 4.
        augment: how far augmentation goes in this stage, as a share of the recipe's.
        keep_last: whether the last epoch's weights are handed on, not those of the best one. For a
            stage that learns what validation images, which are of home, do not ask.
        recall: share of the weights that training began from which is mixed into the stage's best
            weights when it ends; see ``recalling``. For a stage that trains everything; idle where
            the first weights were random.
    """

    name: str
    unfreeze: str = "all"
    epochs: int = 1
    patience: int | None = None
    optimizer: str = "lion"
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str = "one_cycle"
    warm_up: float = 0.15
    train_batch_norm: bool = True
    averaging: float = 0.0
    coarse: float = 0.0
    augment: float = 1.0
    keep_last: bool = False
    recall: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        require_one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        require_one_of("schedule", self.schedule, SCHEDULES)
        for name in ("warm_up", "averaging", "coarse", "augment", "recall"):
            _require_share(name, getattr(self, name))
        if self.recall and not (self.unfreeze == "all" and self.train_batch_norm):
            raise ConfigurationError(
                f"stage {self.name}: recall is for a stage that trains everything, batch norm too"
            )
        if self.keep_last and self.patience is not None:
            raise ConfigurationError(f"stage {self.name}: give patience or keep_last, not both")
        if self.epochs < 1:
            raise ConfigurationError(f"stage {self.name}: epochs must be 1 or more")
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(f"stage {self.name}: patience must be 1 or more, or none")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 10:
                raise ConfigurationError(f"stage {self.name}: {name} {value} cannot be meant")

    @property
    def num_coarse(self) -> int:
        """How many epochs, from the first, see coarse pictures."""
        return int(self.coarse * self.epochs)

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the schedule."""
        given = self.learning_rate
        return OPTIMIZERS[self.optimizer][0] if given is None else given

    @property
    def decay(self) -> float:
        """The weight decay."""
        given = self.weight_decay
        return OPTIMIZERS[self.optimizer][1] if given is None else given

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with every default filled in."""
        return asdict(self) | {"learning_rate": self.peak_rate, "weight_decay": self.decay}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        model: the architecture (see ``models``), or ``AUTO``.
        stages: one after the other, each from the best weights of the one before.
        batch_size: images in a step, over all workers.
        balance: 0 shows every image once an epoch; 1 upsamples all classes to the largest; between,
            classes count in proportion to ``images ** (1 - balance)``.
        class_weights: whether the loss of a class is weighted by the inverse of how often it is
            shown. Idle where ``balance`` is 1.
        label_smoothing: share of the target spread over all classes.
        dropout: probability before the dense layer.
        metric: the validation figure that chooses an epoch; of equal ones the lower loss wins.
        augmentation: how images are varied.
        teaching: with teachers, share of a picture's target that is what they say of it, the rest
            being its label.
        tone: whether every image is measured against its own background; see ``imaging.Tone``.
        seed: of everything that is drawn.
    """

    model: str = AUTO
    stages: tuple[Stage, ...] = field(default_factory=lambda: _default_stages())
    batch_size: int = 64
    balance: float = 0.5
    class_weights: bool = False
    label_smoothing: float = 0.05
    dropout: float = 0.2
    metric: str = "val_accuracy"
    augmentation: Augmentation = field(default_factory=Augmentation)
    teaching: float = 0.0
    tone: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.stages:
            raise ConfigurationError("--recipe: a recipe needs at least one stage")
        if self.batch_size < 2:
            raise ConfigurationError(f"batch_size {self.batch_size}: give 2 or more")
        if self.seed < 0:
            raise ConfigurationError(f"--seed {self.seed}: give 0 or more")
        require_one_of("metric", self.metric, METRICS)
        for name in ("balance", "label_smoothing", "dropout", "teaching"):
            _require_share(name, getattr(self, name))

    @property
    def has_idle_weights(self) -> bool:
        """Whether class weights are asked for where balancing has made them all one."""
        return self.class_weights and self.balance == 1

    def without_recall(self) -> Recipe:
        """Return the recipe for weights that are random at first: there is nothing to recall."""
        return replace(self, stages=tuple(replace(stage, recall=0.0) for stage in self.stages))

    def preprocess(self, size: int, crop: float) -> Preprocess:
        """Return how a model of this recipe sees images."""
        return Preprocess(size=size, crop=crop, tone=Tone() if self.tone else None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with every default filled in."""
        stages = [stage.to_dict() for stage in self.stages]
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"stages": stages, "augmentation": self.augmentation.to_dict()}

    def changed(
        self,
        *,
        model: str | None = None,
        optimizer: str | None = None,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> Recipe:
        """Return the recipe with what the command line asks for.

        Args:
            model: instead of the recipe's.
            seed: likewise.
            optimizer: for every stage, with that optimizer's own rate and decay where it differs
                from the stage's.
            epochs: for the longest stage; the others keep their share of it, at least one.
        """
        stages = self.stages
        if optimizer is not None:
            require_one_of("optimizer", optimizer, tuple(OPTIMIZERS))
            stages = tuple(
                stage
                if stage.optimizer == optimizer
                else replace(stage, optimizer=optimizer, learning_rate=None, weight_decay=None)
                for stage in stages
            )
        if epochs is not None:
            if epochs < 1:
                raise ConfigurationError(f"--epochs {epochs}: give 1 or more")
            longest = max(stage.epochs for stage in stages)
            stages = tuple(
                replace(stage, epochs=max(1, round(stage.epochs * epochs / longest)))
                for stage in stages
            )
        return replace(
            self,
            model=self.model if model is None else model,
            seed=self.seed if seed is None else seed,
            stages=stages,
        )


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that plain values describe, as :meth:`Recipe.to_dict` gives them."""
    known = {f.name for f in fields(Recipe)}
    if unknown := set(values) - known:
        raise ConfigurationError(
            f"a recipe has no {min(unknown)}; it has {', '.join(sorted(known))}"
        )
    given = dict(values)
    if "stages" in given:
        given["stages"] = tuple(Stage(**stage) for stage in given["stages"])
    if isinstance(given.get("augmentation"), str):
        given["augmentation"] = Augmentation.parse(given["augmentation"])
    elif "augmentation" in given:
        given["augmentation"] = Augmentation(**given["augmentation"])
    return Recipe(**given)


def _default_stages() -> tuple[Stage, ...]:
    return (
        Stage(name="robust", epochs=40, averaging=0.995, coarse=0.5),
        # What the pictures of home look like, without forgetting what others may look like.
        Stage(name="home", epochs=4, learning_rate=5e-5, averaging=0.99, augment=0.6, recall=0.2),
    )


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is none of those known.

    Raises:
        ConfigurationError: names the flag or field, the value and what to choose from.
    """
    if value not in known:
        raise ConfigurationError(f"--{name} {value}: choose one of {', '.join(known)}")


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name} {value}: give 0 to 1")
