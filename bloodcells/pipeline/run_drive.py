"""A run from the request to the report: the one engine, whoever asks and whoever scores.

Top-down: check what was asked, take the folder's lease, plan the stores, have scored what is not
scored yet, check that every listed image is accounted for, write the slides, merge the score
files, draw the report. The command ``jobs.score`` and the endpoint's archive runs differ in their
crew and their follower.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import ray

from bloodcells import storage
from bloodcells.accounting import (
    PlannedShard,
    ShardRows,
    pending_waves,
    published_counts,
    require_all_accounted,
    shard_rows,
)
from bloodcells.errors import (
    ConfigurationError,
    QuarantineLimitError,
    RunIncompleteError,
    RunLockedError,
    StorageError,
)
from bloodcells.lease import Lease
from bloodcells.merged import MergedShards
from bloodcells.merging import groups_to_merge
from bloodcells.pipeline.compaction import merge_parts
from bloodcells.pipeline.following import Follower, ScoringClock
from bloodcells.pipeline.run_request import Crew, RunRequest
from bloodcells.pipeline.run_start import (
    check_plan,
    list_sources,
    plan_run,
    require_same_request,
    resolve_since,
    settings_of,
    take_up,
    withdraw_quarantined,
)
from bloodcells.pipeline.since import EarlierRuns
from bloodcells.pipeline.site_choice import settle_site
from bloodcells.publish import ShardOutcome, delete_parts, part_entries, published_shards
from bloodcells.report import gather, write_report
from bloodcells.runs import Run, now, open_run, retries_in_words, summary
from bloodcells.slides import write_slides
from bloodcells.stores import Source

SHARDS_PER_WAVE: Final = 4096
"""Shards handed to a crew at once, so that no list in the driver grows with the store."""

MOST_FAILED_IN_A_ROW: Final = 16
"""Shards that may fail one after the other, each after minutes of retries, before a run stops."""

WARNINGS_SHOWN: Final = 5

MISSING_NAMED: Final = 1000
"""Shards that are left over and stand in the run's record with the reason; the plan has all."""


def drive_run(request: RunRequest, hire: Callable[[], Crew], follower: Follower) -> Run:
    """Score stores into a run folder, or go on with a run that is there.

    Args:
        request: what is asked for.
        hire: finds the crew; called once the folder's lease is held, before anything is written.
        follower: is told how it goes, and may end it.

    Raises:
        BloodcellsError: the run was refused, failed, or is left incomplete; the message says how
            to go on. What was published stays.
    """
    started, begun_at = time.monotonic(), time.time()
    storage.take_traffic()  # what was asked before is no part of this run
    found = None if request.restart else open_run(request.out)
    request = resolve_since(request, found, follower)
    if found is not None and found.status == "complete" and not request.retry_quarantined:
        return _already_complete(found, request, follower)
    sources: list[Source] = []
    if found is None or found.status == "planning":
        sources = list_sources(request)
    earlier = EarlierRuns.chain(request.since) if request.since else None
    if earlier is not None and request.out in earlier.uris:
        raise ConfigurationError(
            f"--out {request.out} is a run that --since builds on; choose another"
        )
    with Lease(request.out) as lease:
        crew = hire()
        run = take_up(request, settings_of(request, crew, sources))
        if run.status == "complete" and not request.retry_quarantined:
            return _already_complete(run, request, follower)  # another finished it meanwhile
        run.missing, run.timings = [], {}
        if run.status == "planning":
            with _timed(run, "plan_seconds"):
                plan_run(run, sources or list_sources(request), earlier, crew, follower)
        sources = []  # a large store has very many
        if request.retry_quarantined:
            withdraw_quarantined(run)
        run.timings["start_seconds"] = round(time.monotonic() - started, 3)
        try:
            with _timed(run, "site_seconds"):
                settle_site(run, request, crew, lease, follower)
            _score_pending(run, request, crew, lease, follower)
            lease.confirm()
            run.timings["wall_seconds"] = round(time.monotonic() - started, 3)
            _finish(run, request, crew, lease, begun_at, follower)
        except StorageError as error:
            _leave_incomplete(run, lease, follower)
            raise RunIncompleteError(_how_to_go_on(run, str(error))) from error
        except (RunIncompleteError, QuarantineLimitError):
            _leave_incomplete(run, lease, follower)
            raise
    follower.say(f"complete: {summary(run.counts)}")
    _tell_retries(run, follower)
    follower.say(f"report: {storage.join(run.uri, 'report.html')}")
    return run


def _already_complete(run: Run, request: RunRequest, follower: Follower) -> Run:
    """Leave a finished run as it is; only a missing report is drawn."""
    require_same_request(run, request)
    if not storage.exists(storage.join(run.uri, "report.html")):
        write_report(run.uri)
    follower.changed(run)
    follower.say(f"{run.uri} is complete already: {summary(run.counts)}")
    return run


def _tell_retries(run: Run, follower: Follower) -> None:
    if retries := retries_in_words(run.storage):
        follower.say(retries)


def _leave_incomplete(run: Run, lease: Lease, follower: Follower) -> None:
    """Record that work is left, unless the folder is another run's by now or out of reach."""
    run.status = "incomplete"
    run.add_traffic(storage.take_traffic())
    with contextlib.suppress(StorageError, RunLockedError):
        lease.confirm()
        run.save()
    _tell_retries(run, follower)


