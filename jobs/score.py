"""Score a store of blood-cell images into a run folder: ``python -m jobs.score --store … --out …``.

The job, top-down: check what was asked, take the folder's lease, plan the stores, score what is not
scored yet, check that every listed image is accounted for, write the slides and the report.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from typing import Final

import ray

from bloodcells import storage
from bloodcells.accounting import (
    pending_waves,
    published_counts,
    require_all_accounted,
)
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import (
    ConfigurationError,
    QuarantineLimitError,
    RunIncompleteError,
    RunLockedError,
    StorageError,
)
from bloodcells.lease import Lease
from bloodcells.pipeline.cluster import cluster_device, cluster_scorers, start_ray
from bloodcells.pipeline.since import EarlierRuns
from bloodcells.pipeline.streaming import ScorerPool, score_planned
from bloodcells.publish import ShardOutcome, published_shards
from bloodcells.report import gather, write_report
from bloodcells.runs import (
    Run,
    now,
    open_run,
    summary,
)
from bloodcells.slides import write_slides
from jobs.flags import flag, parse, run_job
from jobs.progress import Progress, ScoringClock, say
from jobs.run_start import (
    check_plan,
    list_sources,
    plan_run,
    settings_of,
    take_up,
    withdraw_quarantined,
)
from jobs.slide_table import format_slides

SHARDS_PER_WAVE: Final = 4096
"""Shards handed to Ray Data at once, so that no list in the driver grows with the store."""

MOST_FAILED_IN_A_ROW: Final = 16
"""Shards that may fail one after the other, each after minutes of retries, before a run stops."""

WARNINGS_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score every image of one or more stores, exactly once, into a run folder."""

    store: tuple[str, ...] = flag("folder, archive, table or glob; local or s3://; repeatable")
    out: str = flag("the run folder; an unfinished run there goes on")
    bundle: str | None = flag("model bundle, URI or URI@sha256:…", default=None)
    site: str = flag("site profile; only 'none' so far", default="none")
    since: str | None = flag("an earlier run: score only what it did not list", default=None)
    slide_pattern: str | None = flag("regular expression that finds the slide", default=None)
    shard_size: int = flag("most images in a shard", default=1000)
    scorers: str | None = flag("number of scorers, N or MIN:MAX", default=None)
    compile: bool = flag("compile the model first (always done on a GPU)", default=False)
    max_quarantine: float = flag("share of quarantined images that ends a run", default=0.2)
    retry_quarantined: bool = flag("try shards with quarantined images again", default=False)
    restart: bool = flag("throw away what is in the run folder and start anew", default=False)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is started."""
        if self.site != "none":
            raise ConfigurationError(
                f"--site {self.site}: this version has no site profiles yet; use --site none"
            )
        if not 0 <= self.max_quarantine <= 1:
            raise ConfigurationError(f"--max-quarantine {self.max_quarantine}: give 0 to 1")
        if self.shard_size < 1:
            raise ConfigurationError(f"--shard-size {self.shard_size}: give 1 or more")
        self.scorer_bounds(1)

    def scorer_bounds(self, room: int) -> tuple[int, int]:
        """Return the least and the most scorers; by default from 1 to what has room."""
        if self.scorers is None:
            return 1, room
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
    return run_job(lambda: score(config))


def score(config: ScoreConfig) -> Run:
    """Score stores into a run folder, or go on with a run that is there.

    Raises:
        BloodcellsError: the run was refused, failed, or is left incomplete; the message says how
            to go on. What was published stays.
    """
    started = time.monotonic()
    bundle_uri = config.bundle or shipped_bundle_uri()
    bundle = ModelBundle.load(bundle_uri)
    run_uri = storage.normalise(config.out)
    found = None if config.restart else open_run(run_uri)
    if found is not None and found.status == "complete" and not config.retry_quarantined:
        return _already_complete(found, config, bundle)

    sources = []
    if found is None or found.status == "planning":
        sources = list_sources(config, run_uri)
    earlier = EarlierRuns.chain(storage.normalise(config.since)) if config.since else None
    if earlier is not None and run_uri in earlier.uris:
        raise ConfigurationError(f"--out {run_uri} is a run that --since builds on; choose another")
    with Lease(run_uri) as lease:
        say("starting Ray" if not ray.is_initialized() else "using the Ray of this process")
        start_ray()
        device = cluster_device()
        settings = settings_of(config, bundle, device)
        run = take_up(run_uri, config, settings, bundle)
        if run.status == "complete" and not config.retry_quarantined:
            return _already_complete(run, config, bundle)  # another finished it meanwhile
        if run.status == "planning":
            plan_run(run, sources or list_sources(config, run_uri), earlier)
        if config.retry_quarantined:
            withdraw_quarantined(run)
        room = cluster_scorers()
        low, high = config.scorer_bounds(room)
        if low > room:
            raise ConfigurationError(
                f"--scorers {config.scorers}: the cluster has room for {room} now, and readers "
                "need some beside; give a smaller minimum"
            )
        pool = ScorerPool(
            min_size=low,
            max_size=high,
            device=device,
            compile_model=settings.compiled,
            micro_batch=settings.micro_batch,
        )
        run.missing = []
        run.timings = {"start_seconds": round(time.monotonic() - started, 3)}
        try:
            _score_pending(run, bundle, bundle_uri, pool, config.max_quarantine, lease)
            lease.confirm()
            run.timings["wall_seconds"] = round(time.monotonic() - started, 3)
            _finish(run, bundle)
        except StorageError as error:
            _leave_incomplete(run, lease)
            raise RunIncompleteError(_how_to_go_on(run, str(error))) from error
        except (RunIncompleteError, QuarantineLimitError):
            _leave_incomplete(run, lease)
            raise
    say(f"complete: {summary(run.counts)}")
    say(f"report: {storage.join(run.uri, 'report.html')}")
    return run


def _already_complete(run: Run, config: ScoreConfig, bundle: ModelBundle) -> Run:
    """Leave a finished run as it is; only a missing report is drawn."""
    asked = settings_of(config, bundle, "cpu")
    # A finished run needs no device; it is the same run wherever it was computed.
    run.require_same(
        replace(
            asked,
            precision=run.settings.precision,
            micro_batch=run.settings.micro_batch,
            compiled=run.settings.compiled,
        )
    )
    if not storage.exists(storage.join(run.uri, "report.html")):
        write_report(run.uri)
    say(f"{run.uri} is complete already: {summary(run.counts)}")
    return run


def _leave_incomplete(run: Run, lease: Lease) -> None:
    """Record that work is left, unless the folder is another run's by now or out of reach."""
    run.status = "incomplete"
    with contextlib.suppress(StorageError, RunLockedError):
        lease.confirm()
        run.save()


