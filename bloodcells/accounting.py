"""A run's books: which shards are done, which are left, and whether every image is accounted for.

Reads the plan's index and the footers of published parts; never a score. Knows nothing of Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

from bloodcells.errors import RunError
from bloodcells.publish import (
    part_rows,
    part_uri,
    plan_files,
    plan_index,
    sweep,
    withdraw_shard,
)

FOOTERS_AT_ONCE: Final = 16


@dataclass(frozen=True, kw_only=True)
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


def planned_shards(run_uri: str) -> Iterator[PlannedShard]:
    """Read the plan's index, plan file by plan file."""
    for plan_uri in plan_files(run_uri):
        index = plan_index(plan_uri)
        shard_ids, sizes = index["shard_id"].to_pylist(), index["num_images"].to_pylist()
        for row, (shard_id, num_images) in enumerate(zip(shard_ids, sizes, strict=True)):
            yield PlannedShard(
                shard_id=shard_id, plan_uri=plan_uri, plan_row=row, num_images=num_images
            )


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
    rows = _rows_of(run_uri, sorted(shard_ids))
    return Counts(
        scored=sum(scored for _, scored, _ in rows),
        quarantined=sum(quarantined for _, _, quarantined in rows),
    )


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
    rows = _rows_of(run_uri, sorted(listed))
    for shard_id, scored, quarantined in rows:
        if scored + quarantined != listed[shard_id]:
            withdraw_shard(run_uri, shard_id)
            raise RunError(
                f"{part_uri(run_uri, 'scores', shard_id)} has {scored} rows and {quarantined} "
                f"in quarantine, but {listed[shard_id]} images were listed; the shard was taken "
                "back, run the same command again to score it anew"
            )
    return Counts(scored=sum(row[1] for row in rows), quarantined=sum(row[2] for row in rows))


def _rows_of(run_uri: str, shard_ids: list[str]) -> list[tuple[str, int, int]]:
    def rows(shard_id: str) -> tuple[str, int, int]:
        return (
            shard_id,
            part_rows(run_uri, "scores", shard_id),
            part_rows(run_uri, "quarantine", shard_id),
        )

    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as readers:
        return list(readers.map(rows, shard_ids))