def _score_pending(
    run: Run, request: RunRequest, crew: Crew, lease: Lease, follower: Follower
) -> None:
    """Have every planned shard scored that has no commit mark."""
    check_plan(run)
    done = published_shards(run.uri)
    before = published_counts(run.uri, done)
    run.counts |= {"scored": before.scored, "quarantined": before.quarantined}
    follower.say(
        f"{run.counts['listed']:,} images in {run.counts['shards']:,} shards, {len(done):,} done; "
        f"{crew.description}, {request.bundle.model_name}, {run.settings.precision}"
    )
    follower.scoring(run, len(done))
    clock = ScoringClock()
    failed_in_a_row = 0
    try:
        for wave in pending_waves(run.uri, done, SHARDS_PER_WAVE):
            _reopen(run)
            for outcome in _outcomes(run, wave, crew):
                lease.check()
                _enter(run, outcome, follower)
                failed_in_a_row = failed_in_a_row + 1 if outcome.error else 0
                if failed_in_a_row == MOST_FAILED_IN_A_ROW:
                    raise RunIncompleteError(_how_to_go_on(run, outcome.error))
                clock.add(outcome)
                follower.entered(run, outcome)
                _check_quarantine(run, request.max_quarantine)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunIncompleteError(_how_to_go_on(run, reason)) from error
    finally:
        crew.leave()
        follower.ended()
        run.timings |= clock.timings()
    _check_quarantine(run, request.max_quarantine)
    if run.missing:
        raise RunIncompleteError(_how_to_go_on(run, run.missing[0]["error"]))


def _reopen(run: Run) -> None:
    """Let workers publish again where files were merged already, and shards were lost since."""
    if run.merging:
        run.merging = False
        run.save()


def _outcomes(run: Run, wave: Sequence[PlannedShard], crew: Crew) -> Iterator[ShardOutcome]:
    """Have a wave scored, however often its crew regroups; yields one outcome a shard."""
    left = {shard.shard_id: shard for shard in wave}
    while left:
        for outcome in crew.score(run, list(left.values())):
            left.pop(outcome.shard_id, None)
            yield outcome
        # A crew that regroups may have published more than it told of.
        told_late = sorted(published_shards(run.uri) & left.keys()) if left else []
        for rows in shard_rows(run.uri, told_late):
            del left[rows.shard_id]
            yield _published_before(rows)


def _published_before(rows: ShardRows) -> ShardOutcome:
    present = time.time()
    return ShardOutcome(
        shard_id=rows.shard_id,
        num_scored=rows.scored,
        num_quarantined=rows.quarantined,
        begun_at=present,
        published_at=present,
    )


def _enter(run: Run, outcome: ShardOutcome, follower: Follower) -> None:
    """Enter a shard's outcome into the run; an error that awaits every shard ends the run."""
    run.counts["scored"] += outcome.num_scored
    run.counts["quarantined"] += outcome.num_quarantined
    run.add_traffic(outcome.traffic)
    if outcome.error and len(run.missing) < MISSING_NAMED:
        run.missing.append({"shard_id": outcome.shard_id, "error": outcome.error})
        if len(run.missing) <= WARNINGS_SHOWN:
            follower.say(f"warning: shard {outcome.shard_id} is left over: {outcome.error}")
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


def _finish(
    run: Run, request: RunRequest, crew: Crew, lease: Lease, begun_at: float, follower: Follower
) -> None:
    """Check the books, write the slides, merge the files, and only then call the run complete."""
    with _timed(run, "account_seconds"):
        check_plan(run)
        counts = require_all_accounted(run.uri, begun_at=begun_at)
    run.counts |= {"scored": counts.scored, "quarantined": counts.quarantined}
    with _timed(run, "slides_seconds"):
        slides = write_slides(run.uri, request.bundle.calibration)
    with _timed(run, "merge_seconds"):
        _merge(run, request, crew, lease, follower)
    run.status = "complete"
    run.finished = now()
    run.add_traffic(storage.take_traffic())
    run.save()
    facts = gather(run.uri)
    write_report(run.uri, facts)
    follower.finished(run, slides, None if facts.evaluation is None else str(facts.evaluation))


@contextlib.contextmanager
def _timed(run: Run, name: str) -> Iterator[None]:
    """Enter into the run's timings how long something took, in seconds."""
    begun = time.monotonic()
    yield
    run.timings[name] = round(time.monotonic() - begun, 3)


def _merge(run: Run, request: RunRequest, crew: Crew, lease: Lease, follower: Follower) -> None:
    """Merge the parts of a run that has enough of them into few large files."""

    def check() -> None:
        lease.check()
        follower.check()

    if next(groups_to_merge(run.uri, request.merged_bytes), None) is None:
        return
    lease.confirm()
    run.merging = True
    run.save()  # from now on no worker of an earlier session publishes a part
    follower.say("merging the score files")
    num_shards = num_files = 0
    for file in merge_parts(
        run.uri,
        run.run_id,
        merged_bytes=request.merged_bytes,
        num_cpus=crew.planning_cpus,
        check=check,
    ):
        check()
        run.add_traffic(file.traffic)
        num_shards, num_files = num_shards + file.num_shards, num_files + 1
    _delete_late_parts(run)
    follower.say(f"the score files of {num_shards:,} shards are {num_files:,} files now")


def _delete_late_parts(run: Run) -> None:
    """Delete what a worker that was taken for dead published after its shard was merged."""
    merged = MergedShards(run.uri)
    late = [part.shard_id for part in part_entries(run.uri, "scores") if part.shard_id in merged]
    delete_parts(run.uri, late)
