"""A run's books: which shards are done, which are left, and whether every image is accounted for.

Reads the plan's index and the footers of published files; never a score. What it holds of a run
is an id and some numbers a shard. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

import pyarrow as pa

from bloodcells.errors import RunError
from bloodcells.merged import MergedShards, require_whole
from bloodcells.publish import (
    part_rows,
    part_uri,
    plan_files,
    plan_index,
    sweep,
    withdraw_shard,
)

FOOTERS_AT_ONCE: Final = 16
PLANS_AT_ONCE: Final = 8
SHARDS_AT_ONCE: Final = 1024
"""Shards whose footers are asked for together, so that no queue grows with the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """Where a shard stands in the plan; its members stay in the plan file.

    Attributes:
        shard_id: the shard.
        plan_uri: its plan file.
        plan_row: its row, and row group, in that file.
        num_images: images listed in it.
    """

    shard_id: str
    plan_uri: str
    plan_row: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Rows in published parts."""

    scored: int = 0
    quarantined: int = 0


class ShardRows(NamedTuple):
    """How many rows a published shard has in each table."""

    shard_id: str
    scored: int
    quarantined: int


def planned_shards(run_uri: str) -> Iterator[PlannedShard]:
    """Read the plan's index, plan file by plan file, in the order of the plan."""
    for plan_uri, index in _indices(run_uri):
        shard_ids, sizes = index["shard_id"].to_pylist(), index["num_images"].to_pylist()
        for row, (shard_id, num_images) in enumerate(zip(shard_ids, sizes, strict=True)):
            yield PlannedShard(
                shard_id=shard_id, plan_uri=plan_uri, plan_row=row, num_images=num_images
            )


def _indices(run_uri: str) -> Iterator[tuple[str, pa.Table]]:
    """Read the plan files' indices, some ahead of what is asked for."""
    ahead: deque[tuple[str, Future[pa.Table]]] = deque()
    with ThreadPoolExecutor(PLANS_AT_ONCE) as readers:
        try:
            for plan_uri in plan_files(run_uri):
                ahead.append((plan_uri, readers.submit(plan_index, plan_uri)))
                if len(ahead) > PLANS_AT_ONCE:
                    first, index = ahead.popleft()
                    yield first, index.result()
            while ahead:
                first, index = ahead.popleft()
                yield first, index.result()
        finally:
            for _, index in ahead:
                index.cancel()


class PlanSize(NamedTuple):
    """What a plan holds; a shard that stands in it twice counts once, its images twice."""

    num_shards: int
    num_images: int


def plan_size(run_uri: str) -> PlanSize:
    """Count what a run's plan files hold."""
    shard_ids: set[str] = set()
    num_images = 0
    for shard in planned_shards(run_uri):
        shard_ids.add(shard.shard_id)
        num_images += shard.num_images
    return PlanSize(len(shard_ids), num_images)


def pending_waves(run_uri: str, done: set[str], size: int) -> Iterator[list[PlannedShard]]:
    """Yield the planned shards that are not done, at most ``size`` at a time."""
    wave: list[PlannedShard] = []
    for shard in planned_shards(run_uri):
        if shard.shard_id not in done:
            wave.append(shard)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave


def published_counts(run_uri: str, shard_ids: set[str]) -> Counts:
    """Count the rows that these shards have published."""
    scored = quarantined = 0
    for rows in shard_rows(run_uri, sorted(shard_ids)):
        scored += rows.scored
        quarantined += rows.quarantined
    return Counts(scored=scored, quarantined=quarantined)


def require_all_accounted(run_uri: str, *, begun_at: float = math.inf) -> Counts:
    """Check ``listed = scored + quarantined`` for every shard of the plan.

    What killed workers, and workers of a run that was started anew since, left is taken away first.

    Args:
        run_uri: the run folder.
        begun_at: see :func:`bloodcells.publish.sweep`.

    Raises:
        RunError: a shard's rows do not add up; it is withdrawn, so that the next run does it anew.
    """
    listed = {shard.shard_id: shard.num_images for shard in planned_shards(run_uri)}
    sweep(run_uri, listed.keys(), begun_at=begun_at)
    for file in MergedShards(run_uri).files:
        require_whole(run_uri, file)
    num_scored = num_quarantined = 0
    for shard_id, scored, quarantined in shard_rows(run_uri, sorted(listed)):
        if scored + quarantined != listed[shard_id]:
            withdraw_shard(run_uri, shard_id)
            raise RunError(
                f"{part_uri(run_uri, 'scores', shard_id)} has {scored} rows and {quarantined} "
                f"in quarantine, but {listed[shard_id]} images were listed; the shard was taken "
                "back, run the same command again to score it anew"
            )
        num_scored += scored
        num_quarantined += quarantined
    return Counts(scored=num_scored, quarantined=num_quarantined)


def shard_rows(run_uri: str, shard_ids: Iterable[str]) -> Iterator[ShardRows]:
    """Yield how many rows published shards have, in order, from records and footers.

    Raises:
        RunError: a shard's part is missing or damaged; the message says how to have it done anew.
        StorageError: the run folder cannot be reached.
    """
    merged = MergedShards(run_uri)

    def rows(shard_id: str) -> ShardRows:
        if shard_id in merged:
            scored, quarantined = (
                merged.num_rows(table, shard_id) for table in ("scores", "quarantine")
            )
        else:
            scored, quarantined = (
                part_rows(run_uri, table, shard_id) for table in ("scores", "quarantine")
            )
        return ShardRows(shard_id, scored, quarantined)

    waiting = iter(shard_ids)
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as readers:
        while some := list(islice(waiting, SHARDS_AT_ONCE)):
            yield from readers.map(rows, some)
