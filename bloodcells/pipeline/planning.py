"""Planning in parallel: one task a source lists it and writes its own plan files.

The driver sees one row of counts a task, however many images it listed. A task that finds archives
in a folder, or more in a folder on S3 than it should list, hands these on as sources of their own.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import ray

from bloodcells import storage
from bloodcells.errors import BloodcellsError, RunIncompleteError, StoreError
from bloodcells.pipeline.attempts import MAX_ATTEMPTS
from bloodcells.pipeline.since import EarlierRuns, known_members
from bloodcells.publish import plan_bytes
from bloodcells.records import Member, Shard
from bloodcells.storage import Traffic
from bloodcells.stores import Ignored, ListingProblem, Source, plan_part

SHARDS_PER_PLAN_FILE: Final = 64
IMAGES_PER_PLAN_FILE: Final = 200_000
"""Images at which a plan file is closed although it has room for more shards: about 100 MB of
members in the task that lists them."""

SOURCES_AT_ONCE: Final = 256
"""Most listing tasks that are handed to Ray at once: more than a large cluster has cores for."""

SHARDS_LISTED_FIRST: Final = 10
"""Shards' worth of a folder on S3 that its first task lists: what is left is shared out then, and a
smaller folder would be cut into needlessly small shards."""

SHARDS_LISTED: Final = 32
"""The same of each part that was handed on. A thousand names are one request, of 30 to 100 ms."""

LEAST_SHARD_SIZE: Final = 1000
"""For these two: smaller shards must not mean more tasks, for a page holds so many names."""

CHECK_EVERY_S: Final = 1.0

NAMED_AFTER_SLIDES: Final = ("tar", "targz", "zip", "npz")
"""Kinds whose images have the archive's name for a slide (a table may have a column for it)."""


@dataclass(frozen=True, kw_only=True)
class PlanCounts:
    """What planning one source found.

    Attributes:
        num_images, num_bytes, num_shards: what was planned.
        num_ignored: files that are no images.
        problems: sources that were cut short.
        archives: URIs of the archives that are named after their slides.
        handed_on: sources that were found in it, to be planned as well.
        traffic: what it asked of storage.
    """

    num_images: int = 0
    num_bytes: int = 0
    num_shards: int = 0
    num_ignored: int = 0
    problems: tuple[ListingProblem, ...] = ()
    archives: tuple[str, ...] = ()
    handed_on: tuple[Source, ...] = ()
    traffic: Traffic = field(default_factory=Traffic)


class Cuts(NamedTuple):
    """How sources are cut into shards; see ``stores.plan_source``."""

    shard_size: int
    largest_shard: int | None
    slide_pattern: str | None


def plan_stores(
    run_uri: str,
    sources: Sequence[Source],
    *,
    shard_size: int,
    slide_pattern: str | None,
    largest_shard: int | None = None,
    earlier: EarlierRuns | None = None,
    num_cpus: float = 1.0,
    check: Callable[[], None] = lambda: None,
) -> Iterator[PlanCounts]:
    """Plan sources and what they hand on in parallel; each task writes its own plan files.

    Args:
        run_uri: the run folder; ``plan/`` in it must be empty.
        sources: what :meth:`Store.sources` listed.
        shard_size: images in a shard; see ``stores.plan_source``.
        slide_pattern: the same.
        largest_shard: the same.
        earlier: runs whose images are left out (``--since``).
        num_cpus: cores that a task books.
        check: called every second or so while tasks are waited for; what it raises ends them.

    Raises:
        BloodcellsError: a source cannot be listed, or listing it ends its process again and again.
    """
    plan: Any = ray.remote(_plan_or_error).options(max_retries=MAX_ATTEMPTS - 1, num_cpus=num_cpus)
    waiting: dict[ray.ObjectRef[PlanCounts | BloodcellsError], str] = {}
    to_do = deque(sources)
    cuts = Cuts(shard_size, largest_shard, slide_pattern)
    try:
        while to_do or waiting:
            if to_do and len(waiting) < SOURCES_AT_ONCE:
                source = _bounded(to_do.popleft(), shard_size)
                known = earlier.plans_of(source) if earlier is not None else []
                task = plan.remote(run_uri, source, cuts, known)
                waiting[task] = source.uri
            else:
                counts = _next_answer(waiting, check)
                to_do.extend(counts.handed_on)
                yield counts
    finally:
        for task in waiting:  # a plan that is given up: a listing may take hours
            ray.cancel(task, force=True)


