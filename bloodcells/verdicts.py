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


class Verdicts(NamedTuple):
    """What probabilities say of images, one entry an image.

    Attributes:
        predicted_class: class names, ``object (N,)``.
        confidence: the predicted class's calibrated probability, ``float32 (N,)``.
        out_of_domain: whether the image is unlike the training data, ``bool (N,)``; no detector is
            built yet, so it never is.
        needs_review: whether a person should look at it, ``bool (N,)``.
    """

    predicted_class: npt.NDArray[np.object_]
    confidence: npt.NDArray[np.float32]
    out_of_domain: npt.NDArray[np.bool_]
    needs_review: npt.NDArray[np.bool_]


def judge(probabilities: npt.NDArray[np.float32], calibration: Calibration) -> Verdicts:
    """Read off what calibrated probabilities, ``float32 (N, 8)``, say; for every road the same."""
    confidence = probabilities.max(axis=1, initial=0.0)
    return Verdicts(
        predicted_class=np.array(CLASSES, dtype=object)[probabilities.argmax(axis=1)],
        confidence=confidence,
        out_of_domain=np.zeros(len(probabilities), bool),
        needs_review=confidence < np.float32(calibration.review_below),
    )


def score_table(
    loaded: LoadedShard,
    probabilities: npt.NDArray[np.float32],
    calibration: Calibration,
    *,
    bundle_digest: str,
    precision: str,
) -> pa.Table:
    """Return a loaded shard's rows in ``SCORES_SCHEMA``.

    Args:
        loaded: the shard.
        probabilities: calibrated, ``float32 (N, 8)``, one row for each of its pictures.
        calibration: of the bundle that computed them.
        bundle_digest: of the same.
        precision: in which they were computed.
    """
    verdicts = judge(probabilities, calibration)
    num_rows = len(loaded.identity)
    columns: dict[str, Any] = {
        **{name: loaded.identity[name] for name in IDENTITY_FIELDS},
        "predicted_class": verdicts.predicted_class,
        "confidence": verdicts.confidence,
        **{f"prob_{name}": probabilities[:, k] for k, name in enumerate(CLASSES)},
        "out_of_domain": verdicts.out_of_domain,
        "needs_review": verdicts.needs_review,
        "shard_id": [loaded.shard_id] * num_rows,
        "bundle_digest": [bundle_digest] * num_rows,
        "site_digest": [None] * num_rows,
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
