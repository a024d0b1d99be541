"""Where a classifier looks: Grad-CAM heat maps over single cells, by the library ``grad-cam``.

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
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from bloodcells.errors import ConfigurationError
from bloodcells.models import Classifier

_AT_ONCE: Final = 16

_POOLING: Final = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
"""What comes out of these is coarser than what goes in: the map before them is the one to show."""


def grad_cam(
    model: Classifier, pixels: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Draw where each image speaks for a class; the model itself is left as it is.

    Source: Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391.

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
        layer = _last_feature_map(backbone, _planes(spied, pixels[:1]))
        is_nhwc = getattr(backbone, "output_fmt", "NCHW") == "NHWC"  # timm says so of Swin
        with GradCAM(backbone, [layer], _channels_first if is_nhwc else None) as cam:
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


def _last_feature_map(backbone: nn.Module, planes: Tensor) -> nn.Module:
    """Return the module that ends last of those that give a map of features, by trying it out.

    Args:
        backbone: the model without normalisation.
        planes: one image as it sees it, ``float32 (1, 3, S, S)``.
    """
    found: list[nn.Module] = []
    after: list[int] = []
    is_pooled = False

    def look(module: nn.Module, _: object, output: object) -> None:
        nonlocal is_pooled
        if not any(True for _ in module.children()):
            is_pooled = isinstance(module, _POOLING)
        if not isinstance(output, Tensor) or module is backbone:
            return
        if output.ndim == 4 and output.shape[1] > 1 and 1 not in output.shape[2:]:
            if not is_pooled:
                found.append(module)
                after.clear()
        else:
            after.append(output.ndim)

    handles = [module.register_forward_hook(look) for module in backbone.modules()]
    try:
        backbone(planes)
    finally:
        for handle in handles:
            handle.remove()
    if not found or 3 in after:
        raise ConfigurationError(
            f"{type(backbone).__name__} has no feature map that Grad-CAM could show at "
            f"{planes.shape[-1]} px (a transformer's tokens are none): leave heat maps out for it"
        )
    return found[-1]


def _channels_first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)
