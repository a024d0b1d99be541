"""Readers and scorers that sleep as long as others take, in the pipeline that bulk scoring has.

What they send and publish is real: pixels through the object store, parts and commit marks in the
run folder. Imports no model library, so that dozens of them fit a small machine.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa

from bloodcells.accounting import PlannedShard
from bloodcells.bundle_facts import BundleFacts
from bloodcells.cells import CLASSES
from bloodcells.loading import IDENTITY_FIELDS, LoadedShard
from bloodcells.pipeline.reading import Reader
from bloodcells.pipeline.rows import PLANNED_FIELDS, loaded_row
from bloodcells.pipeline.streaming import ScorerPool, ScoringActor
from bloodcells.publish import read_planned
from bloodcells.records import QUARANTINE_SCHEMA, SCORES_SCHEMA
from bloodcells.verdicts import Outputs, score_table


class SleepingScorer(ScoringActor):
    """Sleeps for each batch, then publishes scores that follow from the images' hashes.

    :func:`sleeping_scorer` sets the rest.
    """

    batch_seconds = 0.0
    bundle: BundleFacts

    def make_ready(self, bundle_uri: str, pool: ScorerPool) -> None:
        """Load nothing."""
        self.micro_batch = pool.micro_batch

    def scores_of(self, loaded: LoadedShard) -> pa.Table:
        """Sleep as long as the batches of a shard take."""
        time.sleep(self.batch_seconds * -(-len(loaded.identity) // self.micro_batch))
        return made_up_scores(loaded, self.bundle)


def sleeping_scorer(batch_seconds: float, bundle: BundleFacts) -> type[ScoringActor]:
    """Return a scorer that sleeps so many seconds a batch."""
    return type(
        "TimedScorer", (SleepingScorer,), {"batch_seconds": batch_seconds, "bundle": bundle}
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


def sleeping_reader(image_seconds: float, side_px: int) -> type[Reader]:
    """Return a reader that sleeps so many seconds an image."""
    return type(
        "TimedReader", (SleepingReader,), {"image_seconds": image_seconds, "side_px": side_px}
    )


def made_up_scores(loaded: LoadedShard, bundle: BundleFacts) -> pa.Table:
    """Return score rows in ``SCORES_SCHEMA`` that follow from the images' content hashes."""
    hashes = loaded.identity["content_hash"].to_pylist()
    seeds = np.array([int(digest[:12], 16) for digest in hashes], np.float64)
    weights = np.modf(np.outer(seeds, np.sqrt(np.arange(2, 2 + len(CLASSES)))))[0] + 1e-3
    probabilities = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    nothing = np.zeros(len(seeds), np.float32)
    return score_table(
        loaded,
        Outputs(logits=np.log(probabilities), strangeness=nothing, novelty=nothing),
        bundle.calibration,
        bundle_digest=bundle.digest,
        site_digest=None,
        precision="float32",
    )
