"""Recipes by name, and from a file that a user wrote. Knows nothing of how they are carried out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from bloodcells import storage
from bloodcells.augment import Augmentation
from bloodcells.errors import ConfigurationError
from bloodcells.training.recipe import Recipe, Stage, recipe_from, require_one_of

PRESETS: Final = ("default", "veiled", "taught", "report")


def preset(name: str) -> Recipe:
    """Return a recipe by name: ``default``, ``veiled``, ``taught`` or ``report``.

    ``default`` is the best that was found here. ``veiled`` is the same shown thick stains and poor
    optics too; ``taught`` makes a network for other labs of some such (docs/other-labs.md).
    ``report`` is the published method.

    Raises:
        ConfigurationError: there is no such recipe.
    """
    require_one_of("recipe", name, PRESETS)
    if name == "default":
        return Recipe()
    if name == "veiled":
        return Recipe(augmentation=Augmentation.parse("veiled"))
    if name == "taught":
        return _taught()
    return _report()


def read_recipe(name_or_uri: str) -> Recipe:
    """Return a preset by its name, or the recipe that a JSON file describes.

    The file holds the fields of :class:`Recipe`; ``stages`` is a list of fields of :class:`Stage`,
    ``augmentation`` a text as ``Augmentation.parse`` takes it. What it lacks is as in ``default``.

    Raises:
        ConfigurationError: no such preset, or the file is not a recipe.
        StorageError: the file cannot be read.
    """
    if not name_or_uri.endswith(".json"):
        return preset(name_or_uri)
    try:
        return recipe_from(json.loads(storage.read(storage.normalise(name_or_uri))))
    except ConfigurationError as error:
        raise ConfigurationError(f"--recipe {name_or_uri}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"--recipe {name_or_uri} is not a recipe ({error}); docs/training.md shows one"
        ) from error


def _taught() -> Recipe:
    """Return how a network learns what its teachers say of views, veiled and not, with patience.

    Source: Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent",
    arXiv:2106.05237.
    """
    return Recipe(
        stages=(
            Stage(name="taught", epochs=20, learning_rate=1e-4, averaging=0.995, keep_last=True),
        ),
        label_smoothing=0.0,
        dropout=0.1,
        augmentation=replace(Augmentation.parse("veiled"), strangers=0.2),
        teaching=0.8,
    )


def _report() -> Recipe:
    """Return three stages of EfficientNetV2-M with Lion, batch norm frozen throughout.

    Every class is upsampled to the largest. The second rate is the one that diverged there; it is
    kept, so that the method can be repeated, and best weights are restored. Source: student report,
    Politecnico di Milano, November 2024.
    """
    shared: dict[str, Any] = {
        "epochs": 200,
        "patience": 40,
        "optimizer": "lion",
        "schedule": "constant",
        "train_batch_norm": False,
    }
    return Recipe(
        model="efficientnetv2_m",
        stages=(
            Stage(name="head", unfreeze="head", weight_decay=0.015, learning_rate=1e-4, **shared),
            Stage(
                name="last 150",
                unfreeze="keras:150",
                learning_rate=1e-4,
                weight_decay=5e-3,
                **shared,
            ),
            Stage(
                name="last 400",
                unfreeze="keras:400",
                learning_rate=3e-6,
                weight_decay=2e-4,
                **shared,
            ),
        ),
        batch_size=64,
        balance=1.0,
        class_weights=True,
        label_smoothing=0.0,
        dropout=0.2,
        metric="val_accuracy",
        augmentation=Augmentation.parse("report"),
        tone=False,
    )
