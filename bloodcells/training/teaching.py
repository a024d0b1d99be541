"""What networks that are trained already say of a batch, for another to learn (distillation).

One network that has learned what several say together of the same views is nearly as right as all
of them at the price of one. Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network", arXiv:1503.02531; Beyer et al. 2022, arXiv:2106.05237 (teachers see the very view that is
learned from). Knows nothing of optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.imaging import Preprocess
from bloodcells.models import for_inference
from bloodcells.training.recipe import Recipe


class Teachers:
    """Networks that say together what a picture shows.

    Args:
        bundles: theirs, one or more; only their own networks teach, not those for other labs.
        share: of a target that is what they say; the rest stays.
        device: where to compute.
    """

    def __init__(self, bundles: Sequence[ModelBundle], share: float, device: torch.device) -> None:
        self._models = [for_inference(bundle.build()).to(device) for bundle in bundles]
        self._share, self._device = share, device

    def targets(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Mix the mean of the teachers' probabilities into the targets of a batch.

        A picture whose target is uniform is of no cell type, and stays so: teachers are sure of
        some of these.

        Args:
            pixels: views, ``uint8 (n, S, S, 3)``, of the teachers' size.
            targets: ``float32 (n, 8)``, each row a distribution over the classes.

        Returns:
            The same shape and type as ``targets``.
        """
        said = torch.zeros_like(targets)
        is_cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=is_cuda):
            for model in self._models:
                said += model(pixels).float().softmax(1) / len(self._models)
        is_cell = targets.amax(1, keepdim=True) > 1.5 / len(CLASSES)
        return torch.where(is_cell, targets.lerp(said, self._share), targets)


def require_teachers(
    recipe: Recipe, teachers: Sequence[ModelBundle], preprocess: Preprocess
) -> None:
    """Refuse a recipe that learns from teachers without any, teachers without one, and other views.

    Raises:
        ConfigurationError: says which, and what to give.
    """
    if bool(recipe.teaching) != bool(teachers):
        raise ConfigurationError(
            "a recipe whose teaching is above 0, such as taught, learns from teachers (jobs.train "
            "--teacher BUNDLE, for each), and no other does; give both or neither"
        )
    for teacher in teachers:
        if teacher.preprocess != preprocess:
            raise ConfigurationError(
                f"--teacher: the bundle {teacher.digest} sees {teacher.preprocess}, the new one "
                f"{preprocess}; give --size and --crop as the teachers were trained with"
            )
