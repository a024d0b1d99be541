"""Planned shards streamed through a Ray cluster: read and decode, score, publish.

One row is one whole shard, because rows are never cut while blocks are. Tasks on CPUs read and
decode (:class:`bloodcells.pipeline.reading.Reader`); a pool of scorers takes the pixels from the
object store, scores and publishes (:func:`bloodcells.verdicts.publish_scored`); the driver sees one
small row a shard.

A shard that killed its reader twice is decoded in a process of its own; one that keeps failing is
left over.
"""

from __future__ import annotations

import gc
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from bloodcells.accounting import PlannedShard
from bloodcells.allocator import keep_freed_memory
from bloodcells.errors import RunError, StorageError
from bloodcells.imaging import Preprocess
from bloodcells.loading import LoadedShard
from bloodcells.pipeline.attempts import MAX_SCORER_STARTS, Attempts
from bloodcells.pipeline.placement import reading_resources, scoring_resources
from bloodcells.pipeline.reading import Reader
from bloodcells.pipeline.rows import PLANNED_FIELDS, failed, loaded_from, outcome_row
from bloodcells.publish import ShardOutcome
from bloodcells.runs import require_ownership
from bloodcells.sites import SiteProfile
from bloodcells.verdicts import publish_scored

SHARDS_IN_FLIGHT: Final = 2
"""Decoded shards that wait at each scorer; about 27 MB each at 96 px."""


@dataclass(frozen=True, kw_only=True)
class ScorerPool:
    """How the scorers are spread over a cluster.

    Attributes:
        min_size, max_size: bounds between which the pool grows and shrinks.
        device: ``cuda`` (one GPU a scorer) or ``cpu`` (one core a scorer: on a CPU, scorers of one
            thread each beat one scorer of many, which waits for its slowest thread at every layer).
        compile_model: whether each scorer compiles its model first.
        micro_batch: images in a forward pass.
    """

    min_size: int
    max_size: int
    device: str
    compile_model: bool
    micro_batch: int


def score_planned(
    run_uri: str,
    run_id: str,
    shards: Sequence[PlannedShard],
    *,
    bundle_uri: str,
    preprocess: Preprocess,
    site: SiteProfile | None,
    pool: ScorerPool,
    should_stop: Callable[[], bool] = lambda: False,
    reader: type[Reader] = Reader,
    scorer: type[ScoringActor] | None = None,
) -> Iterator[ShardOutcome]:
    """Score and publish planned shards; yields what became of each, in order of completion.

    Args:
        run_uri: the run folder.
        run_id: the run that must own it.
        shards: what is to be done.
        bundle_uri: the model.
        preprocess: how an image becomes pixels, as the site's profile has it.
        site: that profile; ``None`` for none.
        pool: the scorers.
        should_stop: asked after each shard; ends the scorers before all shards are done. What they
            have at hand is given up, or published without being told of.
        reader: what reads instead of :class:`Reader`, for a measurement.
        scorer: what scores instead of :class:`ScoringActor`, for a measurement.
    """
    attempts = Attempts()
    scored = (
        _shard_rows(shards)
        .map_batches(
            reader(preprocess, attempts),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            **reading_resources(pool.device),
        )
        .map_batches(
            scorer or ScoringActor,
            fn_constructor_args=(run_uri, run_id, bundle_uri, site, pool, attempts),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                min_size=min(pool.min_size, len(shards)),
                max_size=min(pool.max_size, len(shards)),
                initial_size=min(pool.max_size, len(shards)),
                max_tasks_in_flight_per_actor=SHARDS_IN_FLIGHT,
            ),
            **scoring_resources(pool.device),
        )
    )
    for row in scored.iter_rows():
        yield pickle.loads(row["outcome"])
        if should_stop():
            return


class ScoringActor:
    """One scorer of the pool: holds the model, scores and publishes what the loaders send."""

    def __init__(
        self,
        run_uri: str,
        run_id: str,
        bundle_uri: str,
        site: SiteProfile | None,
        pool: ScorerPool,
        attempts: Attempts,
    ) -> None:
        attempts.begin("starting a scorer", at_most=MAX_SCORER_STARTS)
        self.run_uri = run_uri
        self.run_id = run_id
        self.site = site
        self.attempts = attempts
        keep_freed_memory()
        self.make_ready(bundle_uri, pool)
        gc.freeze()  # what is loaded stays: no collection need walk it, least of all the last one
        self.ready_at = time.time()

    def make_ready(self, bundle_uri: str, pool: ScorerPool) -> None:
        """Load the model."""
        # Here: the driver, which hires scorers, would need a gigabyte for what they import.
        from bloodcells.bundle import ModelBundle
        from bloodcells.scoring import Scorer

        self.scorer = Scorer(
            ModelBundle.load(bundle_uri),
            site=self.site,
            device=pool.device,
            num_threads=1 if pool.device == "cpu" else None,
            compile_model=pool.compile_model,
            micro_batch=pool.micro_batch,
        )
        self.scorer.warm_up()

    def scores_of(self, loaded: LoadedShard) -> pa.Table:
        """Score a shard; returns its rows in ``SCORES_SCHEMA``."""
        from bloodcells.scoring import score_loaded

        return score_loaded(loaded, self.scorer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score and publish one shard; returns its outcome."""
        row = batch.slice(0, 1)
        failure = row["failure"][0].as_py()
        if failure is not None:
            return outcome_row(pickle.loads(failure))
        loaded = loaded_from(row)
        # A shard that was read while the scorer started is timed from when it could be scored.
        loaded = replace(loaded, begun_at=max(loaded.begun_at, self.ready_at))
        try:
            self.attempts.begin(f"scoring shard {loaded.shard_id}")
            scores = self.scores_of(loaded)
            require_ownership(self.run_uri, self.run_id)
            return outcome_row(publish_scored(loaded, scores, self.run_uri))
        except (StorageError, RunError) as error:
            return outcome_row(failed(loaded.shard_id, error, read_with=loaded.traffic))


def _shard_rows(shards: Sequence[PlannedShard]) -> Dataset:
    """Make a dataset of one block a shard, so that one task is one shard."""
    columns = {name: [getattr(shard, name) for shard in shards] for name in PLANNED_FIELDS}
    table = pa.table(columns)
    return ray.data.from_arrow([table.slice(k, 1) for k in range(len(shards))])
