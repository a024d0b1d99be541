"""How a run is begun, or gone on with: what was asked for against what is there, and the plan.

Everything up to the first shard that is scored. Knows nothing of scorers, nor of whether a command
or the endpoint asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from bloodcells import storage
from bloodcells.accounting import plan_size, shard_rows
from bloodcells.errors import RunError, StoreError
from bloodcells.pipeline.following import Follower
from bloodcells.pipeline.planning import plan_stores
from bloodcells.pipeline.run_request import LATEST, Crew, RunRequest
from bloodcells.pipeline.since import EarlierRuns, newest_run_beside
from bloodcells.precision import precision_on
from bloodcells.publish import published_shards, withdraw_shards
from bloodcells.runs import (
    Run,
    RunSettings,
    clear_results,
    clear_tables,
    open_run,
    require_vacant,
    run_json_uri,
)
from bloodcells.sites import AUTO
from bloodcells.stores import Source, open_store, stem_of
from bloodcells.stores.sizing import automatic_size, largest_size

NAMESAKES_SHOWN: Final = 5

SHARD_PIXELS: Final = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""What the decoded pixels of a shard may take, in bytes: a scorer holds about four shards, and has
one core's share of a machine's memory, or one GPU's."""


def list_sources(request: RunRequest) -> list[Source]:
    """Find what is to be planned, apart from the run folder.

    Raises:
        BloodcellsError: a store cannot be used, or the run folder lies in it.
    """
    store = open_store(request.stores, slide_pattern=request.slide_pattern)
    store.require_apart_from(request.out)
    return store.sources()


def settings_of(request: RunRequest, crew: Crew, sources: Sequence[Source]) -> RunSettings:
    """Return what the content of the run that is asked for depends on.

    Args:
        request: what is asked for.
        crew: who scores.
        sources: of its stores; shards have as many images as suits them, where nobody says.
    """
    shard_size, largest = request.shard_size, None
    if shard_size is None:
        largest = largest_size(SHARD_PIXELS[crew.device], request.bundle.preprocess.size)
        shard_size = automatic_size(sources, largest=largest)
    return RunSettings(
        stores=tuple(storage.normalise(uri) for uri in request.stores),
        bundle_digest=request.bundle.digest,
        site_digest=request.profile.digest if request.profile else None,
        precision=precision_on(crew.device),
        micro_batch=crew.micro_batch,
        compiled=crew.compiled,
        shard_size=shard_size,
        slide_pattern=request.slide_pattern,
        since=request.since,
        largest_shard=largest,
        site=_kind_of_site(request),
    )


def _kind_of_site(request: RunRequest) -> str:
    return "given" if request.profile else request.site


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
        found.require_same(_as_found(found, request, settings))
        return found
    require_vacant(request.out)
    origin = {
        "uri": request.bundle_origin,
        "digest": request.bundle.digest,
        "model_name": request.bundle.model_name,
        "precision": settings.precision,
        "measured": list(request.bundle.measured),
    }
    run = Run(uri=request.out, settings=settings, bundle=origin)
    run.save()  # from now on workers of an earlier run here publish nothing
    return run


def require_same_request(run: Run, request: RunRequest) -> None:
    """Refuse a finished run that was made with other settings; it may be another crew's.

    Raises:
        RunMismatchError: names each setting that differs.
    """
    asked = replace(
        run.settings,
        stores=tuple(storage.normalise(uri) for uri in request.stores),
        bundle_digest=request.bundle.digest,
        site_digest=request.profile.digest if request.profile else None,
        site=_kind_of_site(request),
        shard_size=request.shard_size or run.settings.shard_size,
        slide_pattern=request.slide_pattern,
        since=request.since,
        largest_shard=None,
    )
    run.require_same(_as_found(run, request, asked))


def _as_found(run: Run, request: RunRequest, settings: RunSettings) -> RunSettings:
    """Return settings with what a run found out by itself, where nobody asks for anything else.

    That is the size of its shards, and the site profile that it made of its store.
    """
    here = run.settings
    if settings.site == here.site == AUTO:
        settings = replace(settings, site_digest=here.site_digest)
    if request.shard_size not in (None, here.shard_size):
        return settings
    return replace(settings, shard_size=here.shard_size, largest_shard=here.largest_shard)


def plan_run(
    run: Run, sources: list[Source], earlier: EarlierRuns | None, crew: Crew, follower: Follower
) -> None:
    """List the stores into ``plan/``; a plan that was cut short is made anew."""
    follower.say(f"planning {len(sources):,} sources")
    follower.changed(run)
    clear_tables(run.uri)
    run.site = None  # it is settled for the plan that comes
    counts = {"listed": 0, "shards": 0, "bytes": 0, "ignored": 0, "scored": 0, "quarantined": 0}
    problems: list[dict[str, str]] = []
    archives: list[str] = []
    for part in plan_stores(
        run.uri,
        sources,
        shard_size=run.settings.shard_size,
        slide_pattern=run.settings.slide_pattern,
        largest_shard=run.settings.largest_shard,
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
    run.merging = False
    run.save()  # first: a run that is killed from here on is not complete
    clear_results(run.uri)
    rows = shard_rows(run.uri, sorted(published_shards(run.uri)))
    withdraw_shards(run.uri, [shard.shard_id for shard in rows if shard.quarantined])


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
