"""Which site profile a run has: none, one that was given or found before, or one of its own store.

It is frozen in the run folder before the first shard is scored. Pictures are looked at in a task,
which one of them may end; the driver decodes none. Knows nothing of scorers.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import ray

from bloodcells import storage
from bloodcells.accounting import planned_shards
from bloodcells.errors import BloodcellsError, RunIncompleteError
from bloodcells.lease import Lease
from bloodcells.pipeline.attempts import MAX_ATTEMPTS
from bloodcells.pipeline.following import Follower
from bloodcells.pipeline.run_request import Crew, RunRequest
from bloodcells.publish import read_planned
from bloodcells.records import Shard
from bloodcells.runs import Run, open_run
from bloodcells.site_making import decodable, profile_of
from bloodcells.sites import AUTO, HomeReference, SiteProfile, sample_images
from bloodcells.sites.sample import MOST_READ, chosen_first
from bloodcells.storage import Traffic

CHECK_EVERY_S: Final = 1.0

PLAIN_S: Final = 600.0
"""Longest that the first task may take, for a picture may hang in its decoder. Some seconds are
usual. The task that follows has no such limit: there each picture has one of its own."""


class _Task(NamedTuple):
    """What a task is told."""

    run_uri: str
    bundle_uri: str
    bundle_digest: str
    home: HomeReference
    acting: SiteProfile | None
    isolated: bool


class _Found(NamedTuple):
    profile: SiteProfile
    traffic: Traffic


def settle_site(
    run: Run, request: RunRequest, crew: Crew, lease: Lease, follower: Follower
) -> None:
    """Give a run its site profile, unless it has one or wants none.

    Raises:
        StorageError: the store, the run folder or the bundle cannot be reached.
        RunIncompleteError: the cluster lost the work again and again, or it failed unforeseen.
        BloodcellsError: the lease is another's by now, or the follower ends the run.
    """
    if run.site is not None or (request.profile is None and request.site != AUTO):
        return
    before = None if request.profile else _profile_before(run)
    profile = _compared(run, request, crew, request.profile or before, lease, follower)
    lease.confirm()
    profile.save(run.uri)
    run.site = profile.to_dict() | {"uri": run.settings.since if before else request.site}
    run.settings = replace(run.settings, site_digest=profile.digest)
    run.save()
    follower.say(profile.sentence)


def _profile_before(run: Run) -> SiteProfile | None:
    """Return the profile of the run that this one is ``--since``: one store is seen in one way.

    ``None`` where there is no such run, where it was scored with another bundle, or where it has
    none: one that changes nothing because nothing was known of its pictures is none.
    """
    earlier = open_run(run.settings.since) if run.settings.since else None
    if earlier is None or earlier.settings.bundle_digest != run.settings.bundle_digest:
        return None
    profile = earlier.profile
    if profile is None or (profile.standing == "unknown" and profile.changes_nothing):
        return None
    return profile


def _compared(
    run: Run,
    request: RunRequest,
    crew: Crew,
    acting: SiteProfile | None,
    lease: Lease,
    follower: Follower,
) -> SiteProfile:
    """Have a sample of the store compared with home; where nothing can be said, nothing changes."""
    nothing_said = SiteProfile(bundle_digest=request.bundle.digest)
    if acting is not None:
        nothing_said = nothing_said.acting_as(acting)
    if request.bundle.home is None or not run.counts["listed"]:
        return nothing_said
    follower.say("comparing a sample of the store with the model's own lab")

    def check() -> None:
        lease.check()
        follower.check()

    work: Any = ray.remote(_found_or_error).options(
        max_retries=MAX_ATTEMPTS - 1, num_cpus=crew.planning_cpus
    )
    for isolated, longest_s in ((False, PLAIN_S), (True, math.inf)):
        asked = _Task(
            run_uri=run.uri,
            bundle_uri=request.bundle_uri,
            bundle_digest=request.bundle.digest,
            home=request.bundle.home,
            acting=acting,
            isolated=isolated,
        )
        found = _answer(work.remote(asked), longest_s, check)
        if found is not None:
            run.add_traffic(found.traffic)
            return found.profile
        if not isolated:
            follower.say("that ended its process, or took very long: once more, one by one")
    follower.say(
        f"warning: comparing a sample of the store ended its process {MAX_ATTEMPTS} times, so "
        "nothing is known of where its pictures come from"
    )
    return nothing_said


def _answer(
    task: ray.ObjectRef[_Found | BloodcellsError], longest_s: float, check: Callable[[], None]
) -> _Found | None:
    """Wait for a task; ``None`` where it ended its process each time, or took too long."""
    if not _is_done(task, longest_s, check):
        return None
    try:
        answer: _Found | BloodcellsError = ray.get(task)
    except ray.exceptions.WorkerCrashedError:
        return None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise RunIncompleteError(
            "the store's pictures cannot be compared with the model's own lab "
            f"({type(cause).__name__}: {cause}); to score them without, name another --out with "
            "--site none"
        ) from error
    except ray.exceptions.RayError as error:
        raise RunIncompleteError(
            "the cluster lost the comparison of the store with the model's own lab "
            f"({type(error).__name__}); run the same command again"
        ) from error
    if isinstance(answer, BloodcellsError):
        raise answer
    return answer


def _is_done(
    task: ray.ObjectRef[_Found | BloodcellsError], longest_s: float, check: Callable[[], None]
) -> bool:
    """Wait for a task, which is given up where it takes too long or ``check`` raises."""
    deadline = time.monotonic() + longest_s
    done = False
    try:
        while not done and time.monotonic() < deadline:
            check()
            done = bool(ray.wait([task], timeout=CHECK_EVERY_S)[0])
    finally:
        if not done:  # Ray 2.60 ends the driver over one whose answer is there already
            ray.cancel(task, force=True)
    return done


def _found_or_error(asked: _Task) -> _Found | BloodcellsError:
    """Look at a sample in a task; an error is an answer, or Ray would wrap it in its own."""
    try:
        chosen = sample_images(_sampled_shards(asked.run_uri), MOST_READ)
        profile = profile_of(
            decodable(chosen, isolated=asked.isolated),
            asked.home,
            asked.bundle_digest,
            lambda: _loaded(asked.bundle_uri),
            asked.acting,
        )
        return _Found(profile, storage.take_traffic())
    except BloodcellsError as error:
        return error


def _loaded(bundle_uri: str) -> Any:
    from bloodcells.bundle import ModelBundle  # here: the driver does without torch

    return ModelBundle.load(bundle_uri)


def _sampled_shards(run_uri: str) -> Iterator[Shard]:
    """Read a plan's shards in the order in which they are sampled; it follows from their ids."""
    first = heapq.nsmallest(
        MOST_READ, planned_shards(run_uri), key=lambda shard: chosen_first(shard.shard_id)
    )
    for shard in first:
        yield read_planned(shard.plan_uri, shard.plan_row)
