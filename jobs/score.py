"""Score a store of blood-cell images into a run folder: ``python -m jobs.score --store … --out …``.

The flags, and the scorers of Ray Data; how a run goes is ``bloodcells.pipeline.run_drive``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ray

from bloodcells import storage
from bloodcells.accounting import PlannedShard
from bloodcells.bundle_facts import BundleFacts, shipped_bundle_uri, verified_apart
from bloodcells.errors import ConfigurationError
from bloodcells.merging import MERGED_BYTES
from bloodcells.pipeline.cluster import (
    cluster_device,
    cluster_scorers,
    is_shared,
    start_ray,
)
from bloodcells.pipeline.run_drive import drive_run
from bloodcells.pipeline.run_request import LATEST, SHIPPED, Crew, RunRequest
from bloodcells.pipeline.sharing import Room
from bloodcells.pipeline.streaming import ScorerPool, score_planned
from bloodcells.precision import MICRO_BATCH
from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run
from bloodcells.sites import AUTO, NONE, SiteProfile
from jobs.flags import flag, parse, run_job
from jobs.progress import Terminal, say

if TYPE_CHECKING:
    from bloodcells.bundle import ModelBundle


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every image of one or more stores, exactly once, into a run folder."""

    store: tuple[str, ...] = flag("folder, archive, table or glob; local or s3://; repeatable")
    out: str = flag("the run folder; an unfinished run there goes on")
    bundle: str | None = flag("model bundle, URI or URI@sha256:…", default=None)
    site: str = flag(
        "site profile: 'auto' makes one of the store, 'none' sees it as the model's own lab, or "
        "the URI of one that jobs.site made",
        default=AUTO,
    )
    since: str | None = flag(
        "an earlier run: score only what it did not list; 'latest' is the newest complete run "
        "beside --out",
        default=None,
    )
    slide_pattern: str | None = flag("regular expression that finds the slide", default=None)
    shard_size: int | None = flag(
        "most images in a shard; by default 1000, more in a large store", default=None
    )
    scorers: str | None = flag("number of scorers, N or MIN:MAX", default=None)
    compile: bool = flag("compile the model first (always done on a GPU)", default=False)
    max_quarantine: float = flag("share of quarantined images that ends a run", default=0.2)
    retry_quarantined: bool = flag("try shards with quarantined images again", default=False)
    restart: bool = flag("throw away what is in the run folder and start anew", default=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        if not 0 <= self.max_quarantine <= 1:
            raise ConfigurationError(f"--max-quarantine {self.max_quarantine}: give 0 to 1")
        if self.shard_size is not None and self.shard_size < 1:
            raise ConfigurationError(f"--shard-size {self.shard_size}: give 1 or more")
        self.scorer_bounds()

    def scorer_bounds(self) -> tuple[int, int | None]:
        """Return the least and the most scorers; the most is ``None`` for all there is room for."""
        if self.scorers is None:
            return 1, None
        low, _, high = self.scorers.partition(":")
        try:
            bounds = int(low), int(high or low)
        except ValueError:
            bounds = 0, 0
        if not 1 <= bounds[0] <= bounds[1]:
            raise ConfigurationError(f"--scorers {self.scorers}: give N or MIN:MAX, from 1")
        return bounds


def main() -> int:
    """Run the job from the command line; returns the exit code."""
    config = parse(ScoreConfig, "score")
    return run_job(lambda: score(config, verified=verified_apart))


def score(
    config: ScoreConfig,
    *,
    merged_bytes: int = MERGED_BYTES,
    verified: Callable[[str], ModelBundle | BundleFacts] | None = None,
    pipeline: Callable[..., Iterator[ShardOutcome]] = score_planned,
) -> Run:
    """Score stores into a run folder, or go on with a run that is there.

    Args:
        config: what is asked for.
        merged_bytes: what the files have into which a finished run's parts are merged.
        verified: verifies the bundle at a URI; by default in this process.
        pipeline: scores and publishes what is planned, as ``score_planned`` does.

    Raises:
        BloodcellsError: the run was refused, failed, or is left incomplete; the message says how
            to go on. What was published stays.
    """
    bundle_uri = config.bundle or shipped_bundle_uri()
    bundle = (verified or _loaded)(bundle_uri)
    request = RunRequest(
        stores=config.store,
        out=storage.normalise(config.out),
        bundle=bundle,
        bundle_origin=config.bundle or SHIPPED,
        bundle_uri=bundle_uri,
        site=config.site,
        profile=_profile(config.site, bundle),
        shard_size=config.shard_size,
        slide_pattern=config.slide_pattern,
        since=_since(config.since),
        max_quarantine=config.max_quarantine,
        retry_quarantined=config.retry_quarantined,
        restart=config.restart,
        merged_bytes=merged_bytes,
    )
    return drive_run(request, lambda: _hire(config, request, bundle_uri, pipeline), Terminal())


def _loaded(bundle_uri: str) -> ModelBundle:
    from bloodcells.bundle import ModelBundle  # here: the command does without torch

    return ModelBundle.load(bundle_uri)


def _profile(site: str, bundle: ModelBundle | BundleFacts) -> SiteProfile | None:
    if site in (AUTO, NONE):
        return None
    profile = SiteProfile.load(site)
    profile.require_made_for(bundle.digest, site)
    return profile


def _since(given: str | None) -> str | None:
    return storage.normalise(given) if given and given != LATEST else given or None


def _hire(
    config: ScoreConfig,
    request: RunRequest,
    bundle_uri: str,
    pipeline: Callable[..., Iterator[ShardOutcome]],
) -> Crew:
    """Connect to Ray, or start it, and see how many scorers it has room for."""
    say("starting Ray" if not ray.is_initialized() else "using the Ray of this process")
    start_ray()
    device, capacity = cluster_device(), cluster_scorers()
    low, high = config.scorer_bounds()
    if low > capacity:
        raise ConfigurationError(
            f"--scorers {config.scorers}: the cluster has room for {capacity}, and readers "
            "need some beside; give a smaller minimum"
        )
    room = Room(cluster_scorers, at_least=low, at_most=high, is_shared=is_shared())
    pool = ScorerPool(
        min_size=low,
        max_size=room.take(),
        device=device,
        compile_model=config.compile or device == "cuda",
        micro_batch=MICRO_BATCH[device],
    )

    def score_wave(run: Run, wave: Sequence[PlannedShard]) -> Iterator[ShardOutcome]:
        preprocess, site = request.bundle.preprocess, run.profile
        yield from pipeline(
            run.uri,
            run.run_id,
            wave,
            bundle_uri=bundle_uri,
            preprocess=site.seen_by(preprocess) if site else preprocess,
            site=site,
            pool=replace(pool, max_size=room.take()),
            should_stop=room.has_changed,
        )

    return Crew(
        device=device,
        micro_batch=pool.micro_batch,
        compiled=pool.compile_model,
        planning_cpus=1,
        description=f"{low} to {pool.max_size} scorers on {device}",
        score=score_wave,
        leave=room.leave,
    )


if __name__ == "__main__":
    sys.exit(main())
