"""Fine-tuned weights drawn back towards those that training began from.

A network that is fine-tuned long on one lab forgets what its first weights knew of other pictures.
Between the two lie networks that are as good at home and better elsewhere. Source: Wortsman et al.
2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from bloodcells.models import Classifier, head_parameters

MOST_COST: Final = 0.005
"""Accuracy on the validation images that recalling may cost; where it costs more it is undone."""


def recall(model: Classifier, first: Mapping[str, Tensor], share: float) -> None:
    """Mix first weights into a model's features; its dense layer, which is new, stays.

    Statistics of batch norm belong to neither mixture and are to be counted anew.

    Args:
        model: the classifier, changed in place.
        first: the state that training began from.
        share: how much of it, 0 to 1.
    """
    own = set(head_parameters(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in own:
                parameter.lerp_(first[name].to(parameter.device, parameter.dtype), share)
