"""The reading task of the pipeline. Imports no model library, so that a worker starts quickly."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from bloodcells.accounting import PlannedShard
from bloodcells.errors import RunIncompleteError, StorageError
from bloodcells.imaging import Preprocess
from bloodcells.isolated import IsolatedDecoder
from bloodcells.loading import LoadedShard, load_records, load_shard
from bloodcells.pipeline.attempts import Attempts
from bloodcells.pipeline.rows import PLANNED_FIELDS, failed, failure_row, loaded_row
from bloodcells.publish import read_planned
from bloodcells.records import Shard
from bloodcells.stores import read_shard

ISOLATE_FROM: Final = 3
"""The attempt from which a shard is decoded in a process of its own: it has killed two workers."""


class Reader:
    """Ray Data's reading task: a planned shard in, its pixels and identity out."""

    def __init__(self, preprocess: Preprocess, attempts: Attempts) -> None:
        self.preprocess = preprocess
        self.attempts = attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Read and decode one shard; failures travel on as an outcome instead of pixels."""
        planned = PlannedShard(**batch.select(PLANNED_FIELDS).to_pylist()[0])
        try:
            attempt = self.attempts.begin(f"reading shard {planned.shard_id}")
            shard = read_planned(planned.plan_uri, planned.plan_row)
            return loaded_row(self._load(shard, is_suspect=attempt >= ISOLATE_FROM))
        except (StorageError, RunIncompleteError) as error:
            return failure_row(failed(planned.shard_id, error))

    def _load(self, shard: Shard, *, is_suspect: bool) -> LoadedShard:
        if not is_suspect:
            return load_shard(shard, self.preprocess)
        with IsolatedDecoder() as decoder:
            return load_records(read_shard(shard), shard, self.preprocess, decoder.decode_batch)
