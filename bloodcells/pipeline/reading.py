"""The reading task of the pipeline. Imports no model library, so that a worker starts quickly."""

from __future__ import annotations

import pyarrow as pa

from bloodcells.accounting import PlannedShard
from bloodcells.errors import RunIncompleteError, StorageError
from bloodcells.imaging import Preprocess
from bloodcells.loading import load_shard
from bloodcells.pipeline.attempts import Attempts
from bloodcells.pipeline.rows import PLANNED_FIELDS, failed, failure_row, loaded_row
from bloodcells.publish import read_planned


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
            return loaded_row(load_shard(shard, self.preprocess, attempt=attempt))
        except (StorageError, RunIncompleteError) as error:
            return failure_row(failed(planned.shard_id, error))
