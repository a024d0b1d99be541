"""Other laboratories, made of one: what a lab does to all its pictures, drawn at random.

A lab has a camera, a lamp, a stain, a field of view, a focus and a file format of its own, and most
of them differ a little from picture to picture. They are drawn in other terms than the training's
augmentation (camera matrices, gamma curves, frames cut around the cell), so that what copes with
the one is not by that alone fit for the other. Ideas are ranked by these labs, never by real ones.

A third of them are near, as labs of one maker's instruments are; a third are far, with other
colours, another tone curve and a worse optic; a third are veiled: coloured as near ones are, but
thickly stained and out of focus, so that cytoplasm comes close to the nucleus, with cells off the
middle. Models that do equally well on near ones can differ much on the others.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

Kind = Literal["near", "far", "veiled"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

NUM_LABS: Final = 12
"""Of each kind."""

_WHITE: Final = np.array([254.0, 228.0, 202.0])
"""Background of the home lab, which a lab's stain is taken relative to."""


@dataclass(frozen=True, kw_only=True)
class Veil:
    """What a thick stain, stray light and a poor focus do to a picture.

    Attributes:
        saturates: optical density that a channel comes close to and never reaches, ``(3,)``.
        stray: share of the light that did not pass the cell.
        blur_px: standard deviation on the home lab's frame; each picture has 0.5 to 1.5 times it.
    """

    saturates: Floats
    stray: float
    blur_px: float

    @classmethod
    def draw(cls, seed: int) -> Veil:
        """Draw a veil; the same for the same seed."""
        rng = np.random.default_rng([2000, seed])
        own = np.exp(rng.uniform(np.log(0.35), np.log(1.2), 3))
        common = np.exp(rng.uniform(np.log(0.3), 0))
        return cls(
            saturates=0.3 * own + 0.7 * common,
            stray=rng.uniform(0, 0.35),
            blur_px=rng.uniform(1.5, 5),
        )

    def over(self, frame: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return a home picture with the veil over it."""
        sigma = self.blur_px * rng.uniform(0.5, 1.5)
        sharp = np.asarray(frame, np.float64)
        densities = _densities(ndimage.gaussian_filter(sharp, (sigma, sigma, 0)))
        most = self.saturates
        dense = np.where(densities > 0, most * (1 - np.exp(-densities / most)), densities)
        light = self.stray + (1 - self.stray) * np.exp(-dense)
        return Image.fromarray(np.clip(_WHITE * light, 0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Lab:
    """What a simulated lab does to every picture."""

    seed: int
    cuts_around_cells: bool
    field: float
    background: Floats
    unsteadiness: float
    stain: Floats
    camera: Floats
    gamma: float
    saturation: float
    blur: float
    halo: float
    shade: float
    noise: float
    quality: int
    side_px: int
    veil: Veil | None

    @classmethod
    def draw(cls, seed: int, kind: Kind = "near") -> Lab:
        """Draw a lab; the same for the same seed."""
        far = kind == "far"
        rng = np.random.default_rng([1000 + seed, KINDS.index(kind)])
        wide = 1.6 if far else 1.0
        camera = np.eye(3) + rng.normal(0, 0.09 * wide, (3, 3))
        hue, saturation, value = rng.random(), rng.uniform(0, 0.3), rng.uniform(0.5, 1)
        return cls(
            seed=seed,
            cuts_around_cells=bool(rng.random() < 0.5),
            field=float(np.exp(rng.uniform(np.log(0.36 if far else 0.42), 0))),
            background=np.array(colorsys.hsv_to_rgb(hue, saturation, value)),
            unsteadiness=float(rng.choice([0.0, 0.03, 0.12])),
            stain=np.eye(3) * np.exp(rng.normal(-0.15, 0.3 * wide))
            + rng.normal(0, 0.13 * wide, (3, 3)),
            camera=camera / camera.sum(1, keepdims=True),
            gamma=float(np.exp(rng.normal(0, 0.2 * wide))),
            saturation=float(np.clip(rng.normal(0.95, 0.25), 0.3, 1.5)),
            blur=float(rng.choice([0.5, 1, 1.8, 2.5] if far else [0, 0.5, 1, 1.8])),
            halo=float(rng.choice([0, 0, 0.8])),
            shade=float(rng.choice([0, 0.15, 0.4])),
            noise=float(rng.choice([0, 0.02, 0.04] if far else [0, 0.01, 0.03])),
            quality=int(rng.choice([95, 75, 40])),
            side_px=int(rng.choice([70, 100, 150] if far else [120, 200, 256])),
            veil=Veil.draw(seed) if kind == "veiled" else None,
        )

    def picture(self, encoded: bytes, number: int) -> bytes:
        """Return a home picture as this lab would have taken it, as JPEG.

        Args:
            encoded: the home picture.
            number: which of the lab's pictures this is: what varies follows from it.
        """
        rng = np.random.default_rng([self.seed, number])
        frame = Image.open(io.BytesIO(encoded)).convert("RGB")
        seen = self._field_of(frame, rng)
        if self.veil:
            frame = self.veil.over(frame, rng)
        picture = frame.transform(
            (self.side_px, self.side_px), Image.Transform.EXTENT, seen, Image.Resampling.BICUBIC
        )
        colours = self._coloured(np.asarray(picture, np.float64), rng)
        coded = io.BytesIO()
        Image.fromarray(np.clip(np.rint(255 * colours), 0, 255).astype(np.uint8)).save(
            coded, "JPEG", quality=self.quality
        )
        return coded.getvalue()

    def _field_of(
        self, frame: Image.Image, rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Return the square of the frame that is seen: left, top, right, bottom, in px."""
        side = min(frame.size)
        across, down, width = frame.width / 2, frame.height / 2, side * self.field
        if self.cuts_around_cells:
            across, down, cell = _cell_of(np.asarray(frame))
            width = float(np.clip(1.5 * cell * np.exp(rng.normal(0, 0.08)), 0.19 * side, side))
        half = width / 2
        off_px = 0.08 * width if self.veil else 4.0
        across = float(np.clip(across + rng.normal(0, off_px), half, frame.width - half))
        down = float(np.clip(down + rng.normal(0, off_px), half, frame.height - half))
        return across - half, down - half, across + half, down + half

    def _coloured(self, picture: Floats, rng: np.random.Generator) -> Floats:
        light = np.exp(-(_densities(picture) @ self.stain.T) * np.exp(rng.normal(0, 0.08)))
        light = np.clip(light @ self.camera.T, 0.003, 1.2) ** self.gamma
        grey = light.mean(2, keepdims=True)
        lamp = self.background * np.exp(rng.normal(0, self.unsteadiness, 3))
        light = (grey + (light - grey) * self.saturation) * np.clip(lamp, 0.2, 1)
        along = np.linspace(-1, 1, self.side_px)
        left, top = rng.uniform(-1, 1, 2)
        far = np.minimum((along[None] - left) ** 2 + (along[:, None] - top) ** 2, 2)
        light = light * np.maximum(1 - 0.5 * self.shade * far, 0.2)[..., None]
        scale = self.side_px / 256
        light = ndimage.gaussian_filter(light, (self.blur * scale, self.blur * scale, 0))
        around = ndimage.gaussian_filter(light, (3 * scale, 3 * scale, 0))
        light = light + self.halo * (light - around)
        return np.asarray(light + rng.normal(0, self.noise, light.shape))


def _densities(picture: Floats) -> Floats:
    """Return optical densities relative to the home lab's background."""
    return np.asarray(-np.log(np.clip(picture / _WHITE, 1 / 256, 1.05)))


def _cell_of(frame: Pixels) -> tuple[float, float, float]:
    """Return the middle and the size, in px, of the dark thing nearest to a frame's middle."""
    dark = ndimage.gaussian_filter(frame[..., 1].astype(float), 2) < 150
    parts, count = ndimage.label(dark)
    middle = np.array(frame.shape[:2]) / 2
    if not count:
        return middle[1], middle[0], 100.0
    numbers = np.arange(1, count + 1)
    centres = np.array(ndimage.center_of_mass(dark, parts, numbers))
    sizes = ndimage.sum(dark, parts, numbers)
    apart = np.hypot(*(centres - middle).T) - np.sqrt(sizes) / 2 + 1e6 * (sizes < 150)
    rows, columns = ndimage.find_objects((parts == numbers[apart.argmin()]).astype(int))[0]
    size = max(rows.stop - rows.start, columns.stop - columns.start) * 1.25
    return (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2, float(size)
