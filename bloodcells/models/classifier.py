"""A classifier: a backbone whose normalisation lives inside ``forward``.

Knows nothing of files, names, weights or how pixels were made; it sees ``uint8`` and gives logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """Pixels to logits.

    Attributes:
        backbone: the network with its head, as timm makes it or with the same few methods.
        scale, bias: ``float32 (3, 1, 1)``; ``pixel * scale + bias`` is what the backbone expects.
    """

    scale: Tensor
    bias: Tensor

    def __init__(
        self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        deviation = torch.tensor(std).view(3, 1, 1)
        # Not part of the state: they follow from the model's name, as its architecture does.
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)
        self.register_buffer(
            "bias", -torch.tensor(mean).view(3, 1, 1) / deviation, persistent=False
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            pixels: ``uint8 (N, S, S, 3)``, RGB.

        Returns:
            Logits, ``float32 (N, num_classes)``.
        """
        # NHWC seen as NCHW *is* the channels_last layout, so nothing is copied but the type.
        planes = pixels.permute(0, 3, 1, 2).to(self.scale.dtype)
        logits: Tensor = self.backbone(planes.mul_(self.scale).add_(self.bias))
        return logits.float()


def dense_layers(backbone: nn.Module) -> tuple[nn.Module, ...]:
    """Return the dense layers whose width is the number of classes: one, or two where distilled."""
    found = backbone.get_classifier()  # type: ignore[operator]  # a method of every timm model
    return found if isinstance(found, tuple) else (found,)


def early_blocks(backbone: nn.Module) -> tuple[nn.Module, ...]:
    """Return a backbone's blocks from the second to the one halfway; none if it has no blocks."""
    for name in ("blocks", "stages"):
        blocks = getattr(backbone, name, None)
        if isinstance(blocks, (nn.Sequential, nn.ModuleList)):
            return tuple(blocks)[1 : len(blocks) // 2 + 1]
    return ()


def head_parameters(model: Classifier) -> tuple[str, ...]:
    """Return the names of the parameters behind the features, in the model's order.

    That is the dense layer; in ``custom_cnn`` both dense layers.
    """
    layers = getattr(model.backbone, "head_layers", None) or dense_layers(model.backbone)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return tuple(name for name, p in model.named_parameters() if id(p) in inside)
