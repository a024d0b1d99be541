"""Which part of a picture is kept, and how it becomes the size that a model sees.

Knows nothing of files, and of colour only that a tone may be asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from bloodcells.errors import ConfigurationError, ImageError
from bloodcells.imaging.tone import Tone

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS: Final = 2**25
"""Largest image that is decoded: 33,554,432 px, about 5,800 x 5,800, 100 MB as RGB."""

LARGEST_CROP: Final = 2.0
"""A picture is mirrored at its edges to at most twice its shorter side."""

_REDUCTIONS: Final = (8, 4, 2, 1)
"""The scales at which libjpeg-turbo has a fast inverse DCT: a PBC JPEG takes 0.74 ms in full,
0.38 ms at 1/2 and 0.33 ms at 1/4, but 0.40 ms at 3/8 and 0.83 ms at 3/4."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a picture of any size becomes the square that a model sees. It travels with the bundle.

    Attributes:
        size: side of the square that comes out, in px.
        crop: side of the centred square that is kept, as a fraction of the shorter side, in (0, 2];
            above 1 the picture is mirrored at its edges, so that a cell comes out smaller.
        tone: how its colours are mapped; ``None`` leaves them as they are.
    """

    size: int = 96
    crop: float = 1.0
    tone: Tone | None = None

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise ConfigurationError(f"preprocess size must be a whole number, not {self.size!r}")
        if not 8 <= self.size <= 1024:
            raise ConfigurationError(f"preprocess size must be 8 to 1024 px, not {self.size}")
        if isinstance(self.crop, bool) or not isinstance(self.crop, (int, float)):
            raise ConfigurationError(f"preprocess crop must be a number, not {self.crop!r}")
        if not 0 < self.crop <= LARGEST_CROP:
            raise ConfigurationError(
                f"preprocess crop must be above 0 and at most {LARGEST_CROP:g}, not {self.crop}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; a tone only where there is one."""
        fields: dict[str, Any] = {"size": self.size, "crop": self.crop}
        return fields if self.tone is None else fields | {"tone": self.tone.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build from :meth:`to_dict`'s result.

        Raises:
            ConfigurationError: a field is unknown, missing or out of range.
        """
        if set(fields) - {"tone"} != {"size", "crop"}:
            raise ConfigurationError(
                "preprocess takes size, crop and, where there is one, tone, not "
                f"{sorted(map(str, fields))}"
            )
        tone = Tone.from_dict(fields["tone"]) if "tone" in fields else None
        return cls(size=fields["size"], crop=fields["crop"], tone=tone)

    def window(self, width_px: int, height_px: int) -> Window:
        """Return which square of a ``width_px`` x ``height_px`` image is kept, and how reduced."""
        return _window(self.size, self.crop, width_px, height_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A centred square of a picture that is reduced by a whole factor.

    Attributes:
        reduction: the factor; the other lengths are in px of the reduced picture.
        left: columns to its left; less than 0 where it reaches beyond the picture.
        top: rows above it, likewise.
        side: its width and height.
    """

    reduction: int
    left: int
    top: int
    side: int

    def cut(self, raster: Raster) -> Pixels:
        """Return a copy of this part of a picture, ``(side, side, 3)``, reduced to its scale."""
        r = self.reduction // raster.reduction
        rows = self._within(self.top, raster.pixels.shape[0] // r)
        columns = self._within(self.left, raster.pixels.shape[1] // r)
        inside = raster.pixels[rows.start * r : rows.stop * r, columns.start * r : columns.stop * r]
        square = np.array(inside, order="C")
        if r > 1:
            square = np.array(Image.fromarray(square).reduce(r))
        if square.shape[:2] == (self.side, self.side):
            return square
        beyond = [
            (part.start - start, start + self.side - part.stop)
            for part, start in ((rows, self.top), (columns, self.left))
        ]
        return np.pad(square, [*beyond, (0, 0)], mode="symmetric")

    def _within(self, start: int, length: int) -> range:
        return range(max(0, start), min(start + self.side, length))


@functools.lru_cache(maxsize=256)  # asked for twice an image, and an archive has few sizes
def _window(size: int, crop: float, width_px: int, height_px: int) -> Window:
    side_px = max(1, round(crop * min(width_px, height_px)))
    r = next((r for r in _REDUCTIONS if side_px // r >= size), 1)
    side = side_px // r
    return Window(
        reduction=r,
        left=(width_px - side * r + r) // (2 * r),
        top=(height_px - side * r + r) // (2 * r),
        side=side,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """A decoded picture, upright.

    Attributes:
        pixels: ``uint8 (H, W, 3)``, RGB, 0-255; may be a read-only view.
        width_px: width of the whole picture, not reduced.
        height_px: its height.
        reduction: by how much its decoder has reduced it already; H and W are rounded up.
        profile: the ICC profile of its colours; ``None`` for sRGB.
    """

    pixels: Pixels
    width_px: int
    height_px: int
    reduction: int = 1
    profile: bytes | None = None

    @classmethod
    def whole(cls, pixels: Pixels, profile: bytes | None = None) -> Self:
        """Build from the pixels of a picture that is not reduced."""
        height, width = pixels.shape[:2]
        return cls(pixels=pixels, width_px=width, height_px=height, profile=profile)


def check_size(width_px: int, height_px: int) -> None:
    """Refuse dimensions that a header claims, before anything is allocated for them.

    Raises:
        ImageError: ``undecodable`` if there are no pixels, ``too_large`` above ``MAX_PIXELS``.
    """
    if width_px < 1 or height_px < 1:
        raise ImageError("undecodable", f"the image has no pixels: {width_px} x {height_px} px")
    if width_px * height_px > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"{width_px} x {height_px} px are {width_px * height_px:,} pixels; "
            f"the limit is {MAX_PIXELS:,}",
        )


def resize(squares: Pixels, size: int) -> Pixels:
    """Resize ``uint8 (N, S, S, 3)``, contiguous and writable, to ``(N, size, size, 3)``.

    Antialiased. Each image's result is the same in any batch: integer arithmetic in one thread
    (AVX2 where there is), whatever ``torch.set_num_threads`` says. One image of 144 px to 96 px
    takes 49 µs, in a batch of 32 it takes 29 µs; Pillow's resize takes 240 µs.
    """
    if squares.shape[1] == size:
        return squares
    import torch  # here: a driver imports this room for its settings, and never resizes
    from torch.nn import functional

    # Reshaping, unlike an index of None, gives a batch axis of one a stride by which torch sees
    # channels-last pixels; else it takes 70 µs.
    nchw = torch.from_numpy(squares.reshape(squares.shape)).permute(0, 3, 1, 2)
    resized = functional.interpolate(nchw, size=(size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())
