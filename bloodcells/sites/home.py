"""What the training lab's pictures look like, and how far others lie from that.

A store is judged by the median of each ruler over its pictures: one odd picture moves it little.
Distances count in spreads of single pictures at home; the threshold is what home stores reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from bloodcells.sites.rulers import RULERS, Measures

MIN_IMAGES: Final = 20
"""With fewer pictures nothing is said about where a store comes from."""

STORE_SIZE: Final = 100
"""Pictures of the stores that the threshold is learned from."""

FALSE_ALARMS: Final = 0.001
"""Share of such home stores that lie beyond the largest tolerated distance, before the margin."""

_MARGIN: Final = 1.25
"""The threshold is this many times as far: home changes a little from day to day."""

_STORES: Final = 2000
_SMALLEST_SPREADS: Final = np.array([0.05, 0.05, 0.05, 0.02, 0.02, 0.02, 0.05])
"""A scanner's pictures may all have one background: lamps differ by a few per cent all the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HomeReference:
    """The training lab, as the rulers see it.

    Attributes:
        centre: median of each ruler over home pictures, ``float64 (7,)``.
        spread: of single pictures, 1.48 times the median absolute deviation, ``float64 (7,)``.
        threshold: the distance beyond which a store is from elsewhere.
        num_images: home pictures that this was learned from.
    """

    centre: Measures
    spread: Measures
    threshold: float
    num_images: int

    @classmethod
    def learn(
        cls, measures: Measures, labels: npt.NDArray[np.int64], *, seed: int = 0
    ) -> HomeReference:
        """Learn what home is, from measures ``(N, 7)`` of home pictures and their classes.

        Stores are drawn with replacement, half of them mixed, half of one class only.
        """
        centre = np.median(measures, axis=0)
        spread = np.maximum(
            1.4826 * np.median(np.abs(measures - centre), axis=0), _SMALLEST_SPREADS
        )
        rng = np.random.default_rng(seed)
        classes = np.unique(labels)
        distances = []
        for number in range(_STORES):
            rows = np.arange(len(labels))
            if number % 2:
                rows = np.flatnonzero(labels == classes[number // 2 % len(classes)])
            store = measures[rng.choice(rows, STORE_SIZE)]
            distances.append(_distance(store, centre, spread))
        return cls(
            centre=centre,
            spread=spread,
            threshold=round(_MARGIN * float(np.quantile(distances, 1 - FALSE_ALARMS)), 4),
            num_images=len(measures),
        )

    def distance(self, measures: Measures) -> float:
        """Return how far a store lies from home, from measures ``(N, 7)`` of its pictures."""
        return _distance(measures, self.centre, self.spread)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "rulers": list(RULERS),
            "centre": [round(float(value), 6) for value in self.centre],
            "spread": [round(float(value), 6) for value in self.spread],
            "threshold": self.threshold,
            "num_images": self.num_images,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from :meth:`to_dict`'s result.

        Raises:
            ValueError: it is of other rulers than these.
        """
        if tuple(values["rulers"]) != RULERS:
            raise ValueError(f"home was measured with the rulers {values['rulers']}")
        return cls(
            centre=np.array(values["centre"], np.float64),
            spread=np.array(values["spread"], np.float64),
            threshold=float(values["threshold"]),
            num_images=int(values["num_images"]),
        )


def _distance(measures: Measures, centre: Measures, spread: Measures) -> float:
    """Return the root mean square over the rulers of how far the medians lie, in spreads."""
    apart = (np.median(measures, axis=0) - centre) / spread
    return float(np.sqrt(np.mean(apart**2)))
