"""Folds: what trains and validates divided anew, and cells judged by models that never saw them.

A threshold that is to be trusted takes more cells than a validation split has. Each of K further
trainings leaves a fold out and judges it, so that every cell is judged once, by a model that was
trained by the same recipe on others. Knows nothing of how a model is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax
from sklearn.model_selection import StratifiedGroupKFold

from bloodcells.bundle import ModelBundle
from bloodcells.errors import ConfigurationError
from bloodcells.training.calibration import REVIEW_ERROR, review_threshold
from bloodcells.training.home import features_of
from bloodcells.training.ingest import load_images


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Cells as judged by models that were not trained on them.

    Attributes:
        confidence: calibrated, of the predicted class, ``float64 (N,)``.
        right: whether the prediction is right, ``bool (N,)``.
        num_folds: models that judged them, each its own.
    """

    confidence: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]
    num_folds: int


def folds_of(manifest: pa.Table, num_folds: int) -> list[pa.Table]:
    """Return the manifest once a fold: its training and validation images divided anew.

    Folds are stratified by class and keep groups together; the test images stay what they are.

    Raises:
        ConfigurationError: there are fewer than two folds, or fewer groups of a class than folds.
    """
    if num_folds < 2:
        raise ConfigurationError(f"--folds {num_folds}: give 2 or more, or leave it out")
    split = np.array(manifest["split"].to_pylist(), object)
    is_ours = np.array(manifest["used"]) & np.isin(split, ["train", "val"])
    rows = np.flatnonzero(is_ours)
    ours = manifest.take(pa.array(rows))
    labels, groups = ours["label"].to_pylist(), ours["group"].to_pylist()
    least = min(
        len({g for g, n in zip(groups, labels, strict=True) if n == own}) for own in set(labels)
    )
    if least < num_folds:
        raise ConfigurationError(
            f"--folds {num_folds}: a class has {least} groups of images to train on; give fewer"
        )
    divide = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0)
    tables = []
    for train, val in divide.split(rows, labels, groups):
        own = split.copy()
        own[rows[train]], own[rows[val]] = "train", "val"
        place = manifest.schema.get_field_index("split")
        tables.append(manifest.set_column(place, "split", pa.array(own.tolist(), pa.string())))
    return tables


def out_of_fold(
    manifest: pa.Table,
    num_folds: int,
    train: Callable[[int, pa.Table], ModelBundle],
    source: str,
) -> HeldOut:
    """Judge every training and validation image by a model that did not see it.

    Args:
        manifest: rows in ``MANIFEST_SCHEMA``.
        num_folds: 2 or more.
        train: gets a fold's number, from 1, and its manifest, and returns the bundle.
        source: the dataset, for messages.

    Raises:
        ConfigurationError: there are too few groups of a class.
        StoreError: an image is no longer what it was when the dataset was prepared.
    """
    confidence, right = [], []
    for number, fold in enumerate(folds_of(manifest, num_folds), 1):
        bundle = train(number, fold)
        rows = fold.filter(pc.field("used") & (pc.field("split") == "val"))
        images = load_images(rows, bundle.preprocess, source)[0]
        logits = features_of(bundle, images)[1].astype(np.float64)
        probabilities = softmax(logits / bundle.calibration.temperature, axis=1)
        confidence.append(probabilities.max(1))
        right.append(probabilities.argmax(1) == images.labels)
    return HeldOut(
        confidence=np.concatenate(confidence), right=np.concatenate(right), num_folds=num_folds
    )


def with_review(
    bundle: ModelBundle, held_out: HeldOut, own_confidence: npt.NDArray[np.floating]
) -> ModelBundle:
    """Return a bundle that sends to review what models like it are not sure enough of.

    A model that is surer than those that judged keeps no larger share of the cells than they do:
    that it is right as often at one confidence as they are is not known.

    Args:
        bundle: the model.
        held_out: cells as models like it judged them.
        own_confidence: its own, calibrated, of images that it was not trained on, ``float (M,)``.
    """
    threshold = review_threshold(held_out.confidence, held_out.right)
    kept = held_out.confidence >= threshold if threshold < 1 else np.zeros_like(held_out.right)
    if threshold < 1:
        threshold = max(threshold, float(np.quantile(own_confidence, 1 - kept.mean())))
    review: dict[str, Any] = {
        "accepted_error": REVIEW_ERROR,
        "folds": held_out.num_folds,
        "num_images": len(held_out.right),
        "num_kept": int(kept.sum()),
        "num_wrong": int((kept & ~held_out.right).sum()),
    }
    return replace(
        bundle,
        calibration=replace(bundle.calibration, review_below=threshold),
        facts={**bundle.facts, "review": review},
    )
