"""What a hyper-parameter search tries: ranges around a recipe, and the settings of each trial.

The settings of a trial are a pure function of the recipe, its seed and the trial's number, so that
a search that was interrupted, or is made longer, needs no state. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from scipy.stats import qmc

from bloodcells.training.recipe import Recipe, Stage

RATE_FACTORS: Final = (0.2, 5.0)
"""Peak learning rates that are tried, as multiples of the recipe's; log-uniform."""

DECAY_FACTORS: Final = (0.1, 10.0)
"""Weight decays that are tried, as multiples of the recipe's; log-uniform."""

DECAYS_OF_NONE: Final = (1e-6, 1e-2)
"""Weight decays that are tried where the recipe has none: Adam's are a penalty on the loss."""

STRENGTHS: Final = (0.0, 2.0)
"""Strengths of augmentation, as :meth:`Augmentation.scaled` takes them; 1 is the recipe's."""

HEAD_SHARE: Final = 1 / 6
"""Share of the epochs in which ``head, then all`` trains the head alone."""

OWN: Final = "the recipe's"
ALL: Final = "all"
HEAD_FIRST: Final = "head, then all"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What one trial tries.

    Attributes:
        learning_rate: peak of the recipe's longest stage; other stages keep their ratio to it.
        weight_decay: of the longest stage, likewise.
        strength: of augmentation, in multiples of the recipe's.
        staging: which stages: ``the recipe's``, ``all`` (one stage) or ``head, then all``.
    """

    learning_rate: float
    weight_decay: float
    strength: float
    staging: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Where a search looks, around one recipe.

    Attributes:
        recipe: the middle of the space, and the first trial. Every trial has as many epochs.
    """

    recipe: Recipe

    @property
    def main_stage(self) -> Stage:
        """The longest stage; of equal ones the last."""
        return max(reversed(self.recipe.stages), key=lambda stage: stage.epochs)

    @property
    def num_epochs(self) -> int:
        """Epochs of a trial that runs to its end, over all its stages."""
        return sum(stage.epochs for stage in self.recipe.stages)

    @property
    def learning_rates(self) -> tuple[float, float]:
        """The lowest and the highest peak rate."""
        low, high = RATE_FACTORS
        return _round(low * self.main_stage.peak_rate), _round(high * self.main_stage.peak_rate)

    @property
    def weight_decays(self) -> tuple[float, float]:
        """The lowest and the highest weight decay."""
        if not (decay := self.main_stage.decay):
            return DECAYS_OF_NONE
        low, high = DECAY_FACTORS
        return _round(low * decay), _round(min(high * decay, 1.0))

    @property
    def stagings(self) -> tuple[str, ...]:
        """The ways to cut the epochs into stages; the recipe's own comes first."""
        own = tuple(stage.unfreeze for stage in self.recipe.stages)
        names = [OWN, ALL, HEAD_FIRST]
        if own == ("all",):
            names = [ALL, HEAD_FIRST]
        elif own == ("head", "all"):
            names = [OWN, ALL]
        return tuple(names if self.num_epochs > 1 else [n for n in names if n != HEAD_FIRST])

    def to_dict(self) -> dict[str, Any]:
        """Return the ranges as plain values."""
        return {
            "learning_rate": list(self.learning_rates),
            "weight_decay": list(self.weight_decays),
            "strength": list(STRENGTHS),
            "staging": list(self.stagings),
            "epochs": self.num_epochs,
        }

    def configuration(self, number: int) -> Configuration:
        """Return what trial ``number`` tries, counted from 1.

        The first is the recipe as it is, so that the best of a study is never worse than it. The
        others are points of a scrambled Sobol sequence, which leaves smaller gaps than independent
        draws. Source: Bergstra & Bengio 2012, J. Mach. Learn. Res. 13:281-305, section 5.
        """
        main = self.main_stage
        if number == 1:
            return Configuration(
                learning_rate=main.peak_rate,
                weight_decay=main.decay,
                strength=1.0,
                staging=self.stagings[0],
            )
        points = qmc.Sobol(4, scramble=True, rng=self.recipe.seed)
        if number > 2:
            points.fast_forward(number - 2)
        rate, decay, strength, staging = points.random(1)[0]
        return Configuration(
            learning_rate=_log_uniform(rate, *self.learning_rates),
            weight_decay=_log_uniform(decay, *self.weight_decays),
            strength=_round(STRENGTHS[0] + (STRENGTHS[1] - STRENGTHS[0]) * strength),
            staging=self.stagings[int(staging * len(self.stagings))],
        )

    def recipe_of(self, chosen: Configuration) -> Recipe:
        """Return the recipe with what a trial tries."""
        main = self.main_stage
        stages = self._stages(chosen.staging)
        rate = chosen.learning_rate / main.peak_rate if main.peak_rate else 1.0
        decay = chosen.weight_decay / main.decay if main.decay else None
        return replace(
            self.recipe,
            stages=tuple(
                replace(
                    stage,
                    learning_rate=_round(rate * stage.peak_rate),
                    weight_decay=chosen.weight_decay
                    if decay is None
                    else _round(decay * stage.decay),
                )
                for stage in stages
            ),
            augmentation=self.recipe.augmentation
            if chosen.strength == 1
            else self.recipe.augmentation.scaled(chosen.strength),
        )

    def num_head_epochs(self) -> int:
        """Return how many epochs ``head, then all`` gives to the head alone."""
        return max(1, round(HEAD_SHARE * self.num_epochs))

    def _stages(self, staging: str) -> tuple[Stage, ...]:
        if staging == self.stagings[0]:
            return self.recipe.stages
        everything = replace(self.main_stage, name="all", unfreeze="all", epochs=self.num_epochs)
        if staging == ALL:
            return (everything,)
        num = self.num_head_epochs()
        head = replace(
            everything, name="head", unfreeze="head", epochs=num, averaging=0.0, recall=0.0
        )
        return (
            replace(head, train_batch_norm=False),
            replace(everything, epochs=self.num_epochs - num),
        )


def _log_uniform(share: float, low: float, high: float) -> float:
    return _round(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))


def _round(value: float) -> float:
    """Return a number that reads as it is: three digits are finer than any of this matters."""
    return float(f"{value:.3g}")
