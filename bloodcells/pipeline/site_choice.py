"""Which site profile a run has: none, one that was given, or one made of the store itself.

It is frozen in the run folder before the first shard is scored. Knows nothing of scorers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from bloodcells.accounting import planned_shards
from bloodcells.pipeline.following import Follower
from bloodcells.pipeline.run_request import Crew, RunRequest
from bloodcells.publish import read_planned
from bloodcells.records import Shard
from bloodcells.runs import Run
from bloodcells.sites import AUTO, SiteProfile, compare_with_home, sample_images
from bloodcells.sites.sample import MOST_READ, SEARCHED, chosen_first


def settle_site(run: Run, request: RunRequest, crew: Crew, follower: Follower) -> None:
    """Give a run its site profile, unless it has one or wants none.

    Raises:
        StorageError: the store or the run folder cannot be reached.
    """
    profile = request.profile
    if run.site is not None or (profile is None and request.site != AUTO):
        return
    if profile is None:
        follower.say("comparing a sample of the store with the model's own lab")
        images = sample_images(_sampled_shards(run.uri, run.counts["listed"]), MOST_READ)
        profile = compare_with_home(images, request.bundle.home, request.bundle.digest)
        if profile.standing == "elsewhere":
            follower.say("it is from elsewhere; looking for how the model is to see it")
            work = ray.remote(num_cpus=crew.planning_cpus, max_retries=2)(_suited)
            profile = ray.get(work.remote(profile, images[:SEARCHED], request.bundle_uri))
    profile.save(run.uri)
    run.site = profile.to_dict() | {"uri": request.site}
    run.settings = replace(run.settings, site_digest=profile.digest)
    run.save()
    follower.say(profile.sentence)


def _suited(profile: SiteProfile, images: Sequence[Any], bundle_uri: str) -> SiteProfile:
    """Find how the model is to see pictures from elsewhere; it is loaded for that."""
    from bloodcells.bundle import ModelBundle  # here: the driver does without torch
    from bloodcells.site_search import suited

    return suited(profile, images, ModelBundle.load(bundle_uri))


def _sampled_shards(run_uri: str, num_images: int) -> Iterator[Shard]:
    """Read a plan's shards; of a large one in an order that follows from their ids alone."""
    shards = planned_shards(run_uri)
    if num_images > MOST_READ:
        shards = iter(sorted(shards, key=lambda shard: chosen_first(shard.shard_id)))
    for shard in shards:
        yield read_planned(shard.plan_uri, shard.plan_row)