def _bounded(source: Source, shard_size: int) -> Source:
    """Return a source of which one task lists no more than it should."""
    if source.kind != "folder" or not source.recursive:
        return source
    if not storage.lists_from_anywhere(source.uri):
        return source
    num_shards = SHARDS_LISTED if source.after or source.upto else SHARDS_LISTED_FIRST
    return replace(source, at_most=num_shards * max(shard_size, LEAST_SHARD_SIZE))


def _next_answer(
    waiting: dict[ray.ObjectRef[PlanCounts | BloodcellsError], str], check: Callable[[], None]
) -> PlanCounts:
    """Wait for the first of some tasks to be done, and take it from those that wait."""
    while not (ready := ray.wait(list(waiting), timeout=CHECK_EVERY_S)[0]):
        check()
    done = ready[0]
    source_uri = waiting.pop(done)
    try:
        answer: PlanCounts | BloodcellsError = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise StoreError(
            f"{source_uri} cannot be listed ({type(cause).__name__}: {cause}); check that it is "
            "what its name says, or leave it out"
        ) from error
    except ray.exceptions.RayError as error:
        raise RunIncompleteError(
            f"listing {source_uri} ended its process {MAX_ATTEMPTS} times "
            f"({type(error).__name__}); it may need more memory than there is"
        ) from error
    if isinstance(answer, BloodcellsError):
        raise answer
    return answer


def _plan_or_error(
    run_uri: str, source: Source, cuts: Cuts, earlier_plans: Sequence[str]
) -> PlanCounts | BloodcellsError:
    """Plan one source in a task; an error is an answer, or Ray would wrap it in its own."""
    try:
        known = known_members(earlier_plans)
        return write_plan(run_uri, source, cuts, known)
    except BloodcellsError as error:
        return error


def write_plan(
    run_uri: str, source: Source, cuts: Cuts, known: Callable[[Member], bool] | None
) -> PlanCounts:
    """Plan one source and write its plan files, ``plan/<source>-<number>.parquet``."""
    num_images = num_bytes = num_shards = num_ignored = num_files = num_waiting = 0
    problems: list[ListingProblem] = []
    archives: set[str] = set()
    handed_on: list[Source] = []
    waiting: list[Shard] = []

    def flush() -> None:
        nonlocal num_files, num_waiting
        if waiting:
            name = f"{_source_id(source)}-{num_files:06d}.parquet"
            storage.put(storage.join(run_uri, "plan", name), plan_bytes(waiting))
            num_files += 1
            num_waiting = 0
            waiting.clear()

    for item in plan_part(source, known=known, **cuts._asdict()):
        if isinstance(item, ListingProblem):
            problems.append(item)
        elif isinstance(item, Ignored):
            num_ignored += item.count
        elif isinstance(item, Source):
            handed_on.append(item)
        else:
            num_shards += 1
            num_images += len(item.members)
            num_bytes += sum(member.size for member in item.members)
            waiting.append(item)
            num_waiting += len(item.members)
            if item.kind in NAMED_AFTER_SLIDES:
                archives.add(item.source_uri)
            if len(waiting) == SHARDS_PER_PLAN_FILE or num_waiting >= IMAGES_PER_PLAN_FILE:
                flush()
    flush()
    return PlanCounts(
        num_images=num_images,
        num_bytes=num_bytes,
        num_shards=num_shards,
        num_ignored=num_ignored,
        problems=tuple(problems),
        archives=tuple(sorted(archives)),
        handed_on=tuple(handed_on),
        traffic=storage.take_traffic(),
    )


def _source_id(source: Source) -> str:
    """Name a source: each part of a folder has plan files of its own."""
    part = f"\0{source.after}\0{source.upto}" if source.after or source.upto else ""
    return hashlib.sha256(f"{source.kind}\0{source.uri}{part}".encode()).hexdigest()[:16]
