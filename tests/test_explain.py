"""Heat maps lie where the evidence is, for every kind of backbone that has a feature map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bloodcells.errors import ConfigurationError
from bloodcells.explain import _feature_map, grad_cam, overlay
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
    pixels[:, 4:16, 4:16, 0] = 250  # red, top left
    pixels[:, 20:28, 16:28, 2] = 250  # blue, bottom right
    heat = grad_cam(colour_counter(), pixels, np.array([0, 1]))
    assert heat.shape == (2, 32, 32)
    assert heat.dtype == np.float32
    red, blue = heat
    # The map has a cell for 4 x 4 pixels, so an edge is blurred by 4.
    assert red[6:14, 6:14].min() > 0.99
    assert red[19:, :].max() == red[:, 19:].max() == 0
    assert blue[22:26, 18:26].min() > 0.99
    assert blue[:17, :].max() == blue[:, :13].max() == 0


class ChannelsLast(nn.Module):
    """Gives its maps as Swin does, channels last, and says so as timm does."""

    output_fmt = "NHWC"

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.features, *rest = plain.children()
        self.turn = Turn()
        self.head = nn.Sequential(*rest)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        maps = self.turn(self.features(planes))
        logits: torch.Tensor = self.head(maps.permute(0, 3, 1, 2))
        return logits


class Turn(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.permute(0, 2, 3, 1)


def test_maps_with_channels_last_give_the_same_heat() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    model = colour_counter()
    wanted = grad_cam(model, pixels, np.array([0, 1]))
    model.backbone = ChannelsLast(model.backbone)
    assert np.allclose(grad_cam(model, pixels, np.array([0, 1])), wanted)


@pytest.mark.parametrize(
    "name",
    ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "mobilenetv3_small_050"],
)
def test_every_backbone_with_a_feature_map_has_heat(name: str) -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    heat = grad_cam(create_model(name), pixels.repeat(4, 0), np.arange(4))
    assert heat.shape == (4, 64, 64)
    assert (heat >= 0).all()
    assert (heat <= 1).all()
    # Of an untrained model some class may find nothing anywhere that speaks for it.
    seen = heat[heat.max(axis=(1, 2)) > 0.5]
    assert len(seen) >= 2
    assert not np.array_equal(seen[0], seen[1])


def test_the_map_that_is_shown_is_fine_enough_to_say_where() -> None:
    """At 96 px the last map of this network has 3 x 3 cells; 6 x 6 are shown."""
    torch.manual_seed(0)
    backbone: Any = create_model("tf_efficientnet_lite0").backbone.eval()
    assert _feature_map(backbone, torch.zeros(1, 3, 96, 96), False) is backbone.blocks[4]
    assert _feature_map(backbone, torch.zeros(1, 3, 160, 160), False) is backbone.blocks[6]


def test_tokens_are_no_feature_map() -> None:
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    with pytest.raises(ConfigurationError, match="VisionTransformer has no map of features"):
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
