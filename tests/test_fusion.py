"""Fused convolutions say what the model says, at every size, or are not used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bloodcells.fusion import FusedConvolution, fuse_convolutions
from bloodcells.models import Classifier, create_model, for_inference


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tf_efficientnet_lite0", 96),
        ("tf_efficientnet_lite0", 65),
        ("test_efficientnet", 96),
        ("tf_efficientnetv2_b0", 96),
    ],
)
def test_the_logits_stay(name: str, size: int) -> None:
    torch.manual_seed(3)
    model = for_inference(create_model(name))
    pixels = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8)
    fused = fuse_convolutions(model, (4, size, size, 3))
    assert any(isinstance(module, FusedConvolution) for module in fused.modules())
    assert not any(type(module) is nn.ReLU6 for module in fused.modules())
    with torch.inference_mode():
        assert torch.allclose(fused(pixels), model(pixels), rtol=1e-4, atol=1e-5)


class Backwards(nn.Module):
    """Uses its layers in another order than it lists them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU()

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        return self.conv(self.act(planes - 1)).mean((2, 3))


def test_a_model_that_fusing_would_change_is_left_alone() -> None:
    model = Classifier(Backwards(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()
    assert fuse_convolutions(model, (2, 16, 16, 3)) is model


def test_without_the_operators_the_model_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = for_inference(create_model("test_efficientnet"))
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert fuse_convolutions(model, (2, 32, 32, 3)) is model
