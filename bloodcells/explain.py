"""Where a classifier looks: class activation maps over single cells, by the library ``grad-cam``.

The method is HiResCAM on the deepest map of features that still has ``LEAST_SIDE`` cells a side. At
96 px the last map of most networks has 3 x 3, each cell of which has seen the whole image; plain
Grad-CAM there shone into the lower right corner of every cell looked at, whatever its class.

A heat map shows which parts of an image spoke for a class. It helps a person to see that a model
looks at the cell and not at the background; it proves nothing. Knows nothing of files or reports.

Importing this module takes a second or two (the library brings OpenCV and Matplotlib), so import it
where heat maps are drawn, not where a job starts.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from pytorch_grad_cam import HiResCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from bloodcells.errors import ConfigurationError
from bloodcells.models import Classifier

LEAST_SIDE: Final = 5
"""Cells a side below which a map no longer says where in the image something is."""

_AT_ONCE: Final = 16


def grad_cam(
    model: Classifier, pixels: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Draw where each image speaks for a class; the model itself is left as it is.

    Source: Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391; Draelos & Carin 2020, "Use HiResCAM
    instead of Grad-CAM", arXiv:2011.08891.

    Args:
        model: a classifier whose backbone ends in a feature map.
        pixels: ``uint8 (N, S, S, 3)``, RGB, as the model sees them.
        classes: the class to speak for, one an image, ``int64 (N,)``.

    Returns:
        ``float32 (N, S, S)``, each image's heat from 0 (none) to 1 (its most).

    Raises:
        ConfigurationError: the model has no feature map at its end (a vision transformer's tokens).
        ValueError: shapes or dtype do not fit.
    """
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 (N, S, S, 3), not {pixels.dtype} {pixels.shape}")
    if classes.shape != (len(pixels),):
        raise ValueError(f"classes must have shape ({len(pixels)},), not {classes.shape}")
    if len(pixels) == 0:
        return np.zeros(pixels.shape[:3], np.float32)
    with torch.inference_mode(False), torch.enable_grad():
        # The library clears gradients and switches to evaluation; both are the caller's business.
        spied: Any = copy.deepcopy(model).float().eval().requires_grad_(False)
        backbone = spied.backbone
        is_nhwc = getattr(backbone, "output_fmt", "NCHW") == "NHWC"  # timm says so of Swin
        layer = _feature_map(backbone, _planes(spied, pixels[:1]), is_nhwc)
        with HiResCAM(backbone, [layer], _channels_first if is_nhwc else None) as cam:
            heat = [
                cam(
                    _planes(spied, pixels[start : start + _AT_ONCE]),
                    [ClassifierOutputTarget(int(c)) for c in classes[start : start + _AT_ONCE]],
                )
                for start in range(0, len(pixels), _AT_ONCE)
            ]
    # Interpolation leaves 1 by a hair.
    clipped: npt.NDArray[np.float32] = np.clip(np.concatenate(heat), 0.0, 1.0).astype(np.float32)
    return clipped


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Lay a heat map over its image, dark violet for none to yellow for most.

    Args:
        pixels: ``uint8 (S, S, 3)`` or ``(N, S, S, 3)``, RGB.
        heat: ``float32 (S, S)`` or ``(N, S, S)``, 0–1.

    Returns:
        ``uint8``, the shape of ``pixels``.
    """
    if pixels.ndim == 4:
        return np.array(
            [overlay(p, h) for p, h in zip(pixels, heat, strict=True)], np.uint8
        ).reshape(pixels.shape)
    laid: npt.NDArray[np.uint8] = show_cam_on_image(
        pixels.astype(np.float32) / 255,
        heat,
        use_rgb=True,
        colormap=cv2.COLORMAP_INFERNO,
        image_weight=0.55,
    )
    return laid


def _planes(model: Classifier, pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Return what a classifier's ``forward`` makes of pixels, with gradients from there on."""
    integers = torch.from_numpy(pixels).to(model.scale.device).permute(0, 3, 1, 2)
    return (integers.float() * model.scale + model.bias).requires_grad_(True)


def _feature_map(backbone: nn.Module, planes: Tensor, is_nhwc: bool) -> nn.Module:
    """Return the module whose output to show, found by trying the model out on one image.

    Args:
        backbone: the model without normalisation.
        planes: the image as it sees it, ``float32 (1, 3, S, S)``.
        is_nhwc: whether its maps have their channels last.

    Raises:
        ConfigurationError: no module gives a map.
    """
    trunk = _trunk(backbone)
    maps: list[tuple[nn.Module, int]] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if trunk and module not in trunk:
            return
        if isinstance(output, Tensor) and output.ndim == 4:
            maps.append((module, min(output.shape[1:3] if is_nhwc else output.shape[2:])))

    handles = [module.register_forward_hook(look) for module in backbone.modules()]
    try:
        backbone(planes)
    finally:
        for handle in handles:
            handle.remove()
    for least in (LEAST_SIDE, 2):
        for module, side in reversed(maps):
            if side >= least:
                return module
    raise ConfigurationError(
        f"{type(backbone).__name__} has no map of features at {planes.shape[-1]} px (a "
        "transformer's tokens are none): leave heat maps out for it"
    )


def _trunk(backbone: Any) -> set[nn.Module]:
    """Return the modules that timm says a backbone's features come out of; none where it does not.

    Other modules may lie on one of several branches, and show a part of what the model uses.
    """
    info = getattr(backbone, "feature_info", None) or []
    names = {entry.get("module") for entry in info}
    known = dict(backbone.named_modules())
    return {known[name] for name in names if name and name in known}


def _channels_first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)
