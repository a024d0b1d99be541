"""Heat maps lie where the evidence is, for every kind of backbone that has a feature map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bloodcells.errors import ConfigurationError
from bloodcells.explain import grad_cam, overlay
from bloodcells.models import Classifier, create_model


def colour_counter() -> Classifier:
    """A classifier that finds class 0 where it sees red, and class 1 where it sees blue."""
    convolution = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    dense = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 1, 1] = convolution.weight[1, 2, 1, 1] = 1.0
        dense.weight.copy_(torch.eye(2))
    backbone = nn.Sequential(
        nn.Sequential(convolution, nn.ReLU(inplace=True), nn.MaxPool2d(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        dense,
    )
    return Classifier(backbone, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_heat_lies_where_the_class_is_seen() -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[:, 2:10, 4:12, 0] = 250  # red, top left
    pixels[:, 20:28, 18:30, 2] = 250  # blue, bottom right
    heat = grad_cam(colour_counter(), pixels, np.array([0, 1]))
    assert heat.shape == (2, 32, 32)
    assert heat.dtype == np.float32
    red, blue = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    red[2:10, 4:12], blue[20:28, 18:30] = True, True
    for found, wanted in zip(heat, (red, blue), strict=True):
        # The map before pooling is shown, so the edge is sharp.
        assert found[wanted].min() > 0.99
        assert found[~wanted].max() == 0


@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "regnetx_002", "swin_s3_tiny_224"],
)
def test_every_backbone_with_a_feature_map_has_heat(name: str) -> None:
    torch.manual_seed(0)
    size = 224 if name.endswith("224") else 64
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    heat = grad_cam(create_model(name), pixels.repeat(4, 0), np.arange(4))
    assert heat.shape == (4, size, size)
    assert (heat >= 0).all()
    assert (heat <= 1).all()
    # Of an untrained model some class may find nothing anywhere that speaks for it.
    seen = heat[heat.max(axis=(1, 2)) > 0.5]
    assert len(seen) >= 2
    assert not np.array_equal(seen[0], seen[1])


def test_tokens_are_no_feature_map() -> None:
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    with pytest.raises(ConfigurationError, match="VisionTransformer has no feature map"):
        grad_cam(create_model("vit_tiny_patch16_224"), pixels, np.array([0]))


def test_the_model_is_left_as_it_is() -> None:
    model = colour_counter().train()
    pixels = np.full((1, 32, 32, 3), 200, np.uint8)
    model(torch.from_numpy(pixels)).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.inference_mode():
        grad_cam(model, pixels, np.array([0]))
    assert model.training
    assert before
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, before[name])  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in model.modules())


def test_shapes_are_checked() -> None:
    model = colour_counter()
    with pytest.raises(ValueError, match="uint8"):
        grad_cam(model, np.zeros((1, 8, 8, 3), np.float32), np.array([0]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes"):
        grad_cam(model, np.zeros((1, 8, 8, 3), np.uint8), np.array([0, 1]))
    assert grad_cam(model, np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64)).shape == (
        0,
        8,
        8,
    )


def test_overlay_is_brightest_where_it_is_hottest() -> None:
    pixels = np.full((2, 16, 16, 3), 120, np.uint8)
    heat = np.zeros((2, 16, 16), np.float32)
    heat[:, :4, :4] = 1.0
    laid = overlay(pixels, heat)
    assert laid.shape == pixels.shape
    assert laid.dtype == np.uint8
    assert np.array_equal(overlay(pixels[0], heat[0]), laid[0])
    brightness = laid[0].astype(int).sum(-1)
    assert brightness[:4, :4].min() > brightness[4:, 4:].max()
