"""Which parameters each stage trains, and which batch norms stand still while it does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from bloodcells.errors import ConfigurationError
from bloodcells.models import Classifier, create_model, start_model
from bloodcells.training.keras_layers import CONVOLUTIONS, keras_layers
from bloodcells.training.stages import (
    apply_stage,
    blocks,
    freeze_batch_norm,
    parse_unfreeze,
    train_mode,
    trainable,
)


def described(name: str) -> Classifier:
    """A model without numbers."""
    with torch.device("meta"):
        return create_model(name)


def trained(model: Classifier, unfreeze: str, *, norms: bool = False) -> tuple[int, int, str, str]:
    """How many tensors and numbers a stage trains, the first and the last of the features'."""
    names = trainable(model, unfreeze, train_batch_norm=norms)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    features = [n for n in names if not n.startswith(("backbone.classifier", "backbone.head"))]
    first, last = (features[0], features[-1]) if features else ("", "")
    return len(names), sum(sizes[n] for n in names), first, last


@pytest.mark.parametrize(
    ("unfreeze", "expected"),
    [
        ("head", (2, 10_248, "", "")),
        (
            "keras:150",
            (72, 24_769_872, "backbone.blocks.5.13.conv_dw.weight", "backbone.conv_head.weight"),
        ),
        (
            "keras:400",
            (
                *(190, 44_495_068),
                *("backbone.blocks.4.10.se.conv_reduce.weight", "backbone.conv_head.weight"),
            ),
        ),
    ],
)
def test_the_published_three_stages(unfreeze: str, expected: tuple[int, int, str, str]) -> None:
    assert trained(described("efficientnetv2_m"), unfreeze) == expected


def test_a_published_stage_trains_convolutions_and_the_head_alone() -> None:
    model = described("efficientnetv2_m")
    convolutions = {
        f"backbone.{layer.timm_name}"
        for layer in keras_layers()[-400:]
        if layer.kind in CONVOLUTIONS
    }
    assert len(convolutions) == 134
    names = trainable(model, "keras:400", train_batch_norm=False)
    assert {n.rpartition(".")[0] for n in names} == convolutions | {"backbone.classifier"}
    for name in convolutions:
        assert isinstance(model.get_submodule(name), nn.Conv2d)


def test_unfrozen_batch_norms_are_those_among_the_same_layers() -> None:
    model = described("efficientnetv2_m")
    with_norms = set(trainable(model, "keras:400", train_batch_norm=True))
    added = with_norms - set(trainable(model, "keras:400", train_batch_norm=False))
    norms = {layer.timm_name for layer in keras_layers()[-400:] if "Norm" in layer.kind}
    assert {n.rpartition(".")[0] for n in added} == {f"backbone.{name}" for name in norms}
    # The stage begins within a block, behind its second batch norm.
    assert {n for n in added if ".4.10." in n} == {
        "backbone.blocks.4.10.bn3.weight",
        "backbone.blocks.4.10.bn3.bias",
    }


@pytest.mark.parametrize("name", ["tf_efficientnetv2_s", "tf_efficientnet_lite0", "custom_cnn"])
def test_keras_layers_are_counted_in_one_model_only(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"keras:150 counts the layers of EfficientNetV2"):
        trainable(described(name), "keras:150", train_batch_norm=False)


STAGES = [
    ("tf_efficientnet_lite0", "head", (2, 10_248, "", "")),
    (
        *("tf_efficientnet_lite0", "blocks:2"),
        (9, 1_491_208, "backbone.blocks.5.3.conv_pw.weight", "backbone.conv_head.weight"),
    ),
    ("vgg16", "head", (2, 4_104, "", "")),
    (
        *("vgg16", "blocks:2"),
        (6, 4_723_720, "backbone.features.26.weight", "backbone.features.28.bias"),
    ),
    ("custom_cnn", "head", (4, 2_361_608, "backbone.hidden.weight", "backbone.hidden.bias")),
    (
        *("custom_cnn", "blocks:3"),
        (7, 2_748_680, "backbone.blocks.1.0.weight", "backbone.hidden.bias"),
    ),
    ("vit_tiny_patch16_224", "head", (2, 1_544, "", "")),
    (
        *("vit_tiny_patch16_224", "blocks:1"),
        (16, 446_792, "backbone.blocks.11.norm1.weight", "backbone.norm.bias"),
    ),
]


