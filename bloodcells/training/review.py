"""What is shown of a finished training: curves, calibration before and after, worst mistakes."""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.special import softmax

from bloodcells.bundle import ModelBundle
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError
from bloodcells.evaluation import Evaluation
from bloodcells.report.training import Mistake, TrainingFacts, write_training_report
from bloodcells.training.ingest import TrainingData
from bloodcells.training.loop import TrainedModel
from bloodcells.training.shipping import uncalibrated

MISTAKES_SHOWN: Final = 24


def report_training(
    bundle: ModelBundle,
    bundle_uri: str,
    trained: TrainedModel,
    data: TrainingData,
    evaluation: Evaluation,
) -> str:
    """Write ``report.html`` beside a bundle and return its URI.

    Args:
        bundle: what was made of the training.
        bundle_uri: where it is.
        trained: what the training ended with.
        data: what it was trained on.
        evaluation: the figures on the validation images, as calibrated.

    Raises:
        StorageError: it cannot be written.
    """
    recipe = dict(bundle.facts["recipe"])
    stages = recipe.pop("stages")
    if "teachers" in recipe:
        recipe["teachers"] = ", ".join(recipe["teachers"])
    facts = TrainingFacts(
        bundle_uri=bundle_uri,
        model_name=bundle.model_name,
        digest=bundle.digest,
        stages=stages,
        history=trained.history,
        settings=recipe | {"preprocess": bundle.preprocess.to_dict()},
        data={**bundle.facts["data"], "pretraining": bundle.facts["pretraining"]},
        before=uncalibrated(trained, data),
        after=evaluation,
        temperature=bundle.calibration.temperature,
        mistakes=worst_mistakes(bundle, trained, data),
    )
    return write_training_report(bundle_uri, facts)


def worst_mistakes(bundle: ModelBundle, trained: TrainedModel, data: TrainingData) -> list[Mistake]:
    """Return the validation images that were wrong with most confidence, worst first."""
    from bloodcells.explain import grad_cam, overlay  # takes seconds to import

    scaled = trained.logits.astype(np.float64) / bundle.calibration.temperature
    probabilities = softmax(scaled, axis=1)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != data.validation.labels)
    rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES_SHOWN]
    pixels = data.validation.pixels.take(rows)
    overlays = [None] * len(rows)
    if len(rows):
        try:
            heat = grad_cam(bundle.build().eval(), pixels, predicted[rows])
            overlays = list(overlay(pixels, heat))
        except ConfigurationError:
            pass  # a model without a map of features has nothing to overlay
    uris = data.validation_rows["image_uri"].to_pylist()
    return [
        Mistake(
            image_uri=uris[row],
            label=CLASSES[data.validation.labels[row]],
            predicted_class=CLASSES[predicted[row]],
            confidence=float(confidence[row]),
            pixels=pixels[i],
            overlay=overlays[i],
        )
        for i, row in enumerate(rows)
    ]
