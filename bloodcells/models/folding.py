"""A copy of a classifier that scores faster. Knows nothing of names, weights or devices."""

from __future__ import annotations

import copy

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bloodcells.models.classifier import Classifier


def for_inference(model: Classifier) -> Classifier:
    """Return a copy that gives the same logits faster: no batch norm, ``channels_last`` weights.

    Every batch norm that follows a convolution is folded into that convolution's weights (measured
    1.2 to 1.9 times faster in eager mode on a CPU). Where folding would change what the model says,
    because its layers are not used in the order they are listed, the copy stays unfolded.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    folded = copy.deepcopy(plain)
    for parent in list(folded.modules()):
        _fold_children(parent)
    with torch.inference_mode():
        probe, expected = _probe(plain)
        same = torch.allclose(expected, folded(probe), rtol=1e-3, atol=1e-3)
    chosen = folded if same else plain
    return chosen.to(memory_format=torch.channels_last)


def _probe(model: Classifier) -> tuple[Tensor, Tensor]:
    """Return two pictures of noise, ``uint8 (2, S, S, 3)``, and the logits of them.

    Pictures of 64 px cost least; a few models take only what they were made for.
    """
    small = _noise(64).to(model.scale.device)
    try:
        return small, model(small)
    except (AssertionError, RuntimeError):
        config = getattr(model.backbone, "pretrained_cfg", {})
        large = _noise(config["input_size"][-1]).to(model.scale.device)
        return large, model(large)


def _noise(size: int) -> Tensor:
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=drawn)


def _fold_children(parent: nn.Module) -> None:
    """Fold each batch norm of ``parent`` into the convolution listed right before it, if any."""
    before: nn.Module | None = None
    for name, child in list(parent.named_children()):
        if (
            isinstance(child, (BatchNormAct2d, nn.BatchNorm2d))
            and isinstance(before, nn.Conv2d)
            and before.out_channels == child.num_features
            and child.running_mean is not None
            and child.running_var is not None
        ):
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight,
                before.bias,
                child.running_mean,
                child.running_var,
                child.eps,
                child.weight,
                child.bias,
            )
            rest = child.act if isinstance(child, BatchNormAct2d) else nn.Identity()
            setattr(parent, name, rest)
        before = child