@pytest.mark.parametrize(("name", "unfreeze", "expected"), STAGES)
def test_what_a_stage_trains(name: str, unfreeze: str, expected: tuple[int, int, str, str]) -> None:
    assert trained(described(name), unfreeze) == expected


@pytest.mark.parametrize(
    ("name", "num_blocks"),
    [
        *(("efficientnetv2_m", 58), ("tf_efficientnet_lite0", 17), ("vgg16", 13), ("vgg19", 16)),
        *(("vgg11_bn", 8), ("custom_cnn", 4), ("vit_tiny_patch16_224", 13), ("resnet18", 9)),
        *(("convnext_atto", 13), ("mobilenetv3_small_100", 13), ("densenet121", 59)),
    ],
)
def test_blocks_and_head_are_the_whole_model(name: str, num_blocks: int) -> None:
    model = described(name)
    found = blocks(model)
    assert len(found) == num_blocks
    everything = trainable(model, "all", train_batch_norm=True)
    assert everything == tuple(name for name, _ in model.named_parameters())
    assert trainable(model, f"blocks:{num_blocks}", train_batch_norm=True) == everything
    head = trainable(model, "head", train_batch_norm=True)
    assert sorted([*head, *(n for names in found for n in names)]) == sorted(everything)
    with pytest.raises(ConfigurationError, match=f"the model has {num_blocks} blocks"):
        trainable(model, f"blocks:{num_blocks + 1}", train_batch_norm=True)


def test_each_block_more_trains_more() -> None:
    model = described("tf_efficientnet_lite0")
    stages = [set(trainable(model, f"blocks:{n}", train_batch_norm=False)) for n in range(1, 18)]
    assert all(fewer < more for fewer, more in pairwise(stages))


def test_a_model_without_blocks_says_so() -> None:
    with pytest.raises(ConfigurationError, match="does not tell the blocks"):
        trainable(described("pit_ti_224"), "blocks:1", train_batch_norm=False)


@pytest.mark.parametrize("unfreeze", ["", "heads", "blocks", "blocks:0", "blocks:-1", "keras:1.5"])
def test_a_misspelt_stage_is_refused(unfreeze: str) -> None:
    with pytest.raises(ConfigurationError, match="write head, all, blocks:N or keras:N"):
        parse_unfreeze(unfreeze)


def norms_in_training(model: Classifier) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training]


def step(model: Classifier) -> None:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=generator)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(model(pixels), torch.arange(4)).backward()
    optimizer.step()


def changed(model: Classifier, before: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}


@pytest.mark.parametrize("unfreeze", ["head", "blocks:2", "all"])
def test_a_step_changes_what_the_stage_names_and_nothing_else(unfreeze: str) -> None:
    model, _ = start_model("custom_cnn", from_scratch=True)
    names = trainable(model, unfreeze, train_batch_norm=False)
    apply_stage(model, names, train_batch_norm=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    assert changed(model, before) == set(names)


def test_a_trained_batch_norm_renews_its_statistics_and_a_frozen_one_does_not() -> None:
    model, _ = start_model("custom_cnn", from_scratch=True)
    names = trainable(model, "blocks:1", train_batch_norm=True)
    apply_stage(model, names, train_batch_norm=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed(model, before) == {
        *names,
        *(f"backbone.blocks.3.1.{statistic}" for statistic in statistics),
    }


def test_train_wakes_the_batch_norms_and_freezing_puts_them_to_rest() -> None:
    model = create_model("test_efficientnet")
    apply_stage(model, trainable(model, "all", train_batch_norm=False), train_batch_norm=False)
    assert norms_in_training(model) == []
    model.train()
    assert norms_in_training(model)
    freeze_batch_norm(model)
    assert norms_in_training(model) == []
    assert model.backbone.training  # dropout, say, still works
    apply_stage(model, trainable(model, "all", train_batch_norm=True), train_batch_norm=True)
    train_mode(model)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms_in_training(model) == norms


def test_a_stage_takes_no_names_that_are_not_its_own() -> None:
    model = create_model("custom_cnn")
    norms = trainable(model, "all", train_batch_norm=True)
    with pytest.raises(ValueError, match=r"not to be trained.*blocks\.0\.1\.bias"):
        apply_stage(model, norms, train_batch_norm=False)
    with pytest.raises(ValueError, match="nonsense"):
        apply_stage(model, ["nonsense"], train_batch_norm=True)
