"""From a trained model to a bundle: calibrated, with the facts that its card tells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from bloodcells.bundle import ModelBundle
from bloodcells.evaluation import Evaluation
from bloodcells.training.calibration import REVIEW_ERROR, calibrate
from bloodcells.training.ingest import TrainingData
from bloodcells.training.loop import TrainedModel
from bloodcells.training.recipe import Recipe


def make_bundle(
    trained: TrainedModel,
    data: TrainingData,
    recipe: Recipe,
    *,
    about: dict[str, Any],
    pretraining: str,
    settings: dict[str, Any],
) -> tuple[ModelBundle, Evaluation]:
    """Calibrate a trained model on the validation images and pack it.

    Args:
        trained: the model.
        data: what it was trained on.
        recipe: how it was trained.
        about: what else is known of the data: ``about`` (source and licence), ``stores`` (names),
            ``left_out`` (images by reason).
        pretraining: where the weights it started from come from.
        settings: further settings for the facts, such as the number of workers.

    Returns:
        The bundle, and its figures on the validation images, by the weights as shipped.
    """
    labels = data.validation.labels
    calibration, evaluation = calibrate(trained.logits, labels, data.train.counts())
    hashes = [
        *data.train_rows["content_hash"].to_pylist(),
        *data.validation_rows["content_hash"].to_pylist(),
    ]
    digest = hashlib.sha256("\n".join(sorted(hashes)).encode())
    bundle = ModelBundle(
        model_name=recipe.model,
        preprocess=data.preprocess,
        calibration=calibration,
        state_dict=trained.weights,
        facts={
            "data": {
                **about,
                "num_train": len(data.train.labels),
                "num_validation": len(labels),
                "content_digest": f"sha256:{digest.hexdigest()}",
            },
            "pretraining": pretraining,
            "recipe": _as_done(recipe, trained.history) | settings,
            "validation": figures_for_card(evaluation),
            "review": {"accepted_error": REVIEW_ERROR},
            "software": {name: version(name) for name in ("bloodcells", "torch", "timm", "ray")},
        },
    )
    return bundle, evaluation


def _as_done(recipe: Recipe, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the recipe's values; a stage whose recall was undone has none."""
    undone = {figures["stage"] for figures in history if figures.get("recalled") is False}
    values = recipe.to_dict()
    values["stages"] = [
        {**stage, "recall": 0.0} if number in undone else stage
        for number, stage in enumerate(values["stages"])
    ]
    return values


def uncalibrated(trained: TrainedModel, data: TrainingData) -> Evaluation:
    """Return the figures on the validation images before their probabilities were calibrated."""
    return calibrate(trained.logits, data.validation.labels, np.ones(8, np.int64), temperature=1.0)[
        1
    ]


def figures_for_card(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures that a model card shows, rounded to what they can bear."""
    return {
        "num_images": evaluation.num_labelled,
        "accuracy": [round(figure, 4) for figure in evaluation.accuracy],
        "macro_f1": round(evaluation.macro_f1, 4),
        "calibration_error": round(evaluation.reliability.expected_error, 4),
        "classes": {
            c.name: {
                "num_images": c.num_labelled,
                "precision": round(c.precision.value, 4) if c.num_predicted else None,
                "recall": round(c.recall.value, 4),
            }
            for c in evaluation.classes
        },
    }
