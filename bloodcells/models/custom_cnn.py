"""The small network of the published comparison: four blocks, trained from nothing.

Knows nothing of weights, pixels or training. It has the few methods of a timm model that this
project calls.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn

WIDTHS: Final = (32, 64, 128, 256)
"""Channels of the four blocks. The source gives the layers, not their widths; these are ours."""

_GRID: Final = 6
"""Side of what is flattened: 96 px after four halvings, so at 96 px nothing is pooled twice."""

_HIDDEN: Final = 256


class CustomCNN(nn.Module):
    """Convolution, batch norm and max pooling four times; flatten, dense, dropout, dense.

    Takes pictures of 32 px and more; what is not 96 px is pooled to the same grid.

    Source: student report, Politecnico di Milano, November 2024; its softmax is in the loss here.

    Args:
        num_classes: width of the last layer.
        drop_rate: probability before the last layer, in training.
    """

    def __init__(self, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        channels = (3, *WIDTHS)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(inplace=True),
                    nn.MaxPool2d(2),
                )
                for before, after in zip(channels, WIDTHS, strict=False)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(_GRID)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(WIDTHS[-1] * _GRID * _GRID, _HIDDEN)
        self.activation = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(_HIDDEN, num_classes)
        self.num_classes = num_classes
        self.num_features = WIDTHS[-1]
        self.pretrained_cfg: dict[str, Any] = {
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "input_size": (3, 96, 96),
        }
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    @property
    def head_layers(self) -> tuple[nn.Module, ...]:
        """What follows the four blocks."""
        return self.hidden, self.classifier

    def get_classifier(self) -> nn.Module:
        """Return the layer that gives the logits."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the pattern of a block's parameters, as timm's models do."""
        return {"blocks": r"^blocks\.(\d+)"}

    def forward_features(self, planes: Tensor) -> Tensor:
        """Return the last block's ``float (N, 256, S / 16, S / 16)``."""
        features: Tensor = self.blocks(planes)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of some features, or with ``pre_logits`` what they are made of."""
        hidden: Tensor = self.activation(self.hidden(self.flatten(self.pool(features))))
        if pre_logits:
            return hidden
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits

    def forward(self, planes: Tensor) -> Tensor:
        """Classify ``float (N, 3, S, S)``."""
        return self.forward_head(self.forward_features(planes))