def _score_pending(
    run: Run,
    bundle: ModelBundle,
    bundle_uri: str,
    pool: ScorerPool,
    max_quarantine: float,
    lease: Lease,
) -> None:
    """Score every planned shard that has no commit mark."""
    check_plan(run)
    done = published_shards(run.uri)
    before = published_counts(run.uri, done)
    run.counts |= {"scored": before.scored, "quarantined": before.quarantined}
    say(
        f"{run.counts['listed']:,} images in {run.counts['shards']:,} shards, {len(done):,} done; "
        f"{pool.min_size} to {pool.max_size} scorers on {pool.device}, {bundle.model_name}, "
        f"{run.settings.precision}"
    )
    progress = Progress(run.counts["listed"], done=before.scored + before.quarantined)
    clock = ScoringClock()
    failed_in_a_row = 0
    try:
        for wave in pending_waves(run.uri, done, SHARDS_PER_WAVE):
            for outcome in score_planned(
                run.uri,
                run.run_id,
                wave,
                bundle_uri=bundle_uri,
                preprocess=bundle.preprocess,
                pool=pool,
            ):
                lease.check()
                _enter(run, outcome)
                failed_in_a_row = failed_in_a_row + 1 if outcome.error else 0
                if failed_in_a_row == MOST_FAILED_IN_A_ROW:
                    raise RunIncompleteError(_how_to_go_on(run, outcome.error))
                clock.add(outcome)
                progress.add(outcome.num_scored + outcome.num_quarantined)
                _check_quarantine(run, max_quarantine)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunIncompleteError(_how_to_go_on(run, reason)) from error
    finally:
        progress.close()
        run.timings |= clock.timings()
    _check_quarantine(run, max_quarantine)
    if run.missing:
        raise RunIncompleteError(_how_to_go_on(run, run.missing[0]["error"]))


def _enter(run: Run, outcome: ShardOutcome) -> None:
    """Enter a shard's outcome into the run; an error that awaits every shard ends the run."""
    run.counts["scored"] += outcome.num_scored
    run.counts["quarantined"] += outcome.num_quarantined
    if outcome.error:
        run.missing.append({"shard_id": outcome.shard_id, "error": outcome.error})
        if len(run.missing) <= WARNINGS_SHOWN:
            say(f"warning: shard {outcome.shard_id} is left over: {outcome.error}")
    if outcome.is_fatal:
        raise RunIncompleteError(_how_to_go_on(run, outcome.error))


def _check_quarantine(run: Run, limit: float) -> None:
    quarantined, listed = run.counts["quarantined"], run.counts["listed"]
    if quarantined > limit * listed:
        raise QuarantineLimitError(
            f"{quarantined:,} of {listed:,} images are quarantined, more than --max-quarantine "
            f"{limit:g} allows; see {storage.join(run.uri, 'quarantine')} for the reasons. To go "
            "on all the same, run the command again with a higher --max-quarantine"
        )


def _how_to_go_on(run: Run, reason: str) -> str:
    left = run.counts["listed"] - run.counts["scored"] - run.counts["quarantined"]
    return (
        f"{left:,} of {run.counts['listed']:,} images are not scored yet: {reason}. What is "
        f"finished stays in {run.uri}; run the same command again to score the rest"
    )


def _finish(run: Run, bundle: ModelBundle) -> None:
    """Check the books, write the slides, and only then call the run complete."""
    check_plan(run)
    counts = require_all_accounted(run.uri)
    run.counts |= {"scored": counts.scored, "quarantined": counts.quarantined}
    slides = write_slides(run.uri, bundle.calibration)
    run.status = "complete"
    run.finished = now()
    run.save()
    facts = gather(run.uri)
    write_report(run.uri, facts)
    print(format_slides(slides), flush=True)
    if facts.evaluation is not None:
        print(f"against the store's labels: {facts.evaluation}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
