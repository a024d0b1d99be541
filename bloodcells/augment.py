"""Training-time augmentation: every image of a batch gets parameters of its own, drawn anew.

Works on whole batches of tensors, on whatever device they lie. Knows nothing of files, labels or
models, and is used by training only: what scores an image never passes through here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_BLUR_RADIUS = 3
"""Half the width of the blur kernel in px: three times the widest sigma that is drawn."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far an image may be changed while its cell keeps its type.

    A cell has no up or down, so rotations and flips are unlimited. Stains and lamps differ between
    days and labs: colour is varied in optical density, where a dye's amount is linear (Beer and
    Lambert). Source: Ruifrok & Johnston 2001, Anal. Quant. Cytol. Histol. 23:291-299; Tellez et al.
    2019, Med. Image Anal. 58:101544 (why stain augmentation).

    Attributes:
        zoom: the shown field is this factor up or down of the nominal crop, log-uniform.
        shift: the field's centre moves by up to this fraction of its side, each way.
        stain: standard deviation of the 3 x 3 mix of optical densities around the identity.
        lamp: standard deviation of the offset of each channel's optical density (a gain of light).
        blur: the widest Gaussian blur, standard deviation in px; half the images get one.
    """

    zoom: float = 1.25
    shift: float = 0.06
    stain: float = 0.07
    lamp: float = 0.06
    blur: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.zoom <= 4:
            raise ValueError(f"zoom must lie between 1 and 4, not {self.zoom}")
        if not 0 <= self.shift < 0.5:
            raise ValueError(f"shift must lie between 0 and 0.5 of the field, not {self.shift}")
        if min(self.stain, self.lamp) < 0 or max(self.stain, self.lamp) > 1:
            raise ValueError("stain and lamp must lie between 0 and 1")
        if not 0 <= self.blur <= _BLUR_RADIUS / 2:
            raise ValueError(f"blur must lie between 0 and {_BLUR_RADIUS / 2} px, not {self.blur}")


def augment(
    pixels: Tensor, size: int, settings: Augmentation, generator: torch.Generator
) -> Tensor:
    """Draw one changed view of every image.

    Args:
        pixels: ``uint8 (N, M, M, 3)``, RGB: the nominal field with a margin around it, at the
            nominal field's scale (the margin is what zoom, shift and rotation may uncover).
        size: side of the nominal field and of the result, in px; at most ``M``.
        settings: how far to go.
        generator: source of every random number, on the device of ``pixels``.

    Returns:
        ``uint8 (N, size, size, 3)``, RGB.
    """
    planes = pixels.permute(0, 3, 1, 2).float()
    planes = _move(planes, size, settings, generator)
    planes = _recolour(planes, settings, generator)
    planes = _blur(planes, settings.blur, generator)
    return planes.clamp_(0, 255).round_().to(torch.uint8).permute(0, 2, 3, 1)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator
) -> Tensor:
    return torch.empty(shape, device=like.device).uniform_(low, high, generator=generator)


def _move(planes: Tensor, size: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, flip, zoom and shift ``float (N, 3, M, M)`` into ``float (N, 3, size, size)``."""
    num = len(planes)
    angle = _uniform((num,), 0, 2 * math.pi, planes, generator)
    flip = _uniform((num,), -1, 1, planes, generator).sign()
    spread = math.log(settings.zoom)
    # grid_sample counts in half sides of the margin's frame: 1 is its edge.
    scale = _uniform((num,), -spread, spread, planes, generator).exp() * (size / planes.shape[-1])
    shift = _uniform((num, 2), -settings.shift, settings.shift, planes, generator) * 2
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack(
        [cos * flip, -sin, shift[:, 0] * scale, sin * flip, cos, shift[:, 1] * scale], dim=1
    )
    grid = functional.affine_grid(rows.view(num, 2, 3), [num, 3, size, size], align_corners=False)
    return functional.grid_sample(
        planes, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _recolour(planes: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Mix the optical densities of ``float (N, 3, S, S)``, 0-255, and change the light."""
    num = len(planes)
    mix = torch.randn((num, 3, 3), device=planes.device, generator=generator) * settings.stain
    mix += torch.eye(3, device=planes.device)
    lamp = torch.randn((num, 3, 1), device=planes.device, generator=generator) * settings.lamp
    density = (planes.flatten(2) + 1).div_(256).log_().neg_()
    density = torch.baddbmm(lamp, mix, density)
    return density.neg_().exp_().mul_(256).sub_(1).view_as(planes)


def _blur(planes: Tensor, widest: float, generator: torch.Generator) -> Tensor:
    """Blur about half of ``float (N, 3, S, S)``, each with a Gaussian of its own width."""
    num, channels, height, width = planes.shape
    sigma = _uniform((num, 1), -widest, widest, planes, generator).clamp_(min=0.05)
    steps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=planes.device)
    kernel = torch.softmax(-(steps**2) / (2 * sigma**2), dim=1).repeat_interleave(channels, 0)
    flat = planes.reshape(1, num * channels, height, width)
    flat = functional.pad(flat, [_BLUR_RADIUS] * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel[:, None, :, None], groups=num * channels)
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=num * channels)
    return flat.view_as(planes)
