"""How a run is begun, or gone on with: what was asked for against what is there, and the plan.

Everything up to the first shard that is scored. Knows nothing of scorers, nor of whether a command
or the endpoint asks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bloodcells import storage
from bloodcells.accounting import plan_size
from bloodcells.errors import RunError, StoreError
from bloodcells.pipeline.following import Follower
from bloodcells.pipeline.planning import plan_stores
from bloodcells.pipeline.run_request import LATEST, Crew, RunRequest
from bloodcells.pipeline.since import EarlierRuns, newest_run_beside
from bloodcells.publish import part_rows, published_shards, withdraw_shard
from bloodcells.runs import (
    Run,
    RunSettings,
    clear_results,
    clear_tables,
    open_run,
    require_vacant,
    run_json_uri,
)
from bloodcells.scoring import precision_on
from bloodcells.stores import Source, open_store, stem_of

NAMESAKES_SHOWN: Final = 5


def list_sources(request: RunRequest) -> list[Source]:
    """Find what is to be planned, apart from the run folder.

    Raises:
        BloodcellsError: a store cannot be used, or the run folder lies in it.
    """
    store = open_store(request.stores, slide_pattern=request.slide_pattern)
    store.require_apart_from(request.out)
    return store.sources()


def settings_of(request: RunRequest, crew: Crew) -> RunSettings:
    """Return what the content of the run that is asked for depends on."""
    return RunSettings(
        stores=tuple(storage.normalise(uri) for uri in request.stores),
        bundle_digest=request.bundle.digest,
        site_digest=None,
        precision=precision_on(crew.device),
        micro_batch=crew.micro_batch,
        compiled=crew.compiled,
        shard_size=request.shard_size,
        slide_pattern=request.slide_pattern,
        since=request.since,
    )


def resolve_since(request: RunRequest, found: Run | None, follower: Follower) -> RunRequest:
    """Replace ``--since latest`` by a run: the newest now, or what the run that goes on has.

    Raises:
        StorageError: the folders beside the run folder cannot be listed or read.
    """
    if request.since != LATEST:
        return request
    if found is not None:
        return replace(request, since=found.settings.since)
    newest = newest_run_beside(request.out)
    if newest is None:
        follower.say(f"no complete run beside {request.out} yet: everything is scored")
    else:
        follower.say(f"scored is what {newest} and those before it did not list")
    return replace(request, since=newest)


def take_up(request: RunRequest, settings: RunSettings) -> Run:
    """Go on with the folder's run, or begin one; the lease is held."""
    found = None if request.restart else open_run(request.out)
    if found is not None:
        found.require_same(settings)
        return found
    require_vacant(request.out)
    origin = {
        "uri": request.bundle_origin,
        "digest": request.bundle.digest,
        "model_name": request.bundle.model_name,
        "precision": settings.precision,
    }
    run = Run(uri=request.out, settings=settings, bundle=origin)
    run.save()  # from now on workers of an earlier run here publish nothing
    return run


def plan_run(
    run: Run, sources: list[Source], earlier: EarlierRuns | None, crew: Crew, follower: Follower
) -> None:
    """List the stores into ``plan/``; a plan that was cut short is made anew."""
    follower.say(f"planning {len(sources):,} sources")
    follower.changed(run)
    clear_tables(run.uri)
    counts = {"listed": 0, "shards": 0, "bytes": 0, "ignored": 0, "scored": 0, "quarantined": 0}
    problems: list[dict[str, str]] = []
    archives: list[str] = []
    for part in plan_stores(
        run.uri,
        sources,
        shard_size=run.settings.shard_size,
        slide_pattern=run.settings.slide_pattern,
        earlier=earlier,
        num_cpus=crew.planning_cpus,
        check=follower.check,
    ):
        follower.check()
        counts["listed"] += part.num_images
        counts["shards"] += part.num_shards
        counts["bytes"] += part.num_bytes
        counts["ignored"] += part.num_ignored
        run.add_traffic(part.traffic)
        archives += part.archives
        problems += [{"uri": problem.uri, "detail": problem.detail} for problem in part.problems]
    if counts["listed"] == 0 and not earlier:
        storage.delete(run_json_uri(run.uri))
        trouble = "".join(f" ({problem['uri']}: {problem['detail']})" for problem in problems[:1])
        raise StoreError(
            f"{', '.join(run.settings.stores)}: no image found, {counts['ignored']:,} other files"
            f"{trouble}; "
            "images are .jpg, .jpeg, .png, .bmp, .tif, .tiff, .webp in folders, tar or zip "
            "archives, Parquet or .npz"
        )
    run.counts = counts
    run.source_problems = sorted(problems, key=lambda problem: problem["uri"])
    run.status = "running"
    run.add_traffic(storage.take_traffic())
    run.save()
    for problem in run.source_problems:
        follower.say(f"warning: {problem['uri']}: {problem['detail']}")
    if run.settings.slide_pattern is None:
        _warn_of_namesakes(archives, follower)


def _warn_of_namesakes(archives: list[str], follower: Follower) -> None:
    """Archives of one name are one slide: that is seldom meant, and two patients' cells may mix."""
    by_slide: dict[str, list[str]] = {}
    for uri in sorted(archives):
        by_slide.setdefault(stem_of(uri), []).append(uri)
    namesakes = {slide: uris for slide, uris in by_slide.items() if len(uris) > 1}
    for slide, uris in list(namesakes.items())[:NAMESAKES_SHOWN]:
        follower.say(
            f"warning: slide {slide} is made of {len(uris)} archives of that name, among them "
            f"{uris[0]} and {uris[1]}; if they are not one specimen, tell them apart with "
            "--slide-pattern and --restart"
        )


def withdraw_quarantined(run: Run) -> None:
    """Take back the shards that have quarantined images, so that they are done again."""
    run.status = "running"
    run.save()  # first: a run that is killed from here on is not complete
    clear_results(run.uri)
    for shard_id in sorted(published_shards(run.uri)):
        if part_rows(run.uri, "quarantine", shard_id):
            withdraw_shard(run.uri, shard_id)


def check_plan(run: Run) -> None:
    """Make sure that the plan holds what was listed; a plan that does not is made anew."""
    found = plan_size(run.uri)
    if found != (run.counts["shards"], run.counts["listed"]):
        run.status = "planning"
        run.save()
        raise RunError(
            f"{storage.join(run.uri, 'plan')} holds {found.num_images:,} images in "
            f"{found.num_shards:,} shards, but {run.counts['listed']:,} in "
            f"{run.counts['shards']:,} were listed; run the same command again to begin anew"
        )
