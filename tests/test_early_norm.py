"""The statistics of early batch norm: measured at a lab, kept as text, put into a network."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bloodcells.errors import BundleError
from bloodcells.models import Classifier, create_model
from bloodcells.models.early_norm import (
    from_text,
    set_statistics,
    statistics_at,
    statistics_of,
    to_text,
)
from bloodcells.sites import SiteProfile
from tests import tiny_bundle


@pytest.fixture
def model() -> Classifier:
    return tiny_bundle.untrained().build().eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randint(0, 90, (12, 64, 64, 3), generator=generator)
    return (noise + 40).to(torch.uint8)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_first_layer_gets_what_it_sees_there(model: Classifier, pixels: torch.Tensor) -> None:
    planes = pixels.permute(0, 3, 1, 2).float() * model.scale + model.bias
    seen = model.backbone.conv_stem(planes)
    first = norms(model)[0]
    assert first.running_mean is not None and first.running_var is not None
    size = first.num_features
    wholly = statistics_at(model, pixels, 1.0)
    half = len(wholly) // 2
    torch.testing.assert_close(wholly[:size], seen.mean((0, 2, 3)))
    torch.testing.assert_close(wholly[half : half + size], seen.var((0, 2, 3)))
    torch.testing.assert_close(
        statistics_at(model, pixels, 0.25)[:size],
        0.75 * first.running_mean + 0.25 * seen.mean((0, 2, 3)),
    )
    assert torch.equal(statistics_at(model, pixels, 0.0), statistics_of(model))


def test_a_third_of_the_layers_is_moved_and_the_model_stays(
    model: Classifier, pixels: torch.Tensor
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = statistics_at(model, pixels, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    early = norms(model)[: len(norms(model)) // 3]
    assert len(found) == 2 * sum(layer.num_features for layer in early) > 0
    set_statistics(model, found)
    assert torch.equal(statistics_of(model), found)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    buffers = {f"{n}.running_{kind}" for n, m in model.named_modules() if m in early
               for kind in ("mean", "var")}  # fmt: skip
    assert changed == buffers


def test_a_network_without_batch_norm_has_none(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    plain = create_model("test_vit").eval()
    side = plain.backbone.default_cfg["input_size"][-1]  # type: ignore[index, union-attr]
    wide = pixels.repeat(1, 3, 3, 1)[:2, :side, :side]
    assert len(statistics_at(plain, wide, 0.5)) == 0
    set_statistics(plain, torch.empty(0))


def test_text_gives_back_the_same_bits(model: Classifier, pixels: torch.Tensor) -> None:
    found = statistics_at(model, pixels, 0.5)
    assert torch.equal(from_text(to_text(found)), found)


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 3.0], [1.0, -0.5], [float("nan"), 1.0]], ids=["odd", "negative", "nan"]
)
def test_what_is_no_statistics_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no means and variances"):
        from_text(base64.b64encode(np.array(values, "<f4").tobytes()).decode())
    with pytest.raises(ValueError, match=r"base64|padding|characters"):
        from_text("a sentence")


def test_another_models_statistics_are_refused_in_a_sentence(model: Classifier) -> None:
    bundle = tiny_bundle.untrained()
    site = SiteProfile(bundle_digest=bundle.digest, statistics=to_text(torch.ones(4)))
    with pytest.raises(BundleError, match=r"does not fit test_efficientnet: 4 statistics where"):
        bundle.build(site)
    found = statistics_of(model) * 2
    there = bundle.build(replace(site, statistics=to_text(found)))
    assert torch.equal(statistics_of(there), found)
