"""The colour of the light taken out of a picture, and its stain made as dark as at home.

Every picture is measured against its own background: what a microscope's lamp, a camera's white
balance and a slide's glass add is the same all over it. Knows nothing of files and of geometry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from bloodcells.errors import ConfigurationError

BACKGROUND_SHARE: Final = 0.9
"""The background of a channel is brighter than this share of the picture: some of it is seen beside
every cell, and a speck of glare is smaller than the rest."""

_BLOCK: Final = 4
"""Pixels are averaged over squares of this side first: noise is no background."""

_LEVELS: Final = np.arange(256, dtype=np.float64)

_DARKEST: Final = 20.0
"""No background is taken to be darker, in grey levels; a black picture stays black."""


@dataclass(frozen=True, kw_only=True)
class Tone:
    """How a picture's grey levels are mapped, each channel by its own background.

    A level ``v`` becomes ``white * (v / background) ** density``: optical densities, which are
    linear in the amount of a dye (Beer and Lambert), are multiplied by ``density``.

    Attributes:
        white: what a background becomes, in grey levels, 100 to 255.
        density: factor of optical densities, 0.2 to 5; 1 leaves the stain as it is.
    """

    white: float = 235.0
    density: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, low, high in (("white", 100, 255), ("density", 0.2, 5)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigurationError(f"tone {name} must be a number, not {value!r}")
            if not low <= value <= high:
                raise ConfigurationError(f"tone {name} must be {low} to {high}, not {value:g}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build from :meth:`to_dict`'s result.

        Raises:
            ConfigurationError: a field is unknown, missing or out of range.
        """
        if set(fields) != {"white", "density"}:
            raise ConfigurationError(
                f"a tone takes exactly white and density, not {sorted(map(str, fields))}"
            )
        return cls(**fields)

    def apply(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Map a picture, ``uint8 (S, S, 3)`` to the same, RGB."""
        levels = _LEVELS / background(pixels)[:, None]
        if self.density != 1:
            levels **= self.density
        table = np.minimum(self.white * levels + 0.5, 255).astype(np.uint8)
        mapped = np.empty_like(pixels)
        for channel in range(3):
            np.take(table[channel], pixels[..., channel], out=mapped[..., channel])
        return mapped


def background(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the background of a picture, ``uint8 (S, S, 3)``: ``float64 (3,)``, grey levels."""
    blocks = np.asarray(Image.fromarray(pixels).reduce(_BLOCK)).reshape(-1, 3)
    place = int(len(blocks) * BACKGROUND_SHARE)
    level = np.partition(blocks, place, axis=0)[place].astype(np.float64)
    return np.asarray(np.maximum(level, _DARKEST))
