"""What a classifier's probabilities say of a shard's images, as the rows that a run publishes.

The same for every road, whoever computed the probabilities. Imports no model library. Knows nothing
of models or of Ray.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bloodcells import storage
from bloodcells.bundle_facts import Calibration
from bloodcells.cells import CLASSES
from bloodcells.loading import IDENTITY_FIELDS, LoadedShard
from bloodcells.publish import ShardOutcome, publish_shard
from bloodcells.records import SCORES_SCHEMA


class Outputs(NamedTuple):
    """What a model says of images.

    Attributes:
        logits: ``float32 (N, 8)``, in the order of ``CLASSES``.
        strangeness: how unlike the training data each is, ``float32 (N,)``; see ``detector``.
        novelty: how unlike each of home's cell types, ``float32 (N,)``; see ``novelty``.
    """

    logits: npt.NDArray[np.float32]
    strangeness: npt.NDArray[np.float32]
    novelty: npt.NDArray[np.float32]


class Verdicts(NamedTuple):
    """What is made of a model's outputs, one entry an image.

    Attributes:
        probabilities: calibrated, ``float32 (N, 8)``, in the order of ``CLASSES``.
        predicted_class: class names, ``object (N,)``.
        confidence: the predicted class's calibrated probability, ``float32 (N,)``.
        out_of_domain: whether the image is none of the eight cell types, ``bool (N,)``.
        needs_review: whether a person should look at it, ``bool (N,)``.
    """

    probabilities: npt.NDArray[np.float32]
    predicted_class: npt.NDArray[np.object_]
    confidence: npt.NDArray[np.float32]
    out_of_domain: npt.NDArray[np.bool_]
    needs_review: npt.NDArray[np.bool_]


def judge(outputs: Outputs, calibration: Calibration) -> Verdicts:
    """Read off what a model's outputs say; for every road the same.

    What is out of domain is to be reviewed, too: its class means nothing. A threshold of 1 sends
    every image: a confidence that was rounded to 1 is not below it.
    """
    probabilities = softmax(outputs.logits / np.float32(calibration.temperature))
    confidence = probabilities.max(axis=1, initial=0.0)
    measure, limit = oddness(outputs, calibration)
    strange = measure > np.float32(limit)
    threshold = np.inf if calibration.review_below == 1 else calibration.review_below
    return Verdicts(
        probabilities=probabilities,
        predicted_class=np.array(CLASSES, dtype=object)[probabilities.argmax(axis=1)],
        confidence=confidence,
        out_of_domain=strange,
        needs_review=strange | (confidence < np.float32(threshold)),
    )


def oddness(outputs: Outputs, calibration: Calibration) -> tuple[npt.NDArray[np.float32], float]:
    """Return by what images are told to be none of the eight cell types, and its limit.

    That is novelty where its limit is known, which is at home; strangeness elsewhere.

    Returns:
        ``float32 (N,)``, and what a cell is at most; infinite where nothing can be told.
    """
    if calibration.novel_above is not None:
        return outputs.novelty, calibration.novel_above
    limit = calibration.strange_above
    return outputs.strangeness, np.inf if limit is None else limit


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities of calibrated logits, ``float32 (N, 8)``."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def score_table(
    loaded: LoadedShard,
    outputs: Outputs,
    calibration: Calibration,
    *,
    bundle_digest: str,
    site_digest: str | None,
    precision: str,
) -> pa.Table:
    """Return a loaded shard's rows in ``SCORES_SCHEMA``.

    Args:
        loaded: the shard.
        outputs: what the model says of its pictures.
        calibration: of the bundle that computed it, as the site's profile has it.
        bundle_digest: of the same.
        site_digest: of the site profile by which the pictures were seen; ``None`` for none.
        precision: in which they were computed.
    """
    verdicts = judge(outputs, calibration)
    num_rows = len(loaded.identity)
    columns: dict[str, Any] = {
        **{name: loaded.identity[name] for name in IDENTITY_FIELDS},
        "predicted_class": verdicts.predicted_class,
        "confidence": verdicts.confidence,
        **{f"prob_{name}": verdicts.probabilities[:, k] for k, name in enumerate(CLASSES)},
        "out_of_domain": verdicts.out_of_domain,
        "needs_review": verdicts.needs_review,
        "shard_id": [loaded.shard_id] * num_rows,
        "bundle_digest": [bundle_digest] * num_rows,
        "site_digest": [site_digest] * num_rows,
        "precision": [precision] * num_rows,
    }
    return pa.table(columns, schema=SCORES_SCHEMA)


def publish_scored(loaded: LoadedShard, scores: pa.Table, run_uri: str) -> ShardOutcome:
    """Publish a loaded shard and its scores (see :func:`score_table`) into a run folder."""
    publish_shard(run_uri, loaded.shard_id, scores, loaded.quarantine)
    return ShardOutcome(
        shard_id=loaded.shard_id,
        num_scored=len(scores),
        num_quarantined=len(loaded.quarantine),
        bytes_read=loaded.bytes_read,
        begun_at=loaded.begun_at,
        published_at=time.time(),
        traffic=loaded.traffic + storage.take_traffic(),
    )
