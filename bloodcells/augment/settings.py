"""How far an image may be changed while its cell keeps its type: names, ranges, presets, text.

Knows nothing of pixels or of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Self

from bloodcells.errors import ConfigurationError

MILDNESS: Final = 0.4
"""How far the changes of a mildly changed image go, of the others'."""

_RANGES: Final[Mapping[str, tuple[float, float, str]]] = {
    "flips": (0, 0.5, "the chance of each flip"),
    "mirror": (0, 0.5, "the chance of a flip left to right"),
    "rotation": (0, 180, "degrees each way"),
    "zoom": (1, 4, "a factor each way"),
    "shift": (0, 0.45, "shares of the side"),
    "stain": (0, 1, "a standard deviation of optical densities"),
    "lamp": (0, 1, "a standard deviation of optical densities"),
    "density": (0, 1, "a standard deviation of the logarithm of a factor"),
    "power": (0, 1, "a standard deviation of the logarithm of a power"),
    "colour": (0, 1, "shares of brightness, contrast and saturation"),
    "shade": (0, 0.5, "shares of the light"),
    "blur": (0, 4, "px"),
    "sharpen": (0, 2, "shares of the difference to the surroundings"),
    "noise": (0, 50, "grey levels"),
    "randaugment": (0, 16, "operations an image"),
    "magnitude": (0, 10, "on RandAugment's scale"),
    "magnitude_spread": (0, 10, "on RandAugment's scale"),
    "augmix": (0, 10, "AugMix's severity"),
    "cutmix": (0, 10, "alpha of a beta distribution"),
    "mixup": (0, 10, "alpha of a beta distribution"),
    "strangers": (0, 0.5, "a share of the images"),
    "mild": (0, 1, "a share of the images"),
}
_BARE: Final = {"flips": "0.5", "mirror": "0.5", "rotation": "180"}
"""What a name without a number means; the others need one."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far each change may go; every image draws its own within that.

    The fields' defaults are the preset ``default``. A cell has no up or down, so its rotations and
    flips are unlimited. Stains and lamps differ between days and labs: they are varied in optical
    density, where a dye's amount is linear (Beer and Lambert). Source: Ruifrok & Johnston 2001,
    Anal. Quant. Cytol. Histol. 23:291-299; Tellez et al. 2019, Med. Image Anal. 58:101544 (why
    stain augmentation).

    Attributes:
        flips: chance that an image is flipped left to right, and likewise top to bottom.
        mirror: chance that it is flipped left to right only; give this or ``flips``.
        rotation: turned by up to this many degrees each way; 180 is any angle.
        zoom: the shown field is up to this factor smaller or larger, log-uniform.
        shift: its centre moves by up to this share of its side, along each axis, each way.
        stain: standard deviation of the 3 x 3 mix of optical densities around the identity.
        lamp: standard deviation of the offset of each channel's optical density (a gain of light).
        density: standard deviation of the logarithm of a factor of all optical densities.
        power: standard deviation of the logarithm of a power that optical densities are raised to,
            after the picture's tone is evened; see :func:`bloodcells.augment.toned`.
        colour: brightness, contrast and saturation are multiplied by 1 plus or minus up to this,
            and hues turned by up to a tenth of it as a share of the circle (0.5: 18 degrees).
        shade: light is lost by up to this share at the distance of half a side from the light's
            centre; half the images get some.
        blur: the widest Gaussian blur, standard deviation in px; half the images get one.
        sharpen: up to this much of the difference to the surroundings is added; to a quarter of
            the images.
        noise: the largest standard deviation of a noise of every pixel, in grey levels; 40 % of
            the images get some.
        randaugment: how many operations RandAugment applies to each image; 0 is off.
        magnitude: of them, mean, from 0 to 10 (10 is the maximum of each operation). Source:
            Cubuk et al. 2020, "RandAugment", arXiv:1909.13719, section 3.1.
        magnitude_spread: standard deviation of the magnitude, drawn for each operation.
        augmix: severity of AugMix, a whole number from 1 to 10; 0 is off. Source: Hendrycks et al.
            2020, arXiv:1912.02781.
        cutmix: alpha of the share that CutMix pastes from another image; 0 is off. Source: Yun et
            al. 2019, arXiv:1905.04899.
        mixup: alpha of the share that MixUp blends in of another image; 0 is off. With both, each
            image gets one of the two. Source: Zhang et al. 2018, arXiv:1710.09412.
        strangers: share of the images that become pictures of no cell type; their targets are
            uniform.
        mild: share of the images whose changes go only ``MILDNESS`` as far, so that home stays
            among what a model learns.
    """

    flips: float = 0.5
    mirror: float = 0.0
    rotation: float = 180.0
    zoom: float = 1.8
    shift: float = 0.08
    stain: float = 0.3
    lamp: float = 0.25
    density: float = 0.35
    power: float = 0.0
    colour: float = 0.6
    shade: float = 0.4
    blur: float = 1.5
    sharpen: float = 0.8
    noise: float = 12.0
    randaugment: int = 0
    magnitude: float = 0.0
    magnitude_spread: float = 0.0
    augmix: int = 0
    cutmix: float = 0.0
    mixup: float = 0.0
    strangers: float = 0.08
    mild: float = 0.3

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigurationError(f"--augment {name}={value!r}: give a number")
            if not low <= value <= high:
                raise ConfigurationError(
                    f"--augment {name}={value:g}: give {low:g} to {high:g} ({meaning})"
                )
        for name in ("randaugment", "augmix"):
            value = getattr(self, name)
            if value != int(value):
                raise ConfigurationError(f"--augment {name}={value:g}: give a whole number")
            object.__setattr__(self, name, int(value))
        if self.flips and self.mirror:
            raise ConfigurationError(
                "--augment: flips are left to right and top to bottom, mirror is left to right "
                "only; give one of the two"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what stands on a command line.

        Names with their numbers, separated by commas: ``flips,rotation=40,zoom=1.2``. What is not
        named is off. A preset (``default``, ``veiled``, ``report``, ``none``) may stand first, and
        the names after it change it. ``randaugment=4:3:1.5`` gives operations, magnitude and its
        spread.

        Raises:
            ConfigurationError: a name is unknown, twice there or lacks its number, or a number is
                out of range.
        """
        words = [word.strip() for word in text.split(",")]
        values = dict(_PRESETS["none"])
        if words[0] in _PRESETS:
            values = dict(_PRESETS[words.pop(0)])
        named: set[str] = set()
        for word in words:
            name, _, number = word.partition("=")
            if name not in _RANGES or name.startswith("magnitude"):
                known = [each for each in _RANGES if not each.startswith("magnitude")]
                raise ConfigurationError(
                    f"--augment: there is no {name!r}; choose of {', '.join(known)}, after one of "
                    f"the presets {', '.join(_PRESETS)} or without"
                )
            if name in named:
                raise ConfigurationError(f"--augment: {name} is there twice")
            named.add(name)
            values.update(_numbers(name, number or _BARE.get(name, "")))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; ``Augmentation(**fields)`` takes them back."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the text that :meth:`parse` reads back to the same settings."""
        words = []
        for name, nothing in _PRESETS["none"].items():
            value = getattr(self, name)
            if name.startswith("magnitude") or value == nothing:
                continue
            numbers = [value]
            if name == "randaugment":
                numbers += [self.magnitude, self.magnitude_spread]
            words.append(f"{name}=" + ":".join(repr(n).removesuffix(".0") for n in numbers))
        return ",".join(words) or "none"

    def milder(self) -> Self:
        """Return the settings of the mildly changed images; as many of them are strangers."""
        return replace(self.scaled(MILDNESS), strangers=self.strangers)

    def scaled(self, strength: float) -> Self:
        """Return settings that go ``strength`` times as far: 1 as they are, 0 nothing at all.

        A zoom is raised to that power, a severity rounded up; nothing goes beyond its range. How
        many operations RandAugment applies stays as it is, their magnitude is multiplied; the share
        of mildly changed images stays too.

        Raises:
            ConfigurationError: ``strength`` is negative or no number.
        """
        if not 0 <= strength < math.inf:
            raise ConfigurationError(f"augmentation strength {strength}: give 0 or more")
        if strength == 0:
            return replace(self, **_PRESETS["none"])
        changed: dict[str, Any] = {}
        for name, (_, high, _) in _RANGES.items():
            value = getattr(self, name)
            if name == "zoom":
                changed[name] = min(high, value**strength)
            elif name == "augmix":
                changed[name] = min(int(high), math.ceil(value * strength))
            elif name not in ("randaugment", "mild"):
                changed[name] = min(high, value * strength)
        return replace(self, **changed)


_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "default": {item.name: item.default for item in fields(Augmentation)},
    "veiled": {item.name: item.default for item in fields(Augmentation)}
    | {"power": 0.5, "blur": 2.5, "shift": 0.15},
    "report": {name: low for name, (low, _, _) in _RANGES.items()}
    | {
        "mirror": 0.5,
        "rotation": 40.0,
        "zoom": 1.2,
        "shift": 0.2,
        "randaugment": 4,
        "magnitude": 3.0,
        "magnitude_spread": 1.5,
    },
    "none": {name: low for name, (low, _, _) in _RANGES.items()},
}
"""``veiled`` adds what thick stains and poor optics do (docs/other-labs.md has what it gave);
``report`` is the published method's: rotation 40 degrees, shifts 0.2, zoom 0.2, horizontal flip,
then RandAugment of 4 operations with magnitude 0.3 +- 0.15 of the whole range."""


def _numbers(name: str, text: str) -> dict[str, float]:
    """Return the fields that ``name=text`` sets."""
    names = ("randaugment", "magnitude", "magnitude_spread") if name == "randaugment" else (name,)
    parts = text.split(":")
    if not text or len(parts) > len(names) or (name == "randaugment" and len(parts) == 1):
        form = "OPERATIONS:MAGNITUDE[:SPREAD]" if name == "randaugment" else "NUMBER"
        raise ConfigurationError(f"--augment {name}={text}: write {name}={form}")
    try:
        given = [float(part) for part in parts]
    except ValueError:
        raise ConfigurationError(f"--augment {name}={text}: {text!r} is no number") from None
    return dict(zip(names, given, strict=False)) | (
        {"magnitude_spread": 0.0} if len(given) == 2 else {}
    )
