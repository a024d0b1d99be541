"""Readers and scorers that sleep as long as others take, in the pipeline that bulk scoring has.

What they send and publish is real: pixels through the object store, parts and commit marks in the
run folder. Imports no model library, so that dozens of them fit a small machine.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from bloodcells.accounting import PlannedShard
from bloodcells.cells import CLASSES
from bloodcells.loading import IDENTITY_FIELDS, LoadedShard
from bloodcells.pipeline.attempts import Attempts
from bloodcells.pipeline.reading import Reader
from bloodcells.pipeline.rows import PLANNED_FIELDS, loaded_from, loaded_row, outcome_row
from bloodcells.publish import ShardOutcome, publish_shard, read_planned
from bloodcells.records import QUARANTINE_SCHEMA, SCORES_SCHEMA
from bloodcells.runs import require_ownership

REVIEW_BELOW: Final = 0.5


class SleepingScorer:
    """Sleeps for each batch, then publishes scores that follow from the images' hashes.

    Takes what ``streaming.ScoringActor`` takes; :func:`sleeping_scorer` sets ``batch_seconds``.
    """

    batch_seconds = 0.0
    bundle_digest = ""

    def __init__(
        self, run_uri: str, run_id: str, bundle_uri: str, pool: Any, attempts: Attempts
    ) -> None:
        self.run_uri, self.run_id, self.pool = run_uri, run_id, pool
        self.ready_at = time.time()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score and publish one shard; returns its outcome."""
        row = batch.slice(0, 1)
        failure = row["failure"][0].as_py()
        if failure is not None:
            return outcome_row(pickle.loads(failure))
        loaded = loaded_from(row)
        loaded = replace(loaded, begun_at=max(loaded.begun_at, self.ready_at))
        time.sleep(self.batch_seconds * -(-len(loaded.identity) // self.pool.micro_batch))
        require_ownership(self.run_uri, self.run_id)
        scores = made_up_scores(loaded, self.bundle_digest)
        publish_shard(self.run_uri, loaded.shard_id, scores, loaded.quarantine)
        return outcome_row(
            ShardOutcome(
                shard_id=loaded.shard_id,
                num_scored=len(scores),
                num_quarantined=len(loaded.quarantine),
                bytes_read=loaded.bytes_read,
                begun_at=loaded.begun_at,
                published_at=time.time(),
            )
        )


def sleeping_scorer(batch_seconds: float, bundle_digest: str) -> type:
    """Return a scorer that sleeps so many seconds a batch."""
    return type(
        "TimedScorer",
        (SleepingScorer,),
        {"batch_seconds": batch_seconds, "bundle_digest": bundle_digest},
    )


class SleepingReader(Reader):
    """Sleeps instead of reading and decoding; its pictures are black, of the size that is set."""

    image_seconds = 0.0
    side_px = 96

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a shard as if it had been read."""
        begun_at = time.time()
        planned = PlannedShard(**batch.select(PLANNED_FIELDS).to_pylist()[0])
        self.attempts.begin(f"reading shard {planned.shard_id}")
        members = read_planned(planned.plan_uri, planned.plan_row).members
        time.sleep(self.image_seconds * len(members))
        known: dict[str, Any] = {
            "image_uri": [member.image_uri for member in members],
            "content_hash": [f"{hash(member.name) & (2**256 - 1):064x}" for member in members],
            "slide_id": [member.slide_id for member in members],
            "label": [member.label for member in members],
            "width_px": [self.side_px] * len(members),
            "height_px": [self.side_px] * len(members),
        }
        schema = pa.schema([SCORES_SCHEMA.field(name) for name in IDENTITY_FIELDS])
        return loaded_row(
            LoadedShard(
                shard_id=planned.shard_id,
                begun_at=begun_at,
                bytes_read=0,
                pixels=np.zeros((len(members), self.side_px, self.side_px, 3), np.uint8),
                identity=pa.table(known, schema=schema),
                quarantine=QUARANTINE_SCHEMA.empty_table(),
            )
        )


def sleeping_reader(image_seconds: float, side_px: int) -> type:
    """Return a reader that sleeps so many seconds an image."""
    return type(
        "TimedReader", (SleepingReader,), {"image_seconds": image_seconds, "side_px": side_px}
    )


def made_up_scores(loaded: LoadedShard, bundle_digest: str) -> pa.Table:
    """Return score rows in ``SCORES_SCHEMA`` that follow from the images' content hashes."""
    hashes = loaded.identity["content_hash"].to_pylist()
    seeds = np.array([int(digest[:12], 16) for digest in hashes], np.float64)
    weights = np.modf(np.outer(seeds, np.sqrt(np.arange(2, 2 + len(CLASSES)))))[0] + 1e-3
    probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    num_rows = len(hashes)
    columns: dict[str, Any] = {
        **{name: loaded.identity[name] for name in IDENTITY_FIELDS},
        "predicted_class": np.array(CLASSES, dtype=object)[probabilities.argmax(axis=1)],
        "confidence": probabilities.max(axis=1),
        **{f"prob_{name}": probabilities[:, k] for k, name in enumerate(CLASSES)},
        "out_of_domain": np.zeros(num_rows, bool),
        "needs_review": probabilities.max(axis=1) < REVIEW_BELOW,
        "shard_id": [loaded.shard_id] * num_rows,
        "bundle_digest": [bundle_digest] * num_rows,
        "site_digest": [None] * num_rows,
        "precision": ["float32"] * num_rows,
    }
    return pa.table(columns, schema=SCORES_SCHEMA)
