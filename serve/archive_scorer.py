"""The replica that scores archives: one shard at a time, while the next one is decoded.

It runs the very engine of bulk scoring, :func:`bloodcells.scoring.score_shard`, at the lowest
priority that the system knows: bulk work takes what single cells leave. Knows nothing of runs as a
whole; what a shard's failure means is for who sent it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch

from bloodcells.accounting import PlannedShard
from bloodcells.allocator import keep_freed_memory
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import BloodcellsError, BundleError, RunError, StorageError
from bloodcells.pipeline.rows import failed
from bloodcells.precision import MICRO_BATCH
from bloodcells.publish import ShardOutcome, read_planned
from bloodcells.scoring import Scorer, score_shard
from bloodcells.sites import SiteProfile
from serve.standing_back import stand_back_as_process, stand_back_as_thread

SHARDS_AT_ONCE: Final = 2
"""Shards that a replica works on: one is scored, one is read and decoded."""


MOST_SITES: Final = 4
"""Networks of sites that a replica keeps; more make room from the oldest on."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be scored.

    Attributes:
        planned: where it stands in the plan.
        run_uri, run_id: the run folder, and the run that must own it.
        bundle_uri: the run's model, pinned: ``URI@sha256:…``.
        bundle_digest: its digest.
        site: the run's site profile.
        attempt: how often the shard was begun, this time included.
    """

    planned: PlannedShard
    run_uri: str
    run_id: str
    bundle_uri: str
    bundle_digest: str
    site: SiteProfile | None
    attempt: int


class ArchiveScorer:
    """Scores shards that are sent to it.

    Args:
        bundle_uri: the model of new runs; empty for the shipped one.
        device: ``cpu`` (one thread) or ``cuda`` (compiled).
        owns_process: whether the process is there for this alone, and may stand back as a whole.
    """

    def __init__(self, bundle_uri: str, device: str, *, owns_process: bool = False) -> None:
        if owns_process:
            stand_back_as_process()
        keep_freed_memory()
        self._device = device
        bundle = ModelBundle.load(bundle_uri or shipped_bundle_uri())
        # A run goes on with the model that it began with: across an update there are two.
        self._current = bundle.digest
        self._scorers = {bundle.digest: self._ready(bundle)}
        self._at_sites: dict[tuple[str, str], Scorer] = {}
        self._loading = threading.Lock()
        self._turn = threading.Lock()
        self._threads = ThreadPoolExecutor(
            SHARDS_AT_ONCE,
            thread_name_prefix="shard",
            initializer=_begin_thread,
            initargs=(device,),
        )
        gc.freeze()  # what is loaded stays: no collection need walk it

    async def score(self, task: ShardTask) -> ShardOutcome:
        """Score and publish a shard; returns its counts, or why it could not be done."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._score, task)

    def _score(self, task: ShardTask) -> ShardOutcome:
        shard_id = task.planned.shard_id
        try:
            scorer = self._scorer_of(task)
        except BloodcellsError as error:
            return dataclasses.replace(failed(shard_id, error), is_fatal=True)
        try:
            return score_shard(
                read_planned(task.planned.plan_uri, task.planned.plan_row),
                scorer,
                task.run_uri,
                run_id=task.run_id,
                attempt=task.attempt,
                turn=self._turn,
            )
        except (StorageError, RunError) as error:
            return failed(shard_id, error)

    def _scorer_of(self, task: ShardTask) -> Scorer:
        """Return the scorer of a task's model and site; what is not at hand is made ready."""
        with self._loading:
            scorer = self._scorer_of_bundle(task)
            if task.site is None:
                return scorer
            key = task.bundle_digest, task.site.digest
            if key not in self._at_sites:
                while len(self._at_sites) >= MOST_SITES:
                    del self._at_sites[next(iter(self._at_sites))]
                self._at_sites[key] = scorer.at(task.site)
            return self._at_sites[key]

    def _scorer_of_bundle(self, task: ShardTask) -> Scorer:
        scorer = self._scorers.get(task.bundle_digest)
        if scorer is None:
            bundle = ModelBundle.load(task.bundle_uri)
            if bundle.digest != task.bundle_digest:
                raise BundleError(
                    f"{task.bundle_uri} has digest {bundle.digest}, but the run was begun with "
                    f"{task.bundle_digest}; put that bundle back, or start a new run"
                )
            scorer = self._ready(bundle)
            current = self._scorers[self._current]
            self._scorers = {self._current: current, bundle.digest: scorer}
        return scorer

    def _ready(self, bundle: ModelBundle) -> Scorer:
        scorer = Scorer(
            bundle,
            device=self._device,
            num_threads=1 if self._device == "cpu" else None,
            compile_model=self._device == "cuda",
            micro_batch=MICRO_BATCH[self._device],
        )
        scorer.warm_up()
        return scorer


def _begin_thread(device: str) -> None:
    stand_back_as_thread()
    if device == "cpu":
        torch.set_num_threads(1)  # counts for each thread that starts a parallel region
